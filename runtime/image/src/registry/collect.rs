//! What nothing refers to any more goes, when its grace has passed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

use super::Inner;
use super::disk::Entry;
use crate::digest::Digest;
use crate::error::Error;

impl Inner {
    pub(super) fn collect(&self) -> Result<(), Error> {
        self.uploads.expire(self.config.upload_age).map_err(Error::disk("remove abandoned uploads"))?;
        let _changing = self.disk.changing();
        self.sweep().map_err(Error::disk("collect the registry's garbage"))
    }

    fn sweep(&self) -> io::Result<()> {
        let (disk, grace) = (&self.disk, self.config.grace);
        let mut needed: HashSet<Digest> = HashSet::new();
        let (mut manifests, mut blobs) = (0, 0);
        for repo in disk.all_repos()? {
            let mut tagged: HashSet<Digest> = HashSet::new();
            for tag in disk.tags(&repo)? {
                tagged.extend(disk.tag(&repo, &tag));
            }
            let entries: HashMap<Digest, Entry> = disk.entries(&repo)?.into_iter().collect();
            let live = live(&entries, &tagged, grace);
            let mut referred: HashSet<&Digest> = HashSet::new();
            for (digest, entry) in &entries {
                if live.contains(digest) {
                    needed.insert(digest.clone());
                    referred.extend(&entry.blobs);
                } else {
                    disk.remove_entry(&repo, digest)?;
                    manifests += 1;
                }
            }
            for (digest, age) in disk.links(&repo)? {
                if referred.contains(&digest) || age < grace {
                    needed.insert(digest);
                } else {
                    disk.unlink_blob(&repo, &digest)?;
                }
            }
            disk.prune(&repo);
        }
        for (digest, age) in disk.contents()? {
            if !needed.contains(&digest) && age >= grace {
                fs::remove_file(disk.blob(&digest))?;
                blobs += 1;
            }
        }
        if manifests + blobs > 0 {
            tracing::info!(manifests, blobs, "collected the registry's garbage");
        }
        Ok(())
    }

    /// Notes that a manifest lost what named it. `changing` is held.
    pub(super) fn orphan(&self, repo: &str, digest: &Digest) -> io::Result<()> {
        let mut tagged = HashSet::new();
        for tag in self.disk.tags(repo)? {
            tagged.extend(self.disk.tag(repo, &tag));
        }
        let mut ahead = vec![digest.clone()];
        while let Some(digest) = ahead.pop() {
            if tagged.contains(&digest) {
                continue;
            }
            if let Some(mut entry) = self.disk.entry(repo, &digest)
                && entry.orphaned.is_none()
            {
                entry.orphaned = Some(now());
                self.disk.put_entry(repo, &digest, &entry)?;
                ahead.extend(entry.children);
            }
        }
        Ok(())
    }
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs()
}

/// The manifests to keep: tagged ones, ones pushed by digest, ones orphaned lately, what those contain, and what refers to any of these.
fn live(entries: &HashMap<Digest, Entry>, tagged: &HashSet<Digest>, grace: Duration) -> HashSet<Digest> {
    let now = now();
    let lately = |since: u64| now.saturating_sub(since) < grace.as_secs();
    let mut live: HashSet<Digest> = HashSet::new();
    let is_root =
        |digest: &Digest, entry: &Entry| tagged.contains(digest) || entry.orphaned.is_none_or(lately);
    let mut ahead: Vec<Digest> = entries
        .iter()
        .filter(|(d, e)| is_root(d, e) && e.subject.is_none())
        .map(|(d, _)| d.clone())
        .collect();
    // A manifest with a subject lives and dies with it, unless it is tagged or its subject never was here.
    ahead.extend(entries.iter().filter_map(|(digest, entry)| {
        let subject = entry.subject.as_ref()?;
        (tagged.contains(digest) || (is_root(digest, entry) && !entries.contains_key(subject)))
            .then(|| digest.clone())
    }));
    while let Some(digest) = ahead.pop() {
        if live.contains(&digest) {
            continue;
        }
        if let Some(entry) = entries.get(&digest) {
            ahead.extend(entry.children.iter().cloned());
        }
        ahead.extend(
            entries
                .iter()
                .filter(|(_, entry)| entry.subject.as_ref() == Some(&digest))
                .map(|(digest, _)| digest.clone()),
        );
        live.insert(digest);
    }
    live
}
