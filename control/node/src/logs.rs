//! CRI log files: `TIME STREAM TAG TEXT`, one entry a line, as they are read for `/containerLogs`.

use std::path::{Path, PathBuf};

/// One entry of a log file, borrowed from the line that holds it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Entry<'a> {
    /// RFC 3339 with nanoseconds, as it was written.
    pub time: &'a [u8],
    pub stream: Stream,
    /// False where the writer cut a long line: the next entry of this stream goes on.
    pub full: bool,
    pub text: &'a [u8],
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Reads one line (without its line feed). `None` where it is not an entry, such as a line still being written.
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
    let text = parts.next().unwrap_or_default();
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // More tags may follow after a colon; the first tells partial from full.
    let full = match tags.split(|byte| *byte == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    (!time.is_empty()).then_some(Entry { time, stream, full, text })
}

impl Entry<'_> {
    /// When it was written.
    pub fn timestamp(&self) -> Option<jiff::Timestamp> {
        std::str::from_utf8(self.time).ok()?.parse().ok()
    }
}

/// `LOGS/NAMESPACE_POD_UID`, a pod's own directory.
pub fn pod_directory(logs: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    logs.join(format!("{namespace}_{name}_{uid}"))
}

/// `CONTAINER/N.log` below the pod's directory.
pub fn relative(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// The texts of a log's last entries for a termination message: at most 80 lines and 2048 bytes, as the kubelet cuts them.
pub fn last_words(path: &Path) -> Option<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    const LINES: usize = 80;
    const BYTES: usize = 2048;
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // 80 lines of the longest kind would be a megabyte; 64 KiB hold 2048 bytes of text in any sensible log.
    file.seek(SeekFrom::Start(length.saturating_sub(64 << 10))).ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    let lines: Vec<&[u8]> = tail.split_inclusive(|byte| *byte == b'\n').collect();
    let mut text = Vec::new();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        if let Some(entry) = parse(line.strip_suffix(b"\n").unwrap_or(line)) {
            text.extend_from_slice(entry.text);
            if entry.full {
                text.push(b'\n');
            }
        }
    }
    let start = text.len().saturating_sub(BYTES);
    let words = String::from_utf8_lossy(&text[start..]).into_owned();
    (!words.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_from_what_is_not_one() {
        let entry = parse(b"2026-01-02T03:04:05.6Z stdout F hello  world ").unwrap();
        assert_eq!((entry.stream, entry.full, entry.text), (Stream::Stdout, true, &b"hello  world "[..]));
        assert_eq!(entry.timestamp().unwrap().to_string(), "2026-01-02T03:04:05.6Z");
        let entry = parse(b"2026-01-02T03:04:05.6+02:00 stderr P:more x").unwrap();
        assert_eq!((entry.stream, entry.full, entry.text), (Stream::Stderr, false, &b"x"[..]));
        assert_eq!(parse(b"t stdout F ").unwrap().text, b"");
        assert_eq!(parse(b"t stdout F").unwrap().text, b"");
        for line in [&b""[..], b"t", b"t stdout", b"t stdin F x", b"t stdout X x", b" stdout F x"] {
            assert_eq!(parse(line), None, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn last_words_are_the_tail_without_times() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = String::new();
        for n in 0..100 {
            log += &format!("2026-01-02T03:04:05Z stderr F line {n}\n");
        }
        log += "2026-01-02T03:04:05Z stderr P cut ";
        std::fs::write(&path, log).unwrap();
        let words = last_words(&path).unwrap();
        assert!(words.starts_with("line 21\n") && words.ends_with("line 99\ncut "), "{words}");
        assert_eq!(last_words(&dir.path().join("none")), None);
    }
}
