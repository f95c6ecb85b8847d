//! The thread that writes.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::{error, warn};

use super::disk::{Cause, Disk, Failed};
use super::schema::{self, LOG, META, OLDEST, REVISION, VERSIONS};
use crate::span::Span;
use crate::{Error, Event, Expect, Revision, Write};

/// Bounds of one transaction, whichever is met first: it takes tens of milliseconds then, and its sync no
/// longer counts.
const GROUP_WRITES: usize = 512;
const GROUP_BYTES: usize = 8 << 20;

/// Log entries that compaction removes in one transaction, beside writes or alone.
const TRIM: usize = 512;

pub(super) enum Command {
    Write(Write, oneshot::Sender<Result<Revision, Error>>),
    Compact(Revision, oneshot::Sender<Result<(), Error>>),
    /// A read failed on this opening of the file.
    Reopen(u64, oneshot::Sender<Result<(), Error>>),
}

/// What the watches are told after a commit.
pub(super) enum Published {
    /// A group's events in order; never empty.
    Events(Vec<Event>),
    /// Something was committed that only the log can tell.
    ReadLog,
}

type Job = (Write, oneshot::Sender<Result<Revision, Error>>);

/// A group that was committed: each write's answer, and the events of those that were done.
#[derive(Default)]
struct Done {
    answers: Vec<Result<Revision, Error>>,
    events: Vec<Event>,
}

/// A group that was not, or perhaps not.
enum Undone {
    /// Nothing of it was kept.
    Before(Cause),
    /// The commit itself failed.
    Commit(Cause),
}

pub(super) struct Writer {
    disk: Arc<Disk>,
    queue: mpsc::Receiver<Command>,
    /// Taken from the queue, to be done next.
    waiting: Option<Command>,
    live: broadcast::Sender<Arc<Published>>,
    span: Span,
    /// Whether compaction has something left to remove.
    trim: bool,
    quiet: Duration,
    /// When to make the file quick to open: `quiet` after the last commit. None: it is, or cannot be made so.
    settle_at: Option<Instant>,
}

impl Writer {
    pub(super) fn open(
        disk: Arc<Disk>,
        queue: mpsc::Receiver<Command>,
        live: broadcast::Sender<Arc<Published>>,
        quiet: Duration,
    ) -> Result<Self, Error> {
        let span = open(&disk).map_err(|cause| Error::Engine { action: "open its file", cause })?;
        disk.set_newest(span.newest);
        let settle_at = Some(Instant::now() + quiet); // a repair may have been made
        Ok(Self { disk, queue, waiting: None, live, span, trim: true, quiet, settle_at })
    }

    /// Runs until all senders of the queue are gone and what they sent is done; then the file is closed.
    pub(super) fn run(mut self) {
        while let Some(command) = self.next() {
            match command {
                Command::Write(write, answer) => self.write((write, answer)),
                Command::Compact(before, answer) => drop(answer.send(self.compact(before))),
                Command::Reopen(generation, answer) => {
                    let outdated = self.disk.generation() == generation;
                    drop(answer.send(
                        if outdated { self.reopen() } else { Ok(()) }.map_err(engine("open its file again")),
                    ));
                }
            }
        }
        self.disk.close();
    }

    /// The next command. While there is none, compaction goes on; when that has ended and it stays quiet,
    /// the file is made quick to open, and then nothing is done.
    fn next(&mut self) -> Option<Command> {
        loop {
            if let Some(command) = self.waiting.take() {
                return Some(command);
            }
            if self.settle_at.is_some_and(|at| at <= Instant::now()) {
                self.settle();
            }
            let until = if self.trim { Some(Instant::now()) } else { self.settle_at };
            if let Some(received) = receive(&mut self.queue, until) {
                return received;
            }
            if self.trim {
                // A failure leaves the rest for the next compaction: not tried in a circle.
                if let Err(Undone::Before(cause) | Undone::Commit(cause)) = self.commit(&[]) {
                    warn!(%cause, "compaction stopped");
                    self.trim = false;
                    self.recover();
                }
            }
        }
    }

    /// Makes the file quick to open. What was acknowledged is durable without it, so that its failure
    /// concerns nobody: the next commit leads to another attempt.
    fn settle(&mut self) {
        if let Err(failed) = self.disk.settle() {
            warn!(cause = %cause(failed), "the store's file would be slow to open after a crash");
            self.recover();
        }
        self.settle_at = None;
    }

    /// Commits `first` and the writes that wait behind it, and answers them.
    fn write(&mut self, first: Job) {
        let mut bytes = first.0.value.as_ref().map_or(0, Bytes::len);
        let mut group = vec![first];
        while group.len() < GROUP_WRITES && bytes < GROUP_BYTES {
            match self.queue.try_recv() {
                Ok(Command::Write(write, answer)) => {
                    bytes += write.value.as_ref().map_or(0, Bytes::len);
                    group.push((write, answer));
                }
                Ok(other) => {
                    self.waiting = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        if !self.disk.is_open()
            && let Err(cause) = self.reopen()
        {
            return refuse(group, &cause);
        }
        group.retain(|(_, answer)| !answer.is_closed()); // nobody waits: as if it had not been asked
        match self.commit(&group) {
            Ok(Done { answers, events }) => {
                if !events.is_empty() {
                    // No receiver is no error: nobody watches.
                    let _ = self.live.send(Arc::new(Published::Events(events)));
                }
                for ((_, answer), result) in group.into_iter().zip(answers) {
                    let _ = answer.send(result); // the change is made, even if its caller has gone
                }
            }
            Err(Undone::Before(cause)) => {
                error!(%cause, writes = group.len(), "a transaction failed before its commit");
                self.recover();
                refuse(group, &cause);
            }
            Err(Undone::Commit(cause)) => {
                error!(%cause, writes = group.len(), "a commit failed");
                let before = self.span.newest;
                if self.recover() && self.span.newest == before {
                    return refuse(group, &cause); // the file opened without it
                }
                for (write, answer) in group {
                    let _ = answer.send(Err(Error::Uncertain { key: write.key, cause: cause.clone() }));
                }
            }
        }
    }

    /// Does `group` in one durable transaction, each write in turn seeing those before it, and some of
    /// compaction's work with it.
    fn commit(&mut self, group: &[Job]) -> Result<Done, Undone> {
        let mut newest = self.span.newest;
        let mut trim = self.trim;
        let mut prepare = || {
            let txn = self.disk.begin_write()?;
            let mut done = Done::default();
            {
                let mut versions = txn.open_table(VERSIONS)?;
                let mut log = txn.open_table(LOG)?;
                for (write, _) in group {
                    let key = write.key.as_str();
                    let last = schema::latest(&versions, key)?;
                    let previous = last.and_then(|(at, value)| Some((at, value?)));
                    let found = previous.as_ref().map(|(at, _)| *at);
                    let fits = match (write.expect, &write.value) {
                        (Expect::Absent, value) => found.is_none() && value.is_some(),
                        (Expect::At(at), _) => found == Some(at),
                    };
                    if !fits {
                        done.answers.push(Err(Error::Conflict { key: write.key.clone(), found }));
                        continue;
                    }
                    newest.0 += 1;
                    versions.insert((key, newest.0), write.value.as_deref())?;
                    log.insert(newest.0, (key, found.map_or(0, |at| at.0), write.value.is_none()))?;
                    done.answers.push(Ok(newest));
                    let (key, value) = (write.key.clone(), write.value.clone());
                    done.events.push(Event { key, revision: newest, previous, value });
                }
            }
            if !done.events.is_empty() {
                txn.open_table(META)?.insert(REVISION, newest.0)?;
            }
            let trimmed = if trim { schema::trim(&txn, self.span.oldest, TRIM)? } else { 0 };
            trim = trimmed == TRIM; // else there was no more
            Ok::<_, Failed>((txn, done, trimmed))
        };
        let (txn, done, trimmed) = prepare().map_err(|failed| Undone::Before(cause(failed)))?;
        if done.events.is_empty() && trimmed == 0 {
            txn.abort().map_err(|error| Undone::Before(Arc::new(error)))?;
        } else {
            txn.commit().map_err(|error| Undone::Commit(Arc::new(error)))?;
            self.settle_at = Some(Instant::now() + self.quiet);
        }
        self.trim = trim;
        self.span.newest = newest;
        self.disk.set_newest(newest);
        Ok(done)
    }

    /// Makes history before `before` unreadable; the room it takes is freed step by step after.
    fn compact(&mut self, before: Revision) -> Result<(), Error> {
        if before > self.span.newest {
            return Err(Error::Future { asked: before, newest: self.span.newest });
        }
        if before <= self.span.oldest {
            return Ok(());
        }
        if !self.disk.is_open() {
            self.reopen().map_err(engine("open its file again"))?;
        }
        let mark = || {
            let txn = self.disk.begin_write()?;
            txn.open_table(META)?.insert(OLDEST, before.0)?;
            Ok::<_, Failed>(txn.commit()?)
        };
        if let Err(failed) = mark() {
            self.recover();
            return Err(engine("compact its history")(cause(failed)));
        }
        self.span.oldest = before;
        self.trim = true;
        self.settle_at = Some(Instant::now() + self.quiet);
        Ok(())
    }

    /// Opens the file again after a failure, and tells whether that went well. If not, the next command
    /// tries again.
    fn recover(&mut self) -> bool {
        match self.reopen() {
            Ok(()) => {
                warn!(revision = %self.span.newest, "the store's file was opened again");
                true
            }
            Err(cause) => {
                error!(%cause, "the store's file cannot be opened again");
                false
            }
        }
    }

    fn reopen(&mut self) -> Result<(), Cause> {
        self.settle_at = None;
        let span = open(&self.disk)?;
        self.settle_at = Some(Instant::now() + self.quiet);
        if span.newest != self.span.newest {
            // A commit that failed had reached the disk. Watches learn it from the log.
            let _ = self.live.send(Arc::new(Published::ReadLog));
        }
        self.span = span;
        self.disk.set_newest(span.newest);
        Ok(())
    }
}

/// The next command, or that there will be none; nothing if there was none until then.
fn receive(queue: &mut mpsc::Receiver<Command>, until: Option<Instant>) -> Option<Option<Command>> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let Some(until) = until else { return Some(queue.blocking_recv()) };
    // tokio's queue has no wait with an end outside of a runtime.
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(received) = queue.poll_recv(&mut Context::from_waker(&waker)) {
            return Some(received);
        }
        let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        thread::park_timeout(left);
    }
}

fn open(disk: &Disk) -> Result<Span, Cause> {
    disk.reopen()?;
    schema::prepare(disk).map_err(|failed| {
        disk.close();
        cause(failed)
    })
}

fn refuse(group: Vec<Job>, cause: &Cause) {
    for (_, answer) in group {
        let _ =
            answer.send(Err(Error::Engine { action: "write; nothing was changed", cause: cause.clone() }));
    }
}

fn engine(action: &'static str) -> impl Fn(Cause) -> Error {
    move |cause| Error::Engine { action, cause }
}

fn cause(failed: Failed) -> Cause {
    match failed {
        Failed::Broken(cause) => cause,
        Failed::Refused(error) => Arc::new(error),
    }
}
