//! Sockets at a path: private, replaceable after a crash, and not bound by the 108 bytes of a socket address.

use crate::Error;
use rustix::fs::{Mode, OFlags};
use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

/// sun_path holds 108 bytes with the closing zero.
const LONGEST: usize = 107;

/// A path that fits a socket address and leads to `path`, valid while the descriptor is open.
fn short(path: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    if path.as_os_str().len() <= LONGEST {
        return Ok((path.to_owned(), None));
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let via = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((via, Some(dir)))
}

/// Listens at `path`, mode 0600, making its directory with mode 0700 if it is not there. A socket file that nobody
/// listens on any more is replaced.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, Error> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let (via, _dir) = short(path)?;
    let listener = match UnixListener::bind(&via) {
        Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => {
            match UnixStream::connect(&via) {
                Err(gone) if gone.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
                _ => return Err(cause.into()),
            }
            UnixListener::bind(&via)?
        }
        other => other?,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// # Errors
/// [`Error::Closed`] when nobody listens there (any more).
pub(crate) fn connect(path: &Path) -> Result<UnixStream, Error> {
    let connected = short(path).and_then(|(via, _dir)| UnixStream::connect(via));
    let stream = connected.map_err(|cause| match cause.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Error::Closed,
        _ => cause.into(),
    })?;
    check(&stream)?;
    Ok(stream)
}

/// Who may be at the other end.
pub(crate) fn check(socket: impl AsFd) -> Result<(), Error> {
    let peer = rustix::net::sockopt::socket_peercred(socket).map_err(io::Error::from)?;
    if peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
        return Ok(());
    }
    Err(Error::Stranger { uid: peer.uid.as_raw() })
}
