//! Port forwarding over WebSocket, as Kubernetes' `portforward` resource speaks it.
//!
//! Each port of the query string has two channels: `2n` carries its bytes, `2n + 1` an error message. A frame is
//! one byte of channel number and the payload. The server opens every channel with a frame that holds the port,
//! 16 bits little-endian. When the pod has nothing more to send on any port, the server closes the socket.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use futures::{SinkExt as _, StreamExt as _};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::refuse;

/// The subprotocols we speak, in the order of preference. Their difference is in exec alone.
const PROTOCOLS: [&str; 4] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "portforward.k8s.io", "v4.base64.channel.k8s.io"];
/// Ports per socket; channel numbers are one byte.
pub const MOST_PORTS: usize = 100;
/// Bytes read from the pod at once; a frame to the client is at most this and one byte.
const CHUNK: usize = 32 * 1024;
/// A frame from a client is at most this long.
const MOST_FRAME: usize = 4 * 1024 * 1024;

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

/// Checks the handshake and starts forwarding when the connection is upgraded.
pub(super) fn answer(request: Request<Incoming>, target: Target, given: Vec<u16>) -> Response<Full<Bytes>> {
    let named = ports(request.uri().query().unwrap_or_default());
    let ports = match if given.is_empty() { named } else { Ok(given) } {
        Ok(ports) => ports,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, &why),
    };
    let headers = request.headers();
    let websocket = headers.get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY).filter(|_| websocket) else {
        return refuse(StatusCode::UPGRADE_REQUIRED, "port forwarding needs a WebSocket upgrade");
    };
    let offered: Vec<&str> = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(',').map(str::trim))
        .collect();
    let chosen = PROTOCOLS[..3].iter().find(|p| offered.contains(p));
    if chosen.is_none() && !offered.is_empty() {
        let why = format!(
            "none of the subprotocols {offered:?} is spoken here; offer one of {:?}",
            &PROTOCOLS[..3]
        );
        return refuse(StatusCode::BAD_REQUEST, &why);
    }
    let accept = derive_accept_key(key.as_bytes());
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => forward(TokioIo::new(upgraded), target, ports).await,
            Err(error) => tracing::debug!(%error, "port-forward upgrade failed"),
        }
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept.parse().expect("base64 is a header value"));
    if let Some(protocol) = chosen {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    response
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
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let config =
        WebSocketConfig::default().max_frame_size(Some(MOST_FRAME)).max_message_size(Some(MOST_FRAME));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
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
                frame.extend(format!("cannot connect to port {port} of the pod: {error}").into_bytes());
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
                    let _ = to_client.close().await;
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
