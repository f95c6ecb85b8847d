//! SPDY/3.1's frames, as far as a server of streams needs them. (draft-mbelshe-httpbis-spdy-00, 2.2.)

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader};

use super::Error;
use super::headers::{Decoder, Encoder, Headers};
use crate::streaming::streams::PIECE;

/// A control frame is at most this long.
const MOST_CONTROL: usize = 16 << 10;
const VERSION: u16 = 3;
pub const FIN: u8 = 1;

pub const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is not wanted.
pub const REFUSED: u32 = 3;

/// What a client said.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Open {
        id: u32,
        headers: Headers,
        last: bool,
    },
    /// A long frame comes in several of these.
    Data {
        id: u32,
        bytes: Bytes,
        last: bool,
    },
    Reset {
        id: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Nothing that matters here. Windows are among it: the clients of these streams keep none, so neither side may
    /// wait for one, and what holds a sender back is the connection itself.
    Other,
}

pub struct Reader<R> {
    io: BufReader<R>,
    headers: Decoder,
    /// The data frame that is being read: its stream, what is left of it, and whether it is the stream's last.
    data: Option<(u32, usize, bool)>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(io: R) -> Self {
        Self { io: BufReader::new(io), headers: Decoder::new(), data: None }
    }

    /// The connection, for whoever does not care for frames any more.
    pub fn into_inner(self) -> R {
        self.io.into_inner()
    }

    /// The next frame; `None` when the client closed between two. Not cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Frame>, Error> {
        if let Some(data) = self.data.take() {
            return self.data(data).await.map(Some);
        }
        let mut head = [0; 8];
        if self.io.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        self.io.read_exact(&mut head[1..]).await?;
        let [a, b, c, d, flags, x, y, z] = head;
        let length = u32::from_be_bytes([0, x, y, z]) as usize;
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            return self.data((id, length, flags & FIN != 0)).await.map(Some);
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(Error::Version(version));
        }
        if length > MOST_CONTROL {
            return Err(Error::Long(length));
        }
        let mut body = vec![0; length];
        self.io.read_exact(&mut body).await?;
        self.control(u16::from_be_bytes([c, d]), flags, &body).map(Some)
    }

    async fn data(&mut self, (id, left, last): (u32, usize, bool)) -> Result<Frame, Error> {
        let mut bytes = vec![0; left.min(PIECE)];
        self.io.read_exact(&mut bytes).await?;
        let left = left - bytes.len();
        if left > 0 {
            self.data = Some((id, left, last));
        }
        Ok(Frame::Data { id, bytes: bytes.into(), last: last && left == 0 })
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Frame, Error> {
        let number = |at: usize| -> Result<u32, Error> {
            let bytes = body.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or(Error::Short)?;
            Ok(u32::from_be_bytes(*bytes))
        };
        let id = |at: usize| Ok::<u32, Error>(number(at)? & 0x7fff_ffff);
        match kind {
            SYN_STREAM => {
                let block = body.get(10..).ok_or(Error::Short)?;
                Ok(Frame::Open { id: id(0)?, headers: self.headers.decode(block)?, last: flags & FIN != 0 })
            }
            RST_STREAM => Ok(Frame::Reset { id: id(0)? }),
            PING => Ok(Frame::Ping { id: number(0)? }),
            GOAWAY => Ok(Frame::GoAway),
            HEADERS => {
                // Read for the sake of the blocks that follow.
                self.headers.decode(body.get(4..).ok_or(Error::Short)?)?;
                Ok(Frame::Other)
            }
            WINDOW_UPDATE if id(4)? == 0 => Err(Error::Window),
            // We open no streams.
            SYN_REPLY => Err(Error::Stream(id(0)?)),
            _ => Ok(Frame::Other),
        }
    }
}

/// Puts frames into bytes.
pub struct Writer(Encoder);

impl Writer {
    pub fn new() -> Self {
        Self(Encoder::new())
    }

    /// A stream is taken.
    pub fn reply(&mut self, id: u32) -> Vec<u8> {
        let block = self.0.encode(&[]);
        control(SYN_REPLY, 0, &[&id.to_be_bytes(), &block])
    }

    /// A client's way to open a stream.
    #[cfg(test)]
    pub fn open(&mut self, id: u32, headers: &[(&str, &str)], flags: u8) -> Vec<u8> {
        let block = self.0.encode(headers);
        control(SYN_STREAM, flags, &[&id.to_be_bytes(), &[0; 6], &block])
    }
}

pub fn control(kind: u16, flags: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(8 + length);
    frame.extend((VERSION | 0x8000).to_be_bytes());
    frame.extend(kind.to_be_bytes());
    frame.push(flags);
    frame.extend(&(length as u32).to_be_bytes()[1..]);
    frame.extend(parts.iter().copied().flatten());
    frame
}

/// A data frame; `bytes` are at most 16 MiB.
pub fn data(id: u32, bytes: &[u8], last: bool) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + bytes.len());
    frame.extend(id.to_be_bytes());
    frame.push(if last { FIN } else { 0 });
    frame.extend(&(bytes.len() as u32).to_be_bytes()[1..]);
    frame.extend(bytes);
    frame
}

pub fn ping(id: u32) -> Vec<u8> {
    control(PING, 0, &[&id.to_be_bytes()])
}

pub fn reset(id: u32, status: u32) -> Vec<u8> {
    control(RST_STREAM, 0, &[&id.to_be_bytes(), &status.to_be_bytes()])
}

/// No stream after `last` was taken, and nothing is wrong.
pub fn go_away(last: u32) -> Vec<u8> {
    control(GOAWAY, 0, &[&last.to_be_bytes(), &0_u32.to_be_bytes()])
}
