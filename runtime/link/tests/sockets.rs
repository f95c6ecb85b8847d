//! The protocol over real sockets, with real descriptors.
#![expect(clippy::unwrap_used, reason = "these are tests, with helpers beside them")]

use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    time::Duration,
};
use wharf_link::{
    Calls, Emitter, Error, Events, Listener, MAX_BODY, Peer, Socket, Wire, WireReply, blocking, serve,
};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Ask {
    Double(u64),
    Read,
    Never,
    Fail,
}
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Tell {
    Number(u64),
    Text(String),
}
type News = String;

fn file(text: &str) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file.into()
}

fn text(fd: OwnedFd) -> String {
    let mut text = String::new();
    File::from(fd).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn messages_arrive_whole_in_order_each_with_its_own_descriptors() {
    let (mut a, mut b) = blocking::Socket::pair().unwrap();
    let long = "x".repeat(700_000); // more than a socket's buffer
    let sender = std::thread::spawn({
        let long = long.clone();
        move || {
            a.send(&"first", vec![file("one"), file("two")]).unwrap();
            a.send(&long, vec![]).unwrap();
            a.send(&"third", vec![file("three")]).unwrap();
        }
    });
    let first = b.recv::<String>().unwrap().unwrap();
    assert_eq!(first.body, "first");
    assert_eq!(first.fds.into_iter().map(text).collect::<Vec<_>>(), ["one", "two"]);
    let second = b.recv::<String>().unwrap().unwrap();
    assert!(second.body == long && second.fds.is_empty());
    let third = b.recv::<String>().unwrap().unwrap();
    assert_eq!(third.fds.into_iter().map(text).collect::<Vec<_>>(), ["three"]);
    sender.join().unwrap();
    assert!(b.recv::<String>().unwrap().is_none(), "closed between messages is the end, no error");
}

#[test]
fn a_non_blocking_socket_keeps_what_came() {
    let (mut a, mut b) = blocking::Socket::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    b.set_nonblocking(true).unwrap();
    assert!(b.recv::<u8>().unwrap_err().would_block());
    let long = "x".repeat(MAX_BODY - 2);
    assert!(a.send(&long, vec![file("kept")]).unwrap_err().would_block(), "no buffer is so large");
    let message = loop {
        match b.recv::<String>() {
            Ok(message) => break message.unwrap(),
            Err(error) => assert!(error.would_block()),
        }
        if let Err(error) = a.flush() {
            assert!(error.would_block());
        }
    };
    assert!(message.body == long);
    assert_eq!(message.fds.into_iter().map(text).collect::<Vec<_>>(), ["kept"]);
}

#[test]
fn a_path_is_private_may_be_long_and_is_taken_over_from_the_dead_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d".repeat(120)).join("socket");
    assert!(matches!(blocking::Socket::connect(&path), Err(Error::Closed)), "nobody there");
    let listener = blocking::Listener::bind(&path).unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let mut client = blocking::Socket::connect(&path).unwrap();
    let mut server = listener.accept().unwrap();
    client.send(&"hello", vec![]).unwrap();
    assert_eq!(server.recv::<String>().unwrap().unwrap().body, "hello");
    assert!(blocking::Listener::bind(&path).is_err(), "someone listens");
    drop(listener);
    blocking::Listener::bind(&path).expect("nobody does any more");
}

type Ends = (Peer<Ask, Tell, News>, Events<News>, Calls<Ask, Tell, News>, Emitter<Tell, News>);
fn ends() -> Ends {
    let (a, b) = Socket::pair().unwrap();
    let (peer, events) = Peer::over(a);
    let (calls, emitter) = serve(b);
    (peer, events, calls, emitter)
}

async fn answer_all(mut calls: Calls<Ask, Tell, News>) {
    let mut kept = Vec::new();
    while let Some(Ok(call)) = calls.next().await {
        match call.request {
            Ask::Double(n) => drop(tokio::spawn(async move {
                tokio::time::sleep(Duration::from_micros(500 * (n % 7))).await; // so that answers overtake
                call.answer.reply(Tell::Number(n * 2), vec![]).await
            })),
            Ask::Read => {
                let text = call.fds.into_iter().map(text).collect();
                call.answer.reply(Tell::Text(text), vec![file("back")]).await.unwrap();
            }
            Ask::Fail => call.answer.refuse("no way").await.unwrap(),
            Ask::Never => kept.push(call.answer),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_in_flight_each_get_their_own_answer() {
    let (peer, _events, calls, _emitter) = ends();
    tokio::spawn(answer_all(calls));
    let tasks: Vec<_> = (0..500)
        .map(|n| {
            let peer = peer.clone();
            tokio::spawn(async move { (n, peer.call(Ask::Double(n), vec![]).await.unwrap().body) })
        })
        .collect();
    for task in tasks {
        let (n, body) = task.await.unwrap();
        assert_eq!(body, Tell::Number(n * 2));
    }
    let read = peer.call(Ask::Read, vec![file("to"), file("gether")]).await.unwrap();
    assert_eq!(read.body, Tell::Text("together".to_owned()));
    assert_eq!(read.fds.into_iter().map(text).collect::<Vec<_>>(), ["back"]);
    assert!(matches!(peer.call(Ask::Fail, vec![]).await, Err(Error::Remote(why)) if why == "no way"));
}

#[tokio::test]
async fn a_call_given_up_disturbs_no_other() {
    let (peer, _events, calls, _emitter) = ends();
    tokio::spawn(answer_all(calls));
    tokio::time::timeout(Duration::from_millis(20), peer.call(Ask::Never, vec![])).await.unwrap_err();
    assert_eq!(peer.call(Ask::Double(4), vec![]).await.unwrap().body, Tell::Number(8));
}

#[tokio::test]
async fn a_lost_connection_fails_every_waiting_call_and_later_ones() {
    let (peer, mut events, mut calls, emitter) = ends();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let peer = peer.clone();
            tokio::spawn(async move { peer.call(Ask::Never, vec![]).await })
        })
        .collect();
    let mut kept = Vec::new();
    while kept.len() < 3 {
        kept.push(calls.next().await.unwrap().unwrap());
    }
    emitter.emit("last words".to_owned(), vec![]).await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().body, "last words");
    drop((kept, calls, emitter));
    for task in waiting {
        assert!(matches!(task.await.unwrap(), Err(Error::Closed)));
    }
    assert!(matches!(events.next().await, Some(Err(Error::Closed))));
    assert!(events.next().await.is_none());
    assert!(peer.is_lost());
    assert!(matches!(peer.call(Ask::Double(1), vec![]).await, Err(Error::Closed)));
}

#[tokio::test]
async fn the_answering_end_hears_when_the_caller_is_gone() {
    let (peer, events, mut calls, emitter) = ends();
    drop((peer, events));
    assert!(calls.next().await.is_none());
    emitter.closed().await;
    assert!(matches!(emitter.emit(String::new(), vec![]).await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_caller_that_takes_no_events_still_gets_answers() {
    let (peer, _events, calls, emitter) = ends();
    tokio::spawn(answer_all(calls));
    for n in 0..1000 {
        emitter.emit(format!("event {n}"), vec![]).await.unwrap();
    }
    assert_eq!(peer.call(Ask::Double(2), vec![]).await.unwrap().body, Tell::Number(4));
}

#[tokio::test]
async fn the_blocking_end_can_speak_for_itself_over_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = blocking::Listener::bind(&path).unwrap();
    let monitor = std::thread::spawn(move || {
        let mut client = listener.accept().unwrap();
        while let Some(message) = client.recv::<Wire<Ask>>().unwrap() {
            let Ask::Double(n) = message.body.request else { panic!() };
            let reply: WireReply<Tell, News> =
                WireReply::Reply { id: message.body.id, reply: Tell::Number(n * 2) };
            client.send(&reply, vec![]).unwrap();
        }
    });
    let (peer, events) = Peer::<Ask, Tell, News>::over(Socket::connect(&path).await.unwrap());
    assert_eq!(peer.call(Ask::Double(21), vec![]).await.unwrap().body, Tell::Number(42));
    drop((peer, events));
    tokio::task::spawn_blocking(move || monitor.join().unwrap()).await.unwrap();

    fs::remove_file(&path).unwrap();
    let listener = Listener::bind(&path).unwrap();
    let (mut server, client) = tokio::join!(listener.accept(), Socket::connect(&path));
    client.unwrap().send(&7, vec![file("seven")]).await.unwrap();
    let message = server.as_mut().unwrap().recv::<u8>().await.unwrap().unwrap();
    assert_eq!((message.body, message.fds.len()), (7, 1));
}
