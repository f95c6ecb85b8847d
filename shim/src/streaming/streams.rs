//! A client's streams, whichever protocol carries them.

use hyper::body::Bytes;
use tokio::sync::mpsc;

/// Pieces that may wait for a client or for a process: then whoever sends waits.
pub const QUEUE: usize = 4;
/// A piece is at most this long.
pub const PIECE: usize = 32 << 10;

/// Which streams a call promised.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wants {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// Bytes on their way to the client.
#[derive(Debug)]
pub struct Piece {
    /// A channel's number or a stream's, as the protocol has it.
    pub stream: u32,
    pub bytes: Bytes,
    /// Nothing follows on this stream.
    pub last: bool,
}

/// One stream towards the client.
#[derive(Clone, Debug)]
pub struct Output {
    pub stream: u32,
    pub to: mpsc::Sender<Piece>,
}

/// The client is gone.
#[derive(Debug)]
pub struct Gone;

impl Output {
    /// Waits while the client does not take what was sent before.
    pub async fn send(&self, bytes: impl Into<Bytes>) -> Result<(), Gone> {
        let piece = Piece { stream: self.stream, bytes: bytes.into(), last: false };
        self.to.send(piece).await.map_err(|_| Gone)
    }

    /// Nothing follows.
    pub async fn end(&self) {
        let _ = self.to.send(Piece { stream: self.stream, bytes: Bytes::new(), last: true }).await;
    }

    /// Resolves when the client is gone.
    pub async fn gone(&self) {
        self.to.closed().await;
    }
}

/// The streams of an exec or attach. The client is served until this is dropped.
#[derive(Debug)]
pub struct Session {
    /// Ends when the client has nothing more to say, and when it is gone.
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    /// JSON, as the client sends it.
    pub resize: Option<mpsc::Receiver<Bytes>>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    pub error: Output,
    /// Whether the error stream carries a Status, or as long ago plain words.
    pub structured: bool,
}
