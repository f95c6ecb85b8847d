//! Frames in and out of a stream socket, restartable at any byte, so that one code serves blocking, non-blocking and
//! async callers.

use crate::{Error, Message};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Longest body of one message. A container's spec with a long environment is some tens of KiB.
pub const MAX_BODY: usize = 1 << 20;
/// Most descriptors beside one message; the kernel's own limit is 253.
pub const MAX_FDS: usize = 32;

const HEAD: usize = 8;
const MAGIC: u16 = 0x5768;
/// The kernel's SCM_MAX_FD: with room for as many nothing a sender does can cut the control data short.
const KERNEL_FDS: usize = 253;

/// One encoded frame with the descriptors that go with it.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

pub(crate) fn encode<T: Serialize>(body: &T, fds: Vec<OwnedFd>) -> Result<Encoded, Error> {
    if fds.len() > MAX_FDS {
        return Err(Error::TooManyFds { count: fds.len() });
    }
    let mut bytes = vec![0; HEAD];
    serde_json::to_writer(&mut bytes, body).map_err(Error::Encode)?;
    let len = bytes.len() - HEAD;
    if len > MAX_BODY {
        return Err(Error::TooLarge { len });
    }
    bytes[0..4].copy_from_slice(&(len as u32).to_le_bytes());
    bytes[4..6].copy_from_slice(&(fds.len() as u16).to_le_bytes());
    bytes[6..8].copy_from_slice(&MAGIC.to_le_bytes());
    Ok(Encoded { bytes, fds })
}

pub(crate) fn decode<T: DeserializeOwned>(raw: Message<Vec<u8>>) -> Result<Message<T>, Error> {
    let body = serde_json::from_slice(&raw.body).map_err(Error::Decode)?;
    Ok(Message { body, fds: raw.fds })
}

/// A frame being received.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    head: [u8; HEAD],
    have: usize, // bytes of the head, then of the body
    body: Option<(Vec<u8>, usize)>,
    fds: Vec<OwnedFd>,
}

impl Inbound {
    /// Receives until a frame is whole; `None` when the other end closed between two frames. `WouldBlock` keeps
    /// what came so far for the next call.
    pub fn fill(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Message<Vec<u8>>>, Error> {
        loop {
            let Some((body, announced)) = &mut self.body else {
                match receive(socket, &mut self.head[self.have..], &mut self.fds)? {
                    0 if self.have == 0 => return Ok(None),
                    0 => return Err(Error::Truncated),
                    n => self.have += n,
                }
                if self.have == HEAD {
                    self.body = Some(self.open()?);
                    self.have = 0;
                }
                continue;
            };
            if self.have < body.len() {
                match receive(socket, &mut body[self.have..], &mut self.fds)? {
                    0 => return Err(Error::Truncated),
                    n => self.have += n,
                }
                continue;
            }
            let (announced, came) = (*announced, self.fds.len());
            if announced != came {
                self.fds.clear();
                return Err(Error::MissingFds { announced, came });
            }
            let whole = std::mem::take(self);
            let (body, _) = whole.body.expect("the body is there: it was matched above");
            return Ok(Some(Message { body, fds: whole.fds }));
        }
    }

    fn open(&self) -> Result<(Vec<u8>, usize), Error> {
        let [a, b, c, d, e, f, g, h] = self.head;
        if u16::from_le_bytes([g, h]) != MAGIC {
            return Err(Error::NotAFrame);
        }
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        let fds = usize::from(u16::from_le_bytes([e, f]));
        if len > MAX_BODY {
            return Err(Error::TooLarge { len });
        }
        if fds > MAX_FDS {
            return Err(Error::TooManyFds { count: fds });
        }
        Ok((vec![0; len], fds))
    }
}

/// Never reads past the frame in hand: the kernel gives descriptors with the byte they were sent with, so each set
/// lands in its own frame.
fn receive(socket: BorrowedFd<'_>, into: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Error> {
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(into)];
        let got = match recvmsg(socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) => got,
            Err(rustix::io::Errno::INTR) => continue,
            Err(cause) => return Err(std::io::Error::from(cause).into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                fds.extend(came);
            }
        }
        if fds.len() > MAX_FDS {
            let count = fds.len();
            fds.clear();
            return Err(Error::TooManyFds { count });
        }
        return Ok(got.bytes);
    }
}

/// A frame being sent.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    frame: Option<Encoded>,
    sent: usize,
}

impl Outbound {
    /// The frame to send next; the last one must have been flushed.
    pub fn load(&mut self, frame: Encoded) {
        debug_assert!(self.frame.is_none(), "the frame before this one is still on its way");
        self.frame = Some(frame);
        self.sent = 0;
    }

    /// Sends what is left; `WouldBlock` keeps the rest for the next call.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        while let Some(frame) = &mut self.frame {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let borrowed: Vec<BorrowedFd<'_>> = frame.fds.iter().map(AsFd::as_fd).collect();
            if !borrowed.is_empty() {
                let fits = control.push(SendAncillaryMessage::ScmRights(&borrowed));
                debug_assert!(fits, "the space is for MAX_FDS and encode() allows no more");
            }
            let iov = [IoSlice::new(&frame.bytes[self.sent..])];
            match sendmsg(socket, &iov, &mut control, SendFlags::NOSIGNAL) {
                Ok(n) => {
                    drop(borrowed);
                    self.sent += n;
                    frame.fds.clear(); // they left with the first byte
                    if self.sent == frame.bytes.len() {
                        self.frame = None;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(cause) => return Err(std::io::Error::from(cause).into()),
            }
        }
        Ok(())
    }
}
