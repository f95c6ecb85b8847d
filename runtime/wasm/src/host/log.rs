//! A container's output, in the CRI log format.
//!
//! No file is held open: each write opens it, appends and closes, some 5 µs of the guest's own time. So ten thousand
//! services that logged once cost no descriptor, and a rotated file is left alone from the next line on.

use bytes::Bytes;
use jiff::Timestamp;
use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::mpsc;

/// A longer line is written in parts, as the other CRI runtimes do.
const LONGEST_LINE: usize = 16 << 10;
/// Pieces of output, at most 64 KiB each and 1 KiB from most guests, that may wait for one attached client. More than
/// fits the pipes on the way: a client whose own input comes back is not cut off for a moment's delay.
const BACKLOG: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Where a container's lines go.
#[derive(Debug)]
pub(crate) struct Log {
    path: Option<PathBuf>,
    /// Warned once: a full disk is no reason for a line in the host's log per line of a guest.
    failed: Mutex<bool>,
    /// Attached clients; one that does not keep up is cut off rather than waited for.
    watchers: Mutex<Vec<mpsc::Sender<(Stream, Bytes)>>>,
}

impl Log {
    pub fn new(path: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self { path, failed: Mutex::new(false), watchers: Mutex::default() })
    }

    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What is written from now on, until [`Self::end`]. The stream ends early for who takes it too slowly.
    pub fn watch(&self) -> mpsc::Receiver<(Stream, Bytes)> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    /// Nothing more will be written.
    pub fn end(&self) {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn show(&self, stream: Stream, bytes: &[u8]) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if !watchers.is_empty() {
            let bytes = Bytes::copy_from_slice(bytes);
            watchers.retain(|watcher| watcher.try_send((stream, bytes.clone())).is_ok());
        }
    }

    /// Makes the file if it is not there.
    pub fn touch(&self) -> io::Result<()> {
        self.append(&[])
    }

    /// Lines of the host's own about the container.
    pub fn say(&self, text: &str) {
        let mut records = Vec::new();
        for line in text.lines() {
            record(&mut records, Stream::Stderr, line.as_bytes(), true);
        }
        self.write(&records);
    }

    fn write(&self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        let result = self.append(records);
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => *failed = false,
            Err(_) if *failed => {}
            Err(cause) => {
                *failed = true;
                tracing::warn!(path = ?self.path, %cause, "a container's output is lost");
            }
        }
    }

    /// One write call for all of it: lines of instances that log at the same time do not mix.
    fn append(&self, records: &[u8]) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let open = || OpenOptions::new().create(true).append(true).mode(0o640).open(path);
        let mut file = match (open(), path.parent()) {
            // CRI's client makes the pod's directory, the runtime the container's below it.
            (Err(cause), Some(parent)) if cause.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(parent)?;
                open()?
            }
            (opened, _) => opened?,
        };
        file.write_all(records)
    }
}

fn record(to: &mut Vec<u8>, stream: Stream, line: &[u8], full: bool) {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%9fZ");
    let tag = if full { 'F' } else { 'P' };
    let _ = write!(to, "{now} {} {tag} ", stream.name()); // to memory: does not fail
    to.extend_from_slice(line);
    to.push(b'\n');
}

/// One output stream of one instance, cut into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    log: Arc<Log>,
    stream: Stream,
    /// The line that is not ended yet.
    rest: Mutex<Vec<u8>>,
}

impl Lines {
    pub fn new(log: Arc<Log>, stream: Stream) -> Self {
        Self { log, stream, rest: Mutex::default() }
    }

    pub fn take(&self, bytes: &[u8]) {
        self.log.show(self.stream, bytes);
        if self.log.path.is_none() {
            return;
        }
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut records = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (piece, ended) = match piece.strip_suffix(b"\n") {
                Some(piece) => (piece, true),
                None => (piece, false),
            };
            rest.extend_from_slice(piece);
            while rest.len() > LONGEST_LINE {
                record(&mut records, self.stream, &rest[..LONGEST_LINE], false);
                rest.drain(..LONGEST_LINE);
            }
            if ended {
                record(&mut records, self.stream, &rest, true);
                rest.clear();
            }
        }
        drop(rest);
        self.log.write(&records);
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let rest = std::mem::take(self.rest.get_mut().unwrap_or_else(PoisonError::into_inner));
        if !rest.is_empty() {
            let mut records = Vec::new();
            record(&mut records, self.stream, &rest, true);
            self.log.write(&records);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_long_ones_come_in_parts() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("0.log");
        let log = Log::new(Some(path.clone()));
        let output = Lines::new(log, Stream::Stdout);
        assert!(!path.exists(), "nothing was written yet");
        output.take(b"one\ntw");
        output.take(b"o\n");
        output.take(&[b'x'; LONGEST_LINE + 1]);
        drop(output);
        let text = std::fs::read_to_string(&path).expect("log");
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.splitn(4, ' ').collect()).collect();
        let told: Vec<(&str, &str, usize)> =
            lines.iter().map(|line| (line[1], line[2], line[3].len())).collect();
        assert_eq!(
            told,
            [("stdout", "F", 3), ("stdout", "F", 3), ("stdout", "P", LONGEST_LINE), ("stdout", "F", 1)]
        );
        for line in &lines {
            assert_eq!(line[0].len(), "2026-01-01T00:00:00.000000000Z".len());
            line[0].parse::<Timestamp>().expect("a time");
        }
    }
}
