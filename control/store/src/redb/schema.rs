//! What the file holds, and the reads on it.
//!
//! - `versions`: (key, revision) → the value written then; none: the key was deleted then;
//! - `log`: revision → which key it changed, the revision of the value before, whether it was deleted;
//! - `meta`: `revision`, the last one given out; `oldest`, the oldest that can be read; `format`.
//!
//! Compaction removes log entries up to `oldest` and, for each, the version that it superseded. So every
//! version that a read or watch from `oldest` on needs stays, and the work is in proportion to what goes.

use std::ops::Bound;

use ::redb::{AccessGuard, ReadTransaction, ReadableTable, StorageError, TableDefinition, WriteTransaction};
use bytes::Bytes;

use super::disk::{Disk, Failed};
use crate::span::Span;
use crate::{Entry, Event, Key, Page, Revision};

type VersionKey = (&'static str, u64);
type VersionValue = Option<&'static [u8]>;
type LogValue = (&'static str, u64, bool);

pub(super) const VERSIONS: TableDefinition<'_, VersionKey, VersionValue> = TableDefinition::new("versions");
pub(super) const LOG: TableDefinition<'_, u64, LogValue> = TableDefinition::new("log");
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

pub(super) const REVISION: &str = "revision";
pub(super) const OLDEST: &str = "oldest";
const FORMAT: &str = "format";
/// Raised when a change of the tables makes older files unreadable.
const FORMAT_NOW: u64 = 1;

/// Log entries that one step of a watch looks at, and the bytes after which it stops earlier.
const SCAN: usize = 512;
const SCAN_BYTES: usize = 4 << 20;

/// Makes the tables if the file is new, and tells the history that it has.
pub(super) fn prepare(disk: &Disk) -> Result<Span, Failed> {
    let fresh = disk.read(|txn| Ok(txn.list_tables()?.next().is_none())).1?;
    if fresh {
        let txn = disk.begin_write()?;
        make(&txn)?;
        txn.commit()?;
    }
    disk.read(|txn| {
        let format = txn.open_table(META)?.get(FORMAT)?.map_or(0, |format| format.value());
        if format != FORMAT_NOW {
            let text = format!("the file has format {format}; this program reads format {FORMAT_NOW}");
            return Err(Failed::Broken(std::sync::Arc::new(std::io::Error::other(text))));
        }
        span(txn)
    })
    .1
}

/// Makes the tables.
pub(super) fn make(txn: &WriteTransaction) -> Result<(), Failed> {
    txn.open_table(VERSIONS)?;
    txn.open_table(LOG)?;
    txn.open_table(META)?.insert(FORMAT, FORMAT_NOW)?;
    Ok(())
}

pub(super) fn span(txn: &ReadTransaction) -> Result<Span, Failed> {
    let meta = txn.open_table(META)?;
    let read = |name| Ok::<_, StorageError>(Revision(meta.get(name)?.map_or(0, |number| number.value())));
    Ok(Span { oldest: read(OLDEST)?, newest: read(REVISION)? })
}

/// The last version of `key`: its revision, and its value unless it was a deletion.
pub(super) fn latest(
    versions: &impl ReadableTable<VersionKey, VersionValue>,
    key: &str,
) -> Result<Option<(Revision, Option<Bytes>)>, StorageError> {
    let Some(last) = versions.range((key, 0)..=(key, u64::MAX))?.next_back() else { return Ok(None) };
    let (at, value) = last?;
    Ok(Some((Revision(at.value().1), value.value().map(Bytes::copy_from_slice))))
}

pub(super) fn get(txn: &ReadTransaction, key: &Key) -> Result<Option<Entry>, Failed> {
    let found = latest(&txn.open_table(VERSIONS)?, key.as_str())?;
    Ok(found.and_then(|(revision, value)| Some(Entry { key: key.clone(), value: value?, revision })))
}

pub(super) fn range(
    txn: &ReadTransaction,
    prefix: &str,
    after: Bound<&Key>,
    limit: usize,
    at: Option<Revision>,
) -> Result<Page, Failed> {
    let span = span(txn)?;
    let revision = at.unwrap_or(span.newest);
    span.check(revision)?;
    let start = match after {
        Bound::Excluded(key) if key.as_str() >= prefix => Bound::Excluded((key.as_str(), u64::MAX)),
        Bound::Included(key) if key.as_str() >= prefix => Bound::Included((key.as_str(), 0)),
        _ => Bound::Included((prefix, 0)),
    };
    let mut page = Page { entries: Vec::new(), revision, remaining: 0 };
    let mut turn = |at: AccessGuard<'_, VersionKey>, value: AccessGuard<'_, VersionValue>| {
        let Some(bytes) = value.value() else { return };
        if limit > 0 && page.entries.len() == limit {
            page.remaining += 1;
        } else {
            let (key, written) = at.value();
            let (key, value) = (Key::from(key), Bytes::copy_from_slice(bytes));
            page.entries.push(Entry { key, value, revision: Revision(written) });
        }
    };
    let versions = txn.open_table(VERSIONS)?;
    // The newest version so far, not after `revision`, of the key that the walk is at.
    let mut newest: Option<(AccessGuard<'_, VersionKey>, AccessGuard<'_, VersionValue>)> = None;
    for version in versions.range::<(&str, u64)>((start, Bound::Unbounded))? {
        let (at, value) = version?;
        let (key, written) = at.value();
        if !key.starts_with(prefix) {
            break;
        }
        if newest.as_ref().is_some_and(|(last, _)| last.value().0 != key) {
            newest.take().into_iter().for_each(|(at, value)| turn(at, value));
        }
        if written <= revision.0 {
            newest = Some((at, value));
        }
    }
    newest.into_iter().for_each(|(at, value)| turn(at, value));
    Ok(page)
}

/// A step of a watch.
pub(super) struct Changes {
    pub(super) events: Vec<Event>,
    /// Every change up to here was looked at.
    pub(super) until: Revision,
    /// Whether there were no more.
    pub(super) caught_up: bool,
}

/// The changes under `prefix` after `from`, as many as one step takes.
pub(super) fn changes(txn: &ReadTransaction, prefix: &str, from: Revision) -> Result<Changes, Failed> {
    let span = span(txn)?;
    span.check(from)?;
    let (log, versions) = (txn.open_table(LOG)?, txn.open_table(VERSIONS)?);
    let mut found = Changes { events: Vec::new(), until: span.newest, caught_up: true };
    let mut bytes = 0;
    for (step, entry) in log.range(from.0 + 1..)?.enumerate() {
        let (revision, entry) = entry?;
        let (key, before, _) = entry.value();
        if step == SCAN || bytes >= SCAN_BYTES {
            // Revisions have no gaps: the one before was the last looked at.
            found.until = Revision(revision.value() - 1);
            found.caught_up = false;
            break;
        }
        if !key.starts_with(prefix) {
            continue;
        }
        let read = |at: u64| {
            let version = versions.get((key, at))?;
            Ok::<_, StorageError>(version.and_then(|value| value.value().map(Bytes::copy_from_slice)))
        };
        let value = read(revision.value())?;
        let previous = read(before)?.map(|value| (Revision(before), value)); // no version is at 0
        bytes += value.as_ref().map_or(0, Bytes::len) + previous.as_ref().map_or(0, |(_, value)| value.len());
        found.events.push(Event { key: key.into(), revision: Revision(revision.value()), previous, value });
    }
    Ok(found)
}

/// Removes log entries that are not after `oldest`, with what they superseded, and tells how many: `limit`,
/// or fewer if there were no more.
pub(super) fn trim(txn: &WriteTransaction, oldest: Revision, limit: usize) -> Result<usize, Failed> {
    let mut log = txn.open_table(LOG)?;
    let mut versions = txn.open_table(VERSIONS)?;
    for removed in 0..limit {
        let Some((at, entry)) = log.first()? else { return Ok(removed) };
        let revision = at.value();
        if revision > oldest.0 {
            return Ok(removed);
        }
        let (key, before, deleted) = entry.value();
        if before > 0 {
            versions.remove((key, before))?;
        }
        if deleted {
            versions.remove((key, revision))?;
        }
        drop((at, entry));
        log.remove(revision)?;
    }
    Ok(limit)
}
