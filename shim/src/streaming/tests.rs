//! The streaming server from outside, over TCP, with clients that keep to the protocols and others that do not.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::spdy::frame::{self, FIN, SYN_STREAM, Writer, control};
use super::*;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    streaming: Arc<Streaming>,
    _stop: DropGuard,
}

impl Server {
    async fn start() -> Self {
        let stop = CancellationToken::new();
        let streaming = Streaming::start(stop.clone()).await.expect("a port is free");
        Self { streaming, _stop: stop.drop_guard() }
    }

    /// A call that says back what it is told, and at the end `bye` on the error stream.
    fn echo(&self) -> String {
        let join: Join = Box::new(|session: Session| {
            async move {
                let (mut stdin, stdout) =
                    (session.stdin.expect("asked for"), session.stdout.expect("asked for"));
                while let Some(bytes) = stdin.recv().await {
                    if stdout.send(bytes).await.is_err() {
                        return;
                    }
                }
                let _ = session.error.send("bye").await;
            }
            .boxed()
        });
        let wants = Wants { stdin: true, stdout: true, ..Wants::default() };
        self.streaming.url(Call::Exec(wants, join)).expect("a token")
    }

    /// A call for the ports of this machine's loopback.
    fn ports(&self) -> String {
        let target = Target::Address(Ipv4Addr::LOCALHOST);
        self.streaming.url(Call::PortForward(target, Vec::new())).expect("a token")
    }

    /// A connection that was upgraded with these headers, and the head of the answer.
    async fn upgrade(&self, url: &str, method: &str, headers: &str) -> (TcpStream, String) {
        let path = url.splitn(4, '/').nth(3).expect("a URL");
        let mut stream = TcpStream::connect(self.streaming.address).await.expect("it listens");
        let request = format!("{method} /{path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within(stream.read_u8()).await.expect("an answer"));
        }
        (stream, String::from_utf8(head).expect("text"))
    }

    async fn websocket(&self, url: &str, protocol: &str) -> WebSocketStream<TcpStream> {
        let headers = format!(
            "upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             sec-websocket-protocol: {protocol}\r\n"
        );
        let (stream, head) = self.upgrade(url, "GET", &headers).await;
        assert!(head.starts_with("HTTP/1.1 101") && head.contains(protocol), "{head}");
        WebSocketStream::from_raw_socket(stream, Role::Client, None).await
    }

    async fn spdy(&self, url: &str, protocol: &str) -> Spdy<TcpStream> {
        let headers = format!("upgrade: SPDY/3.1\r\nx-stream-protocol-version: {protocol}\r\n");
        let (stream, head) = self.upgrade(url, "POST", &headers).await;
        assert!(head.starts_with("HTTP/1.1 101") && head.contains(protocol), "{head}");
        Spdy::over(stream)
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

/// A client of SPDY, as little as these tests need.
struct Spdy<IO> {
    io: IO,
    writer: Writer,
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Control(u16, u32),
    Data(u32, Vec<u8>, bool),
    End,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Spdy<IO> {
    fn over(io: IO) -> Self {
        Self { io, writer: Writer::new() }
    }

    async fn say(&mut self, frame: &[u8]) {
        // One that the server gave up is found out by what is heard.
        let _ = self.io.write_all(frame).await;
        let _ = self.io.flush().await;
    }

    async fn open(&mut self, id: u32, headers: &[(&str, &str)], flags: u8) {
        let frame = self.writer.open(id, headers, flags);
        self.say(&frame).await;
    }

    async fn hear(&mut self) -> Heard {
        let mut head = [0; 8];
        if within(self.io.read_exact(&mut head)).await.is_err() {
            return Heard::End;
        }
        let number = |bytes: &[u8]| bytes.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte));
        let mut body = vec![0; number(&head[5..]) as usize];
        within(self.io.read_exact(&mut body)).await.expect("a whole frame");
        if head[0] & 0x80 == 0 {
            return Heard::Data(number(&head[..4]), body, head[4] & FIN != 0);
        }
        Heard::Control(u16::from_be_bytes([head[2], head[3]]), number(&body[..4]))
    }

    /// Everything that is said on these streams until they end; in their order.
    async fn hear_all(&mut self, ids: &[u32]) -> Vec<Vec<u8>> {
        let mut texts = vec![Vec::new(); ids.len()];
        let mut left = ids.len();
        while left > 0 {
            match self.hear().await {
                Heard::Data(id, bytes, last) => {
                    let place = ids.iter().position(|known| *known == id).expect("a stream of ours");
                    texts[place].extend(bytes);
                    left -= usize::from(last);
                }
                Heard::Control(..) => {}
                Heard::End => break,
            }
        }
        texts
    }
}

/// Says back what it is told, to anyone, until the end of it.
async fn pod() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn websockets_carry_streams_and_their_ends() {
    let server = Server::start().await;
    let mut socket = server.websocket(&server.echo(), "v5.channel.k8s.io").await;
    for message in [&b"\x00hello "[..], b"\x00", b"\x00world", b"\xff\x00"] {
        socket.send(Message::binary(message.to_vec())).await.expect("it is read");
    }
    let mut heard = vec![Vec::new(); 4];
    while let Some(Ok(message)) = within(socket.next()).await {
        if let Message::Binary(bytes) = message {
            heard[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
    }
    assert_eq!((heard[1].as_slice(), heard[3].as_slice()), (&b"hello world"[..], &b"bye"[..]));

    let mut socket = server.websocket(&server.echo(), "base64.channel.k8s.io").await;
    socket.send(Message::text("0aGk=")).await.expect("it is read");
    let mut texts = Vec::new();
    while texts.len() < 2 {
        texts.push(
            within(socket.next()).await.expect("an answer").expect("a message").into_text().expect("text"),
        );
    }
    assert_eq!(texts, ["1", "1aGk="], "first that it is there, then what was said");
}

#[tokio::test]
async fn a_token_is_good_for_one_use() {
    let server = Server::start().await;
    let url = server.echo();
    let _socket = server.websocket(&url, "v4.channel.k8s.io").await;
    let (_, head) = server.upgrade(&url, "GET", "upgrade: websocket\r\nsec-websocket-key: x\r\n").await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    let other = server.echo().replace("/exec/", "/attach/");
    let (_, head) = server.upgrade(&other, "GET", "upgrade: websocket\r\nsec-websocket-key: x\r\n").await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
}

#[tokio::test]
async fn hostile_messages_end_their_own_websocket_alone() {
    let server = Server::start().await;
    let mut good = server.websocket(&server.echo(), "v5.channel.k8s.io").await;
    let hostile = [
        ("a channel that there is not", Message::binary(vec![9, 1])),
        ("a channel that is the server's", Message::binary(vec![1, 1])),
        ("the end of no channel", Message::binary(vec![255, 77])),
        ("text", Message::text("0hello")),
        ("a message too long", Message::binary(vec![0; channels::MOST_MESSAGE + 1])),
    ];
    for (what, message) in hostile {
        let mut socket = server.websocket(&server.echo(), "v5.channel.k8s.io").await;
        let _ = socket.send(message).await; // it may be given up while it sends
        let ended = async {
            while let Some(Ok(message)) = socket.next().await {
                assert!(message.len() <= 1, "{what} was answered");
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("{what} was borne"));
    }
    good.send(Message::binary(b"\x00still here".to_vec())).await.expect("it is read");
    let heard = async {
        while let Some(Ok(message)) = good.next().await {
            if message.into_data().ends_with(b"still here") {
                return;
            }
        }
        panic!("it ended with the others");
    };
    within(heard).await;
}

#[tokio::test]
async fn a_client_that_goes_ends_its_session() {
    let server = Server::start().await;
    let (told, gone) = tokio::sync::oneshot::channel();
    let join: Join = Box::new(|session: Session| {
        async move {
            session.error.gone().await;
            let _ = told.send(());
        }
        .boxed()
    });
    let wants = Wants { stdout: true, ..Wants::default() };
    let url = server.streaming.url(Call::Attach(wants, join)).expect("a token");
    drop(server.websocket(&url, "v4.channel.k8s.io").await);
    within(gone).await.expect("the session is told");
}

#[tokio::test]
async fn spdy_carries_streams_and_their_ends() {
    let server = Server::start().await;
    let mut client = server.spdy(&server.echo(), "v4.channel.k8s.io").await;
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        client.open(id, &[("streamtype", kind)], 0).await;
        assert_eq!(client.hear().await, Heard::Control(2, id), "it is taken");
    }
    client.say(&frame::ping(7)).await;
    assert_eq!(client.hear().await, Heard::Control(6, 7), "a ping is answered");
    let long = vec![b'x'; 200_000]; // more than any window that is not kept
    client.say(&frame::data(3, &long, false)).await;
    client.say(&frame::data(3, b"end", true)).await;
    let mut heard = Vec::new();
    loop {
        match client.hear().await {
            Heard::Data(5, bytes, _) => heard.extend(bytes),
            Heard::Data(1, bytes, _) => assert_eq!(bytes, b"bye"),
            Heard::Control(7, 5) => break, // going away, the last stream was 5
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard.len(), long.len() + 3);
    assert_eq!(client.hear().await, Heard::End);
}

#[tokio::test]
async fn ports_are_forwarded_over_spdy_and_through_a_tunnel() {
    let (server, port) = (Server::start().await, pod().await);
    let client = server.spdy(&server.ports(), "portforward.k8s.io").await;
    forward_and_be_refused(client, port).await;

    let socket = server.websocket(&server.ports(), "SPDY/3.1+portforward.k8s.io").await;
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let (mut reader, mut writer) = tokio::io::split(theirs);
        let (mut sink, mut stream) = socket.split();
        let out = async {
            let mut buffer = [0; 1000]; // so that frames are cut anywhere
            while let Ok(n @ 1..) = reader.read(&mut buffer).await {
                if sink.send(Message::binary(buffer[..n].to_vec())).await.is_err() {
                    return;
                }
            }
        };
        let back = async {
            while let Some(Ok(message)) = stream.next().await {
                let _ = writer.write_all(&message.into_data()).await;
            }
        };
        tokio::join!(out, back);
    });
    forward_and_be_refused(Spdy::over(ours), port).await;
}

async fn forward_and_be_refused<IO: AsyncRead + AsyncWrite + Unpin>(mut client: Spdy<IO>, port: u16) {
    let closed = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        listener.local_addr().expect("it is bound").port()
    };
    for (id, port, request) in [(1, port, "0"), (5, closed, "1"), (9, 0, "2")] {
        let port = port.to_string();
        let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", request)];
        client.open(id, &headers("error"), FIN).await;
        client.open(id + 2, &headers("data"), 0).await;
        if request == "0" {
            client.say(&frame::data(id + 2, &[b'z'; 100_000], false)).await;
            client.say(&frame::data(id + 2, b"", true)).await;
        }
        let heard = client.hear_all(&[id, id + 2]).await;
        match request {
            "0" => assert_eq!((heard[0].len(), heard[1].len()), (0, 100_000)),
            "1" => assert!(String::from_utf8_lossy(&heard[0]).contains("cannot connect"), "{heard:?}"),
            _ => assert!(String::from_utf8_lossy(&heard[0]).contains("give 1 to 65535"), "{heard:?}"),
        }
    }
}

#[tokio::test]
async fn hostile_frames_end_their_own_connection_alone() {
    let (server, port) = (Server::start().await, pod().await);
    let good = server.spdy(&server.ports(), "portforward.k8s.io").await;
    let id = |id: u32| id.to_be_bytes();
    let mut longer = Writer::new();
    let bomb = longer.open(1, &[("a", &"0".repeat(1 << 20))], 0);
    let hostile: [(&str, Vec<u8>); 11] = [
        ("another version", vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        ("a control frame too long", vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
        ("a control frame too short", control(SYN_STREAM, 0, &[&id(1)])),
        ("an even stream", Writer::new().open(2, &[], 0)),
        ("stream 0", Writer::new().open(0, &[], 0)),
        ("data for no stream", frame::data(7, b"x", false)),
        ("data for stream 0", frame::data(0, b"x", false)),
        ("headers that are no zlib", control(SYN_STREAM, 0, &[&id(1), &[0; 6], b"garbage"])),
        ("headers that grow", bomb),
        ("a reply to nothing", control(2, 0, &[&id(2), &[0; 4]])),
        ("a window that grows by nothing", control(9, 0, &[&id(1), &id(0)])),
    ];
    for (what, bytes) in hostile {
        let mut client = server.spdy(&server.ports(), "portforward.k8s.io").await;
        client.say(&bytes).await;
        assert_eq!(client.hear().await, Heard::End, "{what}");
    }
    let mut client = server.spdy(&server.ports(), "portforward.k8s.io").await;
    let (first, again) = (client.writer.open(3, &[], 0), client.writer.open(3, &[], 0));
    client.say(&[first, again].concat()).await;
    while client.hear().await != Heard::End {}

    // Windows are not kept, so none overflows; and a connection that is cut within a frame is over.
    let mut client = server.spdy(&server.ports(), "portforward.k8s.io").await;
    for _ in 0..100 {
        client.say(&control(9, 0, &[&id(1), &id(0x7fff_ffff)])).await;
    }
    client.say(&frame::ping(1)).await;
    assert_eq!(client.hear().await, Heard::Control(6, 1));
    client.say(&[0x80, 3, 0]).await;
    client.io.shutdown().await.expect("it is open");
    assert_eq!(client.hear().await, Heard::End);

    forward_and_be_refused(good, port).await;
}

#[tokio::test]
async fn halves_without_another_cost_nothing() {
    let server = Server::start().await;
    let mut client = server.spdy(&server.ports(), "portforward.k8s.io").await;
    for n in 0..400_u32 {
        let request = n.to_string();
        client.open(2 * n + 1, &[("streamtype", "data"), ("port", "1"), ("requestid", &request)], 0).await;
        assert_eq!(client.hear().await, Heard::Control(2, 2 * n + 1));
        client.say(&frame::data(2 * n + 1, &[0; 1000], false)).await;
    }
    client.say(&frame::ping(1)).await;
    assert_eq!(client.hear().await, Heard::Control(6, 1), "the connection is well");
}

#[tokio::test]
async fn streams_beyond_the_bound_are_refused_until_others_are_over() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (mut incoming, carrying) = spdy::serve(theirs);
    tokio::spawn(carrying);
    let (mut client, mut held) = (Spdy::over(ours), Vec::new());
    for id in (1..512).step_by(2) {
        client.open(id, &[("streamtype", "data")], 0).await;
        held.push(within(incoming.next()).await.expect("it is served"));
        assert_eq!(client.hear().await, Heard::Control(2, id), "it is taken");
    }
    client.open(513, &[], 0).await;
    assert_eq!(client.hear().await, Heard::Control(3, 513), "it is one too many");
    held.clear();
    client.open(515, &[], 0).await;
    assert_eq!(client.hear().await, Heard::Control(2, 515), "there is room again");
}
