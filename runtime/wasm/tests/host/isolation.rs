use crate::support::{Harness, eventually, get, request, within};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use wharf_wasm::{CpuQuota, Mount};

/// Sorted times of requests one after the other.
async fn times(at: SocketAddr, count: usize) -> Vec<Duration> {
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        assert_eq!(get(at, "/").await.0, 200);
        took.push(began.elapsed());
    }
    took.sort();
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_that_loop_or_fill_memory_delay_no_neighbour() {
    let harness = Harness::start().await;
    let neighbour = harness.serve(harness.spec("neighbour", "guest-http")).await;
    let alone = times(neighbour, 200).await;
    for (id, path) in [("loops", "/loop"), ("fills", "/fill?256")] {
        let bad = harness.serve(harness.spec(id, "guest-http")).await;
        let busy: Vec<_> = (0..4).map(|_| tokio::spawn(request(bad, "GET", path, ""))).collect();
        eventually("they run", async || harness.host.stats(id).await.expect("stats").cpu_nanos > 20_000_000)
            .await;
        // Other work on the machine disturbs one round or another; a neighbour would disturb all.
        let mut rounds = Vec::new();
        let quick = loop {
            let beside = times(neighbour, 200).await;
            let (median, p99) = (beside[100], beside[198]);
            println!("{id}: p50 {median:?} (alone {:?}), p99 {p99:?} (alone {:?})", alone[100], alone[198]);
            rounds.push((median, p99));
            if median < Duration::from_millis(10) && p99 < Duration::from_millis(50) {
                break true;
            }
            if rounds.len() == 5 {
                break false;
            }
        };
        assert!(quick, "{rounds:?}");
        harness.host.remove(id).await.expect("removed");
        for request in busy {
            request.abort();
        }
    }
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_bounds_processor_time() {
    let harness = Harness::start().await;
    let mut spec = harness.spec("quota", "guest-command");
    spec.args.push("loop".to_owned());
    spec.cpu = Some(CpuQuota { quota_micros: 20_000, period_micros: 100_000 });
    harness.host.create(spec).await.expect("created");
    harness.host.start_container("quota", None).await.expect("started");
    let cpu = async || Duration::from_nanos(harness.host.stats("quota").await.expect("stats").cpu_nanos);
    eventually("it began", async || cpu().await > Duration::ZERO).await;
    let (began, before) = (Instant::now(), cpu().await);
    tokio::time::sleep(Duration::from_millis(1500)).await; // the measure is over time itself
    let share = (cpu().await - before).as_secs_f64() / began.elapsed().as_secs_f64();
    assert!((0.02..0.3).contains(&share), "{share} of a processor, of 0.2 allowed");
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_memory_limit_requests_wait_and_then_are_refused() {
    let harness = Harness::start().await;
    let mut spec = harness.spec("full", "guest-http");
    spec.memory_limit = Some(8 << 20);
    let at = harness.serve(spec).await;
    let (status, _) = get(at, "/grow?64").await;
    assert_eq!(status, 500, "one request may not take more than the container may have");
    // It is known by now that an instance may take all: so one runs at a time, and the second waits for it.
    let (first, second) = tokio::join!(get(at, "/hold?3,300"), get(at, "/hold?3,0"));
    assert_eq!((first.0, second.0), (200, 200));

    let crowd: Vec<_> = (0..600).map(|_| tokio::spawn(request(at, "GET", "/hold?3,20000", ""))).collect();
    eventually("some are refused", async || harness.host.stats("full").await.expect("stats").refused > 0)
        .await;
    let stats = harness.host.stats("full").await.expect("stats");
    assert!(stats.memory_bytes <= 8 << 20, "{stats:?}");
    let exit = within("the end", harness.host.kill("full")).await.expect("killed");
    assert_eq!(exit.code, 137);
    let mut refused = 0;
    for request in crowd {
        if let Ok((503, _)) = request.await.expect("task") {
            refused += 1;
        }
    }
    assert!(refused > 0);
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_way_out_and_read_only_is_read_only() {
    let harness = Harness::start().await;
    let dir = |name: &str| {
        let path = harness.dir().join(name);
        std::fs::create_dir(&path).expect("a volume");
        std::fs::write(path.join("file"), "content").expect("a file");
        path
    };
    let (writable, read_only) = (dir("writable"), dir("read-only"));
    let mut spec = harness.spec("walls", "guest-http");
    spec.mounts = vec![
        Mount { host: writable.clone(), guest: "/data".to_owned(), read_only: false },
        Mount { host: read_only.clone(), guest: "/config".to_owned(), read_only: true },
    ];
    let at = harness.serve(spec).await;
    assert_eq!(get(at, "/read?/config/file").await, (200, "content".to_owned()));
    assert_eq!(get(at, "/write?/config/file").await.0, 403);
    assert_eq!(get(at, "/write?/config/new").await.0, 403);
    assert_eq!(get(at, "/write?/data/new").await.0, 200);
    assert_eq!(std::fs::read_to_string(read_only.join("file")).expect("still there"), "content");
    assert!(!read_only.join("new").exists());
    assert!(writable.join("new").exists());
    for path in ["/etc/passwd", "/config/../../../../etc/passwd", "/data/../../../../../etc/passwd"] {
        assert_eq!(get(at, &format!("/read?{path}")).await.0, 403, "{path}");
    }
    std::os::unix::fs::symlink("/etc/passwd", writable.join("link")).expect("a link out");
    assert_eq!(get(at, "/read?/data/link").await.0, 403);

    let (status, why) = get(at, &format!("/fetch?http://{at}/")).await;
    assert_eq!(status, 403);
    assert!(why.contains("HttpRequestDenied"), "{why}");
    assert_eq!(get(at, &format!("/connect?{at}")).await.0, 403);
    // Nothing of the host's environment.
    assert_eq!(get(at, "/env?PATH").await, (200, String::new()));
    harness.end().await;
}
