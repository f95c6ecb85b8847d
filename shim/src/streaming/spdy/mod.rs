//! SPDY/3.1 as a server of the streams that a client opens.

pub(super) mod frame;
mod headers;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::streams::{Output, Piece, QUEUE};
use frame::{Frame, REFUSED, Reader, Writer};
pub use headers::Headers;

/// Streams of one connection at a time.
const STREAMS: usize = 256;

/// What a client did that ends its connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it broke off")]
    Io(#[from] std::io::Error),
    #[error("version {0} is not spoken")]
    Version(u16),
    #[error("a control frame of {0} bytes is too long")]
    Long(usize),
    #[error("a control frame is too short")]
    Short,
    #[error("a header block is not well-formed: {0}")]
    Headers(&'static str),
    #[error("a window grows by nothing")]
    Window,
    #[error("{0} is no stream that it may open or write to")]
    Stream(u32),
}

/// A stream that the client opened, and was told that it is taken.
#[derive(Debug)]
pub struct Stream {
    pub headers: Headers,
    /// Ends when the client has nothing more to say.
    pub input: mpsc::Receiver<Bytes>,
    pub output: Output,
    /// Cancelled when the client wants no more of it.
    pub reset: Arc<CancellationToken>,
}

/// The streams of a connection as they are opened. The connection is served until this and every stream's output is
/// dropped.
pub struct Incoming {
    streams: mpsc::Receiver<Stream>,
    _open: mpsc::Sender<Piece>,
}

impl Incoming {
    /// The next stream; `None` when the client is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}

/// What the reading side has to say.
enum Word {
    Taken(u32),
    Refused(u32),
    Pong(u32),
}

/// The streams of a connection, and what carries them: a future that ends when the client is gone or breaks the
/// protocol, and when the streams were dropped and all has left.
pub fn serve<IO>(io: IO) -> (Incoming, impl Future<Output = ()> + Send)
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (open, pieces) = mpsc::channel(QUEUE);
    let (opened, streams) = mpsc::channel(1);
    let incoming = Incoming { streams, _open: open.clone() };
    // Weak: what is left to send is known by those who may send.
    let open = open.downgrade();
    let carrying = async move {
        let (reader, mut writer) = tokio::io::split(io);
        let mut reader = Reader::new(reader);
        let (words, said) = mpsc::channel(QUEUE);
        let ended = tokio::select! {
            ended = read(&mut reader, &open, opened, words) => ended.err(),
            written = write(&mut writer, pieces, said) => match written {
                Err(cause) => Some(Error::Io(cause)),
                Ok(()) => {
                    let _ = writer.shutdown().await;
                    // A reset would take away what the client has not read yet: it closes first.
                    let rest = async { tokio::io::copy(&mut reader.into_inner(), &mut tokio::io::sink()).await };
                    let _ = tokio::time::timeout(super::LINGER, rest).await;
                    None
                }
            },
        };
        if let Some(error) = ended {
            tracing::debug!(%error, "a SPDY connection ended");
        }
    };
    (incoming, carrying)
}

/// A stream as the reading side knows it.
struct Known {
    /// None when the client has ended it.
    input: Option<mpsc::Sender<Bytes>>,
    /// Dead when nobody here has it any more.
    reset: Weak<CancellationToken>,
}

async fn read<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    open: &mpsc::WeakSender<Piece>,
    opened: mpsc::Sender<Stream>,
    words: mpsc::Sender<Word>,
) -> Result<(), Error> {
    let mut known: HashMap<u32, Known> = HashMap::new();
    let mut newest = 0;
    while let Some(frame) = reader.next().await? {
        match frame {
            Frame::Open { id, headers, last } => {
                if id.is_multiple_of(2) || id <= newest {
                    return Err(Error::Stream(id));
                }
                newest = id;
                known.retain(|_, stream| stream.reset.strong_count() > 0);
                let to = open.upgrade().filter(|_| known.len() < STREAMS);
                let Some(to) = to else {
                    let _ = words.send(Word::Refused(id)).await;
                    continue;
                };
                let (sender, input) = mpsc::channel(QUEUE);
                let reset = Arc::new(CancellationToken::new());
                let input_end = (!last).then_some(sender);
                known.insert(id, Known { input: input_end, reset: Arc::downgrade(&reset) });
                let _ = words.send(Word::Taken(id)).await;
                let stream = Stream { headers, input, output: Output { stream: id, to }, reset };
                let _ = opened.send(stream).await; // who takes no more drops it, which the next one finds
            }
            Frame::Data { id, bytes, last } => {
                if id == 0 || id > newest {
                    return Err(Error::Stream(id));
                }
                let Some(stream) = known.get_mut(&id) else { continue }; // it is over
                if let Some(input) = stream.input.as_ref().filter(|_| !bytes.is_empty()) {
                    let _ = input.send(bytes).await; // nobody takes it any more: so be it
                }
                if last {
                    stream.input = None;
                }
            }
            Frame::Reset { id } => {
                if let Some(reset) = known.remove(&id).and_then(|stream| stream.reset.upgrade()) {
                    reset.cancel();
                }
            }
            Frame::Ping { id } if !id.is_multiple_of(2) => {
                let _ = words.send(Word::Pong(id)).await;
            }
            Frame::Ping { .. } | Frame::Other => {}
            Frame::GoAway => {} // it opens no more; its streams go on
        }
    }
    Ok(())
}

async fn write<W: AsyncWrite + Unpin>(
    io: &mut W,
    mut pieces: mpsc::Receiver<Piece>,
    mut said: mpsc::Receiver<Word>,
) -> std::io::Result<()> {
    let mut writer = Writer::new();
    let mut newest = 0;
    loop {
        let frame = tokio::select! {
            biased; // a stream is taken before anything is sent on it
            Some(word) = said.recv() => match word {
                Word::Taken(id) => {
                    newest = id;
                    writer.reply(id)
                }
                Word::Refused(id) => frame::reset(id, REFUSED),
                Word::Pong(id) => frame::ping(id),
            },
            piece = pieces.recv() => match piece {
                Some(piece) => frame::data(piece.stream, &piece.bytes, piece.last),
                None => {
                    io.write_all(&frame::go_away(newest)).await?;
                    return io.flush().await;
                }
            },
        };
        io.write_all(&frame).await?;
        io.flush().await?;
    }
}
