//! For processes without a runtime: a forked monitor, the zygote, a helper's `main`.

use crate::{
    Error, Message, address,
    frame::{self, Inbound, Outbound},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

/// A connection. Blocking unless [`Socket::set_nonblocking`] was called.
#[derive(Debug)]
pub struct Socket {
    stream: UnixStream,
    inbound: Inbound,
    outbound: Outbound,
}

impl Socket {
    /// # Errors
    /// [`Error::Closed`] when nobody listens at `path`; [`Error::Stranger`] when it is another user who does.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        Ok(Self::over(address::connect(path.as_ref())?))
    }

    /// Two connected ends, for a child that inherits or receives one.
    pub fn pair() -> Result<(Self, Self), Error> {
        let (a, b) = UnixStream::pair()?;
        Ok((Self::over(a), Self::over(b)))
    }

    /// Over a stream that the caller trusts, such as one end of a pair.
    pub fn over(stream: UnixStream) -> Self {
        Self { stream, inbound: Inbound::default(), outbound: Outbound::default() }
    }

    /// Then [`Socket::send`] and [`Socket::recv`] may fail with [`Error::would_block`] and are to be called again
    /// (`flush` instead of `send`) when `poll` says so.
    pub fn set_nonblocking(&self, nonblocking: bool) -> Result<(), Error> {
        Ok(self.stream.set_nonblocking(nonblocking)?)
    }

    /// How long a blocking [`Socket::recv`] waits before it fails with [`Error::would_block`]; what came of a
    /// message by then is kept.
    pub fn set_timeout(&self, recv: Option<Duration>) -> Result<(), Error> {
        Ok(self.stream.set_read_timeout(recv)?)
    }

    /// Sends one message. The descriptors are closed here when they have left.
    ///
    /// # Errors
    /// With [`Error::would_block`] the message is kept: call [`Socket::flush`] until it is away, before any other send.
    pub fn send<T: Serialize>(&mut self, body: &T, fds: Vec<OwnedFd>) -> Result<(), Error> {
        let frame = frame::encode(body, fds)?;
        self.outbound.flush(self.stream.as_fd())?;
        self.outbound.load(frame);
        self.outbound.flush(self.stream.as_fd())
    }

    /// Sends what an earlier [`Socket::send`] could not.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.outbound.flush(self.stream.as_fd())
    }

    /// The next message; `None` when the other end closed.
    pub fn recv<T: DeserializeOwned>(&mut self) -> Result<Option<Message<T>>, Error> {
        self.inbound.fill(self.stream.as_fd())?.map(frame::decode).transpose()
    }

    /// The stream, for a hand-over to another layer. A message that was received in part is lost.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A listening socket at a path. The file stays when this is dropped: who made the directory removes it.
#[derive(Debug)]
pub struct Listener(UnixListener);

impl Listener {
    /// Mode 0600, in a directory of mode 0700 that is made if missing; replaces a dead socket file. Paths may be
    /// longer than a socket address.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, Error> {
        address::listen(path.as_ref()).map(Self)
    }

    /// A listening socket that was received or inherited.
    pub fn over(listener: UnixListener) -> Self {
        Self(listener)
    }

    pub fn set_nonblocking(&self, nonblocking: bool) -> Result<(), Error> {
        Ok(self.0.set_nonblocking(nonblocking)?)
    }

    /// The listening socket, to be handed to another process.
    pub fn into_std(self) -> UnixListener {
        self.0
    }

    /// The next connection; a blocking one, whatever the listener is.
    pub fn accept(&self) -> Result<Socket, Error> {
        let (stream, _) = self.0.accept()?;
        address::check(&stream)?;
        Ok(Socket::over(stream))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
