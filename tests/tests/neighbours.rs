//! What a guest does to itself is not felt by others.
//!
//! A guest has no sockets of its own yet, so none can be made to try another pod's address; that test comes with `wasi:sockets`.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use wharf_tests::manifest::{self, PORT, address, container};
use wharf_tests::{Node, Space, eventually, get};

/// Enough for a p99 that is not its maximum.
const REQUESTS: usize = 300;
/// Enough for a neighbour to begin and end some of what it does.
const LEAST: Duration = Duration::from_secs(1);
/// D7 measured 2 ms beside loops and 28 ms beside fills, on guests of one host; on a busy machine with two cores, where
/// API server and test run as well, this is still far below what a shared executor would give (62 ms and 6.6 s).
const P50: Duration = Duration::from_millis(30);
const P99: Duration = Duration::from_millis(150);

/// Sorted times of requests one after the other, each on its own connection, for at least [`LEAST`].
fn times(node: &Node, at: SocketAddr) -> Vec<Duration> {
    let took = node.within(|| {
        let (mut took, start) = (Vec::new(), Instant::now());
        while took.len() < REQUESTS || start.elapsed() < LEAST {
            let began = Instant::now();
            let (status, _) = get(at, "/")?;
            took.push(began.elapsed());
            assert_eq!(status, 200);
        }
        Ok(took)
    });
    let mut took = took.expect("every request is answered");
    took.sort();
    took
}

/// Makes a request, and another when it is answered, until told to stop.
fn keep_asking(at: SocketAddr, path: &str, stop: &AtomicBool, answered: &AtomicUsize) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: pod.test\r\nconnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        loop {
            match stream.read_to_end(&mut answer) {
                Ok(_) => {
                    answered.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if stop.load(Ordering::Relaxed) {
                        break; // a request that nobody waits for any more ends
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    Ok(())
}

fn address_of(space: &Space, app: &str) -> SocketAddr {
    let address = eventually("the pod has an address", || {
        space.pods(app).iter().find_map(address).ok_or_else(|| "none".to_owned())
    });
    (address, PORT).into()
}

#[test]
fn guests_that_loop_or_fill_memory_delay_no_neighbour() {
    let space = Space::new("neighbours");
    let node = space.cluster.node();
    let mut bad = manifest::deployment("bad", "guest-http:1");
    container(&mut bad)["resources"] = json!({"limits": {"memory": "2Gi"}, "requests": {"memory": "16Mi"}});
    container(&mut bad)["readinessProbe"] = json!(null);
    space.apply(&[manifest::deployment("good", "greeter:1"), bad], true);
    let (good, bad) = (address_of(&space, "good"), address_of(&space, "bad"));
    let alone = times(&node, good);
    for path in ["/loop", "/fill?256"] {
        let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        let beside = std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| node.within(|| keep_asking(bad, path, &stop, &answered)).expect("it asked"));
            }
            std::thread::sleep(Duration::from_millis(300)); // until they run; there is no event for it
            let beside = times(&node, good);
            if path != "/loop" {
                eventually("what it does comes to an end", || match answered.load(Ordering::Relaxed) {
                    0 => Err("no answer".to_owned()),
                    _ => Ok(()),
                });
            }
            stop.store(true, Ordering::Relaxed);
            beside
        });
        let at = |times: &[Duration], share: f64| times[(times.len() as f64 * share) as usize];
        println!(
            "{path}: p50 {:?} (alone {:?}), p99 {:?} (alone {:?})",
            at(&beside, 0.5),
            at(&alone, 0.5),
            at(&beside, 0.99),
            at(&alone, 0.99)
        );
        assert!(at(&beside, 0.5) < P50, "p50 beside {path}: {:?}", at(&beside, 0.5));
        assert!(at(&beside, 0.99) < P99, "p99 beside {path}: {:?}", at(&beside, 0.99));
    }
}

#[test]
fn a_guest_reaches_nothing_of_the_node() {
    let space = Space::new("walls");
    let node = space.cluster.node();
    space.apply(&[manifest::deployment("curious", "guest-http:1")], true);
    let at = address_of(&space, "curious");
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let listener = node.listen(loopback, 0).expect("a listener on the node's loopback");
    listener.set_nonblocking(true).expect("a flag");
    let port = listener.local_addr().expect("its address").port();
    let api = space.get(&["nodes"])["items"][0]["status"]["addresses"][0]["address"].clone();
    let api = api.as_str().expect("the node's address").to_owned();
    for target in [format!("127.0.0.1:{port}"), format!("{api}:6443"), format!("{api}:10250")] {
        let answer = node.within(|| get(at, &format!("/connect?{target}"))).expect("an answer");
        assert_ne!(answer.0, 200, "{target}: {answer:?}");
    }
    let came = listener.accept();
    assert!(came.is_err(), "{came:?} reached the node's loopback");
}
