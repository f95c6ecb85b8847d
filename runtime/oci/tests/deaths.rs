//! Whoever dies, costs only what is its own.
#![expect(clippy::unwrap_used, reason = "these are tests, with helpers beside them")]

mod bed;

use bed::{Bed, exited, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::fs;
use wharf_oci::{Event, PauseSpec, Status};

#[tokio::test]
async fn containers_outlive_the_shim_and_their_exits_are_told_once() {
    let bed = Bed::new();
    let (oci, events) = bed.start().await;
    bed.run(&oci, bed.spec("stays", &["wait"]), "ready").await;
    let gate = bed.path("gate");
    let mut spec = bed.spec("ends", &["until", "/gate/open"]);
    fs::create_dir(&gate).unwrap();
    spec.mounts = vec![wharf_oci::Mount::Bind {
        source: gate.clone(),
        destination: "/gate".into(),
        readonly: true,
        recursive_readonly: false,
        propagation: wharf_oci::Propagation::Private,
        mapped: false,
    }];
    oci.create(spec).await.unwrap();
    oci.start_container("ends").await.unwrap();
    oci.create(bed.spec("waits", &["exit", "4"])).await.unwrap();
    drop((oci, events));
    until("the zygote to end", || bed.named("wharf-zygote").is_empty()).await;

    fs::write(gate.join("open"), "").unwrap(); // it exits while no shim is there
    until("its monitor to end", || bed.named("wharf-monitor").len() == 2).await;

    let (oci, mut events) = bed.start().await;
    assert!(matches!(oci.status("stays").unwrap(), Status::Running { .. }));
    assert!(matches!(oci.status("waits").unwrap(), Status::Created { .. }));
    let (id, exit) = exited(&mut events).await;
    assert_eq!((id.as_str(), exit.code), ("ends", 3));
    drop((oci, events));

    let (oci, mut events) = bed.start().await;
    assert!(matches!(oci.status("ends").unwrap(), Status::Exited(exit) if exit.code == 3));
    oci.start_container("waits").await.unwrap();
    oci.signal("stays", 15).await.unwrap();
    let mut told = [exited(&mut events).await.0, exited(&mut events).await.0];
    told.sort();
    assert_eq!(told, ["stays", "waits"], "and not `ends` again");
    for id in ["stays", "waits", "ends"] {
        oci.remove(id).await.unwrap();
    }
    drop((oci, events));
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn a_shim_killed_at_any_instant_leaves_what_the_next_one_can_end() {
    let shim = |bed: &Bed| {
        let specs: Vec<_> = (0..30).map(|n| bed.spec(&format!("c{n}"), &["wait"])).collect();
        let mut shim = std::process::Command::new(env!("CARGO_BIN_EXE_wharf-oci-zygote"));
        shim.args(["shim", bed.path("state").to_str().unwrap(), &bed.mark]);
        shim.arg(serde_json::to_string(&specs).unwrap()).spawn().unwrap()
    };
    let mut found = 0;
    // How long one takes to come to its fifth container, on this machine: the instants are parts of that.
    let mut pace = None;
    for percent in
        [None, Some(2), Some(5), Some(10), Some(20), Some(30), Some(40), Some(55), Some(70), Some(85)]
    {
        let bed = Bed::new();
        let began = std::time::Instant::now();
        let mut shim = shim(&bed);
        match (percent, pace) {
            (Some(percent), Some(pace)) => tokio::time::sleep(pace * percent / 100).await, // the instant to try
            _ => {
                let made = || std::fs::read_dir(bed.path("state/containers")).map_or(0, Iterator::count);
                until("five containers", || made() >= 5).await;
                pace = Some(began.elapsed());
            }
        }
        shim.kill().unwrap();
        shim.wait().unwrap();
        let (oci, events) = bed.start().await;
        for (id, status) in oci.list() {
            found += 1;
            assert!(!matches!(status, Status::Creating), "{percent:?} % of {pace:?}: {id} is {status:?}");
            oci.remove(&id).await.unwrap();
        }
        drop((oci, events));
        bed.nothing_is_left().await;
    }
    assert!(found > 4, "the shims came to nothing");
}

#[tokio::test]
async fn a_killed_zygote_is_replaced_and_nothing_else_notices() {
    let bed = Bed::new();
    let (oci, _events) = bed.start().await;
    bed.run(&oci, bed.spec("before", &["wait"]), "ready").await;
    let old = bed.named("wharf-zygote")[0];
    kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
    bed.run(&oci, bed.spec("after", &["wait"]), "ready").await;
    assert_ne!(bed.named("wharf-zygote"), [old]);
    for id in ["before", "after"] {
        assert!(matches!(oci.status(id).unwrap(), Status::Running { .. }));
        oci.signal(id, 15).await.unwrap();
        assert_eq!(oci.wait(id).await.unwrap().code, 7);
        oci.remove(id).await.unwrap();
    }
    drop(oci);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn a_killed_monitor_takes_its_own_container_with_it() {
    let bed = Bed::new();
    let (oci, mut events) = bed.start().await;
    bed.run(&oci, bed.spec("one", &["wait"]), "ready").await;
    let victim = bed.named("wharf-monitor")[0];
    bed.run(&oci, bed.spec("other", &["wait"]), "ready").await;
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let (id, exit) = exited(&mut events).await;
    assert_eq!((id.as_str(), exit.code, exit.reason.as_str()), ("one", 137, "the container's monitor died"));
    assert_eq!(bed.named("box").len(), 1, "the other one runs on");

    // Also one that was not started yet, and one whose shim is away.
    oci.remove("one").await.unwrap();
    oci.create(bed.spec("created", &["wait"])).await.unwrap();
    let victims = bed.named("wharf-monitor");
    for victim in victims {
        kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    }
    let mut told = [exited(&mut events).await, exited(&mut events).await];
    told.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(told.iter().all(|(_, exit)| exit.code == 137));
    assert_eq!(told.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["created", "other"]);
    bed.run(&oci, bed.spec("last", &["wait"]), "ready").await;
    let victim = bed.named("wharf-monitor")[0];
    drop((oci, events));
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    until("it to be gone", || !bed.named("wharf-monitor").contains(&victim)).await;
    let (oci, mut events) = bed.start().await;
    assert_eq!(exited(&mut events).await.1.code, 137);
    for id in ["created", "other", "last"] {
        oci.remove(id).await.unwrap();
    }
    drop((oci, events));
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn a_pause_process_holds_a_pods_namespaces() {
    let bed = Bed::new();
    let (oci, mut events) = bed.start().await;
    let net = bed.path("net");
    fs::write(&net, "").unwrap();
    run(
        "unshare",
        &[
            &format!("--net={}", net.display()),
            "ip",
            "link",
            "add",
            "wharftest0",
            "type",
            "veth",
            "peer",
            "name",
            "wharftest1",
        ],
    );
    let spec = PauseSpec {
        id: "pod".to_owned(),
        network: wharf_oci::Network::Path(net.clone()),
        hostname: Some("the-pod".to_owned()),
        ipc: true,
        pid: true,
        sysctls: [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into(),
        oom_score_adj: Some(-998),
        users: None,
    };
    let pause = oci.pause(spec.clone()).await.unwrap();
    assert!(oci.pause(spec).await.is_err());
    let join = |id: &str, args: &[&str]| {
        let mut spec = bed.spec(id, args);
        spec.namespaces.network = Some(net.clone());
        spec.namespaces.ipc = Some(pause.namespace("ipc"));
        spec.namespaces.uts = Some(pause.namespace("uts"));
        spec.namespaces.pid = Some(pause.namespace("pid"));
        spec
    };
    let (code, text) = bed.outcome(&oci, join("links", &["links"])).await;
    assert!(code == 0 && text.contains("wharftest0:") && !text.contains("eth0:"), "{text}");
    let (_, text) = bed.outcome(&oci, join("me", &["me"])).await;
    assert!(text.contains("host=the-pod") && !text.contains("pid=1 "), "{text}");
    assert_eq!(
        bed.outcome(&oci, join("sysctl", &["cat", "/proc/sys/kernel/shm_rmid_forced"])).await,
        (0, "1\n".to_owned())
    );
    let (code, text) = bed.outcome(&oci, join("root", &["cat", "/proc/1/root/bin/box"])).await;
    assert!(code == 1 && text.contains("denied"), "a container looks into the pause process: {text}");
    for id in ["links", "me", "sysctl", "root"] {
        exited(&mut events).await;
        oci.remove(id).await.unwrap();
    }

    drop((oci, events)); // the next shim knows it
    let (oci, mut events) = bed.start().await;
    assert_eq!(oci.pauses(), std::slice::from_ref(&pause));
    oci.remove_pause("pod").await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{}/ns/ipc", pause.pid)).exists());

    let lone =
        oci.pause(PauseSpec { id: "lone".to_owned(), ipc: true, ..PauseSpec::default() }).await.unwrap();
    kill(Pid::from_raw(lone.pid), Signal::SIGKILL).unwrap();
    assert_eq!(events.next().await, Some(Event::PauseExited { id: "lone".to_owned() }));
    oci.remove_pause("lone").await.unwrap();
    run("umount", &[net.to_str().unwrap()]);
    drop((oci, events));
    bed.nothing_is_left().await;
}

fn run(program: &str, args: &[&str]) {
    let output = std::process::Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
