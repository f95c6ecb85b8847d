//! Joins a client's streams to those of a process.

use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wharf_oci::Stdio;

use super::streams::{Output, PIECE, Session, Wants};
use crate::error::{Error, chain};
use crate::shim::Shim;

/// How long nothing may come on a stream after the process ended before it is taken for ended too: only what the
/// process left behind can hold it.
const QUIET: Duration = Duration::from_secs(2);
/// What may wait for someone who is attached: the most that an ordinary system gives a pipe.
const BACKLOG: usize = 1 << 20;

/// The terminal's size in a client's words.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Runs a command in a container and tells the client of its end. With the client it ends too.
pub async fn exec(shim: Arc<Shim>, id: String, args: Vec<String>, wants: Wants, session: Session) {
    let Session { stdin, resize, stdout, stderr, error, structured } = session;
    let run = async {
        let (mut ours, theirs) = Ours::pipes(wants).map_err(no_pipe)?;
        let mut process = shim.exec(&id, args, theirs).await?;
        if let Some(terminal) = process.take_terminal() {
            ours = Ours::terminal(terminal, wants).map_err(no_pipe)?;
        }
        let ended = CancellationToken::new();
        let outputs = async {
            tokio::join!(
                copy_out(ours.stdout, stdout.as_ref(), &ended),
                copy_out(ours.stderr, stderr.as_ref(), &ended)
            )
        };
        let wait = async {
            let code = process.wait().await;
            ended.cancel();
            code
        };
        let both = async { tokio::join!(wait, outputs).0 };
        // What is typed has no end of its own to wait for.
        let inputs = copy_in(stdin, ours.stdin);
        let sizes = follow_size(resize, ours.size);
        tokio::select! {
            code = both => code,
            () = async { tokio::join!(inputs, sizes, std::future::pending::<()>()); } => unreachable!("it is pending"),
        }
    };
    tokio::select! {
        outcome = run => report(&error, &outcome, structured).await,
        () = error.gone() => {}
    }
}

/// Joins the client to the streams of the container's own process, until either is gone.
pub async fn attach(shim: Arc<Shim>, id: String, wants: Wants, session: Session) {
    let Session { stdin, resize, stdout, stderr, error, structured } = session;
    let run = async {
        let container = shim.container(&id)?;
        let output = |wanted: bool| -> io::Result<(Option<OwnedFd>, Option<pipe::Receiver>)> {
            if !wanted {
                return Ok((None, None));
            }
            let (writer, reader) = pipe::pipe()?;
            // As far as the system allows: the rest of the time it is less that may wait.
            let _ = rustix::pipe::fcntl_setpipe_size(reader.as_fd(), BACKLOG);
            Ok((Some(writer.into_blocking_fd()?), Some(reader)))
        };
        let (out, from_stdout) = output(wants.stdout).map_err(no_pipe)?;
        let (err, from_stderr) = output(wants.stderr && !wants.tty).map_err(no_pipe)?;
        let mut attachment = shim.attach(&id, wants.stdin || wants.tty, [out, err]).await?;
        // By what it is, not by what the client takes it for: a pipe is made non-blocking, a terminal is so already.
        let (to_stdin, size) = match attachment.input.take() {
            None => (None, None),
            Some(fd) if fd.is_terminal() => {
                let size = fd.try_clone().map_err(no_pipe)?;
                (Some(pipe::Sender::from_owned_fd_unchecked(fd).map_err(no_pipe)?), Some(size))
            }
            Some(fd) => (Some(pipe::Sender::from_owned_fd(fd).map_err(no_pipe)?), None),
        };
        let never = CancellationToken::new();
        let outputs = async {
            tokio::join!(
                copy_out(from_stdout, stdout.as_ref(), &never),
                copy_out(from_stderr, stderr.as_ref(), &never)
            );
            // Without any output, and with one that the container closed, it is the container that is waited for.
            container.exited().await;
        };
        let inputs = async { tokio::join!(copy_in(stdin, to_stdin), follow_size(resize, size)) };
        tokio::select! {
            () = outputs => {}
            error = attachment.failed() => return Err(error),
            () = async { tokio::join!(inputs, std::future::pending::<()>()); } => unreachable!("it is pending"),
        }
        Ok(0)
    };
    tokio::select! {
        outcome = run => report(&error, &outcome, structured).await,
        () = error.gone() => {}
    }
}

fn no_pipe(cause: io::Error) -> Error {
    Error::Start { what: "make the streams".to_owned(), cause }
}

/// Our ends of a process's streams.
#[derive(Default)]
struct Ours {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    /// The terminal again, for its size.
    size: Option<OwnedFd>,
}

impl Ours {
    fn pipes(wants: Wants) -> io::Result<(Self, Stdio)> {
        if wants.tty {
            return Ok((Self::default(), Stdio::Terminal));
        }
        let mut ours = Self::default();
        let mut theirs = [None, None, None];
        if wants.stdin {
            let (writer, reader) = pipe::pipe()?;
            (ours.stdin, theirs[0]) = (Some(writer), Some(reader.into_blocking_fd()?));
        }
        let output = || -> io::Result<_> {
            let (writer, reader) = pipe::pipe()?;
            Ok((Some(reader), Some(writer.into_blocking_fd()?)))
        };
        if wants.stdout {
            (ours.stdout, theirs[1]) = output()?;
        }
        if wants.stderr {
            (ours.stderr, theirs[2]) = output()?;
        }
        Ok((ours, Stdio::Pipes(theirs)))
    }

    /// A terminal is read and written as a pair of pipes would be.
    fn terminal(terminal: OwnedFd, wants: Wants) -> io::Result<Self> {
        let (size, input) = (terminal.try_clone()?, terminal.try_clone()?);
        Ok(Self {
            stdin: wants.stdin.then(|| pipe::Sender::from_owned_fd_unchecked(input)).transpose()?,
            stdout: Some(pipe::Receiver::from_owned_fd_unchecked(terminal)?),
            stderr: None,
            size: Some(size),
        })
    }
}

/// Gives the process what the client says, and then the end of it.
async fn copy_in(from: Option<mpsc::Receiver<Bytes>>, to: Option<pipe::Sender>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    while let Some(bytes) = from.recv().await {
        if to.write_all(&bytes).await.is_err() {
            return; // it reads no more; what else the client says is dropped with the queue
        }
    }
}

/// Gives the client what the process says, until its end, or until it is quiet after `ended`.
async fn copy_out(from: Option<pipe::Receiver>, to: Option<&Output>, ended: &CancellationToken) {
    let Some(mut from) = from else { return };
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let read = tokio::select! {
            read = from.read_buf(&mut piece) => read,
            () = async { ended.cancelled().await; tokio::time::sleep(QUIET).await } => return,
        };
        match read {
            Ok(n) if n > 0 => {}
            _ => return, // a terminal that nobody has open says EIO
        }
        if let Some(to) = to
            && to.send(piece).await.is_err()
        {
            return;
        }
    }
}

async fn follow_size(from: Option<mpsc::Receiver<Bytes>>, terminal: Option<OwnedFd>) {
    let (Some(mut from), Some(terminal)) = (from, terminal) else { return };
    while let Some(bytes) = from.recv().await {
        // What is no size is no reason to end a session.
        for size in serde_json::Deserializer::from_slice(&bytes).into_iter::<Size>().flatten() {
            let size = rustix::termios::Winsize {
                ws_row: size.height,
                ws_col: size.width,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            let _ = rustix::termios::tcsetwinsize(&terminal, size);
        }
    }
}

/// Tells the client how it ended, as clients of Kubernetes read it.
async fn report(error: &Output, outcome: &Result<i32, Error>, structured: bool) {
    let words = match (structured, outcome) {
        (true, outcome) => status(outcome).to_string(),
        (false, Ok(0)) => return,
        (false, Ok(code)) => format!("command terminated with exit code {code}"),
        (false, Err(why)) => chain(why),
    };
    let _ = error.send(words).await;
}

fn status(outcome: &Result<i32, Error>) -> Value {
    match outcome {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit code {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(why) => {
            let why = format!("error executing command in container: {}", chain(why));
            json!({
                "metadata": {},
                "status": "Failure",
                "reason": "InternalError",
                "message": format!("Internal error occurred: {why}"),
                "details": {"causes": [{"message": why}]},
                "code": 500,
            })
        }
    }
}
