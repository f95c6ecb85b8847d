//! The open database, and how it is opened again.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ::redb::backends::FileBackend;
use ::redb::{
    Builder, CommitError, Database, DatabaseError, ReadTransaction, ReadableDatabase, StorageError,
    TableError, TransactionError, WriteTransaction,
};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tracing::info;

use crate::{Error, Revision, folder};

/// redb's page cache. Small: the API server's reads are served from the watch cache before it, and the
/// kernel's page cache lies behind it.
const PAGE_CACHE: usize = 16 << 20;

pub(super) type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why a transaction was not done.
pub(super) enum Failed {
    /// It must not be: the caller's error.
    Refused(Error),
    /// It could not be: the database is to be opened again.
    Broken(Cause),
}

/// Opens the database; whether that is after a failed disk call.
pub(super) type Open = Box<dyn Fn(bool) -> Result<Database, Cause> + Send + Sync>;

pub(super) struct Disk {
    open: Open,
    slot: RwLock<Slot>,
    newest: AtomicU64,
}

struct Slot {
    /// Counts the openings, so that who saw a failure does not close what was opened since.
    generation: u64,
    /// `None` before the first opening, after the last, and while it cannot be opened.
    database: Option<Database>,
}

impl Disk {
    pub(super) fn new(open: Open) -> Self {
        Self { open, slot: RwLock::new(Slot { generation: 0, database: None }), newest: AtomicU64::new(0) }
    }

    /// The revision of the last durable commit.
    pub(super) fn newest(&self) -> Revision {
        Revision(self.newest.load(Ordering::Acquire))
    }

    pub(super) fn set_newest(&self, revision: Revision) {
        self.newest.store(revision.0, Ordering::Release);
    }

    pub(super) fn generation(&self) -> u64 {
        self.shared().generation
    }

    pub(super) fn is_open(&self) -> bool {
        self.shared().database.is_some()
    }

    /// Runs `look` on a snapshot, and tells from which opening it was.
    pub(super) fn read<T>(
        &self,
        look: impl Fn(&ReadTransaction) -> Result<T, Failed>,
    ) -> (u64, Result<T, Failed>) {
        let slot = self.shared();
        let generation = slot.generation;
        let began = slot.database.as_ref().ok_or_else(closed).and_then(|database| Ok(database.begin_read()?));
        drop(slot); // a long read keeps nobody from opening the file again
        (generation, began.and_then(|txn| look(&txn)))
    }

    /// Begins a transaction; its commit is durable when it returns, after one sync (see `redb.rs`). Only the
    /// writer thread does, so it does not wait for another.
    pub(super) fn begin_write(&self) -> Result<WriteTransaction, Failed> {
        let slot = self.shared();
        Ok(slot.database.as_ref().ok_or_else(closed)?.begin_write()?)
    }

    /// Commits nothing but what makes the next opening quick, should this be the last commit before a crash.
    pub(super) fn settle(&self) -> Result<(), Failed> {
        let mut txn = self.begin_write()?;
        txn.set_quick_repair(true); // a second sync, and pages that tell which pages are free
        Ok(txn.commit()?)
    }

    /// Closes the database, if it is open, and opens it. No write transaction may be alive.
    pub(super) fn reopen(&self) -> Result<(), Cause> {
        let mut slot = self.alone();
        let again = slot.generation > 0;
        // Its error would be the one that brought us here; reads that still run end with an error.
        drop(slot.database.take());
        slot.generation += 1;
        slot.database = Some((self.open)(again)?);
        Ok(())
    }

    pub(super) fn close(&self) {
        drop(self.alone().database.take());
    }

    fn shared(&self) -> RwLockReadGuard<'_, Slot> {
        // A panic under the lock leaves the slot empty or whole.
        self.slot.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Slot> {
        self.slot.write().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn settings() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(PAGE_CACHE);
    builder.set_repair_callback(|repair| {
        if repair.progress() == 0.0 {
            info!("the store was stopped amid writes: its file is read as a whole");
        }
    });
    builder
}

/// Opens the database in a file. It grows as redb has it, which doubles it: room taken in advance gains too
/// little. Measured on ext4, a sync of new pages takes as long in a hole as in room from `fallocate`, for
/// both are entered in the journal; in room filled with zeros it takes 0.05 ms of 0.19 ms less, but then
/// everything is written twice.
pub(super) fn file(path: PathBuf) -> Open {
    Box::new(move |again| {
        open_file(&path, again).map_err(|cause| Arc::new(AtPath { path: path.clone(), cause }) as Cause)
    })
}

#[derive(Debug, thiserror::Error)]
#[error("{}: {}", path.display(), said(cause))]
struct AtPath {
    path: PathBuf,
    cause: DatabaseError,
}

fn said(cause: &DatabaseError) -> String {
    match cause {
        DatabaseError::DatabaseAlreadyOpen => {
            "it is already open in another process, such as a running server; stop that first".to_owned()
        }
        other => other.to_string(),
    }
}

fn open_file(path: &Path, again: bool) -> Result<Database, DatabaseError> {
    let options = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    };
    if !again && !path.exists() {
        // Made under another name, so that a crash while it is made leaves no half store.
        let unfinished = path.with_added_extension("new");
        let file = options().create(true).truncate(false).open(&unfinished)?;
        file.try_lock().map_err(std::io::Error::from)?;
        // Whoever makes the store renames it under this lock: so now it is there, or ours to make.
        if !path.exists() {
            file.set_len(0)?; // what a crash may have left
            let database = settings().create_with_backend(FileBackend::new(file)?)?;
            std::fs::rename(&unfinished, path)?;
            folder::sync(path)?;
            return Ok(database);
        }
    }
    let file = options().open(path)?;
    if again {
        // After a failed sync Linux calls the pages clean that it could not write. Forget them, so that we
        // read what the disk has, not what it should have had.
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(std::io::Error::from)?;
    }
    settings().create_with_backend(FileBackend::new(file)?)
}

fn closed() -> Failed {
    Failed::Broken(Arc::new(StorageError::DatabaseClosed))
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

macro_rules! broken {
    ($($cause:ty),*) => {$(
        impl From<$cause> for Failed {
            fn from(cause: $cause) -> Self {
                Self::Broken(Arc::new(cause))
            }
        }
    )*};
}
broken!(StorageError, TableError, TransactionError, CommitError, DatabaseError, std::io::Error);
