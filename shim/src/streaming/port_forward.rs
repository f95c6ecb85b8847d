//! The ports of a pod, as Kubernetes' `portforward` resource speaks of them.
//!
//! Over SPDY, in a connection of its own or in the messages of a WebSocket, a client opens two streams a connection:
//! headers pair them and name the port; one carries the bytes, one an error message.
//!
//! Over WebSocket alone, each port of the query string has two channels: `2n` carries its bytes, `2n + 1` an error message. A frame is
//! one byte of channel number and the payload. The server opens every channel with a frame that holds the port,
//! 16 bits little-endian. When the pod has nothing more to send on any port, the server closes the socket.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use futures::future::BoxFuture;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use http::Request;
use hyper::body::{Bytes, Incoming};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use super::channels::config;
use super::handshake::Agreed;
use super::remote::OPENING;
use super::spdy::{self, Stream};
use super::upgraded;

/// SPDY in the binary messages of a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// What SPDY streams say themselves.
pub const SPDY: &str = "portforward.k8s.io";
/// The subprotocols we speak, in the order of preference. The difference of the others is in exec alone.
pub const PROTOCOLS: [&str; 4] = [TUNNEL, "v5.channel.k8s.io", "v4.channel.k8s.io", SPDY];
/// Connections to a pod at a time over one of SPDY.
const PAIRS: usize = 100;
/// Ports per socket; channel numbers are one byte.
pub const MOST_PORTS: usize = 100;
/// Bytes read from the pod at once; a frame to the client is at most this and one byte.
const CHUNK: usize = 32 * 1024;

/// Where the ports of a pod are dialled.
#[derive(Clone, Debug)]
pub enum Target {
    /// The loopback of a pod's network namespace.
    Namespace(PathBuf),
    /// An address that this process reaches: a wasm pod's own, or the node's loopback.
    Address(Ipv4Addr),
}

impl Target {
    async fn dial(&self, port: u16) -> std::io::Result<TcpStream> {
        match self {
            Self::Address(address) => TcpStream::connect((*address, port)).await,
            Self::Namespace(path) => {
                // A socket belongs to the namespace it was made in; it is connected from here.
                let path = path.clone();
                let runtime = tokio::runtime::Handle::current();
                let socket = tokio::task::spawn_blocking(move || {
                    wharf_sandbox::netns::within(&path, || {
                        let _entered = runtime.enter();
                        tokio::net::TcpSocket::new_v4()
                    })
                });
                let socket = socket.await?.map_err(std::io::Error::other)?;
                socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
            }
        }
    }
}

/// Serves the ports from the upgrade to the end.
///
/// # Errors
/// Why there is nothing to serve, in words for the client.
pub(super) fn carry(
    request: Request<Incoming>,
    agreed: Agreed,
    target: Target,
    given: Vec<u16>,
) -> Result<BoxFuture<'static, ()>, String> {
    match agreed {
        Agreed::Spdy { .. } => Ok(async move {
            let Some(io) = upgraded(request).await else { return };
            serve_pairs(io, target).await;
        }
        .boxed()),
        Agreed::WebSocket { protocol: Some(TUNNEL), .. } => Ok(async move {
            let Some(io) = upgraded(request).await else { return };
            serve_pairs(tunnel(io).await, target).await;
        }
        .boxed()),
        Agreed::WebSocket { .. } => {
            let named = ports(request.uri().query().unwrap_or_default());
            let ports = if given.is_empty() { named? } else { given };
            Ok(async move {
                let Some(io) = upgraded(request).await else { return };
                forward(io, target, ports).await;
            }
            .boxed())
        }
    }
}

/// The bytes in the binary messages of a WebSocket.
async fn tunnel<IO>(io: IO) -> impl AsyncRead + AsyncWrite + Send + 'static
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, stream) = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await.split();
    let bytes = stream.filter_map(async |message| match message {
        Ok(Message::Binary(bytes)) => Some(Ok::<_, std::io::Error>(bytes)),
        Ok(Message::Close(_)) | Err(_) => Some(Err(std::io::ErrorKind::UnexpectedEof.into())),
        Ok(Message::Text(_)) => Some(Err(std::io::ErrorKind::InvalidData.into())),
        Ok(_) => None, // tungstenite answers pings itself
    });
    let sink = sink.sink_map_err(std::io::Error::other);
    let sink = sink.with(async |bytes: Bytes| Ok::<_, std::io::Error>(Message::Binary(bytes)));
    tokio::io::join(StreamReader::new(Box::pin(bytes)), SinkWriter::new(CopyToBytes::new(Box::pin(sink))))
}

/// Serves pairs of streams until the client is gone.
async fn serve_pairs<IO>(io: IO, target: Target)
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut incoming, carrying) = spdy::serve(io);
    let pairing = async move {
        let mut halves: HashMap<String, (Stream, Instant)> = HashMap::new();
        let mut pairs = JoinSet::new();
        while let Some(stream) = incoming.next().await {
            while pairs.try_join_next().is_some() {}
            halves.retain(|_, (_, since)| since.elapsed() < OPENING);
            let Some((id, kind)) = named(&stream) else { continue }; // dropped, so it is over
            match halves.remove(&id) {
                Some((other, _)) if named(&other).is_some_and(|(_, other)| other != kind) => {
                    let (data, error) = if kind == "data" { (stream, other) } else { (other, stream) };
                    if pairs.len() < PAIRS {
                        pairs.spawn(pair(target.clone(), data, error));
                    } else {
                        let why = format!("{PAIRS} connections are forwarded already");
                        let _ = error.output.send(why).await;
                        data.output.end().await;
                        error.output.end().await;
                    }
                }
                _ if halves.len() < PAIRS => {
                    halves.insert(id, (stream, Instant::now()));
                }
                _ => {}
            }
        }
    };
    // The client is gone when nothing carries its streams any more: with it go the connections.
    tokio::select! {
        () = async { tokio::join!(pairing, std::future::pending::<()>()); } => {}
        () = carrying => {}
    }
}

/// What pairs a stream with another, and which of the two it is.
fn named(stream: &Stream) -> Option<(String, String)> {
    let kind = stream.headers.get("streamtype").filter(|kind| matches!(kind.as_str(), "data" | "error"))?;
    // Clients of long ago sent no id: then the port alone is it.
    let id = stream.headers.get("requestid").or_else(|| stream.headers.get("port"))?;
    Some((id.clone(), kind.clone()))
}

/// One connection of the client's to the pod.
async fn pair(target: Target, mut data: Stream, error: Stream) {
    let port = data.headers.get("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0);
    let dialled = match port {
        Some(port) => target.dial(port).await.map_err(|why| cannot_connect(port, &why)),
        None => Err("the port is none: give 1 to 65535".to_owned()),
    };
    match dialled {
        Err(why) => {
            let _ = error.output.send(why).await;
            data.output.end().await;
        }
        Ok(stream) => {
            let _ = stream.set_nodelay(true); // the client has cut its bytes already
            let (mut from_pod, mut to_pod) = stream.into_split();
            let inward = async {
                while let Some(bytes) = data.input.recv().await {
                    if to_pod.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _ = to_pod.shutdown().await;
            };
            let output = data.output.clone();
            let outward = async {
                loop {
                    let mut bytes = Vec::with_capacity(CHUNK);
                    match from_pod.read_buf(&mut bytes).await {
                        Ok(n) if n > 0 => {}
                        _ => break,
                    }
                    if output.send(bytes).await.is_err() {
                        break;
                    }
                }
                output.end().await;
            };
            let reset = data.reset.clone();
            tokio::select! {
                // When the pod has said all, what the client says reaches nobody.
                () = async { tokio::join!(inward, outward); } => {}
                () = reset.cancelled() => {}
            }
        }
    }
    error.output.end().await;
}

fn cannot_connect(port: u16, why: &std::io::Error) -> String {
    format!("cannot connect to port {port} of the pod: {why}")
}

/// The ports of a query string: `ports=80,443` or `ports=80&ports=443`; `port=` as well.
fn ports(query: &str) -> Result<Vec<u16>, String> {
    let pairs = form_urlencoded::parse(query.as_bytes());
    let mut ports = Vec::new();
    for (_, value) in pairs.filter(|(key, _)| matches!(key.as_ref(), "ports" | "port")) {
        for text in value.split(',') {
            match text.parse::<u16>() {
                Ok(port) if port > 0 => ports.push(port),
                _ => return Err(format!("{text:?} is no port; give 1 to 65535")),
            }
        }
    }
    match ports.len() {
        0 => Err("no port is given; add ?ports=N".to_owned()),
        1..=MOST_PORTS => Ok(ports),
        n => Err(format!("{n} ports are too many; at most {MOST_PORTS} are forwarded at once")),
    }
}

/// Carries bytes until the client closes, the pod has ended every connection, or a frame is malformed.
async fn forward<S>(stream: S, target: Target, ports: Vec<u16>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config())).await;
    let (mut to_client, mut from_client) = socket.split();
    // One frame in hand is enough: the pod is read no faster than the client takes.
    let (frames, mut outgoing) = mpsc::channel::<Vec<u8>>(1);
    let mut writers: Vec<Option<OwnedWriteHalf>> = Vec::with_capacity(ports.len());
    for (n, port) in ports.iter().enumerate() {
        let channel = 2 * n as u8; // MOST_PORTS keeps it below 256
        let [low, high] = port.to_le_bytes();
        for opened in [channel, channel + 1] {
            if to_client.send(Message::binary(vec![opened, low, high])).await.is_err() {
                return;
            }
        }
        match target.dial(*port).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true); // the client has cut its bytes already
                let (mut reader, writer) = stream.into_split();
                writers.push(Some(writer));
                let frames = frames.clone();
                tokio::spawn(async move {
                    loop {
                        let mut frame = vec![0; 1 + CHUNK];
                        frame[0] = channel;
                        match reader.read(&mut frame[1..]).await {
                            Ok(0) | Err(_) => return,
                            Ok(read) => frame.truncate(1 + read),
                        }
                        if frames.send(frame).await.is_err() {
                            return;
                        }
                    }
                });
            }
            Err(error) => {
                writers.push(None);
                let mut frame = vec![channel + 1];
                frame.extend(cannot_connect(*port, &error).into_bytes());
                let _ = to_client.send(Message::binary(frame)).await;
            }
        }
    }
    drop(frames); // the readers hold the rest: when all have ended, so has the pod
    loop {
        tokio::select! {
            frame = outgoing.recv() => match frame {
                Some(frame) => if to_client.send(Message::binary(frame)).await.is_err() { return },
                None => {
                    let _ = to_client.send(super::farewell()).await;
                    return;
                }
            },
            message = from_client.next() => match message {
                Some(Ok(Message::Binary(frame))) => {
                    let Some((&channel, payload)) = frame.split_first() else { continue };
                    if channel == CLOSE {
                        // v5: the client has nothing more to send on that channel.
                        if let Some(writer) = payload.first().and_then(|&c| writers.get_mut(usize::from(c) / 2)) {
                            writer.take();
                        }
                        continue;
                    }
                    let Some(writer) = writers.get_mut(usize::from(channel) / 2) else { return };
                    if let Some(open) = writer
                        && channel.is_multiple_of(2)
                        && open.write_all(payload).await.is_err()
                    {
                        *writer = None;
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {} // tungstenite answers pings itself
            },
        }
    }
}

/// The channel number that announces the end of another (v5).
const CLOSE: u8 = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_in_every_form_that_clients_use() {
        assert_eq!(ports("ports=8080").unwrap(), [8080]);
        assert_eq!(ports("ports=80,443").unwrap(), [80, 443]);
        assert_eq!(ports("ports=80%2C443").unwrap(), [80, 443]);
        assert_eq!(ports("ports=80&ports=443").unwrap(), [80, 443]);
        for bad in ["", "ports=", "ports=0", "ports=65536", "ports=http", "timeout=3"] {
            assert!(ports(bad).is_err(), "{bad:?} was taken");
        }
        assert!(ports(&format!("ports={}", ["1"; 101].join(","))).is_err());
    }
}
