//! Core modules of WASI 0.1 live as components do.

use crate::support::{Harness, digest, eventually, within};
use std::time::Duration;
use wharf_wasm::{ContainerSpec, Kind, Mount, Reason};

const GUEST: &str = "core/guest-command";

#[tokio::test(flavor = "multi_thread")]
async fn a_core_module_runs_with_arguments_environment_and_log_to_its_own_code() {
    let mut harness = Harness::start().await;
    let exit = harness.run_guest(GUEST, "says", &["say", "one", "two"], |_| {}).await;
    assert_eq!((exit.code, exit.reason), (0, Reason::Completed));
    let line = |stream: &str, text: &str| (stream.to_owned(), "F".to_owned(), text.to_owned());
    assert_eq!(harness.log("says"), [line("stdout", "one"), line("stderr", "two")]);
    assert_eq!(harness.host.status("says").await.expect("status").kind, Kind::Command);

    let adapt = |spec: &mut ContainerSpec| spec.env = vec![("WHO".to_owned(), "wharf".to_owned())];
    harness.run_guest(GUEST, "env", &["env"], adapt).await;
    assert_eq!(harness.log("env"), [line("stdout", "WHO=wharf")], "and nothing of the host's");
    harness.run_guest(GUEST, "reads", &["cat"], |_| {}).await;
    assert_eq!(harness.log("reads"), [line("stderr", "end of input")], "there is no input");
    // Those from 126 on are the ones that shells give.
    for code in [7, 125, 126, 255] {
        let exit =
            harness.run_guest(GUEST, &format!("exit-{code}"), &["exit", &code.to_string()], |_| {}).await;
        assert_eq!((exit.code, exit.reason), (code, Reason::Error));
    }
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_module_is_limited_stopped_and_trapped_as_a_component_is() {
    let mut harness = Harness::start().await;
    let exit = harness.run_guest(GUEST, "traps", &["panic"], |_| {}).await;
    assert_eq!((exit.code, exit.reason), (134, Reason::Error));
    assert!(exit.message.contains("unreachable"), "{}", exit.message);

    let adapt = |spec: &mut ContainerSpec| spec.memory_limit = Some(16 << 20);
    let exit = harness.run_guest(GUEST, "grows", &["grow"], adapt).await;
    assert_eq!((exit.code, exit.reason), (137, Reason::OomKilled));
    assert!(harness.host.stats("grows").await.expect("stats").memory_peak_bytes > 8 << 20);

    let mut spec = harness.spec("loops", GUEST);
    spec.args.push("loop".to_owned());
    harness.host.create(spec).await.expect("created");
    harness.host.start_container("loops", None).await.expect("started");
    eventually("it computes", async || {
        harness.host.stats("loops").await.expect("stats").cpu_nanos > 5_000_000
    })
    .await;
    let exit = within("its end", harness.host.stop("loops", Duration::from_secs(30))).await.expect("stopped");
    assert_eq!(exit.code, 143);
    harness.exit_of("loops").await;
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_of_components_and_core_modules_are_read_only_where_they_say_so() {
    let mut harness = Harness::start().await;
    let dir = |name: &str| {
        let path = harness.dir().join(name);
        std::fs::create_dir(&path).expect("a volume");
        std::fs::write(path.join("file"), "content\n").expect("a file");
        path
    };
    let mounts = vec![
        Mount { host: dir("data"), guest: "/data".to_owned(), read_only: false },
        Mount { host: dir("config"), guest: "/etc/config".to_owned(), read_only: true },
    ];
    for guest in [GUEST, "guest-command"] {
        let name = guest.replace('/', "-");
        for (nth, (args, code)) in [
            (vec!["read", "/etc/config/file"], 0),
            (vec!["write", "/etc/config/file", "other"], 1),
            (vec!["write", "/etc/config/new", "other"], 1),
            (vec!["write", "/data/new", "other"], 0),
            (vec!["read", "/data/../../../etc/passwd"], 1),
            (vec!["read", "/etc/passwd"], 1),
        ]
        .into_iter()
        .enumerate()
        {
            let adapt = |spec: &mut ContainerSpec| spec.mounts = mounts.clone();
            let exit = harness.run_guest(guest, &format!("{name}-{nth}"), &args, adapt).await;
            assert_eq!(exit.code, code, "{guest} {args:?}");
        }
        assert!(!mounts[1].host.join("new").exists());
        std::fs::remove_file(mounts[0].host.join("new")).expect("it was written");
    }
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_core_module_asks_for_in_vain_is_named() {
    let harness = Harness::start().await;
    for (name, text, words) in [
        ("foreign", r#"(module (import "env" "door" (func)) (func (export "_start")))"#, "env::door"),
        ("odd", r#"(module (func (export "_start") (param i32)))"#, "exports no function _start"),
    ] {
        let path = harness.dir().join(name);
        std::fs::write(&path, wat::parse_str(text).expect("text")).expect("written");
        let refused = harness.host.precompile(&path, &digest(&path)).await.expect_err("not a program");
        assert!(refused.to_string().contains(words), "{refused}");
    }
    harness.end().await;
}
