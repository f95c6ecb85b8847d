use crate::support::{Harness, digest, get, guest_path};
use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

fn code(dir: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).expect("a cache").map(|entry| entry.expect("an entry").path());
    all.filter(|path| path.extension().is_some_and(|ending| ending == "cwasm")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_is_compiled_once_however_many_ask() {
    let harness = Harness::with_empty_cache().await;
    let cache = harness.config.cache_dir.clone();
    let module = guest_path("guest-command");
    let digest = digest(&module);
    let (one, two, three) = tokio::join!(
        harness.host.precompile(&module, &digest),
        harness.host.precompile(&module, &digest),
        harness.host.precompile(&module, &digest),
    );
    one.and(two).and(three).expect("compiled");
    let files = code(&cache);
    assert_eq!(files.len(), 1);
    let log = fs::read_to_string(harness.config.state_dir.join("host.log")).expect("a log");
    assert_eq!(log.matches("compiled").count(), 1, "{log}");
    for private in [&cache, &files[0], &cache.join("mac.key"), &files[0].with_extension("mac")] {
        let mode = fs::metadata(private).expect("there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} is open to others", private.display());
    }
    let left: Vec<_> =
        fs::read_dir(&cache).expect("a cache").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(left.len(), 3, "nothing but the key, the code and its MAC: {left:?}");
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_was_tampered_with_is_compiled_anew() {
    let mut harness = Harness::with_empty_cache().await;
    let config = harness.config.clone();
    let at = harness.serve(harness.spec("first", "guest-http")).await;
    assert_eq!(get(at, "/").await.0, 200);
    let file = code(&config.cache_dir).remove(0);
    let mac = file.with_extension("mac");
    let good = fs::read(&file).expect("code");

    type Tamper = fn(&Path, &Path, &[u8]);
    let tampers: [(&str, Tamper); 4] = [
        ("a byte of code", |file, _, good| {
            let changed = fs::OpenOptions::new().write(true).open(file).expect("open");
            let at = good.len() / 2;
            changed.write_all_at(&[good[at] ^ 1], at as u64).expect("written");
        }),
        ("a cut file", |file, _, good| fs::write(file, &good[..good.len() / 2]).expect("written")),
        ("no MAC", |_, mac, _| fs::remove_file(mac).expect("removed")),
        ("a foreign MAC", |_, mac, _| fs::write(mac, [7; 32]).expect("written")),
    ];
    for (what, tamper) in tampers {
        // The host that has the code mapped must not see it change: a new one reads it afresh.
        let pid = harness.host.pid().await.expect("it runs");
        harness.host.clone().shutdown().await.expect("shut down");
        crate::support::eventually("it is gone", async || !crate::support::alive(pid)).await;
        let before = fs::metadata(&file).expect("code").ino();
        tamper(&file, &mac, &good);
        (harness.host, harness.events) = wharf_wasm::Host::start(config.clone()).await.expect("a host");
        let at = harness.serve(harness.spec("again", "guest-http")).await;
        assert_eq!(get(at, "/").await.0, 200, "{what}");
        assert_ne!(fs::metadata(&file).expect("code").ino(), before, "{what}: compiled anew");
        assert_eq!(fs::read(&file).expect("code"), good, "{what}: compiling is deterministic");
    }
    let pid = harness.host.pid().await.expect("it runs");
    harness.host.clone().shutdown().await.expect("shut down");
    crate::support::eventually("it is gone", async || !crate::support::alive(pid)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compiler_at_its_limit_is_an_error_of_the_module() {
    let mut config = Harness::with_empty_cache().await;
    let pid = config.host.pid().await.expect("it runs");
    config.host.clone().shutdown().await.expect("shut down");
    crate::support::eventually("it is gone", async || !crate::support::alive(pid)).await;
    config.config.limits.compile_memory_bytes = 64 << 20;
    let (host, _events) = wharf_wasm::Host::start(config.config.clone()).await.expect("a host");
    let module = guest_path("guest-http");
    let refused = host.precompile(&module, &digest(&module)).await.expect_err("too little memory");
    assert!(matches!(&refused, wharf_wasm::Error::Refused(wharf_wasm::Failure::Module { .. })), "{refused}");
    let pid = host.pid().await.expect("the host is well");
    host.shutdown().await.expect("shut down");
    crate::support::eventually("it is gone", async || !crate::support::alive(pid)).await;
}
