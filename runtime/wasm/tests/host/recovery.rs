use crate::support::{Harness, alive, eventually, free_address, get, within};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wharf_wasm::{Event, Host, Reason, State};

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_shim_and_every_end_is_told_once() {
    let mut harness = Harness::start().await;
    let at = harness.serve(harness.spec("serves", "guest-http")).await;
    let told = harness.run("told", &["exit", "1"], |_| {}).await;
    assert_eq!(told.code, 1);
    let slow = free_address().await;
    let mut spec = harness.spec("untold", "guest-command");
    spec.args.extend(["sleep".to_owned(), "100".to_owned()]);
    harness.host.create(spec).await.expect("created");
    harness.host.start_container("untold", None).await.expect("started");
    let log = harness.dir().join("says.log");
    // This one tells by its log that time has passed in the host while no shim listens.
    let mut spec = harness.spec("says", "guest-http");
    spec.port = Some(slow.port());
    harness.host.create(spec).await.expect("created");
    harness.host.start_container("says", None).await.expect("started");

    let mut harness = harness
        .restart_shim(async || {
            get(slow, "/sleep?300").await;
            get(slow, "/log?passed").await;
            assert!(log.exists());
        })
        .await;
    assert_eq!(get(at, "/").await.0, 200);
    let list = harness.host.list().await.expect("list");
    let ids: Vec<&str> = list.iter().map(|status| status.id.as_str()).collect();
    assert_eq!(ids, ["says", "serves", "told", "untold"]);
    assert!(matches!(&list[2].state, State::Exited { exit, .. } if *exit == told));
    assert!(matches!(&list[3].state, State::Exited { .. }), "it ended while nobody listened");
    assert_eq!(harness.exit_of("untold").await.code, 0);
    harness.no_event().await;

    let mut harness = harness.restart_shim(async || {}).await;
    harness.no_event().await;
    assert_eq!(get(at, "/").await.0, 200);
    harness.host.kill("serves").await.expect("killed");
    assert_eq!(harness.exit_of("serves").await.code, 137);
    harness.no_event().await;
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_host_is_told_and_a_new_one_takes_over() {
    let mut harness = Harness::start().await;
    let at = harness.serve(harness.spec("lost", "guest-http")).await;
    assert_eq!(harness.run("ended", &["exit", "0"], |_| {}).await.code, 0);
    let first = harness.pid();
    kill(Pid::from_raw(first as i32), Signal::SIGKILL).expect("killed");
    let exit = harness.exit_of("lost").await;
    assert_eq!((exit.code, exit.reason), (137, Reason::Error));
    assert!(exit.message.contains("host process died"), "{}", exit.message);
    harness.no_event().await; // the other had ended before
    assert!(matches!(
        harness.host.stats("lost").await,
        Err(wharf_wasm::Error::Refused(wharf_wasm::Failure::Unknown { .. }))
    ));
    assert_eq!(harness.host.list().await.expect("list"), []);
    eventually("it was reaped", async || !std::path::Path::new(&format!("/proc/{first}")).exists()).await;

    let mut spec = harness.spec("lost", "guest-http");
    spec.port = Some(at.port());
    within("a new host", harness.host.create(spec)).await.expect("created");
    harness.host.start_container("lost", None).await.expect("started");
    assert_eq!(get(at, "/").await.0, 200);
    let second = harness.host.pid().await.expect("a new host");
    assert_ne!(first, second);
    harness.host.clone().shutdown().await.expect("shut down");
    eventually("it is gone", async || !alive(second)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_shims_that_start_at_once_find_one_host() {
    let harness = Harness::start().await;
    let (one, two) = tokio::join!(Host::start(harness.config.clone()), Host::start(harness.config.clone()));
    let (one, two) = (one.expect("a host"), two.expect("a host"));
    assert_eq!(one.0.pid().await, Some(harness.pid()));
    assert_eq!(two.0.pid().await, Some(harness.pid()));
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_stream_ends_with_the_last_handle() {
    let harness = Harness::start().await;
    let (host, mut events) = Host::start(harness.config.clone()).await.expect("a host");
    drop(host);
    let last: Option<Event> = within("the end", events.next()).await;
    assert_eq!(last, None);
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_lives_in_the_network_namespace_it_is_given() {
    let mut elsewhere =
        std::process::Command::new("unshare").args(["--net", "sleep", "60"]).spawn().expect("unshare");
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let here = namespace(std::process::id());
    eventually("it has a namespace", async || {
        namespace(elsewhere.id()).is_some_and(|there| Some(there) != here)
    })
    .await;
    let path = format!("/proc/{}/ns/net", elsewhere.id());
    let harness = Harness::with(|config| config.netns = Some(path.into())).await;
    assert_eq!(namespace(harness.pid()), namespace(elsewhere.id()));
    harness.end().await;
    elsewhere.kill().expect("killed");
    elsewhere.wait().expect("reaped");

    let config = |state: &std::path::Path| wharf_wasm::Config {
        exe: env!("CARGO_BIN_EXE_wasm-host").into(),
        netns: Some("/run/netns/there-is-none".into()),
        ..wharf_wasm::Config::new(state.join("state"), state.join("cache"))
    };
    let dir = tempfile::tempdir().expect("a directory");
    let refused = Host::start(config(dir.path())).await.expect_err("no such namespace");
    assert!(refused.to_string().contains("there-is-none"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_host_uses_no_processor_time() {
    let harness = Harness::start().await;
    let at = harness.serve(harness.spec("idle", "guest-http")).await;
    assert_eq!(get(at, "/").await.0, 200);
    // A thread that wakes has to sleep again.
    let sleeps = || -> u64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", harness.pid())).expect("threads");
        let count = threads.map(|thread| {
            let status =
                std::fs::read_to_string(thread.expect("a thread").path().join("status")).unwrap_or_default();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0)
        });
        count.sum()
    };
    let mut before = sleeps();
    eventually("nothing runs for 300 ms", async || {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let now = sleeps();
        let few = now - before <= 3;
        before = now;
        few
    })
    .await;
    println!("idle: {} bytes", crate::support::pss(harness.pid()));
    harness.end().await;
}
