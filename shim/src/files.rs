//! Single files in wasm containers. WASI opens directories alone, so files are bind-mounted into directories of the
//! container's own, one for each directory that the guest sees them in.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use wharf_cri::v1;

use crate::error::Error;

/// Mounts of a wasm container: directories as they are, and for each directory that has files a directory below `dir`. It
/// can be changed by nobody, its files by the guest unless they are read-only. Blocks.
///
/// # Errors
/// [`Error::Invalid`] if a file is to be in a directory that is mounted itself, or [`Error::Start`].
pub fn lay(dir: &Path, mounts: &[v1::Mount]) -> Result<Vec<wharf_wasm::Mount>, Error> {
    let (directories, files): (Vec<_>, Vec<_>) =
        mounts.iter().partition(|mount| Path::new(&mount.host_path).is_dir());
    let mut laid: Vec<wharf_wasm::Mount> = directories
        .into_iter()
        .map(|mount| wharf_wasm::Mount {
            host: mount.host_path.clone().into(),
            guest: mount.container_path.clone(),
            read_only: mount.readonly,
        })
        .collect();
    let mut parents: BTreeMap<&Path, BTreeMap<&Path, &v1::Mount>> = BTreeMap::new();
    for mount in files {
        let path = Path::new(&mount.container_path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::Invalid(format!(
                "the file {} cannot be mounted at {:?}",
                mount.host_path, path
            )));
        };
        if laid.iter().any(|other| Path::new(&other.guest) == parent) {
            let why = format!("{} cannot be mounted: its directory is a mount of its own", path.display());
            return Err(Error::Invalid(why));
        }
        parents.entry(parent).or_default().insert(Path::new(name), mount);
    }
    for (nth, (parent, files)) in parents.into_iter().enumerate() {
        let host = dir.join(nth.to_string());
        put(&host, &files).map_err(|cause| Error::Start {
            what: format!("mount the files in {}", parent.display()),
            cause,
        })?;
        let read_only = files.values().all(|mount| mount.readonly);
        laid.push(wharf_wasm::Mount { host, guest: parent.display().to_string(), read_only });
    }
    Ok(laid)
}

fn put(host: &Path, files: &BTreeMap<&Path, &v1::Mount>) -> io::Result<()> {
    let bind = |from: &Path, to: &Path, read_only: bool| -> io::Result<()> {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        if read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, to, None::<&str>, flags, None::<&str>)?;
        }
        Ok(())
    };
    fs::create_dir_all(host)?;
    for name in files.keys() {
        fs::write(host.join(name), "")?;
    }
    bind(host, host, true)?;
    for (name, file) in files {
        bind(Path::new(&file.host_path), &host.join(name), file.readonly)?;
    }
    Ok(())
}

/// Undoes [`lay`]. A repeat changes nothing.
///
/// # Errors
/// [`Error::Record`] if something stays.
pub fn remove(dir: &Path) -> Result<(), Error> {
    let below = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    for host in below(dir) {
        // What is no mount any more is said to be invalid.
        for file in below(&host) {
            let _ = umount2(&file, MntFlags::MNT_DETACH);
        }
        let _ = umount2(&host, MntFlags::MNT_DETACH);
    }
    match fs::remove_dir_all(dir) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(Error::Record { what: format!("the end of {}", dir.display()), cause })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &Path, container: &str, readonly: bool) -> v1::Mount {
        let host_path = host.display().to_string();
        v1::Mount { host_path, container_path: container.to_owned(), readonly, ..Default::default() }
    }

    #[test]
    fn files_of_one_directory_are_together_and_nothing_can_be_put_beside_them() {
        let scratch = tempfile::tempdir().unwrap();
        let (one, two, dir) =
            (scratch.path().join("one"), scratch.path().join("two"), scratch.path().join("files"));
        fs::write(&one, "1").unwrap();
        fs::write(&two, "2").unwrap();
        let mounts = [
            of(scratch.path(), "/data", false),
            of(&one, "/etc/app/a", true),
            of(&two, "/etc/app/b", false),
            of(&one, "/etc/hosts", true),
        ];
        let laid = lay(&dir, &mounts).unwrap();
        let seen: Vec<_> = laid.iter().map(|mount| (mount.guest.as_str(), mount.read_only)).collect();
        assert_eq!(seen, [("/data", false), ("/etc", true), ("/etc/app", false)]);
        let app = &laid[2].host;
        assert_eq!(fs::read_to_string(app.join("a")).unwrap(), "1");
        fs::write(app.join("b"), "3").unwrap();
        assert_eq!(fs::read_to_string(&two).unwrap(), "3", "it is the file itself");
        let read_only = Some(nix::libc::EROFS);
        assert_eq!(fs::write(app.join("a"), "3").unwrap_err().raw_os_error(), read_only);
        assert_eq!(fs::write(app.join("c"), "3").unwrap_err().raw_os_error(), read_only);
        remove(&dir).unwrap();
        remove(&dir).unwrap();
        assert!(!dir.exists() && one.exists() && two.exists());

        let within = [of(scratch.path(), "/etc", false), of(&one, "/etc/hosts", true)];
        assert!(matches!(lay(&dir, &within), Err(Error::Invalid(_))));
    }
}
