//! The few calls that the safe wrappers do not have.

use nix::sys::signal::{SigHandler, SigSet, Signal};
use std::io;

/// Which side of a fork this is.
pub(crate) enum Side {
    Parent(i32),
    Child,
}

/// Forks. Only for processes with one thread: the zygote and its forks.
#[expect(unsafe_code, reason = "fork is unsafe for programs with threads; the callers have none")]
pub(crate) fn fork() -> io::Result<Side> {
    // SAFETY: zygote::main runs before any thread exists, starts none, and neither do its forks; so the child's
    // locks and heap are consistent.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Side::Parent(child.as_raw())),
        nix::unistd::ForkResult::Child => Ok(Side::Child),
    }
}

#[expect(unsafe_code, reason = "installing a handler is unsafe; these two are not handlers")]
pub(crate) fn set_disposition(signal: Signal, ignore: bool) {
    let how = if ignore { SigHandler::SigIgn } else { SigHandler::SigDfl };
    // SAFETY: ignore and default run no code of ours in signal context.
    let _ = unsafe { nix::sys::signal::signal(signal, how) };
}

/// Gives a forked child the signal state that a program expects to start with.
pub(crate) fn default_signals() {
    set_disposition(Signal::SIGPIPE, false); // Rust's runtime ignores it, and exec would hand that down
    set_disposition(Signal::SIGCHLD, false);
    let _ = SigSet::empty().thread_set_mask();
}

/// Ends the process at once: no destructors, no exit handlers of the process it was forked from.
#[expect(unsafe_code, reason = "_exit has no safe wrapper")]
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Writes an oom_score_adj, or the nearest that this process may set: without CAP_SYS_RESOURCE a value can only
/// grow.
pub(crate) fn set_oom_score(pid: i32, want: i32) {
    let path = format!("/proc/{pid}/oom_score_adj");
    if std::fs::write(&path, want.to_string()).is_ok() {
        return;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj");
    let own = own.ok().and_then(|text| text.trim().parse::<i32>().ok()).unwrap_or(0);
    let _ = std::fs::write(&path, want.max(own).to_string());
}
