//! Files that change all at once: a directory whose visible names are links through one link, `..data`, that is swapped
//! by a rename. A reader that opened a file before keeps what it had; one that opens after sees the new set.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// What one file shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub data: Bytes,
    /// Permission bits, 0 to 0o777.
    pub mode: u32,
    /// Whose it is; else root's.
    pub owner: Option<u32>,
}

/// Files by relative path; no `..`, not absolute.
pub type Payload = BTreeMap<PathBuf, File>;

/// Makes `target` hold exactly `payload`. True where something changed. `group` owns the files and may read them.
///
/// # Errors
/// A path leaves the directory, or the file system refuses. The visible files are then still the old set.
pub fn write(target: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        let tame = path.components().all(|part| matches!(part, Component::Normal(_)));
        let hidden = path.to_str().is_some_and(|path| path.starts_with(".."));
        if !tame || hidden || path.as_os_str().is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is not a path below the volume", path.display()),
            ));
        }
    }
    let old = match std::fs::read_link(target.join(DATA)) {
        Ok(name) => Some(target.join(name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(old) = &old
        && same(old, payload)
    {
        link_names(target, payload)?; // an earlier try may have been cut off here
        return Ok(false);
    }
    let name = fresh_name();
    let directory = target.join(&name);
    std::fs::create_dir(&directory)?;
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
    if let Err(error) = fill(&directory, payload, group) {
        let _ = std::fs::remove_dir_all(&directory); // the first error is the one to tell
        return Err(error);
    }
    let next = target.join(DATA_NEXT);
    let _ = std::fs::remove_file(&next); // left by a crash
    symlink(&name, &next)?;
    std::fs::rename(&next, target.join(DATA))?;
    link_names(target, payload)?;
    drop_names(target, payload)?;
    if let Some(old) = old {
        std::fs::remove_dir_all(old)?;
    }
    Ok(true)
}

/// `..YEAR_MONTH_DAY_…` as the kubelet names them, with a random end.
fn fresh_name() -> String {
    let now = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S").to_string();
    format!("..{now}.{:08x}", rand::random::<u32>())
}

fn fill(directory: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    use std::io::Write as _;
    for (path, file) in payload {
        let full = directory.join(path);
        if let Some(parent) = full.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&full)?;
        out.write_all(&file.data)?;
        let mut mode = file.mode & 0o777;
        if file.owner.is_some() || group.is_some() {
            std::os::unix::fs::chown(&full, file.owner, group)?;
        }
        if group.is_some() {
            mode |= 0o440;
        }
        // After the write, and not through the open mode: the umask would cut it.
        out.set_permissions(std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn same(directory: &Path, payload: &Payload) -> bool {
    let mut have = 0;
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { return false };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                _ => have += 1,
            }
        }
    }
    have == payload.len()
        && payload
            .iter()
            .all(|(path, file)| std::fs::read(directory.join(path)).is_ok_and(|data| data == file.data))
}

/// The first part of each path, as a link through `..data`.
fn names(payload: &Payload) -> impl Iterator<Item = &std::ffi::OsStr> {
    payload.keys().filter_map(|path| path.iter().next())
}

fn link_names(target: &Path, payload: &Payload) -> io::Result<()> {
    for name in names(payload) {
        match symlink(Path::new(DATA).join(name), target.join(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn drop_names(target: &Path, payload: &Payload) -> io::Result<()> {
    for entry in std::fs::read_dir(target)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().starts_with(b"..") && !names(payload).any(|kept| kept == name) {
            std::fs::remove_file(target.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str, u32)]) -> Payload {
        files
            .iter()
            .map(|(path, data, mode)| {
                (
                    PathBuf::from(path),
                    File { data: Bytes::copy_from_slice(data.as_bytes()), mode: *mode, owner: None },
                )
            })
            .collect()
    }

    fn visible(target: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(target)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with(".."))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_set_replaces_the_old_at_once_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path();
        assert!(write(target, &payload(&[("a", "1", 0o644), ("sub/b", "2", 0o400)]), None).unwrap());
        assert_eq!(std::fs::read_to_string(target.join("sub/b")).unwrap(), "2");
        assert_eq!(std::fs::metadata(target.join("sub/b")).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(visible(target), ["a", "sub"]);
        let before = std::fs::read_link(target.join(DATA)).unwrap();
        assert!(
            !write(target, &payload(&[("a", "1", 0o644), ("sub/b", "2", 0o400)]), None).unwrap(),
            "nothing changed"
        );
        assert_eq!(std::fs::read_link(target.join(DATA)).unwrap(), before);

        let mut open = std::fs::File::open(target.join("a")).unwrap();
        assert!(write(target, &payload(&[("a", "new", 0o600), ("c", "3", 0o644)]), None).unwrap());
        assert_eq!(visible(target), ["a", "c"]);
        assert_eq!(std::fs::read_to_string(target.join("a")).unwrap(), "new");
        let mut kept = String::new();
        std::io::Read::read_to_string(&mut open, &mut kept).unwrap();
        assert_eq!(kept, "1", "an open file keeps its content");
        assert!(!target.join(before).exists(), "the old set is gone");
        let hidden = std::fs::read_dir(target).unwrap().count() - 2;
        assert_eq!(hidden, 2, "..data and one set");
    }

    #[test]
    fn a_swap_cut_short_by_a_crash_is_finished_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path();
        write(target, &payload(&[("a", "1", 0o644)]), None).unwrap();
        std::fs::remove_file(target.join("a")).unwrap();
        symlink("nowhere", target.join(DATA_NEXT)).unwrap();
        write(target, &payload(&[("a", "1", 0o644)]), None).unwrap();
        assert_eq!(std::fs::read_to_string(target.join("a")).unwrap(), "1");
        write(target, &payload(&[("a", "2", 0o644)]), None).unwrap();
        assert_eq!(std::fs::read_to_string(target.join("a")).unwrap(), "2");
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "..x", "", "a/../../b"] {
            assert!(write(dir.path(), &payload(&[(path, "", 0o644)]), None).is_err(), "{path}");
        }
    }

    #[test]
    fn a_group_owns_and_may_read() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "1", 0o400)]), Some(4242)).unwrap();
        let meta = std::fs::metadata(dir.path().join("a")).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o440);
        assert_eq!(std::os::unix::fs::MetadataExt::gid(&meta), 4242);
    }
}
