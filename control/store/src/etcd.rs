//! The engine for clusters that outgrow one machine: an etcd of any number of members.
//!
//! Several servers may stand over one etcd, each with an engine of its own. What lies where, and how
//! etcd's revisions become ours, is in `layout`; which member is asked, and what its failure means, in
//! `members`; a watch in `tail`.
//!
//! # How the guarantees come about
//! A write is one transaction: it compares the key's revision, puts or deletes the key, and puts `head`, a
//! key of no content. So the revision of `head` is the revision of the last write, of any server; a quorum
//! read of that one key is what [`Store::revision`] tells. It is exact where others write to the same etcd
//! too, and a watch that has seen it is known to be complete: no notification of progress is needed for
//! that, which etcd before 3.4.31 and 3.5.13 gets wrong. In a watch each event of `head` names the write
//! before it, so that a gap is seen.
//!
//! Reads are quorum reads and may be repeated on another member. A write is repeated only if the one
//! before never reached a member, or if the member had no leader to bring it to; after any other failure
//! it is [`Error::Uncertain`].
//!
//! Compaction is etcd's own and concerns the whole of it, as Kubernetes' does. Servers tell each other by
//! the key `oldest` how far it has come.

mod fill;
mod layout;
mod members;
mod tail;

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse};
use futures::stream::BoxStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::copy::CopyError;
use crate::{Entry, Error, Event, Expect, Key, Page, Revision, Store, Write};
pub use fill::EtcdSink;
use layout::{Layout, Meta, Origin};
pub use members::{Config, Tls, User};
use members::{Failure, Members, Repeat};

/// Entries that one answer of etcd has: of 1.5 MiB at most each, as etcd limits its requests.
const PAGE: usize = 500;

/// The engine over etcd.
pub struct Etcd {
    members: Arc<Members>,
    layout: Layout,
    origin: Origin,
    /// Ends the watches.
    stop: CancellationToken,
    _guard: DropGuard,
}

/// What a range was asked for.
struct Wanted {
    start: Vec<u8>,
    end: Vec<u8>,
    limit: usize,
}

impl Etcd {
    /// Opens the store at the prefix that `config` names, or makes it there. Waits a while for members
    /// that are not reachable yet.
    ///
    /// # Errors
    /// [`Error::Engine`] if no member answers, or etcd refuses the user or what is asked for.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let layout = Layout::new(&config.prefix);
        let members = Arc::new(Members::new(config));
        let origin = find_origin(&members, &layout).await.map_err(|failure| failure.on("open it"))?;
        Ok(Self::on(members, layout, origin))
    }

    /// Opens the store at the prefix that `config` names, which is there.
    ///
    /// # Errors
    /// [`CopyError::Missing`] if it is not, and those of [`Etcd::open`].
    pub async fn open_existing(config: Config) -> Result<Self, CopyError> {
        let layout = Layout::new(&config.prefix);
        let place = fill::place(&config);
        let members = Arc::new(Members::new(config));
        let asked = Txn::new().and_then([TxnOp::get(layout.origin(), None)]);
        let found = members.txn(Repeat::Freely, asked).await.map_err(|failure| failure.on("open it"))?;
        let found = first(&found.op_responses(), 0).ok_or(CopyError::Missing { place })?;
        let origin = Origin::of(&found).map_err(|failure| failure.on("open it"))?;
        Ok(Self::on(members, layout, origin))
    }

    fn on(members: Arc<Members>, layout: Layout, origin: Origin) -> Self {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        Self { members, layout, origin, stop, _guard: guard }
    }

    /// Ends the engine: watches end with [`Error::Closed`].
    pub async fn close(self) {
        self.stop.cancel();
    }

    /// What the store says about itself, by a quorum read.
    async fn meta(&self) -> Result<Meta, Error> {
        let txn = Txn::new().and_then(self.layout.meta());
        let found = self.members.txn(Repeat::Freely, txn).await;
        let found = found.map_err(|failure| failure.on("read its revision"))?;
        let meta = Meta::of(&found, &found.op_responses(), self.origin);
        meta.map_err(|why| why.on("read its revision"))
    }

    /// One answer of etcd: a page of what is wanted, with the state of the store at the same moment.
    async fn page(&self, wanted: &Wanted, at: Option<Revision>) -> Result<(Meta, Page), Error> {
        const ACTION: &str = "read a range";
        // What lies before the beginning was never there, and is refused below.
        let mut theirs = at.map(|at| self.origin.theirs(at).max(self.origin.at));
        let found = loop {
            let mut options = GetOptions::new().with_range(wanted.end.clone());
            options = options.with_limit(i64::try_from(wanted.limit).unwrap_or(i64::MAX));
            if let Some(theirs) = theirs {
                options = options.with_revision(theirs);
            }
            let mut asked = self.layout.meta();
            asked.push(TxnOp::get(wanted.start.clone(), Some(options)));
            match self.members.txn(Repeat::Freely, Txn::new().and_then(asked)).await {
                Ok(found) => break found,
                // Of the two, etcd answers nothing then; who asks is told which it was.
                Err(Failure::Compacted | Failure::Future) if at.is_some() => {
                    let (meta, at) = (self.meta().await?, at.unwrap_or_default());
                    meta.check(at)?;
                    // Nothing of ours came after `at`, and etcd was compacted further for others' sake: what is
                    // there now is what was there then.
                    if at == meta.newest && theirs < Some(meta.now) {
                        theirs = Some(meta.now);
                        continue;
                    }
                    return Err(Error::Compacted { asked: at, oldest: Revision(at.0 + 1) });
                }
                Err(failure) => return Err(failure.on(ACTION)),
            }
        };
        let answers = found.op_responses();
        let meta = Meta::of(&found, &answers, self.origin).map_err(|why| why.on(ACTION))?;
        let revision = at.unwrap_or(meta.newest);
        meta.check(revision)?;
        let Some(TxnOpResponse::Get(range)) = answers.last() else { return Err(unexpected(ACTION)) };
        let entries: Vec<Entry> =
            range.kvs().iter().map(|found| self.entry(found)).collect::<Result<_, _>>()?;
        let count = u64::try_from(range.count()).unwrap_or_default();
        let remaining = count.saturating_sub(entries.len() as u64);
        Ok((meta, Page { entries, revision, remaining }))
    }

    fn entry(&self, found: &KeyValue) -> Result<Entry, Error> {
        Ok(Entry {
            key: self.layout.key(found.key())?,
            value: Bytes::copy_from_slice(found.value()),
            revision: self.origin.ours(found.mod_revision()),
        })
    }

    /// The key's revision now.
    async fn found(&self, key: &Key) -> Result<Option<Revision>, Error> {
        Ok(self.get(key).await?.map(|entry| entry.revision))
    }
}

impl Store for Etcd {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let asked = Txn::new().and_then([TxnOp::get(self.layout.object(key.as_str()), None)]);
        let found = self.members.txn(Repeat::Freely, asked).await;
        let found = found.map_err(|failure| failure.on("read a key"))?;
        first(&found.op_responses(), 0).map(|found| self.entry(&found)).transpose()
    }

    async fn range(
        &self,
        prefix: &str,
        after: Bound<&Key>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, Error> {
        let (mut start, end) = self.layout.range(prefix);
        match after {
            Bound::Excluded(key) if key.as_str() >= prefix => start = following(self.layout.object(&key.0)),
            Bound::Included(key) if key.as_str() >= prefix => start = self.layout.object(&key.0),
            _ => {}
        }
        if start >= end {
            let meta = self.meta().await?;
            let revision = at.unwrap_or(meta.newest);
            meta.check(revision)?;
            return Ok(Page { entries: Vec::new(), revision, remaining: 0 });
        }
        let mut wanted = Wanted { start, end, limit: at_most(limit, 0) };
        let (_, mut page) = self.page(&wanted, at).await?;
        while page.remaining > 0 && (limit == 0 || page.entries.len() < limit) {
            let Some(last) = page.entries.last() else { break };
            wanted.start = following(self.layout.object(&last.key.0));
            wanted.limit = at_most(limit, page.entries.len());
            let (_, next) = self.page(&wanted, Some(page.revision)).await?;
            page.entries.extend(next.entries);
            page.remaining = next.remaining;
        }
        Ok(page)
    }

    async fn write(&self, write: Write) -> Result<Revision, Error> {
        let Write { key, expect, value } = write;
        let object = self.layout.object(key.as_str());
        let expected = match (expect, &value) {
            (Expect::Absent, Some(_)) => 0,
            (Expect::At(at), _) if self.origin.theirs(at) > 0 => self.origin.theirs(at),
            // A revision from before etcd, or a delete of nothing: it cannot be as expected.
            _ => return Err(Error::Conflict { found: self.found(&key).await?, key }),
        };
        let change = match value {
            Some(value) => TxnOp::put(object.clone(), value, None),
            None => TxnOp::delete(object.clone(), None),
        };
        let txn = Txn::new()
            .when([
                Compare::mod_revision(object.clone(), CompareOp::Equal, expected),
                self.layout.is_origin(self.origin),
            ])
            // `head` first: the watch then knows that nothing was left out before it tells the change.
            .and_then([TxnOp::put(self.layout.head(), "", None), change])
            .or_else([
                TxnOp::get(object, Some(GetOptions::new().with_keys_only())),
                TxnOp::get(self.layout.origin(), None),
            ]);
        let done = match self.members.txn(Repeat::IfNotDone, txn).await {
            Ok(done) => done,
            Err(Failure::Unknown(cause)) => return Err(Error::Uncertain { key, cause }),
            Err(failure) => return Err(failure.on("write; nothing was changed")),
        };
        if done.succeeded() {
            return Ok(self.origin.ours(header_revision(&done)));
        }
        let found = done.op_responses();
        if first(&found, 1).is_none_or(|origin| origin.mod_revision() != self.origin.at) {
            return Err(replaced());
        }
        Err(Error::Conflict {
            key,
            found: first(&found, 0).map(|found| self.origin.ours(found.mod_revision())),
        })
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, Error>>, Error> {
        let meta = self.meta().await?;
        meta.check(from)?;
        // If nothing of ours came after `from`, the watch begins at the present: etcd may have been
        // compacted up to there, for others' sake.
        let theirs = if from == meta.newest { meta.now } else { self.origin.theirs(from) };
        let (start, end) = self.layout.watched();
        let stream = self.members.watch(start, end, theirs + 1).await;
        let stream = stream.map_err(|failure| failure.on("watch"))?;
        let place = tail::Place { layout: self.layout.clone(), origin: self.origin, prefix: prefix.into() };
        Ok(tail::follow(stream, place, from, self.stop.clone()))
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.meta().await?.newest)
    }

    async fn compact(&self, before: Revision) -> Result<(), Error> {
        const ACTION: &str = "compact its history";
        loop {
            let meta = self.meta().await?;
            if before > meta.newest {
                return Err(Error::Future { asked: before, newest: meta.newest });
            }
            if before <= meta.oldest {
                return Ok(());
            }
            // Told first: reads older than that are refused from now on, whether or not etcd has them still.
            let tell = Txn::new()
                .when([
                    Compare::mod_revision(self.layout.oldest(), CompareOp::Equal, meta.oldest_at),
                    self.layout.is_origin(self.origin),
                ])
                .and_then([TxnOp::put(self.layout.oldest(), before.to_string(), None)])
                .or_else([TxnOp::get(self.layout.origin(), None)]);
            let told = self.members.txn(Repeat::Freely, tell).await.map_err(|failure| failure.on(ACTION))?;
            if told.succeeded() {
                break;
            }
            // Another server was first, or this very request when it was sent before: look again.
            if first(&told.op_responses(), 0).is_none_or(|origin| origin.mod_revision() != self.origin.at) {
                return Err(replaced());
            }
        }
        match self.members.compact(self.origin.theirs(before)).await {
            Ok(()) | Err(Failure::Compacted) => Ok(()), // somebody else has gone further
            Err(failure) => Err(failure.on(ACTION)),
        }
    }
}

/// The origin of the store at `layout`; one is made if there is none.
async fn find_origin(members: &Members, layout: &Layout) -> Result<Origin, Failure> {
    let txn = Txn::new()
        .when([Compare::mod_revision(layout.origin(), CompareOp::Equal, 0)])
        .and_then([TxnOp::put(layout.origin(), "0", None)])
        .or_else([TxnOp::get(layout.origin(), None)]);
    let done = members.txn(Repeat::Freely, txn).await?;
    if done.succeeded() {
        return Ok(Origin { at: header_revision(&done), floor: Revision(0) });
    }
    let found =
        first(&done.op_responses(), 0).ok_or_else(|| Failure::strange("etcd has no origin to show"))?;
    Origin::of(&found)
}

/// The first key that the `nth` answer has, if that was a read.
fn first(answers: &[TxnOpResponse], nth: usize) -> Option<KeyValue> {
    match answers.get(nth)? {
        TxnOpResponse::Get(found) => found.kvs().first().cloned(),
        _ => None,
    }
}

fn header_revision(answer: &TxnResponse) -> i64 {
    answer.header().map_or(0, |header| header.revision())
}

fn at_most(limit: usize, taken: usize) -> usize {
    if limit == 0 { PAGE } else { (limit - taken).min(PAGE) }
}

/// The first key after this one.
fn following(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

fn unexpected(action: &'static str) -> Error {
    Failure::strange("etcd answered something else").on(action)
}

fn replaced() -> Error {
    Failure::strange("another store took its place meanwhile; start the server again").on("go on")
}
