use crate::{
    Error, Message, address,
    frame::{self, Encoded, Inbound, Outbound},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    path::Path,
    sync::Arc,
};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
};

/// A connection in a tokio runtime. Every method is cancel-safe.
#[derive(Debug)]
pub struct Socket {
    reader: Reader,
    writer: Writer,
}

/// The receiving half of a [`Socket`].
#[derive(Debug)]
pub struct Reader {
    stream: Arc<UnixStream>,
    inbound: Inbound,
}

/// The sending half of a [`Socket`]. Dropping it does not close the connection while the reader lives.
#[derive(Debug)]
pub struct Writer {
    stream: Arc<UnixStream>,
    outbound: Outbound,
}

impl Socket {
    /// # Errors
    /// [`Error::Closed`] when nobody listens at `path`; [`Error::Stranger`] when it is another user who does.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        // Connecting to a unix socket waits only while the listener's backlog is full.
        let path = path.as_ref().to_owned();
        let stream = tokio::task::spawn_blocking(move || address::connect(&path))
            .await
            .map_err(|_| Error::Closed)??;
        Self::over(stream)
    }

    /// Over a stream that the caller trusts. Must be called in a runtime.
    pub fn over(stream: StdStream) -> Result<Self, Error> {
        stream.set_nonblocking(true)?;
        Ok(Self::wrap(UnixStream::from_std(stream)?))
    }

    fn wrap(stream: UnixStream) -> Self {
        let stream = Arc::new(stream);
        let reader = Reader { stream: stream.clone(), inbound: Inbound::default() };
        Self { reader, writer: Writer { stream, outbound: Outbound::default() } }
    }

    pub fn pair() -> Result<(Self, Self), Error> {
        let (a, b) = UnixStream::pair()?;
        Ok((Self::wrap(a), Self::wrap(b)))
    }

    pub async fn send<T: Serialize>(&mut self, body: &T, fds: Vec<OwnedFd>) -> Result<(), Error> {
        self.writer.send(body, fds).await
    }

    /// The next message; `None` when the other end closed.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<Option<Message<T>>, Error> {
        self.reader.recv().await
    }

    pub fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}

impl Reader {
    /// The next message; `None` when the other end closed.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<Option<Message<T>>, Error> {
        let Self { stream, inbound } = self;
        let raw = ready(stream, Interest::READABLE, || inbound.fill(stream.as_fd())).await?;
        raw.map(frame::decode).transpose()
    }
}

impl Writer {
    /// Sends one message. If this future is dropped before it is done, the message is either not sent at all or
    /// sent whole, its rest before the next one.
    pub async fn send<T: Serialize>(&mut self, body: &T, fds: Vec<OwnedFd>) -> Result<(), Error> {
        self.send_encoded(frame::encode(body, fds)?).await
    }

    pub(crate) async fn send_encoded(&mut self, frame: Encoded) -> Result<(), Error> {
        self.flush().await?;
        self.outbound.load(frame);
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let Self { stream, outbound } = self;
        ready(stream, Interest::WRITABLE, || outbound.flush(stream.as_fd())).await
    }
}

/// Runs `step` until it no longer would block.
async fn ready<T>(
    stream: &UnixStream,
    interest: Interest,
    mut step: impl FnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    let outcome = stream
        .async_io(interest, || match step() {
            Err(Error::Io(cause)) if cause.kind() == io::ErrorKind::WouldBlock => Err(cause),
            other => Ok(other),
        })
        .await;
    outcome.unwrap_or_else(|cause| Err(cause.into()))
}

/// A listening socket at a path. The file stays when this is dropped: who made the directory removes it.
#[derive(Debug)]
pub struct Listener(UnixListener);

impl Listener {
    /// Mode 0600, in a directory of mode 0700 that is made if missing; replaces a dead socket file. Paths may be
    /// longer than a socket address. Must be called in a runtime.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, Error> {
        let listener = address::listen(path.as_ref())?;
        listener.set_nonblocking(true)?;
        Ok(Self(UnixListener::from_std(listener)?))
    }

    /// The next connection from root or this process's own user; others are an [`Error::Stranger`] and closed.
    pub async fn accept(&self) -> Result<Socket, Error> {
        let (stream, _) = self.0.accept().await?;
        address::check(&stream)?;
        Ok(Socket::wrap(stream))
    }
}
