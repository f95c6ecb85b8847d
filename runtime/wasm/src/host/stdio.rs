//! Standard input and output of one instance, as WASI sees them.

use super::{
    channel::Channel,
    log::{Lines, Log, Stream},
};
use bytes::{Buf, Bytes, BytesMut};
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wasmtime_wasi::{
    cli::{IsTerminal, StdinStream, StdoutStream},
    p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult},
};

/// What a guest may hand over or take at once.
const CHUNK: usize = 64 << 10;
/// What a guest that writes without asking may leave waiting: it may ask on several streams before it writes.
const LONGEST_WAIT: usize = 1 << 20;

/// The three streams of an instance.
#[derive(Debug, Clone)]
pub(crate) struct Stdio {
    pub stdin: Input,
    pub stdout: Output,
    pub stderr: Output,
}

impl Stdio {
    /// Nothing to read, and lines for the container's log.
    pub fn logged(log: &Arc<Log>, terminal: bool) -> Self {
        let output = |stream| {
            let lines = Arc::new(Lines::new(log.clone(), stream));
            Output { sink: Sink::Log(lines), terminal }
        };
        Self { stdin: Input::none(), stdout: output(Stream::Stdout), stderr: output(Stream::Stderr) }
    }

    /// Over descriptors; what is missing reads as empty, and takes everything.
    pub fn over(streams: [Option<Arc<Channel>>; 3], terminal: bool) -> Self {
        let [stdin, stdout, stderr] = streams;
        let output = |channel: Option<Arc<Channel>>| {
            let sink = match channel {
                Some(channel) => Sink::Pipe(Arc::new(Pipe { channel, waiting: Mutex::default() })),
                None => Sink::Nowhere,
            };
            Output { sink, terminal }
        };
        let stdin = Input { terminal: terminal && stdin.is_some(), channel: stdin };
        Self { stdin, stdout: output(stdout), stderr: output(stderr) }
    }

    /// Until what the guest wrote has left, or nobody takes it.
    pub async fn drain(&self) {
        for output in [&self.stdout, &self.stderr] {
            if let Sink::Pipe(pipe) = &output.sink {
                pipe.drained().await;
            }
        }
    }
}

/// Standard input. Clones read on where the last one stopped.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    channel: Option<Arc<Channel>>,
    terminal: bool,
}

impl Input {
    /// One that is at its end.
    pub fn none() -> Self {
        Self { channel: None, terminal: false }
    }

    pub fn over(channel: Arc<Channel>, terminal: bool) -> Self {
        Self { channel: Some(channel), terminal }
    }
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let Some(channel) = &self.channel else { return Err(StreamError::Closed) };
        if size == 0 {
            return Ok(Bytes::new());
        }
        let mut bytes = BytesMut::zeroed(size.min(CHUNK));
        match channel.try_read(&mut bytes) {
            Ok(0) => Err(StreamError::Closed),
            Ok(read) => {
                bytes.truncate(read);
                Ok(bytes.freeze())
            }
            Err(cause) if not_yet(&cause) => Ok(Bytes::new()),
            Err(cause) => Err(StreamError::LastOperationFailed(cause.into())),
        }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        if let Some(channel) = &self.channel {
            channel.readable().await;
        }
    }
}

impl AsyncRead for Input {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(channel) = &self.channel else { return Poll::Ready(Ok(())) };
        loop {
            match channel.try_read(into.initialize_unfilled()) {
                Ok(read) => {
                    into.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(cause) if not_yet(&cause) => {}
                Err(cause) => return Poll::Ready(Err(cause)),
            }
            if let Channel::Polled(fd) = channel.as_ref() {
                let _ = std::task::ready!(fd.poll_read_ready(context))?;
            }
        }
    }
}

/// Standard output or error. Clones write to the same.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    sink: Sink,
    terminal: bool,
}

#[derive(Debug, Clone)]
enum Sink {
    Log(Arc<Lines>),
    Pipe(Arc<Pipe>),
    Nowhere,
}

/// A descriptor, and what it had no room for.
#[derive(Debug)]
struct Pipe {
    channel: Arc<Channel>,
    waiting: Mutex<BytesMut>,
}

impl Pipe {
    fn waiting(&self) -> MutexGuard<'_, BytesMut> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what waits; whether nothing does any more.
    fn flush(&self) -> io::Result<bool> {
        let mut waiting = self.waiting();
        while !waiting.is_empty() {
            match self.channel.try_write(&waiting) {
                Ok(written) => waiting.advance(written),
                Err(cause) if not_yet(&cause) => return Ok(false),
                Err(cause) => return Err(cause),
            }
        }
        Ok(true)
    }

    fn put(&self, bytes: &[u8]) -> StreamResult<()> {
        {
            let mut waiting = self.waiting();
            if waiting.len() + bytes.len() > LONGEST_WAIT {
                return Err(StreamError::trap("more was written than the stream had room for"));
            }
            waiting.extend_from_slice(bytes);
        }
        self.flush().map(drop).map_err(failed)
    }

    /// Returns when everything has left, or cannot any more. Cancel-safe.
    async fn drained(&self) {
        while let Ok(false) = self.flush() {
            self.channel.writable().await;
        }
    }
}

fn not_yet(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Nobody reads any more: that is how the reader says that it has enough.
fn failed(cause: io::Error) -> StreamError {
    match cause.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => StreamError::Closed,
        _ => StreamError::LastOperationFailed(cause.into()),
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        match &self.sink {
            Sink::Log(lines) => lines.take(&bytes),
            Sink::Pipe(pipe) => pipe.put(&bytes)?,
            Sink::Nowhere => {}
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(()) // nothing is kept back, and `check_write` says when it has left
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        match &self.sink {
            Sink::Pipe(pipe) => pipe.flush().map(|empty| if empty { CHUNK } else { 0 }).map_err(failed),
            Sink::Log(_) | Sink::Nowhere => Ok(CHUNK),
        }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        if let Sink::Pipe(pipe) = &self.sink {
            pipe.drained().await;
        }
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(CHUNK)];
        match &self.sink {
            Sink::Log(lines) => lines.take(bytes),
            Sink::Pipe(pipe) => loop {
                match pipe.channel.try_write(bytes) {
                    Err(cause) if not_yet(&cause) => {}
                    done => return Poll::Ready(done),
                }
                if let Channel::Polled(fd) = pipe.channel.as_ref() {
                    let _ = std::task::ready!(fd.poll_write_ready(context))?;
                }
            },
            Sink::Nowhere => {}
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
