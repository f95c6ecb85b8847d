use crate::support::{
    Harness, alive, digest, eventually, free_address, get, guest_path, pss, request, within,
};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use wharf_wasm::{Error, Event, Failure, Mount, Reason, State};

#[tokio::test(flavor = "multi_thread")]
async fn a_component_answers_http_as_its_environment_and_volumes_say() {
    let harness = Harness::start().await;
    let mut spec = harness.spec("env", "greeter");
    spec.env = vec![("GREETING".to_owned(), "Moin".to_owned())];
    let at = harness.serve(spec).await;
    let expected = r#"{"message":"Moin from a wasm component","runtime":"wasm"}"#;
    assert_eq!(get(at, "/").await, (200, expected.to_owned()));
    assert_eq!(get(at, "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(get(at, "/other").await.0, 404);

    let volume = harness.dir().join("volume");
    std::fs::create_dir(&volume).expect("a volume");
    std::fs::write(volume.join("greeting"), "Servus\n").expect("a key of it");
    let mut spec = harness.spec("file", "greeter");
    spec.mounts = vec![Mount { host: volume, guest: "/etc/greeter".to_owned(), read_only: true }];
    let at = harness.serve(spec).await;
    assert!(get(at, "/").await.1.contains("Servus"));
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_is_that_of_the_environment_before_that_of_the_pod() {
    let harness = Harness::start().await;
    let (wanted, other) = (free_address().await, free_address().await);
    let mut spec = harness.spec("port", "guest-http");
    spec.env = vec![("PORT".to_owned(), wanted.port().to_string())];
    spec.port = Some(other.port());
    harness.host.create(spec).await.expect("created");
    harness.host.start_container("port", None).await.expect("started");
    assert_eq!(get(wanted, "/").await.0, 200);

    let mut taken = harness.spec("taken", "guest-http");
    taken.port = Some(wanted.port());
    harness.host.create(taken).await.expect("created");
    let refused = harness.host.start_container("taken", None).await.expect_err("the port is taken");
    assert!(matches!(&refused, Error::Refused(Failure::Spec { why }) if why.contains("in use")), "{refused}");
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_streamed_both_ways_and_connections_are_kept() {
    let harness = Harness::start().await;
    let at = harness.serve(harness.spec("echo", "guest-http")).await;
    let mut stream = TcpStream::connect(at).await.expect("connected");
    for round in 0..2 {
        let head = "POST /echo HTTP/1.1\r\nhost: guest.test\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("sent");
        for word in ["first", "later"] {
            let chunk = format!("{:x}\r\n{word}\r\n", word.len());
            stream.write_all(chunk.as_bytes()).await.expect("sent");
            let mut seen = String::new();
            while !seen.contains(word) {
                let mut some = [0; 4096];
                let len = within("the echo", stream.read(&mut some)).await.expect("open");
                assert!(len > 0, "round {round}: closed after {seen:?}");
                seen.push_str(&String::from_utf8_lossy(&some[..len]));
            }
        }
        stream.write_all(b"0\r\n\r\n").await.expect("sent");
        let mut seen = Vec::new();
        while !seen.ends_with(b"0\r\n\r\n") {
            seen.push(within("the end", stream.read_u8()).await.expect("open"));
        }
    }
    let large = "x".repeat(3 << 20);
    let (status, body) = request(at, "POST", "/echo", &large).await.expect("answered");
    assert_eq!((status, body.len()), (200, large.len()));
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_speak_http_2_at_once() {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let harness = Harness::start().await;
    let at = harness.serve(harness.spec("h2c", "guest-http")).await;
    let stream = TokioIo::new(TcpStream::connect(at).await.expect("connected"));
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
    let (mut sender, connection) = handshake.await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let request =
        ::http::Request::post(format!("http://{at}/echo")).body(Full::new(bytes::Bytes::from("both ways")));
    let response = sender.send_request(request.expect("a request")).await.expect("answered");
    let body = response.into_body().collect().await.expect("whole").to_bytes();
    assert_eq!(body, "both ways");
    connection.abort();
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_services_keep_no_connection_from_others() {
    let harness = Harness::with(|config| config.limits.connections = 4).await;
    let mut all = Vec::new();
    for index in 0..10 {
        all.push(harness.serve(harness.spec(&format!("one-of-{index}"), "guest-http")).await);
    }
    for at in all {
        assert_eq!(get(at, "/").await.0, 200);
    }
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_ends_its_request_and_nothing_else() {
    let mut harness = Harness::start().await;
    let at = harness.serve(harness.spec("traps", "guest-http")).await;
    for _ in 0..3 {
        assert_eq!(get(at, "/panic").await.0, 500);
        assert_eq!(get(at, "/").await.0, 200);
    }
    match harness.event().await {
        Event::Warning { id, message, traps, .. } => {
            assert_eq!((id.as_str(), traps), ("traps", 1));
            assert!(message.contains("error while executing") || message.contains("wasm"), "{message}");
        }
        other => panic!("not a warning: {other:?}"),
    }
    harness.no_event().await; // one a minute
    let stats = harness.host.stats("traps").await.expect("stats");
    assert_eq!((stats.traps, stats.requests, stats.refused), (3, 6, 0));
    let log = harness.log("traps");
    assert!(log.iter().any(|(stream, _, text)| stream == "stderr" && text.contains("asked to")), "{log:?}");
    assert!(log.iter().any(|(_, _, text)| text.contains("unreachable")), "{log:?}");
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_instance_along() {
    let harness = Harness::start().await;
    let at = harness.serve(harness.spec("left", "guest-http")).await;
    let instances = async || harness.host.stats("left").await.expect("stats").instances;
    for path in ["/loop", "/sleep?60000"] {
        let mut stream = TcpStream::connect(at).await.expect("connected");
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: guest.test\r\n\r\n").as_bytes())
            .await
            .expect("sent");
        eventually("an instance runs", async || instances().await == 1).await;
        drop(stream);
        eventually("it ended", async || instances().await == 0).await;
    }
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_requests_finish_and_takes_no_new_ones() {
    let mut harness = Harness::start().await;
    let at = harness.serve(harness.spec("stops", "guest-http")).await;
    let slow = tokio::spawn(get(at, "/sleep?300"));
    eventually("it runs", async || harness.host.stats("stops").await.expect("stats").instances == 1).await;
    let exit =
        within("the stop", harness.host.stop("stops", Duration::from_secs(10))).await.expect("stopped");
    assert_eq!((exit.code, exit.reason), (0, Reason::Completed));
    assert_eq!(slow.await.expect("task"), (200, "slept\n".to_owned()));
    assert!(TcpStream::connect(at).await.is_err(), "nobody listens any more");
    assert_eq!(harness.exit_of("stops").await, exit);
    let again = harness.host.stop("stops", Duration::ZERO).await.expect("stopped before");
    assert_eq!(again, exit);
    assert!(matches!(
        harness.host.start_container("stops", None).await,
        Err(Error::Refused(Failure::Exited { .. }))
    ));

    let at = harness.serve(harness.spec("deaf", "guest-http")).await;
    let stuck = tokio::spawn(request(at, "GET", "/loop", ""));
    eventually("it runs", async || harness.host.stats("deaf").await.expect("stats").instances == 1).await;
    let exit =
        within("the stop", harness.host.stop("deaf", Duration::from_millis(50))).await.expect("stopped");
    assert_eq!((exit.code, exit.reason), (137, Reason::Error));
    let _ = stuck.await;
    harness.host.remove("deaf").await.expect("removed");
    assert!(matches!(harness.host.status("deaf").await, Err(Error::Refused(Failure::Unknown { .. }))));
    harness.host.remove("deaf").await.expect("not there: no error");
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_made_when_written_and_anew_after_rotation() {
    let harness = Harness::start().await;
    let at = harness.serve(harness.spec("logs", "guest-http")).await;
    let path = harness.dir().join("logs.log");
    get(at, "/").await;
    assert!(!path.exists(), "nothing was logged");
    get(at, "/log?before").await;
    let rotated = harness.dir().join("logs.log.1");
    std::fs::rename(&path, &rotated).expect("rotated");
    harness.host.reopen_log("logs").await.expect("reopened");
    assert!(path.exists());
    get(at, "/log?after").await;
    assert_eq!(harness.log("logs"), [("stdout".to_owned(), "F".to_owned(), "after".to_owned())]);
    assert!(std::fs::read_to_string(rotated).expect("the old one").ends_with("stdout F before\n"));
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_is_refused_in_clear_words() {
    let harness = Harness::start().await;
    let write = |name: &str, bytes: &[u8]| {
        let path = harness.dir().join(name);
        std::fs::write(&path, bytes).expect("written");
        path
    };
    let component = std::fs::read(guest_path("guest-http")).expect("a guest");
    let core = wat::parse_str("(module)").expect("text");
    let empty = wat::parse_str("(component)").expect("text");
    let foreign = wat::parse_str(
        r#"(component (import "other:host/door" (func))
            (core module $m (func (export "run") (result i32) i32.const 0)) (core instance $m (instantiate $m))
            (func $run (result (result)) (canon lift (core func $m "run")))
            (instance $i (export "run" (func $run))) (export "wasi:cli/run@0.2.0" (instance $i)))"#,
    )
    .expect("text");
    let cases: [(&str, &[u8], &str); 5] = [
        ("text", b"#!/bin/sh\n", "not WebAssembly"),
        ("library", &core, "exports no function _start"),
        ("cut", &component[..component.len() / 2], "not valid WebAssembly"),
        ("empty", &empty, "exports neither"),
        ("foreign", &foreign, "other:host/door"),
    ];
    for (name, bytes, words) in cases {
        let path = write(name, bytes);
        match harness.host.precompile(&path, &digest(&path)).await {
            Err(Error::Refused(Failure::Module { why })) => assert!(why.contains(words), "{name}: {why}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let path = write("other", &component);
    let wrong = format!("sha256:{}", "0".repeat(64));
    assert!(matches!(
        harness.host.precompile(&path, &wrong).await,
        Err(Error::Refused(Failure::Spec { .. }))
    ));
    assert!(matches!(
        harness.host.precompile(&path, "latest").await,
        Err(Error::Refused(Failure::Spec { .. }))
    ));
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_starts_in_milliseconds_and_is_small_while_idle() {
    const SERVICES: u32 = 200;
    let harness = Harness::start().await;
    let at = harness.serve(harness.spec("first", "greeter")).await;
    assert_eq!(get(at, "/").await.0, 200);
    let before = pss(harness.pid());
    let mut took = Vec::new();
    let mut addresses = Vec::new();
    for index in 0..SERVICES {
        let mut spec = harness.spec(&format!("idle-{index}"), "greeter");
        // Many addresses and one port, as pods have.
        let address = std::net::Ipv4Addr::new(127, 77, (index >> 8) as u8, index as u8);
        spec.address = Some(address.into());
        spec.port = Some(at.port());
        let id = spec.id.clone();
        let began = Instant::now();
        harness.host.create(spec).await.expect("created");
        harness.host.start_container(&id, None).await.expect("started");
        took.push(began.elapsed());
        addresses.push(std::net::SocketAddr::from((address, at.port())));
    }
    let each = pss(harness.pid()).saturating_sub(before) / u64::from(SERVICES);
    took.sort();
    let p50 = took[took.len() / 2];
    println!("create + start: p50 {p50:?}, max {:?}; {each} bytes an idle service", took[took.len() - 1]);
    assert!(each <= 64 << 10, "{each} bytes each");
    assert!(p50 <= Duration::from_millis(20), "{p50:?}: 5 ms is the target, the rest is a busy machine's");
    for at in addresses.iter().step_by(50) {
        assert_eq!(get(*at, "/").await.0, 200);
    }
    assert_eq!(harness.host.list().await.expect("list").len(), SERVICES as usize + 1);
    let status = harness.host.status("idle-7").await.expect("status");
    assert!(matches!(status.state, State::Running { .. }));
    assert!(alive(harness.pid()));
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_listens_on_the_socket_that_was_made_for_it() {
    let harness = Harness::start().await;
    let mut spec = harness.spec("handed", "guest-http");
    spec.address = None;
    spec.env.push(("PORT".to_owned(), "81".to_owned()));
    harness.host.create(spec).await.expect("created");
    assert_eq!(harness.host.status("handed").await.expect("status").port, Some(81));
    let refused = harness.host.start_container("handed", None).await.expect_err("nowhere to listen");
    assert!(refused.to_string().contains("needs the pod's address"), "{refused}");
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    let at = socket.local_addr().expect("an address");
    harness.host.start_container("handed", Some(socket.into())).await.expect("started");
    assert_eq!(get(at, "/").await, (200, "hello\n".to_owned()));
    harness.host.kill("handed").await.expect("killed");
    assert!(tokio::net::TcpStream::connect(at).await.is_err(), "it is closed with the container");
    harness.end().await;
}
