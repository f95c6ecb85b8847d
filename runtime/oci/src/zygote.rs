//! The process that all monitors and pause processes are forks of.
//!
//! It is the shim's own binary re-executed with an empty environment, before any thread or heap of the shim exists, so
//! that a fork is small and safe. It knows nothing and keeps nothing: when it dies, no container notices, and
//! [`crate::Oci`] starts another.

use crate::{
    Config, Error,
    error::at,
    monitor, pause,
    sys::{self, Side},
    wire::Fork,
};
use nix::sys::signal::Signal;
use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};
use tokio::{
    process::{Child, Command},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wharf_link::{Message, Writer, blocking::Socket};

/// The zygote's whole life. To be called first in `main`, before any thread or runtime; standard input is the socket
/// that requests come on. Ends when the shim does. In a fork it does not return at all.
pub fn main() -> ExitCode {
    let _ = rustix::thread::set_name(c"wharf-zygote");
    sys::set_disposition(Signal::SIGCHLD, true); // forks are reaped by the kernel
    let Ok(stdin) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    // Forks inherit this: a shim's terminal, directory and descriptors must not be held by what outlives it.
    let detached =
        nix::unistd::setsid().is_ok() && std::env::set_current_dir("/").is_ok() && null_stdin().is_ok();
    if !detached {
        return ExitCode::FAILURE;
    }
    let mut socket = Socket::over(UnixStream::from(stdin));
    loop {
        let Message { body, fds } = match socket.recv::<Fork>() {
            Ok(Some(message)) => message,
            Ok(None) => return ExitCode::SUCCESS,
            Err(_) => return ExitCode::FAILURE, // the shim starts another
        };
        // A failed fork closes the descriptors, which is the answer.
        if let Ok(Side::Child) = sys::fork() {
            drop(socket);
            sys::default_signals();
            become_child(body, fds);
        }
    }
}

fn null_stdin() -> std::io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdin(&null)?)
}

fn become_child(what: Fork, fds: Vec<OwnedFd>) -> ! {
    let mut fds = fds.into_iter();
    match (what, fds.next(), fds.next()) {
        (Fork::Monitor, Some(connection), Some(listener)) => {
            monitor::run(UnixStream::from(connection), UnixListener::from(listener))
        }
        (Fork::Pause(spec), Some(connection), None) => pause::run(spec, UnixStream::from(connection)),
        _ => sys::leave(1), // not a request of our own shim's
    }
}

/// The shim's end: a task that keeps a zygote running and passes requests to it.
pub(crate) struct Zygote {
    requests: mpsc::Sender<(Fork, Vec<OwnedFd>)>,
}

/// Requests that may wait; each is passed on at once.
const QUEUE: usize = 16;
/// A zygote that lived longer is replaced as soon as it dies, so that nobody waits for it; one that did not, only
/// when it is needed.
const STABLE: Duration = Duration::from_secs(1);

struct Process {
    child: Child,
    writer: Writer,
    since: Instant,
}

impl Zygote {
    /// Must be called in a runtime.
    pub fn start(config: &Config, stop: CancellationToken) -> Result<Self, Error> {
        let (requests, mut queue) = mpsc::channel::<(Fork, Vec<OwnedFd>)>(QUEUE);
        let config = config.clone();
        let mut process = Some(spawn(&config)?);
        tokio::spawn(async move {
            loop {
                let request = tokio::select! {
                    () = stop.cancelled() => return, // its socket closes, and it ends
                    _ = died(&mut process) => None,
                    request = queue.recv() => match request {
                        Some(request) => Some(request),
                        None => return,
                    },
                };
                let lived = process.as_ref().map(|process| process.since.elapsed());
                if request.is_none() {
                    warn!(after = ?lived, "the zygote died");
                    process = None;
                }
                if process.is_none() && (request.is_some() || lived.is_some_and(|lived| lived > STABLE)) {
                    match spawn(&config) {
                        Ok(fresh) => process = Some(fresh),
                        Err(error) => warn!(%error, "no zygote"),
                    }
                }
                if let (Some(process), Some((fork, fds))) = (&mut process, request) {
                    // If it is dying, the descriptors close, and whoever asked sees that.
                    let _ = process.writer.send(&fork, fds).await;
                }
            }
        });
        Ok(Self { requests })
    }

    /// Passes the request on; whether it was heeded shows on the descriptors.
    pub async fn fork(&self, what: Fork, fds: Vec<OwnedFd>) -> Result<(), Error> {
        let passed = self.requests.send((what, fds)).await;
        passed.map_err(|_| Error::Refused("the runtime shuts down".to_owned()))
    }
}

/// Cancel-safe.
async fn died(process: &mut Option<Process>) {
    match process {
        Some(process) => drop(process.child.wait().await),
        None => std::future::pending().await,
    }
}

fn spawn(config: &Config) -> Result<Process, Error> {
    let failed = at("run", &config.exe);
    let start = || {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(&config.exe)
            .args(&config.exe_args)
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok((ours, child))
    };
    let (ours, child) = start().map_err(failed)?;
    let (_, writer) = wharf_link::Socket::over(ours)?.split();
    Ok(Process { child, writer, since: Instant::now() })
}
