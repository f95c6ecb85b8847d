//! Exec and attach over WebSocket: a message is one byte of channel number and the payload; with a base64 protocol
//! it is text, a digit and the payload in base64. `v5.channel.k8s.io` adds channel 255, which ends another.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::streams::{Output, Piece, QUEUE, Session, Wants};

/// In the order of preference.
pub const PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
/// A message from a client is at most this long.
pub const MOST_MESSAGE: usize = 4 << 20;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Announces the end of another channel (v5).
const CLOSE: u8 = 255;

pub fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_frame_size(Some(MOST_MESSAGE)).max_message_size(Some(MOST_MESSAGE))
}

/// What the client broke, in words for its close frame.
type Broken = &'static str;

/// A session, and what carries it: a future that ends when the client is gone, breaks the protocol, or the session
/// was dropped and all of it has left.
pub async fn serve<IO>(
    io: IO,
    protocol: Option<&'static str>,
    wants: Wants,
) -> (Session, impl Future<Output = ()> + Send)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await;
    let (sink, stream) = socket.split();
    let base64 = protocol.is_some_and(|name| name.contains("base64"));
    let (to, pieces) = mpsc::channel(QUEUE);
    let (stdin, stdin_taken) = mpsc::channel(QUEUE);
    let (resize, resize_taken) = mpsc::channel(QUEUE);
    let output = |channel: u8| Output { stream: channel.into(), to: to.clone() };
    let session = Session {
        stdin: wants.stdin.then_some(stdin_taken),
        resize: wants.tty.then_some(resize_taken),
        stdout: wants.stdout.then(|| output(STDOUT)),
        stderr: (wants.stderr && !wants.tty).then(|| output(STDERR)),
        error: output(ERROR),
        structured: protocol.is_some_and(|name| name.starts_with("v4.") || name.starts_with("v5.")),
    };
    let input = Input { stdin: Some(stdin), resize, v5: protocol == Some(PROTOCOLS[0]), base64 };
    // So that the client sees that its streams are there, an empty message comes first.
    let first = [STDOUT, STDERR, ERROR][[wants.stdout, wants.stderr].iter().take_while(|has| !**has).count()];
    let carrying = async move {
        let (mut sink, mut stream) = (sink, stream);
        let broken = tokio::select! {
            broken = read(&mut stream, input) => broken,
            () = write(&mut sink, pieces, base64, first) => None,
        };
        if let Some(why) = broken {
            tracing::debug!(why, "a client of a stream broke the protocol");
            return;
        }
        let _ = sink.send(super::farewell()).await;
        // Its close frame, or the end of the connection; what it still says is of no interest.
        let rest = async { while let Some(Ok(_)) = stream.next().await {} };
        let _ = tokio::time::timeout(super::LINGER, rest).await;
    };
    (session, carrying)
}

struct Input {
    stdin: Option<mpsc::Sender<Bytes>>,
    resize: mpsc::Sender<Bytes>,
    v5: bool,
    base64: bool,
}

impl Input {
    /// Takes one message; waits while the process does not take what came before.
    async fn take(&mut self, message: Message) -> Result<(), Broken> {
        let (channel, payload) = match message {
            Message::Binary(bytes) if !self.base64 => match bytes.first() {
                None => return Ok(()),
                Some(channel) => (*channel, bytes.slice(1..)),
            },
            Message::Text(text) if self.base64 => match text.as_bytes().split_first() {
                None => return Ok(()),
                Some((digit, rest)) => {
                    let bytes = BASE64.decode(rest).map_err(|_| "a message is not base64")?;
                    (digit.wrapping_sub(b'0'), Bytes::from(bytes))
                }
            },
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) | Message::Close(_) => return Ok(()),
            Message::Binary(_) | Message::Text(_) => return Err("a message is of the wrong type"),
        };
        match channel {
            CLOSE if self.v5 => match payload.first() {
                Some(&STDIN) => self.stdin = None,
                Some(&(STDOUT | STDERR | ERROR | RESIZE)) => {} // ours to end, or of no consequence
                _ => return Err("it closes a channel that there is not"),
            },
            STDIN if payload.is_empty() => {}
            // Who takes no stdin, or no more, is not told: clients send what they have.
            STDIN => {
                if let Some(stdin) = &self.stdin {
                    let _ = stdin.send(payload).await;
                }
            }
            RESIZE => {
                let _ = self.resize.send(payload).await;
            }
            _ => return Err("it writes to a channel that is not its to write to"),
        }
        Ok(())
    }
}

async fn read<IO>(stream: &mut SplitStream<WebSocketStream<IO>>, mut input: Input) -> Option<Broken>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match stream.next().await {
            None | Some(Err(_) | Ok(Message::Close(_))) => return None,
            Some(Ok(message)) => {
                if let Err(why) = input.take(message).await {
                    return Some(why);
                }
            }
        }
    }
}

async fn write<IO>(
    sink: &mut SplitSink<WebSocketStream<IO>, Message>,
    mut pieces: mpsc::Receiver<Piece>,
    base64: bool,
    first: u8,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let message = |channel: u8, bytes: &[u8]| match base64 {
        false => Message::binary([&[channel], bytes].concat()),
        true => Message::text(format!("{channel}{}", BASE64.encode(bytes))),
    };
    if sink.send(message(first, b"")).await.is_err() {
        return;
    }
    while let Some(piece) = pieces.recv().await {
        if piece.last {
            continue; // all end together, with the socket
        }
        let channel = u8::try_from(piece.stream).expect("it is one of our channels");
        if sink.send(message(channel, &piece.bytes)).await.is_err() {
            return;
        }
    }
}
