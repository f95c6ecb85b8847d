//! One target directory, several clones: one at a time, and none with what another has built.
//!
//! Cargo names what it builds by the path inside the workspace, and takes it for current by the sources' times. So in a
//! shared directory it would take the crates of a clone that was built later for those of this one.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use crate::Result;

/// A lock on the target directory, in a file that names the clone which built there last.
pub struct Claim {
    _locked: File,
}

/// How the names of this workspace's crates begin in cargo's records.
const OURS: [&str; 5] = ["wharf-", "wctl-", "xtask-", "greeter-", "clock-"];
/// Where those records are below the target directory: `debug`, `guests/wasm32-wasip2/guest`.
const DEPTH: usize = 3;

impl Claim {
    /// Waits for whoever holds the directory, and makes cargo forget the crates of another clone.
    pub fn on(target: &Path, root: &Path) -> Result<Self> {
        let path = target.join("clone");
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        if file.try_lock().is_err() {
            println!("    waiting for another xtask in {}", target.display());
            file.lock()?;
        }
        let mut last = String::new();
        file.read_to_string(&mut last)?;
        let own = root.display().to_string();
        if last != own {
            if !last.is_empty() {
                println!(
                    "    {} was used by the clone in {last}; this workspace's crates are built anew",
                    target.display()
                );
                forget(target, DEPTH)?;
            }
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(own.as_bytes())?;
        }
        Ok(Self { _locked: file })
    }
}

/// Removes cargo's records of this workspace's crates in the directory and those below it.
fn forget(dir: &Path, depth: usize) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        if entry.file_name() == ".fingerprint" {
            for record in fs::read_dir(entry.path())? {
                let record = record?;
                let name = record.file_name().to_string_lossy().into_owned();
                if OURS.iter().any(|ours| name.starts_with(ours)) {
                    fs::remove_dir_all(record.path())?;
                }
            }
        } else if depth > 0 {
            forget(&entry.path(), depth - 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_clone_finds_dependencies_and_none_of_the_workspaces_own_crates() {
        let dir = std::env::temp_dir().join(format!("xtask-claim-{}", std::process::id()));
        let records = dir.join("guests/wasm32-wasip2/guest/.fingerprint");
        let there = || {
            let entries = fs::read_dir(&records).expect("the records");
            let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
            names.sort();
            names
        };
        for name in ["greeter-1f", "serde-2f", "wharf-guests-3f"] {
            fs::create_dir_all(records.join(name)).expect("a record");
        }
        drop(Claim::on(&dir, Path::new("/one")).expect("claimed"));
        drop(Claim::on(&dir, Path::new("/one")).expect("claimed"));
        assert_eq!(there().len(), 3, "the same clone finds all");
        drop(Claim::on(&dir, Path::new("/other")).expect("claimed"));
        assert_eq!(there(), ["serde-2f"]);
        assert_eq!(fs::read_to_string(dir.join("clone")).expect("the note"), "/other");
        fs::remove_dir_all(dir).expect("removed");
    }
}
