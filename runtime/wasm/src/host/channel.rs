//! A descriptor that came from outside, read and written without ever blocking a thread.

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};
use tokio::io::{Interest, unix::AsyncFd};

/// A pipe, socket or terminal; or what never makes anybody wait, such as a file or /dev/null.
#[derive(Debug)]
pub(crate) enum Channel {
    Polled(AsyncFd<OwnedFd>),
    Instant(OwnedFd),
}

impl Channel {
    /// Makes it non-blocking, also for others who have the same open file. Must be called in the I/O runtime.
    #[expect(unsafe_code, reason = "tokio's registration is unsafe")]
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        // SAFETY: an OwnedFd is one open descriptor until it is dropped, and the AsyncFd owns it.
        match unsafe { AsyncFd::register(fd) } {
            Ok(fd) => Ok(Self::Polled(fd)),
            Err(refused) => match refused.into_parts() {
                // epoll's answer for what is always ready.
                (fd, cause) if cause.kind() == io::ErrorKind::PermissionDenied => Ok(Self::Instant(fd)),
                (_, cause) => Err(cause),
            },
        }
    }

    /// What is there now: none at the end, `WouldBlock` when it is to come.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        let read = |fd: &OwnedFd, into: &mut [u8]| match rustix::io::read(fd.as_fd(), into) {
            Err(rustix::io::Errno::IO) => Ok(0), // a terminal whose other end has hung up
            other => other.map_err(io::Error::from),
        };
        match self {
            Self::Polled(fd) => fd.try_io(Interest::READABLE, |fd| read(fd, into)),
            Self::Instant(fd) => read(fd, into),
        }
    }

    /// What there is room for now, or `WouldBlock`.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let write = |fd: &OwnedFd| rustix::io::write(fd.as_fd(), bytes).map_err(io::Error::from);
        match self {
            Self::Polled(fd) => fd.try_io(Interest::WRITABLE, write),
            Self::Instant(fd) => write(fd),
        }
    }

    /// Until [`Self::try_read`] may have something. Cancel-safe.
    pub async fn readable(&self) {
        self.ready(Interest::READABLE).await;
    }

    /// Until [`Self::try_write`] may have room. Cancel-safe.
    pub async fn writable(&self) {
        self.ready(Interest::WRITABLE).await;
    }

    async fn ready(&self, interest: Interest) {
        if let Self::Polled(fd) = self {
            let _ = fd.ready(interest).await; // a runtime that ends: the next attempt tells
        }
    }

    /// None at the end. Cancel-safe.
    pub async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.try_read(into) {
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => self.readable().await,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// All of it. A dropped future may have written some.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => self.writable().await,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }
}
