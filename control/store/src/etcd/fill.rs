//! Makes a whole store at once, at a prefix.
//!
//! While it is made, `origin` holds words instead of a revision, so that no server opens it, and servers that
//! have it open notice: their writes and reads are refused, and their watches end before the objects go.

use etcd_client::{DeleteOptions, GetOptions, KeyValue, Txn, TxnOp};

use super::layout::{Layout, Origin, number};
use super::members::{Config, Failure, Members, Repeat};
use super::{first, header_revision, replaced};
use crate::copy::{CopyError, Moment, Sink};
use crate::{Entry, Error, Revision};

/// Changes that go into one transaction: etcd allows 128, and 1.5 MiB in all, unless it is set otherwise.
const GROUP: usize = 100;
const GROUP_BYTES: usize = 1 << 20;

/// What `origin` holds while a store is made; the revision of the one that was there follows.
const UNFINISHED: &str = "unfinished after ";

const ACTION: &str = "write the copy";

/// A store on etcd to be. What it replaces is gone from the beginning on.
pub struct EtcdSink {
    members: Members,
    layout: Layout,
    /// Where `origin` was put: whoever puts it again, has taken over.
    at: i64,
    newest: Revision,
    group: Vec<TxnOp>,
    group_bytes: usize,
}

impl EtcdSink {
    /// A store to be, at the prefix that `config` names, of what a source had at `moment`. `replace`: a store
    /// that is there goes.
    ///
    /// # Errors
    /// [`CopyError::Taken`] if one is there that is not to be replaced; [`Error::Engine`] if etcd does not do
    /// what is asked for.
    pub async fn begin(config: Config, moment: Moment, replace: bool) -> Result<Self, CopyError> {
        let layout = Layout::new(&config.prefix);
        let place = place(&config);
        let members = Members::new(config);
        let failed = |failure: Failure| failure.on("look at what is there");
        let (start, end) = layout.watched();
        let any = GetOptions::new().with_range(end.clone()).with_limit(1).with_keys_only();
        let look = [
            TxnOp::get(layout.origin(), None),
            TxnOp::get(layout.head(), None),
            TxnOp::get(start.clone(), Some(any)),
        ];
        let found = members.txn(Repeat::Freely, Txn::new().and_then(look)).await.map_err(failed)?;
        let found = found.op_responses();
        let (origin, head) = (first(&found, 0), first(&found, 1));
        let there = match (&origin, head) {
            (None, _) => Revision(0),
            (Some(origin), head) => match unfinished(origin) {
                Some(there) => there,
                None => {
                    let origin = Origin::of(origin).map_err(failed)?;
                    head.map_or(origin.floor, |head| origin.ours(head.mod_revision()))
                }
            },
        };
        let empty = there == Revision(0) && first(&found, 2).is_none();
        if !empty && !replace {
            return Err(CopyError::Taken { place, revision: there });
        }
        // `head` is the first key of the range: watches are told of it first.
        let clear = Txn::new()
            .when([layout.is_origin_at(origin.map_or(0, |origin| origin.mod_revision()))])
            .and_then([
                TxnOp::put(layout.origin(), format!("{UNFINISHED}{there}"), None),
                TxnOp::delete(start, Some(DeleteOptions::new().with_range(end))),
                TxnOp::delete(layout.oldest(), None),
            ]);
        let cleared = members.txn(Repeat::IfNotDone, clear).await.map_err(failed)?;
        if !cleared.succeeded() {
            return Err(replaced().into());
        }
        let (at, newest) = (header_revision(&cleared), moment.beginning(there));
        Ok(Self { members, layout, at, newest, group: Vec::new(), group_bytes: 0 })
    }

    async fn put_group(&mut self) -> Result<(), Error> {
        if self.group.is_empty() {
            return Ok(());
        }
        self.group_bytes = 0;
        let put =
            Txn::new().when([self.layout.is_origin_at(self.at)]).and_then(std::mem::take(&mut self.group));
        let done = self.members.txn(Repeat::Freely, put).await.map_err(|failure| failure.on(ACTION))?;
        if done.succeeded() { Ok(()) } else { Err(replaced()) }
    }
}

impl Sink for EtcdSink {
    async fn take(&mut self, entries: Vec<Entry>) -> Result<(), CopyError> {
        for Entry { key, value, .. } in entries {
            let object = self.layout.object(key.as_str());
            let bytes = object.len() + value.len();
            if self.group.len() == GROUP || self.group_bytes + bytes > GROUP_BYTES {
                self.put_group().await?;
            }
            self.group_bytes += bytes;
            self.group.push(TxnOp::put(object, value, None));
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Revision, CopyError> {
        self.put_group().await?;
        let newest = self.newest.to_string();
        let done = Txn::new()
            .when([self.layout.is_origin_at(self.at)])
            .and_then([TxnOp::put(self.layout.origin(), newest.as_str(), None)])
            .or_else([TxnOp::get(self.layout.origin(), None)]);
        let done = self.members.txn(Repeat::Freely, done).await.map_err(|failure| failure.on(ACTION))?;
        // If not, it may have been done when it was sent before.
        let found = first(&done.op_responses(), 0).and_then(|origin| number(&origin).ok());
        if done.succeeded() || found == Some(self.newest) { Ok(self.newest) } else { Err(replaced().into()) }
    }
}

/// The revision of the store that was there before, if `origin` tells that another is being made.
pub(super) fn unfinished(origin: &KeyValue) -> Option<Revision> {
    let there = std::str::from_utf8(origin.value()).ok()?.strip_prefix(UNFINISHED)?;
    there.parse().ok().map(Revision)
}

/// How people call the store.
pub(super) fn place(config: &Config) -> String {
    format!("at {} in the etcd of {}", config.prefix, config.members.join(","))
}
