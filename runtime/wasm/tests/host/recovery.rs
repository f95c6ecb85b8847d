use crate::support::{Harness, alive, eventually, get, within};
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
    // Ends while no shim listens to it.
    let mut spec = harness.spec("untold", "guest-command");
    spec.args.extend(["sleep".to_owned(), "200".to_owned()]);
    harness.host.create(spec).await.expect("created");
    harness.host.start_container("untold").await.expect("started");

    let mut harness = harness.restart_shim().await;
    assert_eq!(get(at, "/").await.0, 200);
    let list = harness.host.list().await.expect("list");
    let ids: Vec<&str> = list.iter().map(|status| status.id.as_str()).collect();
    assert_eq!(ids, ["serves", "told", "untold"]);
    assert!(matches!(&list[1].state, State::Exited { exit, .. } if *exit == told));
    assert_eq!(harness.exit_of("untold").await.code, 0);
    harness.no_event().await;

    let mut harness = harness.restart_shim().await;
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
    assert!(matches!(harness.host.stats("lost").await, Err(wharf_wasm::Error::Unknown { .. })));
    assert_eq!(harness.host.list().await.expect("list"), []);
    eventually("it was reaped", async || !std::path::Path::new(&format!("/proc/{first}")).exists()).await;

    let mut spec = harness.spec("lost", "guest-http");
    spec.port = Some(at.port());
    within("a new host", harness.host.create(spec)).await.expect("created");
    harness.host.start_container("lost").await.expect("started");
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
