//! Runs rows with a program and tells a line a row.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use wharf_tests::get;

use crate::pattern;
use crate::row::{Row, Way, words};
use crate::skips::Skips;

/// No command of the tour waits longer: those that wait say `--timeout` themselves.
const PATIENCE: Duration = Duration::from_secs(70);
/// Between two runs of a command whose answer is still to come.
const PAUSE: Duration = Duration::from_millis(250);

/// What became of the commands.
#[derive(Default)]
pub struct Sums {
    pub passed: usize,
    pub failed: Vec<String>,
    pub skipped: usize,
}

impl Sums {
    /// Tells them, and what failed.
    pub fn tell(&self, name: &str, began: Instant) -> ExitCode {
        println!();
        self.failed.iter().for_each(|line| println!("failed: {name} {line}"));
        let (passed, failed, skipped) = (self.passed, self.failed.len(), self.skipped);
        println!(
            "{passed} passed, {failed} failed, {skipped} skipped in {:.0} s",
            began.elapsed().as_secs_f64()
        );
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// A program, and how it is run.
pub struct Guide {
    /// As it is typed.
    pub name: &'static str,
    pub program: PathBuf,
    /// The program's home, and where it is run.
    pub dir: PathBuf,
    pub environment: (&'static str, PathBuf),
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
    /// Runs rows one after the other, with these words before those of each.
    pub fn rows(
        &self,
        before: &[&str],
        rows: Vec<Row>,
        skips: &Skips,
        sums: &mut Sums,
    ) -> anyhow::Result<()> {
        let name = self.name;
        let mut kept = BTreeMap::from([("dir", self.dir.display().to_string())]);
        for row in rows {
            if let Some(reason) = skips.reason(row.line) {
                sums.skipped += 1;
                println!("  skipped          {name} {}: {reason}", row.line);
                continue;
            }
            let began = Instant::now();
            let outcome = self.row(before, &row, &mut kept)?;
            let took = began.elapsed().as_secs_f64();
            match outcome {
                Ok(()) => {
                    sums.passed += 1;
                    println!("  passed {took:>6.2} s  {name} {}", row.line);
                }
                Err(why) => {
                    sums.failed.push(row.line.to_owned());
                    println!("  FAILED {took:>6.2} s  {name} {}", row.line);
                    why.lines().for_each(|line| println!("         | {line}"));
                }
            }
        }
        Ok(())
    }

    /// Runs a row; the inner error is what it said against what it was to say.
    fn row(
        &self,
        before: &[&str],
        row: &Row,
        kept: &mut BTreeMap<&'static str, String>,
    ) -> anyhow::Result<Result<(), String>> {
        let until = Instant::now() + PATIENCE;
        loop {
            let seen = self.run(before, row, kept, until)?;
            let judged = self.judge(row, &seen);
            if row.way != Way::Repeated || judged.is_ok() || Instant::now() >= until {
                if let (Ok(()), Some(name)) = (&judged, row.keep) {
                    // Warnings come before it.
                    let last = seen.text.trim().lines().last().unwrap_or_default();
                    kept.insert(name, last.to_owned());
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
        before: &[&str],
        row: &Row,
        kept: &BTreeMap<&'static str, String>,
        until: Instant,
    ) -> anyhow::Result<Seen> {
        let filled = |text: &str| {
            kept.iter()
                .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
        };
        let (reader, writer) = std::io::pipe()?;
        let mut command = Command::new(&self.program);
        command
            .args(before)
            .args(words(row.line).iter().map(|word| filled(word)))
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("HOME", &self.dir)
            .env(self.environment.0, &self.environment.1)
            .envs(row.environment.map(|(name, value)| (name, filled(value))))
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let child = command.spawn().with_context(|| format!("cannot run {}", self.program.display()))?;
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
