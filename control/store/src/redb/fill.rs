//! Makes a whole store at once, in a file beside the one that it replaces.

use std::path::PathBuf;

use ::redb::backends::FileBackend;
use ::redb::{Database, WriteTransaction};
use tempfile::TempPath;

use super::disk::{self, Disk, Failed};
use super::schema::{self, META, OLDEST, REVISION, VERSIONS};
use crate::copy::{CopyError, Moment, Sink};
use crate::{Entry, Error, Revision, folder};

/// A file of redb to be. What it replaces is as it was until [`Sink::finish`], and open to nobody else.
pub struct RedbSink {
    txn: WriteTransaction,
    database: Database,
    unfinished: TempPath,
    held: Held,
    path: PathBuf,
    newest: Revision,
}

/// The file that is there, kept open so that no server opens it.
struct Held {
    disk: Disk,
    /// Where it was made to hold the place: removed if nothing takes it.
    made: Option<PathBuf>,
}

impl RedbSink {
    /// A store to be, at `path`, of what a source had at `moment`. `replace`: a store that is there goes.
    ///
    /// # Errors
    /// [`CopyError::Taken`] if one is there that is not to be replaced; [`Error::Engine`] if what is there is
    /// no store, or is open in another process.
    pub fn begin(path: impl Into<PathBuf>, moment: Moment, replace: bool) -> Result<Self, CopyError> {
        let path = path.into();
        let made = if path.exists() { None } else { Some(path.clone()) };
        let held = Held { disk: Disk::new(disk::file(path.clone())), made };
        let open = || {
            held.disk.reopen().map_err(Failed::Broken)?;
            schema::prepare(&held.disk)
        };
        let span = open().map_err(failed("open the file that is there"))?;
        if span.newest > Revision(0) && !replace {
            return Err(CopyError::Taken { place: path.display().to_string(), revision: span.newest });
        }
        let newest = moment.beginning(span.newest);
        let begin = || {
            let file = tempfile::Builder::new().prefix(".store-").tempfile_in(folder::of(&path))?;
            let (file, unfinished) = file.into_parts();
            let database = disk::settings().create_with_backend(FileBackend::new(file)?)?;
            let txn = database.begin_write()?;
            schema::make(&txn)?;
            Ok((unfinished, database, txn))
        };
        let (unfinished, database, txn) = begin().map_err(failed("make a file beside it"))?;
        Ok(Self { txn, database, unfinished, held, path, newest })
    }
}

impl Sink for RedbSink {
    async fn take(&mut self, entries: Vec<Entry>) -> Result<(), CopyError> {
        let put = || {
            let mut versions = self.txn.open_table(VERSIONS)?;
            for entry in entries {
                self.newest.0 += 1;
                versions.insert((entry.key.as_str(), self.newest.0), Some(&*entry.value))?;
            }
            Ok(())
        };
        put().map_err(failed("write the copy"))
    }

    async fn finish(self) -> Result<Revision, CopyError> {
        let Self { mut txn, database, unfinished, mut held, path, newest } = self;
        let finish = || {
            {
                let mut meta = txn.open_table(META)?;
                meta.insert(REVISION, newest.0)?;
                meta.insert(OLDEST, newest.0)?;
            }
            txn.set_quick_repair(true);
            txn.commit()?;
            drop(database);
            unfinished.persist(&path).map_err(|error| error.error)?;
            held.made = None;
            folder::sync(&path)?;
            Ok(newest)
        };
        finish().map_err(failed("write the copy"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.disk.close();
        if let Some(made) = &self.made {
            // It held nothing. If it cannot be removed, an empty store stays, which does no harm.
            let _ = std::fs::remove_file(made);
        }
    }
}

fn failed(action: &'static str) -> impl Fn(Failed) -> CopyError {
    move |failed| match failed {
        Failed::Refused(error) => CopyError::Store(error),
        Failed::Broken(cause) => CopyError::Store(Error::Engine { action, cause }),
    }
}
