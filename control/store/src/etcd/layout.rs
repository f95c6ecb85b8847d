//! What lies where in etcd, and how its revisions become ours.
//!
//! | key | what it is |
//! |---|---|
//! | `PREFIX/origin` | our revision at the moment that this key was put; the difference holds for all others |
//! | `PREFIX/head` | put by each write: its revision is that of the last write |
//! | `PREFIX/objects/KEY` | the objects |
//! | `PREFIX/oldest` | the revision up to which history was compacted |
//!
//! An origin of its own lets a store begin at 0 in an etcd that others use, and go on from any revision
//! after a restore: whatever revision a client has seen, later ones are greater.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, KeyValue, TxnOp, TxnOpResponse, TxnResponse};

use super::members::Failure;
use super::{fill, first, header_revision};
use crate::span::Span;
use crate::{Error, Key, Revision};

/// The keys under one prefix.
#[derive(Clone)]
pub(super) struct Layout {
    prefix: Arc<str>,
}

/// Where our count of revisions begins in etcd's.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    /// Etcd's revision.
    pub(super) at: i64,
    /// Ours at that one.
    pub(super) floor: Revision,
}

/// What the store says about itself at one moment.
pub(super) struct Meta {
    pub(super) newest: Revision,
    pub(super) oldest: Revision,
    /// Etcd's revision of the key that tells `oldest`; 0 if there is none.
    pub(super) oldest_at: i64,
    /// Etcd's revision at the moment.
    pub(super) now: i64,
}

impl Layout {
    /// `prefix` begins and ends with a slash afterwards, as Kubernetes writes its own.
    pub(super) fn new(prefix: &str) -> Self {
        let prefix = prefix.trim_matches('/');
        Self { prefix: if prefix.is_empty() { "/".into() } else { format!("/{prefix}/").into() } }
    }

    fn own(&self, name: &str) -> Vec<u8> {
        format!("{}{name}", self.prefix).into_bytes()
    }

    pub(super) fn origin(&self) -> Vec<u8> {
        self.own("origin")
    }

    pub(super) fn head(&self) -> Vec<u8> {
        self.own("head")
    }

    pub(super) fn oldest(&self) -> Vec<u8> {
        self.own("oldest")
    }

    pub(super) fn object(&self, key: &str) -> Vec<u8> {
        self.own(&format!("objects/{key}"))
    }

    /// Begin and end of the objects whose key starts with `prefix`.
    pub(super) fn range(&self, prefix: &str) -> (Vec<u8>, Vec<u8>) {
        let start = self.object(prefix);
        let mut end = start.clone();
        // No byte of UTF-8 is 0xff, so that the last can be raised by one.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        (start, end)
    }

    /// Begin and end of what a watch follows: `head` and all objects, and nothing else.
    pub(super) fn watched(&self) -> (Vec<u8>, Vec<u8>) {
        (self.head(), self.range("").1)
    }

    /// Our name of an object that etcd calls `key`.
    ///
    /// # Errors
    /// If it is none of ours.
    pub(super) fn key(&self, key: &[u8]) -> Result<Key, Error> {
        let name = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(&*self.prefix));
        let name = name.and_then(|key| key.strip_prefix("objects/")).map(Key::from);
        name.ok_or_else(|| {
            let strange = format!("{:?} is no key of the store", String::from_utf8_lossy(key));
            Failure::strange(&strange).on("read a key")
        })
    }

    /// Holds while the store is the one that was opened.
    pub(super) fn is_origin(&self, origin: Origin) -> Compare {
        self.is_origin_at(origin.at)
    }

    /// Holds while nobody put the origin since etcd's revision `at`.
    pub(super) fn is_origin_at(&self, at: i64) -> Compare {
        Compare::mod_revision(self.origin(), CompareOp::Equal, at)
    }

    /// Asks for what [`Meta::of`] reads.
    pub(super) fn meta(&self) -> Vec<TxnOp> {
        [self.origin(), self.head(), self.oldest()].map(|key| TxnOp::get(key, None)).into()
    }
}

impl Origin {
    /// The origin that the key tells.
    pub(super) fn of(found: &KeyValue) -> Result<Self, Failure> {
        if fill::unfinished(found).is_some() {
            return Err(Failure::strange(
                "a copy into it was not finished; copy again, and let it replace what is there",
            ));
        }
        Ok(Self { at: found.mod_revision(), floor: number(found)? })
    }

    /// What etcd's revision is to us.
    pub(super) fn ours(self, theirs: i64) -> Revision {
        Revision(self.floor.0.saturating_add_signed(theirs - self.at))
    }

    /// What our revision is to etcd; not above zero if it is from before.
    pub(super) fn theirs(self, ours: Revision) -> i64 {
        let (ours, floor) = (i128::from(ours.0), i128::from(self.floor.0));
        i64::try_from(ours - floor + i128::from(self.at)).unwrap_or(i64::MAX)
    }
}

impl Meta {
    /// Reads the answers to [`Layout::meta`], which come first in `answers`.
    pub(super) fn of(
        answer: &TxnResponse,
        answers: &[TxnOpResponse],
        origin: Origin,
    ) -> Result<Self, Failure> {
        if first(answers, 0).is_none_or(|found| found.mod_revision() != origin.at) {
            return Err(Failure::strange(
                "the store was removed or another took its place; start the server again",
            ));
        }
        let (head, oldest) = (first(answers, 1), first(answers, 2));
        Ok(Self {
            newest: head.map_or(origin.floor, |head| origin.ours(head.mod_revision())),
            oldest: oldest.as_ref().map(number).transpose()?.unwrap_or_default().max(origin.floor),
            oldest_at: oldest.map_or(0, |oldest| oldest.mod_revision()),
            now: header_revision(answer),
        })
    }

    /// # Errors
    /// [`Error::Compacted`] and [`Error::Future`] if `asked` is not in the history kept.
    pub(super) fn check(&self, asked: Revision) -> Result<(), Error> {
        Span { oldest: self.oldest, newest: self.newest }.check(asked)
    }
}

/// The revision that a key's value tells.
pub(super) fn number(found: &KeyValue) -> Result<Revision, Failure> {
    let number = std::str::from_utf8(found.value()).ok().and_then(|text| text.parse().ok());
    let strange = || format!("{} holds no revision", String::from_utf8_lossy(found.key()));
    number.map(Revision).ok_or_else(|| Failure::strange(&strange()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_has_a_slash_on_both_sides() {
        for (given, object) in [
            ("wharf", "/wharf/objects/a"),
            ("/wharf/", "/wharf/objects/a"),
            ("/a/b", "/a/b/objects/a"),
            ("", "/objects/a"),
        ] {
            let layout = Layout::new(given);
            assert_eq!(layout.object("a"), object.as_bytes());
            assert_eq!(layout.key(object.as_bytes()).expect("ours").as_str(), "a");
            assert!(layout.key(&layout.head()).is_err());
        }
    }

    #[test]
    fn a_watch_follows_head_and_objects_alone() {
        let layout = Layout::new("wharf");
        let (start, end) = layout.watched();
        let inside = |key: &[u8]| start.as_slice() <= key && key < end.as_slice();
        assert!(inside(&layout.head()) && inside(&layout.object("")) && inside(&layout.object("\u{10ffff}")));
        assert!(!inside(&layout.origin()) && !inside(&layout.oldest()));
    }

    #[test]
    fn revisions_go_there_and_back_from_any_origin() {
        for (at, floor) in [(1, 0), (2, 0), (50, 7), (3, 1_000_000)] {
            let origin = Origin { at, floor: Revision(floor) };
            assert_eq!(origin.ours(at), Revision(floor));
            for ours in [floor, floor + 1, floor + 99] {
                assert_eq!(origin.ours(origin.theirs(Revision(ours))), Revision(ours));
            }
        }
        assert!(Origin { at: 2, floor: Revision(1000) }.theirs(Revision(998)) <= 0);
    }
}
