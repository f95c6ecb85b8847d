//! Further processes in a running container.

use super::{
    Monitor, Running,
    create::{self, Stdio, chain},
};
use crate::{
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
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxSeccomp, Process, Spec};
use std::{
    collections::HashMap,
    fs::{self, File},
    os::fd::OwnedFd,
    path::Path,
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
            || start(plan, args, stdio.take(), console),
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
fn start(plan: &Plan, args: &[String], stdio: Option<Stdio>, console: Option<&Path>) -> Result<i32, String> {
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
    let filtered = Filtered::new(&spec, &mut process);
    let file = dir.0.join("exec.json");
    fs::write(&file, serde_json::to_vec(&process).map_err(|cause| cause.to_string())?)
        .map_err(|cause| format!("write {}: {cause}", file.display()))?;

    let mut builder = ContainerBuilder::new(plan.id.clone(), SyscallType::default()).with_executor(filtered);
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

/// Executes under the container's own seccomp profile, which the library forgets for all but the first process.
///
/// It calls us after it has dropped what the process may not have, and loading a profile is privileged unless no new
/// privileges can be had. So the process is made with the two capabilities that loading the profile and dropping them
/// take, and both are dropped before anything of the container's runs.
#[derive(Clone)]
struct Filtered {
    seccomp: Option<LinuxSeccomp>,
    capabilities: Option<LinuxCapabilities>,
}

impl Filtered {
    /// Lends `process` the capabilities, if they are needed.
    fn new(spec: &Spec, process: &mut Process) -> Self {
        let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
        let mut capabilities = None;
        if seccomp.is_some()
            && process.no_new_privileges().is_none()
            && let Some(own) = process.capabilities().clone()
        {
            let mut lent = own.clone();
            let with = |set: &Option<std::collections::HashSet<Capability>>| {
                let mut set = set.clone().unwrap_or_default();
                set.extend([Capability::SysAdmin, Capability::Setpcap]);
                Some(set)
            };
            lent.set_bounding(with(own.bounding()))
                .set_effective(with(own.effective()))
                .set_permitted(with(own.permitted()));
            process.set_capabilities(Some(lent));
            capabilities = Some(own);
        }
        Self { seccomp, capabilities }
    }
}

impl Executor for Filtered {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
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
