//! The folder that a file is in.

use std::fs::File;
use std::io;
use std::path::Path;

/// The folder of the file at `path`.
pub(crate) fn of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the name of the file at `path` durable: a file is only when its name is.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    File::open(of(path))?.sync_all()
}
