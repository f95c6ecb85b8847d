//! Real containers: what they see, how they end, what they leave.
#![expect(clippy::unwrap_used, reason = "these are tests, with helpers beside them")]

mod bed;

use bed::{Bed, exited, until};
use std::{fs, time::Duration};
use wharf_oci::{Error, Mount, Propagation, Resources, Rootfs, Seccomp, Status, User};

#[tokio::test]
async fn a_container_says_hello_in_its_log_and_leaves_nothing() {
    let bed = Bed::new();
    let (oci, mut events) = bed.start().await;
    let pid = oci.create(bed.spec("hello", &["echo", "hello"])).await.unwrap();
    assert_eq!(oci.status("hello").unwrap(), Status::Created { pid });
    assert!(matches!(oci.create(bed.spec("hello", &["echo"])).await, Err(Error::Exists(_))));
    oci.start_container("hello").await.unwrap();
    let (id, exit) = exited(&mut events).await;
    assert_eq!((id.as_str(), exit.code, exit.reason.as_str()), ("hello", 0, "Completed"));
    assert_eq!(oci.wait("hello").await.unwrap(), exit);

    let log = bed.log("hello");
    let mut fields = log.lines().next().unwrap().splitn(4, ' ');
    let time: jiff::Timestamp = fields.next().unwrap().parse().unwrap();
    assert!(jiff::Timestamp::now().duration_since(time).as_secs() < 60);
    assert_eq!(fields.collect::<Vec<_>>(), ["stdout", "F", "hello"]);
    assert!(log.contains(" stderr F err hello\n"), "{log}");

    assert!(matches!(oci.signal("hello", 15).await, Err(Error::State { .. })));
    oci.remove("hello").await.unwrap();
    assert!(matches!(oci.remove("hello").await, Err(Error::Unknown(_))));
    drop((oci, events));
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn exit_codes_and_signals_are_told_as_shells_do() {
    let bed = Bed::new();
    let (oci, mut events) = bed.start().await;
    let (code, _) = bed.outcome(&oci, bed.spec("seven", &["exit", "7"])).await;
    assert_eq!(code, 7);
    bed.run(&oci, bed.spec("term", &["wait"]), "ready").await;
    oci.signal("term", 15).await.unwrap();
    assert_eq!(oci.wait("term").await.unwrap().code, 7);
    bed.run(&oci, bed.spec("kill", &["wait"]), "ready").await;
    oci.signal("kill", 9).await.unwrap();
    let exit = oci.wait("kill").await.unwrap();
    assert_eq!((exit.code, exit.oom_killed, exit.reason.as_str()), (137, false, "Error"));
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(exited(&mut events).await.0);
    }
    told.sort();
    assert_eq!(told, ["kill", "seven", "term"]);
    for id in told {
        oci.remove(&id).await.unwrap();
    }
    drop((oci, events));
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn a_container_over_its_memory_limit_is_oom_killed_and_limits_can_change() {
    let bed = Bed::new();
    let (oci, _events) = bed.start().await;
    let mut spec = bed.spec("hungry", &["eat"]);
    spec.resources = Resources { memory_limit: Some(16 << 20), pids_limit: Some(10), ..Resources::default() };
    oci.create(spec).await.unwrap();
    oci.start_container("hungry").await.unwrap();
    let exit = oci.wait("hungry").await.unwrap();
    assert_eq!((exit.code, exit.oom_killed, exit.reason.as_str()), (137, true, "OOMKilled"));

    let mut spec = bed.spec("spin", &["spin"]);
    spec.resources = Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(20_000),
        cpu_period: Some(100_000),
        memory_limit: Some(32 << 20),
        ..Resources::default()
    };
    oci.create(spec).await.unwrap();
    oci.start_container("spin").await.unwrap();
    let mut used = 0;
    while used < 1_000_000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let stats = oci.stats("spin").await.unwrap().unwrap();
        used = stats.cpu_usage_nanos;
        assert_eq!(stats.memory_limit, Some(32 << 20));
        assert!((1..=2).contains(&stats.pids), "itself, and who started it until that is reaped: {stats:?}");
        assert!(stats.memory_usage > 0 && stats.memory_working_set <= stats.memory_usage);
    }
    // The rest comes of other files, which the kernel reads at other moments.
    let details = oci.details("spin").await.unwrap().unwrap();
    assert_eq!((details.cpu_period_micros, details.processes, details.threads_max), (100_000, 1, None));
    assert!((512..=525).contains(&details.cpu_shares), "a weight of version 2 is coarser: {details:?}");
    assert!(
        details.stats.cpu_usage_nanos >= used && details.memory_peak >= details.stats.memory_rss,
        "{details:?}"
    );
    assert!(details.open_files > 0 && details.sockets <= details.open_files, "{details:?}");
    let more = Resources { memory_limit: Some(64 << 20), ..Resources::default() };
    oci.update("spin", more).await.unwrap();
    assert_eq!(oci.stats("spin").await.unwrap().unwrap().memory_limit, Some(64 << 20));
    oci.remove("spin").await.unwrap(); // while it runs
    oci.remove("hungry").await.unwrap();
    drop(oci);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn long_lines_become_partial_entries() {
    let bed = Bed::new();
    let (oci, _events) = bed.start().await;
    let (code, _) = bed.outcome(&oci, bed.spec("long", &["long", "40000"])).await;
    assert_eq!(code, 0);
    let log = bed.log("long");
    let entries: Vec<(&str, usize)> = log
        .lines()
        .map(|line| line.splitn(4, ' ').collect::<Vec<_>>())
        .map(|fields| (fields[2], fields[3].len()))
        .collect();
    assert_eq!(entries, [("P", 16384), ("P", 16384), ("F", 40000 - 2 * 16384), ("P", 3)]);
    oci.remove("long").await.unwrap();
    drop(oci);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn the_log_goes_on_in_a_new_file_when_reopened() {
    let bed = Bed::new();
    let (oci, _events) = bed.start().await;
    bed.run(&oci, bed.spec("log", &["wait"]), "ready").await;
    fs::rename(bed.path("logs/log.log"), bed.path("logs/old")).unwrap();
    oci.reopen_log("log").await.unwrap();
    assert_eq!(bed.log("log"), "");
    oci.remove("log").await.unwrap();
    drop(oci);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn a_container_sees_what_its_spec_says() {
    let bed = Bed::new();
    let (oci, _events) = bed.start().await;
    let mut spec = bed.spec("me", &["me"]);
    spec.user = User { uid: 1000, gid: 2000, additional_gids: vec![3000] };
    spec.cwd = "/made/for/it".into();
    spec.env = vec!["WHARF=one".to_owned(), "WHARF=two".to_owned()];
    spec.hostname = Some("inside".to_owned());
    spec.no_new_privileges = true;
    spec.seccomp = Seccomp::RuntimeDefault;
    spec.oom_score_adj = Some(500);
    let (code, text) = bed.outcome(&oci, spec).await;
    assert_eq!(code, 0, "{text}");
    assert!(
        text.starts_with("uid=1000 gid=2000 pid=1 host=inside cwd=/made/for/it env=two tty=0\n"),
        "{text}"
    );
    assert!(text.contains("sethostname=-1 unshare=-1\n"), "{text}");
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "Groups:\t3000", "CapEff:\t0000000000000000"] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(text.trim_end().ends_with("500"), "{text}");

    let mut spec = bed.spec("root", &["me"]);
    spec.oom_score_adj = Some(-998); // not ours to give here: clamped, not refused
    spec.terminal = true;
    let (code, text) = bed.outcome(&oci, spec).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("tty=1"), "{text}");
    for line in ["Seccomp:\t0", "CapEff:\t00000000a80425fb"] {
        assert!(text.contains(line), "{line} in {text}");
    }

    let mut spec = bed.spec("readonly", &["write", "/file"]);
    spec.readonly_rootfs = true;
    let (code, text) = bed.outcome(&oci, spec).await;
    assert!(code == 1 && text.contains("Read-only file system"), "{text}");
    assert_eq!(bed.outcome(&oci, bed.spec("writes", &["write", "/file"])).await.0, 0);
    assert_eq!(fs::read_to_string(bed.path("rw/writes/upper/file")).unwrap(), "written");
    let (code, text) = bed.outcome(&oci, bed.spec("devices", &["cat", "/dev/urandom/"])).await;
    assert!(code == 1 && text.contains("Not a directory"), "{text}");
    let (code, text) = bed.outcome(&oci, bed.spec("cgroup", &["cat", "/proc/self/mountinfo"])).await;
    assert!(code == 0 && text.contains(" /sys/fs/cgroup") && !text.contains("layer/bin"), "{text}");
    let groups: Vec<_> = text.lines().filter(|line| line.contains(" - cgroup")).collect();
    for group in &groups {
        assert!(
            group.contains(" ro,") && !group.contains("name="),
            "its own limits are not its to change: {group}"
        );
    }
    assert!(!groups.is_empty(), "{text}");

    let mut spec = bed.spec("privileged", &["mount", "/mnt"]);
    spec.privileged = true;
    bed.run(&oci, spec, "ready").await;
    for (id, _) in oci.list() {
        oci.remove(&id).await.unwrap();
    }
    drop(oci);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn what_is_left_running_in_a_container_dies_with_its_first_process() {
    let bed = Bed::new();
    let (oci, _events) = bed.start().await;
    let mut spec = bed.spec("orphan", &["orphan"]);
    spec.namespaces.host_pid = true; // no process namespace whose end would do it
    assert_eq!(bed.outcome(&oci, spec).await.0, 0);
    assert_eq!(bed.named("box"), Vec::<i32>::new());
    oci.remove("orphan").await.unwrap();
    drop(oci);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn a_container_that_cannot_be_created_leaves_nothing() {
    let bed = Bed::new();
    let (oci, _events) = bed.start().await;
    let mut spec = bed.spec("missing", &[]);
    spec.args = vec!["/bin/none".to_owned()];
    let error = oci.create(spec).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(why) if why.contains("/bin/none")), "{error}");
    let mut spec = bed.spec("layer", &["echo"]);
    spec.rootfs = Rootfs::Overlay {
        lower: vec!["/no/such".into()],
        upper: bed.path("rw/layer/upper"),
        work: bed.path("rw/layer/work"),
    };
    let error = oci.create(spec).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(why) if why.contains("root file system")), "{error}");
    assert!(matches!(oci.create(bed.spec("../up", &["echo"])).await, Err(Error::Invalid(_))));
    assert!(oci.list().is_empty());
    drop(oci);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn mounts_come_in_and_go_out_as_asked() {
    let bed = Bed::new();
    let (oci, _events) = bed.start().await;
    let host = bed.path("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "from the host").unwrap();
    let bind = |destination: &str, readonly, propagation| Mount::Bind {
        source: host.clone(),
        destination: destination.into(),
        readonly,
        recursive_readonly: false,
        propagation,
        mapped: false,
    };
    let mut spec = bed.spec("reads", &["cat", "/data/file"]);
    spec.mounts = vec![bind("/data", true, Propagation::Private)];
    assert_eq!(bed.outcome(&oci, spec).await, (0, "from the host\n".to_owned()));
    let mut spec = bed.spec("denied", &["write", "/data/other"]);
    spec.mounts = vec![bind("/data", true, Propagation::Private)];
    assert_eq!(bed.outcome(&oci, spec).await.0, 1);
    let mut spec = bed.spec("tmpfs", &["write", "/scratch/file"]);
    spec.mounts = vec![Mount::Tmpfs { destination: "/scratch".into(), options: vec!["size=1m".to_owned()] }];
    assert_eq!(bed.outcome(&oci, spec).await.0, 0);
    assert!(!bed.path("rw/tmpfs/upper/scratch/file").exists());

    // A mount made inside shows outside, where it was asked for, if the host's own mount passes mounts on.
    let shared = host.to_str().unwrap().to_owned();
    run("mount", &["--bind", &shared, &shared]);
    run("mount", &["--make-shared", &shared]);
    let mut spec = bed.spec("bidirectional", &["mount", "/data/inner"]);
    spec.privileged = true;
    spec.mounts = vec![bind("/data", false, Propagation::Bidirectional)];
    bed.run(&oci, spec, "ready").await;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    run("umount", &["-R", &shared]);
    assert!(mounts.contains(&format!("{shared}/inner")), "{mounts}");
    for (id, _) in oci.list() {
        oci.remove(&id).await.unwrap();
    }
    drop(oci);
    bed.nothing_is_left().await;
}

fn run(program: &str, args: &[&str]) {
    let output = std::process::Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Not a limit: prints what a start costs here.
#[tokio::test]
#[ignore = "a measurement"]
async fn speed() {
    let bed = Bed::new();
    let (oci, _events) = bed.start().await;
    let (mut creates, mut starts, mut removes) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..30 {
        let id = format!("c{n}");
        let begin = std::time::Instant::now();
        oci.create(bed.spec(&id, &["wait"])).await.unwrap();
        let created = std::time::Instant::now();
        oci.start_container(&id).await.unwrap();
        starts.push(created.elapsed());
        creates.push(created - begin);
    }
    let pss = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("").trim().to_owned()
    };
    let monitors = bed.named("wharf-monitor");
    println!(
        "{} monitors, pss of one {}, zygote {}",
        monitors.len(),
        pss(monitors[0]),
        pss(bed.named("wharf-zygote")[0])
    );
    for n in 0..30 {
        let begin = std::time::Instant::now();
        oci.remove(&format!("c{n}")).await.unwrap();
        removes.push(begin.elapsed());
    }
    for (what, times) in [("create", &mut creates), ("start", &mut starts), ("remove", &mut removes)] {
        times.sort();
        println!("{what} p50 {:?} max {:?}", times[15], times[29]);
    }
    drop(oci);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn many_containers_are_created_at_once() {
    let bed = Bed::new();
    let (oci, _events) = bed.start().await;
    let tasks = (0..8).map(|n| {
        let (oci, spec) = (oci.clone(), bed.spec(&format!("n{n}"), &["exit", &n.to_string()]));
        tokio::spawn(async move {
            let id = spec.id.clone();
            oci.create(spec).await.unwrap();
            oci.start_container(&id).await.unwrap();
            let code = oci.wait(&id).await.unwrap().code;
            oci.remove(&id).await.unwrap();
            code
        })
    });
    for (n, task) in tasks.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(task.await.unwrap(), n as i32);
    }
    until("monitors to end", || bed.named("wharf-monitor").is_empty()).await;
    drop(oci);
    bed.nothing_is_left().await;
}
