//! The calls into libcontainer, each in a short-lived child of the monitor: the library changes its caller's
//! directory, dumpability and more, and takes memory that a monitor would keep.
//!
//! A container whose handler names another runtime is made by its [`Binary`] instead, with the same bundle.

use super::binary::Binary;
use crate::{
    overlay,
    state::{self, Dir},
    sys::{self, Side},
    wire::Plan,
};
use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    syscall::syscall::SyscallType,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, kill},
        signalfd::SignalFd,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use oci_spec::runtime::Spec;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};
use wharf_link::blocking::Socket;

/// The container's ends of its standard streams; none with a terminal.
pub(super) struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Creates the container and gives its first process's pid. As a sibling, so that this process's parent, the
/// monitor, is the one who reaps it.
pub(super) fn create(plan: &Plan, stdio: Option<Stdio>) -> Result<i32, String> {
    let dir = Dir(plan.dir.clone());
    overlay::prepare(plan, &dir).map_err(|cause| format!("root file system: {cause}"))?;
    let _ = overlay::make_cwd(plan, &dir); // if it is missed, the library says so

    if let Some(binary) = binary(plan, &dir) {
        let console = stdio.is_none().then(|| console(&dir));
        return binary.create(stdio, console.as_deref());
    }
    let mut builder = ContainerBuilder::new(plan.id.clone(), SyscallType::default());
    builder = match stdio {
        Some(stdio) => builder.with_stdin(stdio.stdin).with_stdout(stdio.stdout).with_stderr(stdio.stderr),
        None => builder.with_console_socket(Some(console(&dir))),
    };
    let built = builder
        .with_root_path(dir.library())
        .and_then(|builder| {
            builder.as_init(dir.bundle()).with_systemd(false).with_detach(true).as_sibling(true).build()
        })
        .map_err(|cause| chain(&cause))?;
    if plan.user.is_some() {
        leave_stage(&dir).map_err(|cause| format!("the container's spec: {cause}"))?;
    }
    built.pid().map(|pid| pid.as_raw()).ok_or_else(|| "no process was made".to_owned())
}

pub(super) fn binary<'a>(plan: &'a Plan, dir: &'a Dir) -> Option<Binary<'a>> {
    plan.runtime.as_deref().map(|program| Binary { program, dir, id: &plan.id })
}

/// The library looks for the root again at an exec, which is where no stage is.
fn leave_stage(dir: &Dir) -> io::Result<()> {
    let file = dir.bundle().join("config.json");
    let mut spec = Spec::load(&file).map_err(io::Error::other)?;
    if let Some(root) = spec.root_mut() {
        root.set_path(overlay::root(dir, false));
    }
    state::write(&file, &spec).map_err(io::Error::other)
}

pub(super) fn console(dir: &Dir) -> PathBuf {
    dir.0.join("console.sock")
}

/// Lets the created container run its command.
pub(super) fn start(plan: &Plan) -> Result<(), String> {
    let dir = Dir(plan.dir.clone());
    if let Some(binary) = binary(plan, &dir) {
        return binary.start();
    }
    let mut container = Container::load(dir.library().join(&plan.id)).map_err(|cause| chain(&cause))?;
    container.start().map_err(|cause| chain(&cause))
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

/// Runs `call` in a child, and kills that child after `deadline`. `signals` delivers SIGCHLD; the caller has to
/// reap whatever else came of it.
pub(super) fn in_child<T: Serialize + DeserializeOwned>(
    signals: &SignalFd,
    deadline: Duration,
    close: impl FnOnce(),
    call: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
    let (mut ours, mut theirs) = Socket::pair().map_err(|cause| chain(&cause))?;
    let child = match sys::fork().map_err(|cause| format!("fork: {cause}"))? {
        Side::Parent(pid) => Pid::from_raw(pid),
        Side::Child => {
            drop(ours);
            close();
            sys::default_signals();
            let _ = theirs.send(&call(), Vec::new());
            sys::leave(0);
        }
    };
    drop(theirs);
    let until = Instant::now() + deadline;
    let mut alive = true;
    let outcome = loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds =
            [PollFd::new(ours.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, left) {
            Ok(0) => break Err(format!("not done within {} s", deadline.as_secs())),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(cause) => break Err(format!("poll: {cause}")),
        }
        let answered = fds[0].any().unwrap_or(false);
        if answered {
            match ours.recv::<Result<T, String>>() {
                Ok(Some(message)) => break message.body,
                Ok(None) => break Err("the call into libcontainer ended without an answer".to_owned()),
                Err(cause) => break Err(chain(&cause)),
            }
        }
        // Its own descendants may hold the socket open: its death shows only here.
        while matches!(signals.read_signal(), Ok(Some(_))) {}
        if !matches!(waitpid(child, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive)) {
            alive = false;
            let mut fds = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
            if matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0)) {
                break Err("the call into libcontainer died".to_owned());
            }
        }
    };
    if alive {
        if outcome.is_err() {
            let _ = kill(child, Signal::SIGKILL);
        }
        let _ = waitpid(child, None);
    }
    outcome
}
