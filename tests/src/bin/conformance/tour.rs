//! Takes a kubectl through the areas, each in a namespace of its own, in one cluster of two nodes.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use wharf_tests::{Cluster, eventually, get};

use crate::areas::{self, Area};
use crate::pattern;
use crate::row::{Row, Way, words};
use crate::skips::Skips;

const SKIPS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/compat/kubectl/skips.txt");
/// No command of the tour waits longer: those that wait say `--timeout` themselves.
const PATIENCE: Duration = Duration::from_secs(70);
/// Between two runs of a command whose answer is still to come.
const PAUSE: Duration = Duration::from_millis(250);

/// What became of the commands.
#[derive(Default)]
struct Sums {
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
}

/// Takes the tour of the named areas; of all if none is named.
pub fn take(kubectl: &Path, names: &[String]) -> anyhow::Result<ExitCode> {
    let all = areas::all();
    if let Some(name) = names.iter().find(|name| all.iter().all(|area| area.name != **name)) {
        bail!("there is no area {name:?}; there is {}", all.map(|area| area.name).join(", "));
    }
    let skips = Skips::read(Path::new(SKIPS))?;
    skips.fit(all.iter().flat_map(|area| (area.rows)()).map(|row| row.line))?;
    let guide = Guide::new(kubectl)?;
    let (mut sums, began) = (Sums::default(), Instant::now());
    for area in all.iter().filter(|area| names.is_empty() || names.iter().any(|name| name == area.name)) {
        guide.area(area, &skips, &mut sums)?;
    }
    println!();
    sums.failed.iter().for_each(|line| println!("failed: kubectl {line}"));
    let (passed, failed, skipped) = (sums.passed, sums.failed.len(), sums.skipped);
    println!("{passed} passed, {failed} failed, {skipped} skipped in {:.0} s", began.elapsed().as_secs_f64());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The cluster, and how kubectl is run against it.
struct Guide {
    cluster: Cluster,
    kubectl: PathBuf,
    /// The tour's folder, which is kubectl's home too.
    dir: PathBuf,
}

/// What a run came to.
struct Seen {
    /// None if it was ended, or killed.
    code: Option<i32>,
    text: String,
    /// What went wrong beside what it said.
    fault: Option<String>,
}

impl Guide {
    fn new(kubectl: &Path) -> anyhow::Result<Self> {
        let cluster = Cluster::of_nodes(2, "40s");
        cluster.push_images();
        let dir = cluster.dir().join("tour");
        std::fs::create_dir(&dir)?;
        // The tour changes its kubeconfig.
        std::fs::copy(cluster.kubeconfig(), dir.join("kubeconfig"))?;
        for (name, content) in areas::FILES {
            let file = dir.join(name);
            std::fs::create_dir_all(file.parent().context("a file is in a folder")?)?;
            std::fs::write(file, content)?;
        }
        Ok(Self { cluster, kubectl: kubectl.to_owned(), dir })
    }

    fn area(&self, area: &Area, skips: &Skips, sums: &mut Sums) -> anyhow::Result<()> {
        println!("\n{}", area.name);
        let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {}}}}}", area.name);
        self.cluster.wctl_reading(&["apply", "-f", "-"], &namespace).ok();
        eventually("the namespace has its service account", || {
            let said = self.cluster.wctl(&["-n", area.name, "get", "sa", "default", "-o", "name"]);
            if said.code == Some(0) { Ok(()) } else { Err(said.to_string()) }
        });
        let mut kept = BTreeMap::from([("dir", self.dir.display().to_string())]);
        for row in (area.rows)() {
            if let Some(reason) = skips.reason(row.line) {
                sums.skipped += 1;
                println!("  skipped          kubectl {}: {reason}", row.line);
                continue;
            }
            let began = Instant::now();
            let outcome = self.row(area, &row, &mut kept)?;
            let took = began.elapsed().as_secs_f64();
            match outcome {
                Ok(()) => {
                    sums.passed += 1;
                    println!("  passed {took:>6.2} s  kubectl {}", row.line);
                }
                Err(why) => {
                    sums.failed.push(row.line.to_owned());
                    println!("  FAILED {took:>6.2} s  kubectl {}", row.line);
                    why.lines().for_each(|line| println!("         | {line}"));
                }
            }
        }
        let gone = self.cluster.wctl(&["delete", "namespace", area.name]);
        if gone.code != Some(0) {
            println!("  the namespace was not deleted: {gone}");
        }
        Ok(())
    }

    /// Runs a row; the inner error is what it said against what it was to say.
    fn row(
        &self,
        area: &Area,
        row: &Row,
        kept: &mut BTreeMap<&'static str, String>,
    ) -> anyhow::Result<Result<(), String>> {
        let until = Instant::now() + PATIENCE;
        loop {
            let seen = self.run(area, row, kept, until)?;
            let judged = self.judge(row, &seen);
            if row.way != Way::Repeated || judged.is_ok() || Instant::now() >= until {
                if let (Ok(()), Some(name)) = (&judged, row.keep) {
                    kept.insert(name, seen.text.trim().to_owned());
                }
                return Ok(judged);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn judge(&self, row: &Row, seen: &Seen) -> Result<(), String> {
        let squeezed = pattern::squeezed(&seen.text);
        let mut faults: Vec<String> = seen.fault.iter().cloned().collect();
        let ended = matches!(row.way, Way::Once | Way::Repeated);
        if ended && seen.code != Some(row.code) {
            faults.push(format!("ended with {:?}, not {}", seen.code, row.code));
        }
        faults.extend(missing(row, &squeezed).map(|pattern| format!("does not say: {pattern}")));
        let told = row.hides.iter().filter(|pattern| pattern::has(&squeezed, pattern));
        faults.extend(told.map(|pattern| format!("says: {pattern}")));
        if let Some((name, content)) = row.leaves {
            match std::fs::read_to_string(self.dir.join(name)) {
                Ok(found) if found.trim_end() == content => {}
                other => faults.push(format!("leaves {other:?} in {name}, not {content:?}")),
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(format!("{}\n{}", faults.join("\n"), seen.text)) }
    }

    fn run(
        &self,
        area: &Area,
        row: &Row,
        kept: &BTreeMap<&'static str, String>,
        until: Instant,
    ) -> anyhow::Result<Seen> {
        let filled = |text: &str| {
            kept.iter()
                .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
        };
        let (reader, writer) = std::io::pipe()?;
        let mut command = Command::new(&self.kubectl);
        command
            .args(["-n", area.name])
            .args(words(row.line).iter().map(|word| filled(word)))
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("HOME", &self.dir)
            .env("KUBECONFIG", self.dir.join("kubeconfig"))
            .envs(row.environment.map(|(name, value)| (name, filled(value))))
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let child = command.spawn().with_context(|| format!("cannot run {}", self.kubectl.display()))?;
        drop(command); // it holds the pipe's other end
        let mut child = Ended(child);
        let mut input = child.0.stdin.take().context("a pipe")?;
        let text = filled(row.stdin);
        let stays = matches!(row.way, Way::Endless | Way::Forward { .. });
        let (close, closed) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            let _ = input.write_all(text.as_bytes()); // one that fails early reads none of it
            if stays {
                let _ = closed.recv(); // its input ends with it
            }
        });
        let seen = listen(row, &mut child.0, &heard(reader), until)?;
        drop(close);
        Ok(seen)
    }
}

fn missing(row: &Row, squeezed: &str) -> impl Iterator<Item = &'static str> {
    row.says.iter().copied().filter(|pattern| !pattern::has(squeezed, pattern))
}

/// Follows a command to its end, or until it has done what is wanted of it.
fn listen(row: &Row, child: &mut Child, heard: &Receiver<Vec<u8>>, until: Instant) -> anyhow::Result<Seen> {
    let mut bytes = Vec::new();
    let seen = |bytes: &[u8], code, fault| {
        Ok(Seen { code, text: String::from_utf8_lossy(bytes).into_owned(), fault })
    };
    loop {
        match heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(more) => bytes.extend(more),
            Err(RecvTimeoutError::Disconnected) => {
                let goes_on = matches!(row.way, Way::Endless | Way::Forward { .. });
                let early = goes_on.then(|| "it ended".to_owned());
                return seen(&bytes, child.wait()?.code(), early);
            }
            Err(RecvTimeoutError::Timeout) => {
                return seen(&bytes, None, Some(format!("it did not end in {PATIENCE:?}")));
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        match row.way {
            Way::Once | Way::Repeated => {}
            Way::Endless if missing(row, &pattern::squeezed(&text)).next().is_some() => {}
            Way::Endless => {
                // One that does not go on has nothing more to say and ends now.
                let ended = matches!(heard.recv_timeout(PAUSE), Err(RecvTimeoutError::Disconnected));
                return seen(&bytes, None, ended.then(|| "it ended".to_owned()));
            }
            Way::Forward { path, answer } => {
                if let Some(port) = forwarded(&text) {
                    let fault = match get(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), path) {
                        Ok((200, body)) if body.contains(answer) => None,
                        other => Some(format!("GET {path} gave {other:?}, not {answer:?}")),
                    };
                    return seen(&bytes, None, fault);
                }
            }
        }
    }
}

/// The port of `Forwarding from 127.0.0.1:PORT -> 8080`.
fn forwarded(text: &str) -> Option<u16> {
    let from = text.lines().find_map(|line| line.strip_prefix("Forwarding from 127.0.0.1:"))?;
    from.split(' ').next()?.parse().ok()
}

/// What comes out of the pipe, as it comes.
fn heard(mut reader: impl std::io::Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (say, hear) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            if say.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    hear
}

/// A command that is killed if it still runs when it is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
