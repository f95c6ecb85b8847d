//! The container's log, in the format that CRI prescribes: `TIME STREAM P|F TEXT`.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Longest text of one entry; longer lines continue in the next. The length that other runtimes use, and that
/// readers of these files expect.
const LONGEST: usize = 16 << 10;

/// One stream's bytes on their way to become entries.
pub(super) struct Lines {
    stream: &'static str,
    /// What came since the last newline; at most [`LONGEST`].
    partial: Vec<u8>,
}

impl Lines {
    pub fn new(stream: &'static str) -> Self {
        Self { stream, partial: Vec::new() }
    }

    pub fn stream(&self) -> &'static str {
        self.stream
    }

    /// Appends to `out` the entries that `bytes` complete.
    pub fn feed(&mut self, mut bytes: &[u8], time: &str, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let mut text = &bytes[..newline.unwrap_or(bytes.len())];
            while self.partial.len() + text.len() > LONGEST {
                let (fits, rest) = text.split_at(LONGEST - self.partial.len());
                self.partial.extend_from_slice(fits);
                self.entry(b" P ", time, out);
                text = rest;
            }
            self.partial.extend_from_slice(text);
            let Some(newline) = newline else { return };
            if self.partial.last() == Some(&b'\r') {
                self.partial.pop();
            }
            self.entry(b" F ", time, out);
            bytes = &bytes[newline + 1..];
        }
    }

    /// The stream ended: what had no newline is an entry too.
    pub fn finish(&mut self, time: &str, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.entry(b" P ", time, out);
        }
    }

    fn entry(&mut self, tag: &[u8; 3], time: &str, out: &mut Vec<u8>) {
        for part in [time.as_bytes(), b" ", self.stream.as_bytes(), tag, &self.partial, b"\n"] {
            out.extend_from_slice(part);
        }
        self.partial.clear();
        if self.partial.capacity() > 512 {
            self.partial = Vec::new(); // one long line should not cost memory for ever
        }
    }
}

/// The file. What cannot be written is lost: a full disk must not stop the container.
pub(super) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = File::options().append(true).create(true).mode(0o640).open(path)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Goes on in a new file of the same name, after someone renamed this one.
    pub fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(&self.path)?;
        Ok(())
    }

    pub fn write(&mut self, entries: &[u8]) {
        let _ = self.file.write_all(entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(pieces: &[&[u8]]) -> String {
        let mut lines = Lines::new("stdout");
        let mut out = Vec::new();
        for piece in pieces {
            lines.feed(piece, "T", &mut out);
        }
        lines.finish("T", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_entries_however_they_come_in() {
        let table: &[(&[&[u8]], &str)] = &[
            (&[b"one\ntwo\n"], "T stdout F one\nT stdout F two\n"),
            (&[b"o", b"ne", b"\n\n"], "T stdout F one\nT stdout F \n"),
            (&[b"dos\r\n"], "T stdout F dos\n"),
            (&[b"no newline"], "T stdout P no newline\n"),
            (&[], ""),
        ];
        for (pieces, want) in table {
            assert_eq!(log(pieces), *want, "{pieces:?}");
        }
    }

    #[test]
    fn long_lines_are_cut_into_partial_entries_and_end_full() {
        let long = vec![b'x'; LONGEST * 2 + 5];
        let text = log(&[&long, b"\nnext\n"]);
        let tags: Vec<(&str, usize)> = text.lines().map(|line| (&line[9..10], line.len() - 11)).collect();
        assert_eq!(tags, [("P", LONGEST), ("P", LONGEST), ("F", 5), ("F", 4)]);
        let exact = vec![b'x'; LONGEST];
        assert_eq!(log(&[&exact, b"\n"]).lines().count(), 1, "a line of just that length is not cut");
    }
}
