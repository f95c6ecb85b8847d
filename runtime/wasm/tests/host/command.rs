use crate::support::{Harness, eventually, within};
use std::time::Duration;
use wharf_wasm::{Reason, State};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_its_code_and_logs_its_lines() {
    let mut harness = Harness::start().await;
    let exit = harness.run("says", &["say", "one", "two", "three"], |_| {}).await;
    assert_eq!((exit.code, exit.reason, exit.message.as_str()), (0, Reason::Completed, ""));
    let line = |stream: &str, text: &str| (stream.to_owned(), "F".to_owned(), text.to_owned());
    assert_eq!(harness.log("says"), [line("stdout", "one"), line("stderr", "two"), line("stdout", "three")]);
    let status = harness.host.status("says").await.expect("status");
    assert!(matches!(status.state, State::Exited { started_at: Some(_), .. }), "{status:?}");

    // All that Rust's standard library can say on WASI 0.2 is that it failed.
    let exit = harness.run("fails", &["exit", "7"], |_| {}).await;
    assert_eq!((exit.code, exit.reason), (1, Reason::Error));
    harness.no_event().await;
    harness.end().await;
}

/// Ends with 7 through `wasi:cli/exit`.
const SEVEN: &str = r#"(component
    (import "wasi:cli/exit@0.2.3" (instance $exit (export "exit-with-code" (func (param "status-code" u8)))))
    (core func $code (canon lower (func $exit "exit-with-code")))
    (core module $m
        (import "exit" "code" (func $code (param i32)))
        (func (export "run") (result i32) (call $code (i32.const 7)) unreachable))
    (core instance $m (instantiate $m (with "exit" (instance (export "code" (func $code))))))
    (func $run (result (result)) (canon lift (core func $m "run")))
    (instance $i (export "run" (func $run)))
    (export "wasi:cli/run@0.2.3" (instance $i)))"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_command_says_its_code_through_wasi_cli_exit() {
    let mut harness = Harness::start().await;
    let module = harness.dir().join("seven.wasm");
    std::fs::write(&module, wat::parse_str(SEVEN).expect("text")).expect("written");
    let adapt = |spec: &mut wharf_wasm::ContainerSpec| {
        spec.digest = crate::support::digest(&module);
        spec.module = module.clone();
    };
    let exit = harness.run("seven", &[], adapt).await;
    assert_eq!((exit.code, exit.reason, exit.message.as_str()), (7, Reason::Error, ""));
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_is_134_with_its_backtrace() {
    let mut harness = Harness::start().await;
    let exit = harness.run("traps", &["panic"], |_| {}).await;
    assert_eq!((exit.code, exit.reason), (134, Reason::Error));
    assert!(exit.message.contains("wasm backtrace"), "{}", exit.message);
    assert!(exit.message.contains("unreachable"), "{}", exit.message);
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn growth_over_the_limit_is_an_oom_kill() {
    let mut harness = Harness::start().await;
    let exit = harness.run("grows", &["grow"], |spec| spec.memory_limit = Some(16 << 20)).await;
    assert_eq!((exit.code, exit.reason), (137, Reason::OomKilled));
    assert!(exit.message.contains("out of memory"), "{}", exit.message);
    let reached = harness.log("grows").iter().filter(|(stream, ..)| stream == "stdout").count();
    assert!((8..16).contains(&reached), "it held {reached} MiB of 16");
    let stats = harness.host.stats("grows").await.expect("stats");
    assert_eq!((stats.memory_bytes, stats.memory_limit_bytes), (0, 16 << 20), "all was given back");
    assert!(stats.memory_peak_bytes > 8 << 20);

    let exit = harness.run("tiny", &["say", "hello"], |spec| spec.memory_limit = Some(64 << 10)).await;
    assert_eq!((exit.code, exit.reason), (137, Reason::OomKilled));
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_looping_command_is_stopped_and_killed_at_once() {
    let mut harness = Harness::start().await;
    for (id, code) in [("stopped", 143), ("killed", 137)] {
        let mut spec = harness.spec(id, "guest-command");
        spec.args.push("loop".to_owned());
        harness.host.create(spec).await.expect("created");
        harness.host.start_container(id, None).await.expect("started");
        eventually("it computes", async || {
            harness.host.stats(id).await.expect("stats").cpu_nanos > 5_000_000
        })
        .await;
        let ended = async {
            match code {
                143 => harness.host.stop(id, Duration::from_secs(30)).await,
                _ => harness.host.kill(id).await,
            }
        };
        let exit = within("its end", ended).await.expect("ended");
        assert_eq!((exit.code, exit.reason), (code, Reason::Error));
        assert_eq!(harness.exit_of(id).await, exit);
    }
    // One that is removed while it runs has no event.
    let mut spec = harness.spec("removed", "guest-command");
    spec.args.push("loop".to_owned());
    harness.host.create(spec).await.expect("created");
    harness.host.start_container("removed", None).await.expect("started");
    harness.host.remove("removed").await.expect("removed");
    harness.no_event().await;
    harness.end().await;
}
