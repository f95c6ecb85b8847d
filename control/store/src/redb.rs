//! The embedded engine: one redb file.
//!
//! History lives in the file (`schema`): every version of a key, and a log that tells which key each
//! revision changed. One thread writes (`writer`): it commits the writes that wait together in one durable
//! transaction. Reads run on tokio's blocking threads, each on a snapshot of its own. A watch (`tail`)
//! reads the log until it has caught up, then follows the writer.
//!
//! redb refuses all work after one failed disk call. The writer then closes the database and opens the
//! file again (`disk`); what it was writing is answered with an error, and never tried a second time.
//!
//! # What a commit costs
//! An ordinary commit syncs once: redb writes the pages and the header, then waits for the disk. If a crash
//! comes in between, checksums of the header and of every page tell on opening that the commit is not whole,
//! and redb goes back to the one before, whose pages were not yet used again. (Its two-phase commit, with a
//! sync between pages and header, is a defence against those who both store values that forge checksums and
//! decide which pages reach the disk; who can do the latter has the disk.)
//!
//! After a crash redb has to read the whole file, to verify it and to learn which pages are free: about 1 s
//! for 1 GiB. A commit with `quick_repair` notes the free pages in the file, in two phases; if it is the last
//! one before the crash, the file opens without that. Only the last one counts: such commits amid others
//! would win nothing, however often they came, so there are none. The writer makes one when nothing was
//! committed for `QUIET`, then rests until the next command. It does so after opening the file too, since
//! a repair leaves no such note.

mod disk;
mod fill;
mod prompt;
mod schema;
mod tail;
mod writer;

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::redb::ReadTransaction;
use futures::stream::BoxStream;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::copy::CopyError;
use crate::{Entry, Error, Event, Key, Page, Revision, Store, Write};
use disk::{Disk, Failed};
pub use fill::RedbSink;
use tail::Tail;
use writer::{Command, Published, Writer};

/// Writes that wait for the writer; those beyond it wait in their callers. Two full groups.
const QUEUE: usize = 1024;

/// Groups that a watch may be behind before it reads the log instead.
const LIVE_GROUPS: usize = 64;

/// How long after its last commit the writer makes the file quick to open. Longer than the pauses in a
/// chain of writes where each waits for the one before, so that these seldom meet the two syncs that it
/// takes; short beside the times between crashes.
const QUIET: Duration = Duration::from_millis(100);

/// The embedded engine. It has the file for itself while it is open.
pub struct Redb {
    reader: Reader,
    commands: mpsc::Sender<Command>,
    live: broadcast::Sender<Arc<Published>>,
    ended: oneshot::Receiver<()>,
}

/// Reads on blocking threads, and asks the writer to open the file again if one fails.
#[derive(Clone)]
struct Reader {
    disk: Arc<Disk>,
    /// Weak, so that a watch does not keep the writer running.
    commands: mpsc::WeakSender<Command>,
}

impl Redb {
    /// Opens the store in the file at `path`, or makes it there, readable by its owner alone. Its folder
    /// must exist.
    ///
    /// # Errors
    /// [`Error::Engine`] if the file cannot be opened, is not a store, or is open in another process.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        Self::start(disk::file(path.into()), QUIET).await
    }

    /// Opens the store in the file at `path`, which is there.
    ///
    /// # Errors
    /// [`CopyError::Missing`] if it is not, and those of [`Redb::open`].
    pub async fn open_existing(path: impl Into<PathBuf>) -> Result<Self, CopyError> {
        let path = path.into();
        if !path.exists() {
            return Err(CopyError::Missing { place: format!("at {}", path.display()) });
        }
        Ok(Self::open(path).await?)
    }

    /// Opens the store on whatever `disk` gives; it is asked again after each failed disk call. The file is
    /// made quick to open when `quiet` has passed without a commit; zero: after each commit, before anything
    /// else is done.
    #[cfg(feature = "testing")]
    pub async fn open_on<B: ::redb::StorageBackend>(
        quiet: Duration,
        disk: impl Fn() -> std::io::Result<B> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let open = move |_| {
            let open = || disk::settings().create_with_backend(disk()?);
            open().map_err(|cause: ::redb::DatabaseError| Arc::new(cause) as disk::Cause)
        };
        Self::start(Box::new(open), quiet).await
    }

    async fn start(open: disk::Open, quiet: Duration) -> Result<Self, Error> {
        let disk = Arc::new(Disk::new(open));
        let (commands, queue) = mpsc::channel(QUEUE);
        let (live, _) = broadcast::channel(LIVE_GROUPS);
        let (opened, opening) = oneshot::channel();
        let (ends, ended) = oneshot::channel();
        let writer = (disk.clone(), queue, live.clone());
        let thread = move || {
            let (disk, queue, live) = writer;
            prompt::request();
            match Writer::open(disk, queue, live, quiet) {
                Ok(writer) => {
                    // The opener may be gone: then the queue is closed too and the thread ends at once.
                    let _ = opened.send(Ok(()));
                    writer.run();
                }
                Err(error) => drop(opened.send(Err(error))),
            }
            drop(ends); // after the file was closed
        };
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(thread)
            .map_err(|error| Error::Engine { action: "start its writer thread", cause: Arc::new(error) })?;
        opening.await.map_err(|_| Error::Closed)??;
        let reader = Reader { disk, commands: commands.downgrade() };
        Ok(Self { reader, commands, live, ended })
    }

    /// Commits what waits, closes the file and returns when it is free for another process. Dropping the
    /// engine does the same without waiting. Watches end with [`Error::Closed`].
    pub async fn close(self) {
        let Self { commands, live, ended, .. } = self;
        drop((commands, live));
        // An error is the sign: the thread drops its end when it ends.
        let _ = ended.await;
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }
}

impl Store for Redb {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let key = key.clone();
        self.reader.read("read a key", move |txn| schema::get(txn, &key)).await
    }

    async fn range(
        &self,
        prefix: &str,
        after: Bound<&Key>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, Error> {
        let prefix: Arc<str> = prefix.into();
        let after = after.cloned();
        let look = move |txn: &ReadTransaction| schema::range(txn, &prefix, after.as_ref(), limit, at);
        self.reader.read("read a range", look).await
    }

    async fn write(&self, write: Write) -> Result<Revision, Error> {
        let key = write.key.clone();
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Write(write, answer)).await.map_err(|_| Error::Closed)?;
        // The writer answers every write that it took, also when it is told to end.
        answered.await.unwrap_or_else(|lost| Err(Error::Uncertain { key, cause: Arc::new(lost) }))
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, Error>>, Error> {
        Tail::start(self.reader.clone(), self.live.subscribe(), prefix, from).await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.reader.disk.newest())
    }

    async fn compact(&self, before: Revision) -> Result<(), Error> {
        self.ask(|answer| Command::Compact(before, answer)).await
    }
}

impl Reader {
    /// Runs `look` on a snapshot that shows every write acknowledged before this call. If the disk fails,
    /// it is run once more after the file was opened again: a read may be repeated.
    async fn read<T: Send + 'static>(
        &self,
        action: &'static str,
        look: impl Fn(&ReadTransaction) -> Result<T, Failed> + Send + Sync + 'static,
    ) -> Result<T, Error> {
        let look = Arc::new(look);
        let mut repeated = false;
        loop {
            let (disk, look) = (self.disk.clone(), look.clone());
            let reading = tokio::task::spawn_blocking(move || disk.read(&*look));
            let (generation, result) =
                reading.await.map_err(|lost| Error::Engine { action, cause: Arc::new(lost) })?;
            match result {
                Ok(found) => return Ok(found),
                Err(Failed::Refused(error)) => return Err(error),
                Err(Failed::Broken(cause)) if repeated => return Err(Error::Engine { action, cause }),
                Err(Failed::Broken(_)) => {
                    repeated = true;
                    let (answer, answered) = oneshot::channel();
                    let commands = self.commands.upgrade().ok_or(Error::Closed)?;
                    commands.send(Command::Reopen(generation, answer)).await.map_err(|_| Error::Closed)?;
                    answered.await.map_err(|_| Error::Closed)??;
                }
            }
        }
    }
}
