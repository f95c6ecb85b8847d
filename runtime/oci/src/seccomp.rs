//! The profile `RuntimeDefault`: what ordinary programs call is allowed, what changes the machine is refused (EPERM)
//! unless a capability of the container is about it, and what this list does not know is "not implemented"
//! (ENOSYS), so that a C library tries its older way.

use crate::Error;
use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};
use std::collections::HashSet;

const FILES: &str = "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat \
    faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 \
    fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate \
    ftruncate64 futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init inotify_init1 \
    inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat listxattr llistxattr _llseek lremovexattr lseek \
    lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat newfstatat _newselect open openat openat2 pipe pipe2 pread64 \
    preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr rename renameat \
    renameat2 rmdir sendfile sendfile64 setxattr splice stat stat64 statfs statfs64 statx symlink symlinkat sync \
    sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice \
    write writev name_to_handle_at fanotify_mark getxattrat listxattrat setxattrat removexattrat statmount_by_fd";
const MEMORY: &str = "brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 \
    mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
    process_mrelease remap_file_pages arch_prctl modify_ldt set_thread_area get_thread_area";
const PROCESSES: &str = "alarm capget capset execve execveat exit exit_group fork vfork futex futex_requeue \
    futex_time64 futex_wait futex_waitv futex_wake get_robust_list getcpu getegid getegid32 geteuid geteuid32 getgid \
    getgid32 getgroups getgroups32 getitimer getpgid getpgrp getpid getppid getpriority getresgid getresgid32 \
    getresuid getresuid32 getrlimit getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set kill \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self pause pidfd_open pidfd_send_signal prctl prlimit64 \
    process_vm_readv process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask \
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
    sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_tid_address setfsgid setfsgid32 setfsuid \
    setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid \
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 sigaltstack signal sigaction \
    sigpending sigprocmask sigreturn sigsuspend sysinfo tgkill time times tkill ugetrlimit uname wait4 waitid waitpid";
const WAITING: &str = "clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 getrandom gettimeofday nanosleep poll ppoll ppoll_time64 pselect6 pselect6_time64 \
    select signalfd signalfd4 timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 adjtimex \
    clock_adjtime clock_adjtime64 io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit";
const TALKING: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair ipc mq_getsetattr \
    mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget \
    msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget";

/// Refused with EPERM, which programs expect, unless the container has the capability.
const GUARDED: &[(Capability, &str)] = &[
    (
        Capability::SysAdmin,
        "bpf clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns umount umount2 \
         unshare listmount statmount swapon swapoff lsm_set_self_attr",
    ),
    (Capability::SysBoot, "reboot kexec_load kexec_file_load"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module init_module finit_module query_module create_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "iopl ioperm"),
    (Capability::SysTime, "settimeofday stime clock_settime clock_settime64"),
    (Capability::SysTtyConfig, "vhangup"),
    (
        Capability::SysNice,
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node migrate_pages move_pages",
    ),
    (Capability::Syslog, "syslog"),
    (Capability::DacReadSearch, "open_by_handle_at"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];
/// Never, whoever asks: keys and user page faults are not confined to a container.
const NEVER: &str = "add_key keyctl request_key userfaultfd nfsservctl uselib ustat sysfs _sysctl";

/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const AF_VSOCK: u64 = 40;
/// What personality(2) may be set to: Linux, 32 bit, no randomisation, and asking.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

fn rule(
    names: &str,
    action: LinuxSeccompAction,
    errno: Option<u32>,
    args: Vec<LinuxSeccompArg>,
) -> LinuxSyscall {
    let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    let mut rule = LinuxSyscallBuilder::default().names(names).action(action);
    if let Some(errno) = errno {
        rule = rule.errno_ret(errno);
    }
    if !args.is_empty() {
        rule = rule.args(args);
    }
    rule.build().expect("names and action are all that a rule needs")
}

fn arg(index: usize, op: LinuxSeccompOperator, value: u64, two: Option<u64>) -> Vec<LinuxSeccompArg> {
    let mut arg = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    if let Some(two) = two {
        arg = arg.value_two(two);
    }
    vec![arg.build().expect("index, op and value are all that an argument needs")]
}

/// The profile for a container that has `capabilities`.
pub(crate) fn default(capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    use LinuxSeccompAction::{ScmpActAllow as Allow, ScmpActErrno as Errno};
    use LinuxSeccompOperator::{ScmpCmpEq, ScmpCmpMaskedEq, ScmpCmpNe};

    let eperm = Some(libc::EPERM as u32);
    let mut allowed: Vec<&str> = [FILES, MEMORY, PROCESSES, WAITING, TALKING].to_vec();
    let mut refused: HashSet<&str> = NEVER.split_whitespace().collect();
    let mut granted = HashSet::new();
    for (capability, names) in GUARDED {
        let names = names.split_whitespace();
        if capabilities.contains(capability) { granted.extend(names) } else { refused.extend(names) }
    }
    let granted: Vec<&str> = granted.into_iter().collect();
    let granted = granted.join(" ");
    allowed.push(&granted);
    refused.retain(|name| !granted.split(' ').any(|other| other == *name));

    let mut rules = vec![rule(&allowed.join(" "), Allow, None, Vec::new())];
    rules.push(rule("socket", Allow, None, arg(0, ScmpCmpNe, AF_VSOCK, None)));
    for personality in PERSONALITIES {
        rules.push(rule("personality", Allow, None, arg(0, ScmpCmpEq, personality, None)));
    }
    if capabilities.contains(&Capability::SysAdmin) {
        rules.push(rule("clone", Allow, None, Vec::new()));
    } else {
        rules.push(rule("clone", Allow, None, arg(0, ScmpCmpMaskedEq, NEW_NAMESPACES, Some(0))));
        refused.remove("clone3"); // its flags cannot be seen from here: not implemented, so that clone is used
    }
    let refused: Vec<&str> = refused.into_iter().collect();
    rules.push(rule(&refused.join(" "), Errno, eperm, Vec::new()));

    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(Errno)
        .set_default_errno_ret(Some(libc::ENOSYS as u32))
        .set_architectures(architectures())
        .set_syscalls(Some(rules));
    profile
}

/// The machine's own and those that its kernel runs beside it.
fn architectures() -> Option<Vec<Arch>> {
    match std::env::consts::ARCH {
        "x86_64" => Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]),
        "aarch64" => Some(vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]),
        _ => None, // the library takes the native one
    }
}

/// A profile of the caller's.
pub(crate) fn parse(json: &str) -> Result<LinuxSeccomp, Error> {
    serde_json::from_str(json).map_err(|cause| Error::Invalid(format!("seccomp profile: {cause}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &LinuxSeccomp, action: LinuxSeccompAction) -> HashSet<String> {
        let rules = profile.syscalls().as_deref().unwrap_or_default();
        rules.iter().filter(|rule| rule.action() == action).flat_map(|rule| rule.names().clone()).collect()
    }

    #[test]
    fn no_call_is_both_allowed_and_refused() {
        for capabilities in [HashSet::new(), HashSet::from([Capability::SysAdmin, Capability::Bpf])] {
            let profile = default(&capabilities);
            let allowed = names(&profile, LinuxSeccompAction::ScmpActAllow);
            let refused = names(&profile, LinuxSeccompAction::ScmpActErrno);
            assert_eq!(allowed.intersection(&refused).collect::<Vec<_>>(), Vec::<&String>::new());
            assert_eq!(allowed.contains("mount"), capabilities.contains(&Capability::SysAdmin));
            assert!(refused.contains("keyctl") && allowed.contains("read"));
        }
    }

    #[test]
    fn clone3_is_not_known_rather_than_refused() {
        let profile = default(&HashSet::new());
        assert!(!names(&profile, LinuxSeccompAction::ScmpActErrno).contains("clone3"));
        assert!(!names(&profile, LinuxSeccompAction::ScmpActAllow).contains("clone3"));
    }
}
