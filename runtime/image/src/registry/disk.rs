//! The registry's files. Everything here blocks.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;

pub(super) struct Disk {
    root: PathBuf,
    /// Written by what changes what is referred to (manifests, tags, collection), read by what adds blobs.
    gate: RwLock<()>,
    _lock: File,
}

/// What `_manifests/HEX` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) media_type: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Digest>,
    /// Since when (Unix seconds) nothing names it that once did. One pushed by digest alone is named by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) orphaned: Option<u64>,
    /// Manifests of an index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) children: Vec<Digest>,
    /// Config and layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) blobs: Vec<Digest>,
}

impl Disk {
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(root).map_err(Error::disk(format!("make {}", root.display())))?;
        let lock = File::create(root.join("lock")).map_err(Error::disk("make the registry's lock file"))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Busy(root.to_owned())),
            Err(error) => return Err(Error::disk("lock the registry")(error.into())),
        }
        match fs::remove_dir_all(root.join("tmp")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::disk("empty the registry's tmp")(error));
            }
            _ => {}
        }
        for dir in ["tmp", "blobs/sha256", "repos", "uploads"] {
            private.create(root.join(dir)).map_err(Error::disk(format!("make the registry's {dir}")))?;
        }
        Ok(Self { root: root.to_owned(), gate: RwLock::default(), _lock: lock })
    }

    /// While held, nothing is collected.
    pub(super) fn adding(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// While held, nobody else changes anything.
    pub(super) fn changing(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    /// `repo` has been checked against the grammar, which makes each part of it a plain file name.
    fn repo(&self, repo: &str) -> PathBuf {
        self.root.join("repos").join(repo)
    }

    fn link(&self, repo: &str, digest: &Digest) -> PathBuf {
        self.repo(repo).join("_blobs").join(digest.hex())
    }

    fn entry_file(&self, repo: &str, digest: &Digest) -> PathBuf {
        self.repo(repo).join("_manifests").join(digest.hex())
    }

    fn tag_file(&self, repo: &str, tag: &str) -> PathBuf {
        self.repo(repo).join("_tags").join(tag)
    }

    // --- blobs ---

    /// Whether the repository has this blob. Asking begins its grace anew: a push skips what is here.
    pub(super) fn has_blob(&self, repo: &str, digest: &Digest, grace: Duration) -> bool {
        let link = self.link(repo, digest);
        let Ok(meta) = fs::metadata(&link) else { return false };
        if !self.blob(digest).is_file() {
            return false;
        }
        let age = meta.modified().ok().and_then(|then| then.elapsed().ok()).unwrap_or(Duration::MAX);
        if age > grace / 2 {
            let touched =
                File::options().write(true).open(&link).and_then(|file| file.set_modified(SystemTime::now()));
            return touched.is_ok(); // collected at this moment
        }
        true
    }

    /// Moves a finished file to its place as a blob of this repository.
    pub(super) fn keep_blob(&self, repo: &str, digest: &Digest, from: &Path) -> io::Result<()> {
        File::open(from)?.sync_all()?;
        let _adding = self.adding();
        fs::rename(from, self.blob(digest))?;
        sync_dir(&self.blobs())?;
        self.write(&self.link(repo, digest), b"")
    }

    /// Gives a repository a blob that another one has. False if it has not.
    pub(super) fn mount(&self, repo: &str, digest: &Digest, from: &str) -> io::Result<bool> {
        let _adding = self.adding();
        if !self.link(from, digest).is_file() || !self.blob(digest).is_file() {
            return Ok(false);
        }
        self.write(&self.link(repo, digest), b"").map(|()| true)
    }

    pub(super) fn unlink_blob(&self, repo: &str, digest: &Digest) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.link(repo, digest)))
    }

    // --- manifests ---

    pub(super) fn entry(&self, repo: &str, digest: &Digest) -> Option<Entry> {
        let bytes = fs::read(self.entry_file(repo, digest)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(super) fn put_entry(&self, repo: &str, digest: &Digest, entry: &Entry) -> io::Result<()> {
        self.write(&self.entry_file(repo, digest), &serde_json::to_vec(entry)?)
    }

    pub(super) fn put_content(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        self.write(&self.blob(digest), bytes)
    }

    pub(super) fn remove_entry(&self, repo: &str, digest: &Digest) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.entry_file(repo, digest)))?;
        sync_dir(&self.repo(repo).join("_manifests"))
    }

    pub(super) fn entries(&self, repo: &str) -> io::Result<Vec<(Digest, Entry)>> {
        let names = names(&self.repo(repo).join("_manifests"))?;
        let digests = names.into_iter().filter_map(|name| format!("sha256:{name}").parse::<Digest>().ok());
        Ok(digests.filter_map(|digest| self.entry(repo, &digest).map(|entry| (digest, entry))).collect())
    }

    // --- tags ---

    pub(super) fn tag(&self, repo: &str, tag: &str) -> Option<Digest> {
        fs::read_to_string(self.tag_file(repo, tag)).ok()?.parse().ok()
    }

    pub(super) fn put_tag(&self, repo: &str, tag: &str, digest: &Digest) -> io::Result<()> {
        self.write(&self.tag_file(repo, tag), digest.as_str().as_bytes())
    }

    pub(super) fn remove_tag(&self, repo: &str, tag: &str) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.tag_file(repo, tag)))?;
        sync_dir(&self.repo(repo).join("_tags"))
    }

    /// Sorted.
    pub(super) fn tags(&self, repo: &str) -> io::Result<Vec<String>> {
        names(&self.repo(repo).join("_tags"))
    }

    // --- repositories ---

    /// Those that hold a manifest, sorted.
    pub(super) fn catalog(&self) -> io::Result<Vec<String>> {
        let mut found = self.all_repos()?;
        found.retain(|repo| {
            names(&self.repo(repo).join("_manifests")).is_ok_and(|entries| !entries.is_empty())
        });
        Ok(found)
    }

    /// Every repository that holds anything, sorted.
    pub(super) fn all_repos(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        let mut ahead = vec![String::new()];
        while let Some(at) = ahead.pop() {
            let mut holds = false;
            for name in names(&self.repo(&at))? {
                if name.starts_with('_') {
                    holds = true;
                } else if at.is_empty() {
                    ahead.push(name);
                } else {
                    ahead.push(format!("{at}/{name}"));
                }
            }
            if holds {
                found.push(at);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Blobs of a repository with the time since they were last pushed or asked for.
    pub(super) fn links(&self, repo: &str) -> io::Result<Vec<(Digest, Duration)>> {
        aged(&self.repo(repo).join("_blobs"))
    }

    /// All content with its age.
    pub(super) fn contents(&self) -> io::Result<Vec<(Digest, Duration)>> {
        aged(&self.blobs())
    }

    /// Removes the directories of a repository that holds nothing any more.
    pub(super) fn prune(&self, repo: &str) {
        // Only empty directories can be removed this way; the first that is not ends it.
        for part in ["_blobs", "_manifests", "_tags"] {
            let _ = fs::remove_dir(self.repo(repo).join(part));
        }
        let mut at = repo;
        while fs::remove_dir(self.repo(at)).is_ok() {
            match at.rsplit_once('/') {
                Some((above, _)) => at = above,
                None => break,
            }
        }
    }

    /// Writes a small file whole, durably, or not at all.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let from = self.root.join("tmp").join(uuid::Uuid::new_v4().to_string());
        let mut file = File::create(&from)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        if let Err(error) = fs::rename(&from, path) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            // The first of its kind in this repository; a collection may have pruned it in between, so try more than once.
            make_dirs(dir)?;
            fs::rename(&from, path)?;
        }
        sync_dir(dir)
    }
}

/// Makes a directory and those above it, each durably.
fn make_dirs(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(above) = dir.parent() {
        make_dirs(above)?;
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        sync_dir(above)?;
    }
    Ok(())
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for item in listing {
        if let Ok(name) = item?.file_name().into_string() {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

fn aged(dir: &Path) -> io::Result<Vec<(Digest, Duration)>> {
    let mut found = Vec::new();
    for name in names(dir)? {
        let Ok(digest) = format!("sha256:{name}").parse() else { continue };
        let Ok(meta) = fs::metadata(dir.join(&name)) else { continue };
        // A time in the future (a clock set back) counts as now.
        let age = meta.modified()?.elapsed().unwrap_or(Duration::ZERO);
        found.push((digest, age));
    }
    Ok(found)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir) {
        Ok(dir) => dir.sync_all(),
        Err(error) => absent_is_fine(Err(error)),
    }
}
