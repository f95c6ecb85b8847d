//! A place to run real containers in, which counts what they leave behind.
#![allow(dead_code, reason = "no test uses all of it")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use wharf_oci::{Config, ContainerSpec, Event, Events, Oci, Rootfs};

const PATIENCE: Duration = Duration::from_secs(20);

pub struct Bed {
    pub dir: tempfile::TempDir,
    /// Unique to this bed: in its cgroups, and in the command line of its zygotes and monitors.
    pub mark: String,
    lower: PathBuf,
}

/// The static program, compiled once a run.
fn program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("box-{}", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/helper/box.c");
        let status = Command::new("cc").args(["-static", "-O1", "-w", "-o"]).arg(&out).arg(source).status();
        assert!(status.unwrap().success(), "cc -static {source}");
        let shared = out.with_file_name("box"); // one file however many runs there are, never half written
        fs::rename(&out, &shared).unwrap();
        shared
    })
}

impl Bed {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("wharf-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix(&mark).tempdir_in("/tmp").unwrap();
        let lower = dir.path().join("layer");
        fs::create_dir_all(lower.join("bin")).unwrap();
        fs::copy(program(), lower.join("bin/box")).unwrap();
        Self { dir, mark, lower }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> Config {
        Config {
            state_dir: self.path("state"),
            exe: env!("CARGO_BIN_EXE_wharf-oci-zygote").into(),
            exe_args: vec![self.mark.clone().into()],
            cgroup_parent: format!("/{}/pods", self.mark),
            deadline: 20,
        }
    }

    pub async fn start(&self) -> (Oci, Events) {
        Oci::start(self.config()).await.unwrap()
    }

    pub fn spec(&self, id: &str, args: &[&str]) -> ContainerSpec {
        ContainerSpec {
            id: id.to_owned(),
            rootfs: Rootfs::Overlay {
                lower: vec![self.lower.clone()],
                upper: self.path(&format!("rw/{id}/upper")),
                work: self.path(&format!("rw/{id}/work")),
            },
            args: ["/bin/box"].iter().chain(args).map(|arg| (*arg).to_owned()).collect(),
            log_path: Some(self.path(&format!("logs/{id}.log"))),
            ..ContainerSpec::default()
        }
    }

    pub fn log(&self, id: &str) -> String {
        fs::read_to_string(self.path(&format!("logs/{id}.log"))).unwrap_or_default()
    }

    /// The text of the log's entries.
    pub fn output(&self, id: &str) -> String {
        self.log(id).lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or("").to_owned() + "\n").collect()
    }

    /// Creates, starts, and waits until the log has `text`.
    pub async fn run(&self, oci: &Oci, spec: ContainerSpec, text: &str) {
        let id = spec.id.clone();
        oci.create(spec).await.unwrap();
        oci.start_container(&id).await.unwrap();
        until("its log to tell", || self.log(&id).contains(text)).await;
    }

    /// Runs to the end; the exit code and the output.
    pub async fn outcome(&self, oci: &Oci, spec: ContainerSpec) -> (i32, String) {
        let id = spec.id.clone();
        oci.create(spec).await.unwrap();
        oci.start_container(&id).await.unwrap();
        let exit = tokio::time::timeout(PATIENCE, oci.wait(&id)).await.expect("it ends").unwrap();
        (exit.code, self.output(&id))
    }

    /// Processes that belong to this bed: containers by cgroup, zygotes and monitors by command line.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
            let has = |name: &str| String::from_utf8_lossy(&read(name)).contains(&self.mark);
            let state = String::from_utf8_lossy(&read("stat")).rsplit(") ").next().unwrap_or("Z").to_owned();
            if !state.starts_with('Z') && (has("cmdline") || has("cgroup")) {
                found.push((pid, String::from_utf8_lossy(&read("comm")).trim().to_owned()));
            }
        }
        found
    }

    pub fn named(&self, comm: &str) -> Vec<i32> {
        self.processes().into_iter().filter(|(_, name)| name == comm).map(|(pid, _)| pid).collect()
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let roots = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
        roots
            .chain([PathBuf::from("/sys/fs/cgroup")])
            .map(|root| root.join(&self.mark))
            .filter(|dir| dir.exists())
            .collect()
    }

    /// Everything is gone but for the directories that the bed itself made.
    pub async fn nothing_is_left(&self) {
        until("processes to go", || self.processes().is_empty()).await;
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "cgroups");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&self.mark), "mounts: {mounts}");
        for dir in ["state/containers", "state/pauses"] {
            let left: Vec<_> = fs::read_dir(self.path(dir)).unwrap().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let rw = fs::read_dir(self.path("rw")).into_iter().flatten().flatten();
        for item in rw {
            assert_eq!(fs::read_dir(item.path()).unwrap().count(), 0, "{:?}", item.path());
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // After a failed test.
        for (pid, _) in self.processes() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for mount in
            mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.contains(&self.mark))
        {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
        for _ in 0..100 {
            let groups = self.cgroups();
            if groups.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            for group in groups {
                let _ = Command::new("find")
                    .arg(&group)
                    .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                    .output();
            }
        }
    }
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn exited(events: &mut Events) -> (String, wharf_oci::Exit) {
    let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event comes");
    match event.expect("the runtime is there") {
        Event::Exited { id, exit } => (id, exit),
        other => panic!("{other:?}"),
    }
}
