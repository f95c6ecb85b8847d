//! Processes in a running container, and its own streams, from the shim's side.

use crate::{
    error::Error,
    oci::{ANSWER, Entry, Oci},
    state::Status,
    terminal,
    wire::{ExecStreams, Reply, Request},
};
use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::{io::Interest, net::UnixListener, task::JoinHandle, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Numbers that tell a shim's processes apart.
static TOKEN: AtomicU64 = AtomicU64::new(0);

/// What a process gets as its standard streams.
#[derive(Debug)]
pub enum Stdio {
    /// Stdin, stdout and stderr; what is missing is /dev/null.
    Pipes([Option<OwnedFd>; 3]),
    /// One terminal for all three, made in the container.
    Terminal,
}

/// A process in a container. Dropped, it is killed; with the container it ends as well.
#[derive(Debug)]
pub struct Exec {
    /// The other end of its terminal, if it has one: non-blocking, for reading, writing and its size.
    pub terminal: Option<OwnedFd>,
    ended: JoinHandle<Result<i32, Error>>,
    kill: Option<DropGuard>,
}

impl Exec {
    /// Its exit code, 128 + N after signal N. Cancel-safe; not to be called again once it has answered.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason why it could not be started.
    pub async fn wait(&mut self) -> Result<i32, Error> {
        match (&mut self.ended).await {
            Ok(ended) => ended,
            Err(_) => Err(Error::Refused("the runtime shut down".to_owned())),
        }
    }

    /// Kills it. Its end is told by [`Exec::wait`] as any other.
    pub fn kill(&mut self) {
        self.kill.take();
    }
}

/// The container's own streams, as a visitor has them.
#[derive(Debug)]
pub struct Attached {
    /// Leads to its standard input, or is its terminal, if that was asked for and is there.
    pub input: Option<OwnedFd>,
}

impl Oci {
    /// Starts a process in a running container, as its own first one was started but for its arguments: its user,
    /// capabilities, directory, environment, seccomp profile, namespaces and cgroup.
    ///
    /// # Errors
    /// [`Error::State`] when the container is not running. Why a process could not be started is told by
    /// [`Exec::wait`]; with a terminal, here.
    pub async fn exec(&self, id: &str, args: Vec<String>, stdio: Stdio) -> Result<Exec, Error> {
        let entry = self.inner.entry(id)?;
        self.expect(&entry, |status| matches!(status, Status::Running { .. }))?;
        let token = TOKEN.fetch_add(1, Ordering::Relaxed);
        match stdio {
            Stdio::Pipes(pipes) => {
                let streams = ExecStreams::Pipes([0, 1, 2].map(|n: usize| pipes[n].is_some()));
                let request = Request::Exec { token, args, streams };
                start(&entry, token, request, pipes.into_iter().flatten().collect())
            }
            Stdio::Terminal => {
                let console = Console::bind(entry.dir.0.join(format!("exec-{token}.sock")))?;
                let streams = ExecStreams::Terminal(console.path.clone());
                let mut exec = start(&entry, token, Request::Exec { token, args, streams }, Vec::new())?;
                let terminal = tokio::select! {
                    biased; // a process may be over at once, and its terminal is there still
                    received = console.receive() => received.map_err(terminal_failed)?,
                    ended = exec.wait() => {
                        let code = ended?;
                        return Err(Error::Refused(format!("it ended with {code} before its terminal was there")));
                    }
                };
                exec.terminal = Some(terminal);
                Ok(exec)
            }
        }
    }

    /// Follows the container's output: what it writes from now on is written to these pipes as well, until it is
    /// over. Whoever lets a pipe run full has it closed. With `stdin` the way to its input comes back.
    ///
    /// # Errors
    /// [`Error::State`] when the container is not running.
    pub async fn attach(
        &self,
        id: &str,
        stdin: bool,
        outputs: [Option<OwnedFd>; 2],
    ) -> Result<Attached, Error> {
        let entry = self.inner.entry(id)?;
        self.expect(&entry, |status| matches!(status, Status::Running { .. }))?;
        let Some(link) = entry.link() else {
            return Err(Error::State { id: id.to_owned(), is: entry.status.borrow().name() });
        };
        let request = Request::Attach { stdin, stdout: outputs[0].is_some(), stderr: outputs[1].is_some() };
        let call = link.call(request, outputs.into_iter().flatten().collect());
        let answer = timeout(ANSWER, call).await;
        let answer =
            answer.map_err(|_| Error::Deadline { id: id.to_owned(), seconds: ANSWER.as_secs() })??;
        Ok(Attached { input: answer.fds.into_iter().next() })
    }
}

fn start(entry: &Entry, token: u64, request: Request, fds: Vec<OwnedFd>) -> Result<Exec, Error> {
    let Some(link) = entry.link() else {
        return Err(Error::State { id: entry.meta.id.clone(), is: entry.status.borrow().name() });
    };
    let killed = CancellationToken::new();
    let kill = Some(killed.clone().drop_guard());
    let ended = tokio::spawn(async move {
        let call = link.call(request, fds);
        tokio::pin!(call);
        let answer = tokio::select! {
            biased; // the request goes out first, so that its end cannot overtake it
            answer = &mut call => answer,
            () = killed.cancelled() => {
                let (_, answer) = tokio::join!(link.call(Request::KillExec(token), Vec::new()), call);
                answer
            }
        };
        match answer?.body {
            Reply::Ended(code) => Ok(code),
            _ => Err(Error::Refused("the monitor gave another answer than was asked for".to_owned())),
        }
    });
    Ok(Exec { terminal: None, ended, kill })
}

fn terminal_failed(cause: io::Error) -> Error {
    Error::Io { what: "receive the terminal".to_owned(), cause }
}

/// Where libcontainer sends the terminal to; the file goes with it.
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    fn bind(path: PathBuf) -> Result<Self, Error> {
        let listener = wharf_link::blocking::Listener::bind(&path)?.into_std();
        listener.set_nonblocking(true).map_err(terminal_failed)?;
        let listener = UnixListener::from_std(listener).map_err(terminal_failed)?;
        Ok(Self { path, listener })
    }

    async fn receive(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept().await?;
        stream.async_io(Interest::READABLE, || terminal::receive(&stream)).await
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
