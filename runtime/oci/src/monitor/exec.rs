//! Further processes in a running container.

use super::{
    Monitor, Running,
    create::{self, Stdio, chain},
};
use crate::{
    overlay,
    state::Dir,
    sys,
    wire::{ExecStreams, Plan},
};
use libcontainer::{
    capabilities::drop_privileges,
    container::builder::ContainerBuilder,
    seccomp::initialize_seccomp,
    syscall::syscall::{SyscallType, create_syscall},
    workload::{
        Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError, default::get_executor,
    },
};
use nix::{
    sched::CloneFlags,
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid},
};
use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxSeccomp, Process, Spec, User};
use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::Duration,
};

/// Processes started in one container at a time; a shim's own limits are below.
const EXECS: usize = 64;

/// One of them, and whom to tell of its end.
pub(super) struct Exec {
    pub client: u64,
    /// The request to answer.
    pub request: u64,
    pub token: u64,
    pid: Pid,
}

impl Exec {
    /// One that is about to be started.
    pub fn new(client: u64, request: u64, token: u64) -> Self {
        Self { client, request, token, pid: Pid::from_raw(0) }
    }

    /// Waits for the end of one that was killed; its exit code.
    pub fn wait(&self) -> i32 {
        match waitpid(self.pid, None) {
            Ok(WaitStatus::Exited(_, code)) => code,
            Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
            _ => 128 + Signal::SIGKILL as i32,
        }
    }
}

impl Running {
    pub(super) fn take_exec(&mut self, pid: Pid) -> Option<Exec> {
        let at = self.execs.iter().position(|exec| exec.pid == pid)?;
        Some(self.execs.swap_remove(at))
    }

    pub(super) fn kill_execs(&self, which: impl Fn(&Exec) -> bool) {
        for exec in self.execs.iter().filter(|exec| which(exec)) {
            let _ = kill(exec.pid, Signal::SIGKILL); // not reaped yet, so the pid is still its own
        }
    }
}

impl Monitor {
    /// Starts a process in the container; its end is told later.
    pub(super) fn exec(
        &mut self,
        mut exec: Exec,
        args: &[String],
        streams: ExecStreams,
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let container = self.container.as_mut().filter(|container| container.started_at.is_some());
        let container = container.ok_or("the container is not running")?;
        if container.execs.len() >= EXECS {
            return Err(format!("{EXECS} processes were started in it and run still"));
        }
        let plan = &container.plan;
        let mut fds = fds.into_iter();
        let mut take = |given: bool, write: bool| -> Result<OwnedFd, String> {
            let fd = if given { fds.next() } else { None };
            let null = || File::options().read(!write).write(write).open("/dev/null").map(OwnedFd::from);
            let fd = fd.map_or_else(null, Ok).map_err(|cause| format!("/dev/null: {cause}"))?;
            if given {
                // So that a program may open /dev/stdout anew; what is no pipe of ours stays its owner's.
                let _ = nix::unistd::fchown(&fd, Some(plan.uid.into()), Some(plan.gid.into()));
            }
            Ok(fd)
        };
        let mut stdio = match &streams {
            ExecStreams::Pipes([stdin, stdout, stderr]) => Some(Stdio {
                stdin: take(*stdin, false)?,
                stdout: take(*stdout, true)?,
                stderr: take(*stderr, true)?,
            }),
            ExecStreams::Terminal(_) => None,
        };
        let console = match &streams {
            ExecStreams::Terminal(path) => Some(path.as_path()),
            ExecStreams::Pipes(_) => None,
        };
        let (clients, listener) = (&mut self.clients, &mut self.listener);
        let started = create::in_child(
            &self.signals,
            Duration::from_secs(plan.deadline),
            || {
                clients.clear();
                *listener = None;
            },
            || start(plan, container.pid, args, stdio.take(), console),
        );
        self.unreaped = true;
        exec.pid = Pid::from_raw(started?);
        if let Some(score) = plan.oom_score_adj {
            sys::set_oom_score(exec.pid.as_raw(), score);
        }
        container.execs.push(exec);
        Ok(())
    }
}

/// In the short-lived child: the container's own process again, but for its arguments. As a sibling, so that the
/// monitor reaps it.
fn start(
    plan: &Plan,
    first: Pid,
    args: &[String],
    stdio: Option<Stdio>,
    console: Option<&Path>,
) -> Result<i32, String> {
    let dir = Dir(plan.dir.clone());
    let spec = Spec::load(dir.bundle().join("config.json")).map_err(|cause| chain(&cause))?;
    let mut process = spec.process().clone().ok_or("the container's spec has no process")?;
    process.set_args(Some(args.to_vec())).set_terminal(Some(console.is_some()));
    if console.is_some() {
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|entry| entry.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        process.set_env(Some(env));
    }
    let file = dir.0.join("exec.json");
    let describe = |process: &Process| {
        fs::write(&file, serde_json::to_vec(process).map_err(|cause| cause.to_string())?)
            .map_err(|cause| format!("write {}: {cause}", file.display()))
    };
    if let Some(binary) = create::binary(plan, &dir) {
        describe(&process)?;
        if plan.user.is_some() {
            // runc begins in the root that it was told at the creation.
            overlay::pretend(&dir).map_err(|cause| format!("stage: {cause}"))?;
        }
        let made = binary.exec(&file, stdio, console);
        let _ = fs::remove_file(&file);
        return made;
    }
    let mut finish = Finish::seccomp(&spec, &process);
    if plan.user.is_some() {
        // While the first process is not reaped, its number is its own.
        let namespace = File::open(format!("/proc/{first}/ns/user"))
            .map_err(|cause| format!("open its user namespace: {cause}"))?;
        finish.enter(namespace, (plan.uid, plan.gid), &mut process);
    }
    finish.lend(&mut process);
    describe(&process)?;

    let mut builder = ContainerBuilder::new(plan.id.clone(), SyscallType::default()).with_executor(finish);
    builder = match stdio {
        Some(stdio) => builder.with_stdin(stdio.stdin).with_stdout(stdio.stdout).with_stderr(stdio.stderr),
        None => builder.with_console_socket(console),
    };
    let built = builder
        .with_root_path(dir.library())
        .and_then(|builder| {
            builder.as_tenant().with_process(Some(&file)).with_detach(true).as_sibling(true).build()
        })
        .map_err(|cause| chain(&cause).trim_end_matches('\0').to_owned());
    let _ = fs::remove_file(&file);
    // The library leaves a socket file each time. One exec is in the making at a time, so all are over.
    for item in fs::read_dir(dir.library().join(&plan.id)).into_iter().flatten().flatten() {
        if item.file_name().to_string_lossy().starts_with("tenant-") {
            let _ = fs::remove_file(item.path());
        }
    }
    built.map(|pid| pid.as_raw())
}

/// Executes in the container's own user namespace and under its own seccomp profile, both of which the library forgets
/// for all but the first process.
///
/// It calls us after it has dropped what the process may not have, and loading a profile is privileged unless no new
/// privileges can be had, as is becoming a user of another namespace. So the process is made with the capabilities that
/// this takes, as root, and becomes what it is to be before anything of the container's runs.
#[derive(Clone)]
struct Finish {
    users: Option<Users>,
    seccomp: Option<LinuxSeccomp>,
    /// Those that it is to have, where it was lent more.
    capabilities: Option<LinuxCapabilities>,
}

/// Who the process is to be, and where.
#[derive(Clone)]
struct Users {
    namespace: Arc<File>,
    user: User,
    /// The same user and group in the host's numbers.
    owner: (u32, u32),
}

impl Finish {
    fn seccomp(spec: &Spec, process: &Process) -> Self {
        let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
        let lend = seccomp.is_some() && process.no_new_privileges().is_none();
        Self { users: None, seccomp, capabilities: process.capabilities().clone().filter(|_| lend) }
    }

    /// Until it enters, the process is root outside.
    fn enter(&mut self, namespace: File, owner: (u32, u32), process: &mut Process) {
        let user = process.user().clone();
        let mut root = User::default();
        root.set_umask(user.umask());
        process.set_user(root);
        self.users = Some(Users { namespace: Arc::new(namespace), user, owner });
        self.capabilities.clone_from(process.capabilities());
    }

    fn lend(&self, process: &mut Process) {
        let Some(own) = &self.capabilities else { return };
        let with = |set: &Option<HashSet<Capability>>| {
            let mut set = set.clone().unwrap_or_default();
            set.extend([Capability::SysAdmin, Capability::Setpcap, Capability::Chown]);
            Some(set)
        };
        let mut lent = own.clone();
        lent.set_bounding(with(own.bounding()))
            .set_effective(with(own.effective()))
            .set_permitted(with(own.permitted()));
        process.set_capabilities(Some(lent));
    }
}

impl Users {
    fn become_them(&self) -> nix::Result<()> {
        let (uid, gid) = (self.owner.0.into(), self.owner.1.into());
        if nix::unistd::isatty(io::stdin())? {
            nix::unistd::fchown(io::stdin(), Some(uid), Some(gid))?;
        }
        nix::sched::setns(&*self.namespace, CloneFlags::CLONE_NEWUSER)?; // with every capability there
        let groups = self.user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid));
        nix::unistd::setgroups(&groups.collect::<Vec<_>>())?;
        let (uid, gid) = (Uid::from_raw(self.user.uid()), Gid::from_raw(self.user.gid()));
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)
    }
}

impl Executor for Finish {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if let Some(users) = &self.users {
            users.become_them().map_err(|cause| ExecutorError::Execution(cause.into()))?;
        }
        if let Some(seccomp) = &self.seccomp {
            initialize_seccomp(seccomp).map_err(|cause| ExecutorError::Execution(cause.into()))?;
        }
        if let Some(capabilities) = &self.capabilities {
            drop_privileges(capabilities, create_syscall().as_ref())
                .map_err(|cause| ExecutorError::Execution(cause.into()))?;
        }
        get_executor().exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        get_executor().validate(spec)
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        get_executor().setup_envs(envs)
    }
}
