//! The pod network, in a node namespace that each test makes for itself. Needs root.

#![expect(clippy::unwrap_used, reason = "what fails in a test's helper fails the test")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use wharf_sandbox::{Error, Network, PortMapping, Protocol, Range, Routes, Switch, netns};

/// Runs `test` on a thread in a fresh node namespace, with a tokio runtime of its own, then checks that the
/// test left nothing behind.
fn on_node<F: Future<Output = ()>>(test: impl FnOnce(Network, std::path::PathBuf) -> F + Send) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ns");
    std::thread::scope(|scope| {
        let node = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let network = Network::open(&path).unwrap();
                test(network, path.clone()).await;
                let network = Network::open(&path).unwrap();
                network.teardown().await.unwrap();
            });
        });
        if let Err(panic) = node.join() {
            std::panic::resume_unwind(panic);
        }
    });
    assert_eq!(std::fs::read_dir(&path).map_or(0, Iterator::count), 0, "namespaces are left");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(path.to_str().unwrap()), "mounts are left");
}

fn range() -> Range {
    "10.128.0.0/17".parse().unwrap()
}

/// A listener on `address` inside the namespace at `path`; it answers each connection with its peer's address.
fn serve(path: &Path, address: Ipv4Addr) -> SocketAddr {
    let listener = netns::within(path, || TcpListener::bind((address, 0))).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(peer.ip().to_string().as_bytes());
        }
    });
    at
}

fn ask(at: SocketAddr) -> std::io::Result<String> {
    let mut answer = String::new();
    TcpStream::connect_timeout(&at, Duration::from_secs(2))?.read_to_string(&mut answer)?;
    Ok(answer)
}

/// As [`ask`], from `source` in the namespace at `path`.
fn ask_from(path: &Path, source: Ipv4Addr, at: SocketAddr) -> String {
    netns::within(path, || {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
        let stream = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        nix::sys::socket::setsockopt(
            &stream.as_fd(),
            nix::sys::socket::sockopt::SendTimeout,
            &nix::sys::time::TimeVal::new(2, 0),
        )?;
        let SocketAddr::V4(at) = at else { unreachable!("tests use IPv4") };
        let raw = std::os::fd::AsRawFd::as_raw_fd(&stream);
        bind(raw, &SockaddrIn::from(std::net::SocketAddrV4::new(source, 0)))?;
        connect(raw, &SockaddrIn::from(at))?;
        let mut answer = String::new();
        TcpStream::from(stream).read_to_string(&mut answer)?;
        Ok(answer)
    })
    .unwrap()
}

#[test]
fn every_pod_reaches_every_other_by_its_own_address() {
    on_node(|network, _| async move {
        network.configure(range()).await.unwrap();
        let (one, two) =
            (network.attach("one", None).await.unwrap(), network.attach("two", None).await.unwrap());
        let wasm_ns = network.wasm_netns();
        let (third, fourth) = (network.take_wasm_address().unwrap(), network.take_wasm_address().unwrap());
        let peers = [
            (one.netns.clone(), one.address),
            (two.netns.clone(), two.address),
            (wasm_ns.clone(), third),
            (wasm_ns, fourth),
        ];
        for (to_ns, to) in &peers {
            let at = serve(to_ns, *to);
            assert_eq!(ask(at).unwrap(), network.gateway().unwrap().to_string(), "the node asks {to}");
            for (from_ns, from) in &peers {
                assert_eq!(ask_from(from_ns, *from, at), from.to_string(), "{from} asks {to}");
            }
        }
        for pod in [("one", one), ("two", two)] {
            network.detach(pod.0, Some(pod.1.address)).await.unwrap();
            network.detach(pod.0, Some(pod.1.address)).await.unwrap(); // a repeat changes nothing
        }
    });
}

#[test]
fn a_pod_that_is_gone_has_no_link_though_somebody_keeps_its_namespace() {
    on_node(|network, _| async move {
        network.configure(range()).await.unwrap();
        let (kept, gone) =
            (network.attach("kept", None).await.unwrap(), network.attach("gone", None).await.unwrap());
        let namespace = std::fs::File::open(&kept.netns).unwrap();
        for (id, pod) in [("kept", kept), ("gone", gone)] {
            network.detach(id, Some(pod.address)).await.unwrap();
        }
        let until = Instant::now() + Duration::from_secs(30);
        let links = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        while links().contains("wh-") {
            assert!(Instant::now() < until, "a link is left: {}", links());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(namespace);
    });
}

#[test]
fn configuring_again_after_a_restart_changes_nothing() {
    on_node(|network, dir| async move {
        network.configure(range()).await.unwrap();
        let pod = network.attach("kept", None).await.unwrap();
        let at = serve(&pod.netns, pod.address);
        drop(network);
        let network = Network::open(&dir).unwrap();
        network.configure(range()).await.unwrap();
        network.reserve(pod.address);
        assert_ne!(network.attach("new", None).await.unwrap().address, pod.address);
        assert!(ask(at).is_ok(), "the pod still answers");
        assert!(network.configure("10.200.0.0/17".parse().unwrap()).await.is_err());
    });
}

#[test]
fn a_port_of_the_node_stays_with_its_pod_when_another_asked_for_it_in_vain() {
    on_node(|network, _| async move {
        network.configure(range()).await.unwrap();
        let (one, two) =
            (network.attach("one", None).await.unwrap(), network.attach("two", None).await.unwrap());
        let at = serve(&one.netns, one.address);
        let mapping =
            |host_ip| PortMapping { protocol: Protocol::Tcp, host_ip, host_port: 8080, port: at.port() };
        let node = network.gateway().unwrap();
        for host_ip in [None, Some(node)] {
            network.unpublish(|_| true).await.unwrap();
            let ports = [mapping(host_ip)];
            network.publish(one.address, &ports).await.unwrap();
            let taken = network.publish(two.address, &ports).await;
            assert!(matches!(taken, Err(Error::PortTaken(_))), "{taken:?}");
            network.unpublish(|address| address == two.address).await.unwrap();
            assert!(ask((node, 8080).into()).is_ok(), "it leads to its pod still");
            network.unpublish(|address| address == one.address).await.unwrap();
            assert!(ask((node, 8080).into()).is_err(), "it leads nowhere");
        }
    });
}

#[test]
fn a_wasm_guest_reaches_no_loopback_of_its_node() {
    on_node(|network, _| async move {
        let here = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
        let switches = tempfile::tempdir().unwrap();
        let path = switches.path().join("switch");
        let switch = Switch::create(&path).await.unwrap();
        switch.plug("node-1", Path::new(&here), Ipv4Addr::new(10, 64, 0, 11), 24).await.unwrap();
        network.configure(range()).await.unwrap();
        let node = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let seen = netns::within(&network.wasm_netns(), || {
            Ok(TcpStream::connect_timeout(&node, Duration::from_secs(1)).is_ok())
        });
        assert!(!seen.unwrap(), "the wasm namespace has its own loopback");
        let bound = netns::within(&network.wasm_netns(), || {
            Ok(TcpListener::bind((network.gateway().unwrap(), 0)).is_ok())
        });
        assert!(!bound.unwrap(), "an address of the node is not the namespace's");
        netns::remove(&path).unwrap();
    });
}

#[test]
fn routes_lead_to_the_pods_of_another_node_until_they_are_taken_away() {
    on_node(|network, dir| async move {
        network.configure(range()).await.unwrap();
        let pod = network.attach("here", None).await.unwrap();
        let here = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
        let places = tempfile::tempdir().unwrap();
        let (switch_path, other) = (places.path().join("switch"), places.path().join("other"));
        let switch = Switch::create(&switch_path).await.unwrap();
        netns::create(&other).unwrap();
        let (own, far) = (Ipv4Addr::new(10, 64, 0, 11), Ipv4Addr::new(10, 64, 0, 12));
        switch.plug("own", Path::new(&here), own, 24).await.unwrap();
        switch.plug("other", &other, far, 24).await.unwrap();

        // The other node is a thread in its namespace, with the next range and a pod of both sorts.
        let dir = dir.join("other");
        let (pods, told) = std::sync::mpsc::channel();
        let (done, end) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            netns::enter(&other).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let network = Network::open(&dir).unwrap();
                let far: Range = "10.128.128.0/17".parse().unwrap();
                network.configure(far).await.unwrap();
                let back = std::collections::BTreeMap::from([(range(), own)]);
                Routes::open().unwrap().set("10.128.0.0/9".parse().unwrap(), &back).await.unwrap();
                let oci = network.attach("there", None).await.unwrap();
                let wasm = network.take_wasm_address().unwrap();
                pods.send([serve(&oci.netns, oci.address), serve(&network.wasm_netns(), wasm)]).unwrap();
                let _ = end.recv();
                network.teardown().await.unwrap();
            });
            netns::remove(&other).unwrap();
            std::fs::remove_dir(&dir).unwrap();
        });
        let there = told.recv().unwrap();
        let routes = Routes::open().unwrap();
        let all: Range = "10.128.0.0/9".parse().unwrap();
        let wanted = std::collections::BTreeMap::from([("10.128.128.0/17".parse().unwrap(), far)]);
        for _ in 0..2 {
            routes.set(all, &wanted).await.unwrap(); // a repeat changes nothing
            for at in there {
                let seen = netns::within(&pod.netns, || ask(at)).unwrap();
                assert_eq!(seen, pod.address.to_string(), "{at} sees the pod's own address");
            }
        }
        routes.set(all, &std::collections::BTreeMap::new()).await.unwrap();
        assert!(netns::within(&pod.netns, || ask(there[0])).is_err(), "the route is gone");
        drop(done);
        thread.join().unwrap();
        netns::remove(&switch_path).unwrap();
    });
}
