//! A copy in a file.
//!
//! | what | as |
//! |---|---|
//! | the words of [`MAGIC`] | text |
//! | format | u32 |
//! | the store's revision, and the time by the clock in seconds of Unix | u64, u64 |
//! | for each object: length of the key, key, revision, length of the value, value | u32, …, u64, u32, … |
//! | the end: 0 where a key's length would be, the number of objects | u32, u64 |
//! | SHA-256 of all before | 32 bytes |
//!
//! Numbers are big-endian. Nothing follows. Objects are in it as they are stored, Secrets too, so that it is
//! readable by its owner alone.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt as _;
use futures::stream;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::{CopyError, Moment, PAGE, Sink, Source};
use crate::{Entry, Key, Revision, folder};

const MAGIC: &[u8] = b"wharf store snapshot\n";

/// Raised when a change makes older programs unable to read the file.
pub(super) const FORMAT: u32 = 1;

/// Far more than any object of Kubernetes has: a length beyond them is damage, and not believed.
const KEY: u32 = 64 << 10;
const VALUE: u32 = 64 << 20;

/// Writes a snapshot beside its place, and puts it there when it is whole.
pub struct SnapshotWriter {
    path: PathBuf,
    unfinished: BufWriter<NamedTempFile>,
    hash: Sha256,
    objects: u64,
    moment: Moment,
}

/// A snapshot that was read once from beginning to end, and found whole.
pub struct SnapshotReader {
    path: PathBuf,
    pub moment: Moment,
    pub objects: u64,
}

impl SnapshotWriter {
    /// A snapshot to be, at `path`, of a store at `moment`. What is there now is replaced in the end.
    ///
    /// # Errors
    /// [`CopyError::File`] if nothing can be written beside it.
    pub fn create(path: impl Into<PathBuf>, moment: Moment) -> Result<Self, CopyError> {
        let path = path.into();
        let named = |cause| CopyError::File { action: "write the snapshot", path: path.clone(), cause };
        if path.is_dir() {
            return Err(named(ErrorKind::IsADirectory.into()));
        }
        let unfinished =
            tempfile::Builder::new().prefix(".snapshot-").tempfile_in(folder::of(&path)).map_err(named)?;
        let unfinished = BufWriter::new(unfinished);
        let mut writer = Self { path, unfinished, hash: Sha256::new(), objects: 0, moment };
        let seconds = moment.time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        writer.put(&[
            MAGIC,
            &FORMAT.to_be_bytes(),
            &moment.revision.0.to_be_bytes(),
            &seconds.to_be_bytes(),
        ])?;
        Ok(writer)
    }

    fn put(&mut self, parts: &[&[u8]]) -> Result<(), CopyError> {
        for part in parts {
            self.hash.update(part);
            self.unfinished.write_all(part).map_err(|cause| self.failed(cause))?;
        }
        Ok(())
    }

    fn failed(&self, cause: io::Error) -> CopyError {
        CopyError::File { action: "write the snapshot", path: self.path.clone(), cause }
    }

    fn length(&self, bytes: &[u8], allowed: RangeInclusive<u32>) -> Result<[u8; 4], CopyError> {
        let length = u32::try_from(bytes.len()).ok().filter(|length| allowed.contains(length));
        Ok(length.ok_or_else(|| self.failed(ErrorKind::FileTooLarge.into()))?.to_be_bytes())
    }
}

impl Sink for SnapshotWriter {
    async fn take(&mut self, entries: Vec<Entry>) -> Result<(), CopyError> {
        for Entry { key, value, revision } in entries {
            let key = key.as_str().as_bytes();
            let lengths = (self.length(key, 1..=KEY)?, self.length(&value, 0..=VALUE)?);
            self.put(&[&lengths.0, key, &revision.0.to_be_bytes(), &lengths.1, &value])?;
            self.objects += 1;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Revision, CopyError> {
        let objects = self.objects.to_be_bytes();
        self.put(&[&0_u32.to_be_bytes(), &objects])?;
        let hash = self.hash.finalize_reset();
        let Self { path, mut unfinished, moment, .. } = self;
        let place = || {
            unfinished.write_all(&hash)?;
            let file = unfinished.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            folder::sync(&path)
        };
        place().map_err(|cause| CopyError::File {
            action: "write the snapshot",
            path: path.clone(),
            cause,
        })?;
        Ok(moment.revision)
    }
}

impl SnapshotReader {
    /// Reads the snapshot at `path` wholly, to know that it is one and undamaged.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, CopyError> {
        let path = path.into();
        let mut content = Content::open(&path)?;
        while content.next()?.is_some() {}
        Ok(Self { path, moment: content.moment, objects: content.objects })
    }

    /// What is in it.
    ///
    /// # Errors
    /// As [`SnapshotReader::open`]; as an item too, if it changed since.
    pub fn source(&self) -> Result<Source, CopyError> {
        let content = Content::open(&self.path)?;
        Ok(Source { moment: content.moment, pages: stream::iter(Pages(Some(content))).boxed() })
    }
}

/// The objects of a file, some at a time.
struct Pages(Option<Content>);

impl Iterator for Pages {
    type Item = Result<Vec<Entry>, CopyError>;

    fn next(&mut self) -> Option<Self::Item> {
        let content = self.0.as_mut()?;
        let mut page = Vec::new();
        while page.len() < PAGE {
            match content.next() {
                Ok(Some(entry)) => page.push(entry),
                Ok(None) => {
                    self.0 = None;
                    return (!page.is_empty()).then_some(Ok(page));
                }
                Err(error) => {
                    self.0 = None;
                    return Some(Err(error));
                }
            }
        }
        Some(Ok(page))
    }
}

/// A file that is being read; its end is reached only if its checksum is right.
struct Content {
    path: PathBuf,
    file: BufReader<File>,
    hash: Sha256,
    /// Bytes read.
    at: u64,
    moment: Moment,
    objects: u64,
}

impl Content {
    fn open(path: &Path) -> Result<Self, CopyError> {
        let failed = |cause| CopyError::File { action: "read the snapshot", path: path.to_owned(), cause };
        let file = File::open(path).map_err(failed)?;
        let moment = Moment { revision: Revision(0), time: UNIX_EPOCH };
        let file = BufReader::new(file);
        let mut content =
            Self { path: path.to_owned(), file, hash: Sha256::new(), at: 0, moment, objects: 0 };
        match content.bytes(MAGIC.len()) {
            Ok(magic) if magic == MAGIC => {}
            Ok(_) | Err(CopyError::Truncated { .. }) => {
                return Err(CopyError::Foreign { path: content.path });
            }
            Err(error) => return Err(error),
        }
        let found = u32::from_be_bytes(content.array()?);
        if found != FORMAT {
            return Err(CopyError::Format { path: content.path, found });
        }
        content.moment.revision = Revision(u64::from_be_bytes(content.array()?));
        let seconds = Duration::from_secs(u64::from_be_bytes(content.array()?));
        let time = SystemTime::UNIX_EPOCH.checked_add(seconds);
        content.moment.time = time.ok_or_else(|| content.damaged("its time is none"))?;
        Ok(content)
    }

    /// The next object; none: that was the last, and the file is whole.
    fn next(&mut self) -> Result<Option<Entry>, CopyError> {
        let length = u32::from_be_bytes(self.array()?);
        if length == 0 {
            return self.end().map(|()| None);
        }
        if length > KEY {
            return Err(self.damaged("a key has an impossible length"));
        }
        let key = String::from_utf8(self.bytes(length as usize)?);
        let key = Key::from(key.map_err(|_| self.damaged("a key is not text"))?);
        let revision = Revision(u64::from_be_bytes(self.array()?));
        let length = u32::from_be_bytes(self.array()?);
        if length > VALUE {
            return Err(self.damaged("an object has an impossible length"));
        }
        let value = self.bytes(length as usize)?.into();
        self.objects += 1;
        Ok(Some(Entry { key, value, revision }))
    }

    fn end(&mut self) -> Result<(), CopyError> {
        let objects = u64::from_be_bytes(self.array()?);
        let right = self.hash.finalize_reset();
        let found: [u8; 32] = self.array()?;
        if right[..] != found[..] {
            return Err(self.damaged("its checksum is wrong"));
        }
        if objects != self.objects {
            return Err(self.damaged("objects are missing"));
        }
        match self.array::<1>() {
            Err(CopyError::Truncated { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(self.damaged("something follows its end")),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CopyError> {
        let bytes = self.bytes(N)?;
        Ok(bytes.try_into().expect("as many were read"))
    }

    /// Takes no more memory than the file has bytes.
    fn bytes(&mut self, count: usize) -> Result<Vec<u8>, CopyError> {
        let mut bytes = Vec::new();
        let read = (&mut self.file).take(count as u64).read_to_end(&mut bytes);
        self.at += bytes.len() as u64;
        self.hash.update(&bytes);
        match read {
            Ok(read) if read == count => Ok(bytes),
            Ok(_) => Err(CopyError::Truncated { path: self.path.clone(), at: self.at }),
            Err(cause) => {
                Err(CopyError::File { action: "read the snapshot", path: self.path.clone(), cause })
            }
        }
    }

    fn damaged(&self, what: &'static str) -> CopyError {
        CopyError::Damaged { path: self.path.clone(), what }
    }
}
