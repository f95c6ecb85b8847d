//! Processes in running containers, whatever runs these.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::unix::pipe;
use tokio_util::task::AbortOnDropHandle;
use wharf_cri::v1::ContainerState;
use wharf_oci::Stdio;

use crate::error::Error;
use crate::shim::{KILLED, Shim};

/// What is kept of each stream of a command whose output is the answer (containerd's figure); the rest is read and
/// dropped.
const KEPT: u64 = 16 << 20;
/// How long a stream may stay open after the command ended: only what it left behind can hold it.
const DRAIN: Duration = Duration::from_secs(2);

/// A process that was started in a container. Dropped, it is killed.
pub enum Process {
    Oci(wharf_oci::Exec),
    /// With a terminal of the shim's own: a component has no device.
    Wasm(Wasm, Option<OwnedFd>),
}

/// What the wasm host does until the exit code is known. Dropped, it ends.
type Wasm = AbortOnDropHandle<Result<i32, wharf_wasm::Error>>;

impl Process {
    /// Its exit code. Cancel-safe; not to be called again once it has answered.
    pub async fn wait(&mut self) -> Result<i32, Error> {
        match self {
            Self::Oci(exec) => Ok(exec.wait().await?),
            Self::Wasm(exec, _) => exec.await.map_or(Ok(KILLED), |code| Ok(code?)),
        }
    }

    pub fn kill(&mut self) {
        match self {
            Self::Oci(exec) => exec.kill(),
            Self::Wasm(exec, _) => exec.abort(),
        }
    }

    /// The other end of its terminal, if it was made with it: non-blocking.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        match self {
            Self::Oci(exec) => exec.terminal.take(),
            Self::Wasm(_, terminal) => terminal.take(),
        }
    }
}

/// A client at a container's own streams. Dropped, it is gone.
pub struct Attachment {
    /// The way to the container's input, or its terminal: non-blocking, if it is one.
    pub input: Option<OwnedFd>,
    /// Of a wasm container.
    wasm: Option<Wasm>,
}

impl Attachment {
    /// Why it came to its end before the container; pending if it does not. Cancel-safe; not to be called again once it
    /// has answered.
    pub async fn failed(&mut self) -> Error {
        if let Some(wasm) = &mut self.wasm
            && let Ok(Err(error)) = wasm.await
        {
            return error.into();
        }
        std::future::pending().await
    }
}

/// How a command ended, and what it said.
pub struct Output {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Shim {
    /// The id of a container that runs, and whether it is wasm.
    pub fn running(&self, id: &str) -> Result<(String, bool), Error> {
        let container = self.container(id)?;
        let (id, wasm, state) = container.with(|c| (c.id.clone(), c.wasm, c.state()));
        if state != ContainerState::ContainerRunning {
            return Err(Error::State { id, is: crate::containers::state_name(state), wanted: "running" });
        }
        Ok((id, wasm))
    }

    /// Starts a process in a running container.
    ///
    /// # Errors
    /// As the runtime says; why it could not be started may show in [`Process::wait`] only.
    pub async fn exec(&self, id: &str, args: Vec<String>, stdio: Stdio) -> Result<Process, Error> {
        let (id, wasm) = self.running(id)?;
        if args.is_empty() {
            return Err(Error::Invalid("no command to run".to_owned()));
        }
        match wasm {
            false => Ok(Process::Oci(self.oci.exec(&id, args, stdio).await?)),
            true => {
                let (stdio, terminal) = match stdio {
                    Stdio::Pipes([stdin, stdout, stderr]) => {
                        (wharf_wasm::Stdio { stdin, stdout, stderr }, None)
                    }
                    Stdio::Terminal => {
                        let (ours, theirs) = terminal()?;
                        (theirs.streams(true)?, Some(ours))
                    }
                };
                let exec = wharf_wasm::Exec { args, terminal: terminal.is_some() };
                let host = self.wasm()?.clone();
                let run = tokio::spawn(async move { host.exec(&id, exec, stdio).await });
                Ok(Process::Wasm(AbortOnDropHandle::new(run), terminal))
            }
        }
    }

    /// Follows the output of a running container: it is written to these pipes as well. With `stdin`, the way to its
    /// input comes back.
    pub async fn attach(
        &self,
        id: &str,
        stdin: bool,
        outputs: [Option<OwnedFd>; 2],
    ) -> Result<Attachment, Error> {
        let (id, wasm) = self.running(id)?;
        if !wasm {
            let input = self.oci.attach(&id, stdin, outputs).await?.input;
            return Ok(Attachment { input, wasm: None });
        }
        let has_terminal = self.container(&id)?.with(|container| container.config().tty);
        let [out, err] = outputs;
        let (stdio, input) = if has_terminal {
            // What is typed is echoed and made lines of by a terminal of this client's own.
            let (ours, theirs) = terminal()?;
            if let Some(out) = out {
                tokio::spawn(pump(ours.try_clone().map_err(no_terminal)?, out));
            }
            (theirs.streams(stdin)?, Some(ours))
        } else if stdin {
            let (writer, reader) = pipe::pipe().map_err(no_terminal)?;
            let reader = reader.into_blocking_fd().map_err(no_terminal)?;
            let writer = writer.into_blocking_fd().map_err(no_terminal)?;
            (wharf_wasm::Stdio { stdin: Some(reader), stdout: out, stderr: err }, Some(writer))
        } else {
            (wharf_wasm::Stdio { stdin: None, stdout: out, stderr: err }, None)
        };
        let host = self.wasm()?.clone();
        let run = tokio::spawn(async move { host.attach(&id, stdio).await });
        Ok(Attachment { input, wasm: Some(AbortOnDropHandle::new(run)) })
    }

    /// Runs a command in a container to its end, at most for `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it was killed for taking longer.
    pub async fn exec_sync(
        &self,
        id: &str,
        args: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<Output, Error> {
        let pipe = || {
            let (writer, reader) = pipe::pipe()?;
            std::io::Result::Ok((writer.into_blocking_fd()?, reader))
        };
        let failed = |cause| Error::Start { what: "make a pipe".to_owned(), cause };
        let (out, stdout) = pipe().map_err(failed)?;
        let (err, stderr) = pipe().map_err(failed)?;
        let command = args.join(" ");
        let mut process = self.exec(id, args, Stdio::Pipes([None, Some(out), Some(err)])).await?;
        let (mut stdout, mut stderr) = (Kept::new(stdout), Kept::new(stderr));
        let code = {
            let reading = async { tokio::join!(stdout.read(), stderr.read()) };
            tokio::pin!(reading);
            let mut read = false;
            let ended = async {
                loop {
                    tokio::select! {
                        code = process.wait() => break code,
                        _ = &mut reading, if !read => read = true,
                    }
                }
            };
            // The limit is the command's: what it left behind has its own.
            let code = match limit {
                None => ended.await,
                Some(limit) => match tokio::time::timeout(limit, ended).await {
                    Ok(code) => code,
                    Err(_) => {
                        process.kill();
                        let _ = tokio::time::timeout(DRAIN, process.wait()).await;
                        return Err(Error::Timeout { command, seconds: limit.as_secs() });
                    }
                },
            }?;
            if !read {
                let _ = tokio::time::timeout(DRAIN, reading).await;
            }
            code
        };
        Ok(Output { code, stdout: stdout.bytes, stderr: stderr.bytes })
    }
}

/// The program's side of a terminal.
struct Theirs(OwnedFd);

impl Theirs {
    fn streams(self, stdin: bool) -> Result<wharf_wasm::Stdio, Error> {
        let clone = || self.0.try_clone().map(Some).map_err(no_terminal);
        let stdin = if stdin { clone()? } else { None };
        Ok(wharf_wasm::Stdio { stdin, stderr: clone()?, stdout: Some(self.0) })
    }
}

/// A new terminal: our side, non-blocking, and the program's.
fn terminal() -> Result<(OwnedFd, Theirs), Error> {
    use nix::fcntl::OFlag;
    use nix::pty::{posix_openpt, ptsname_r, unlockpt};
    let make = || -> std::io::Result<_> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let ours = posix_openpt(flags | OFlag::O_NONBLOCK)?;
        unlockpt(&ours)?;
        let theirs = nix::fcntl::open(&*ptsname_r(&ours)?, flags, nix::sys::stat::Mode::empty())?;
        Ok((OwnedFd::from(ours), Theirs(theirs)))
    };
    make().map_err(no_terminal)
}

fn no_terminal(cause: std::io::Error) -> Error {
    Error::Start { what: "make the streams".to_owned(), cause }
}

/// Copies what a terminal shows, until its other side is closed or nobody takes it.
async fn pump(from: OwnedFd, to: OwnedFd) {
    let (Ok(mut from), Ok(mut to)) =
        (pipe::Receiver::from_owned_fd_unchecked(from), pipe::Sender::from_owned_fd(to))
    else {
        return;
    };
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

/// The beginning of a stream.
struct Kept<R> {
    stream: R,
    bytes: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Kept<R> {
    fn new(stream: R) -> Self {
        Self { stream, bytes: Vec::new() }
    }

    /// Reads to the end. What was read stays if the future is dropped.
    async fn read(&mut self) {
        let _ = (&mut self.stream).take(KEPT).read_to_end(&mut self.bytes).await;
        let _ = tokio::io::copy(&mut self.stream, &mut tokio::io::sink()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_endless_output_the_beginning_is_kept() {
        let endless = tokio::io::repeat(b'x').take(KEPT + (1 << 20));
        let mut kept = Kept::new(endless);
        kept.read().await;
        assert_eq!(kept.bytes.len() as u64, KEPT);
        assert_eq!(kept.stream.limit(), 0, "the rest was not read");
    }
}
