//! ResourceQuotas are charged before what they limit is written, by compare-and-swap on their status, so that writes at one
//! time, through however many servers, use no more than there is. What was charged for a write that then failed is given
//! back by the quota controller, which counts afresh.
//!
//! The demands of a namespace are met by one task at a time: it takes all that wait, decides them in their order against
//! one reading, and writes each quota once for all of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use wharf_kit::quota::{self, Demand};
use wharf_store::{Error as StoreError, Revision, Write};

use crate::encode;
use crate::kinds::Kind;
use crate::object::{child, name};
use crate::server::Inner;
use crate::status::{Result, Status};
use crate::storage::Storage;
use crate::verbs::{Call, store_failed};

/// The name by which this is turned off, as an admission plugin.
const PLUGIN: &str = "ResourceQuota";
/// Writers of a quota in other processes may be in the way this often.
const ATTEMPTS: usize = 32;

/// The demands that wait, by namespace. A namespace has an entry while a task works for it.
#[derive(Default)]
pub struct Charges(Mutex<HashMap<String, Vec<Waiting>>>);

struct Waiting {
    kind: Arc<Kind>,
    demand: Demand,
    dry_run: bool,
    done: oneshot::Sender<Result<()>>,
}

impl Waiting {
    fn answer(self, with: Result<()>) {
        // Nobody listens any more if the request was given up.
        let _ = self.done.send(with);
    }
}

impl Charges {
    /// Adds one; true if a task is to be started for the namespace.
    fn add(&self, namespace: &str, waiting: Waiting) -> bool {
        let mut all = self.0.lock().expect("no holder of this lock panics");
        if let Some(present) = all.get_mut(namespace) {
            present.push(waiting);
            return false;
        }
        all.insert(namespace.to_owned(), vec![waiting]);
        true
    }

    /// All that wait in a namespace; `None` if none do, and its task is to end.
    fn take(&self, namespace: &str) -> Option<Vec<Waiting>> {
        let mut all = self.0.lock().expect("no holder of this lock panics");
        match all.get_mut(namespace) {
            Some(waiting) if !waiting.is_empty() => Some(std::mem::take(waiting)),
            _ => {
                all.remove(namespace);
                None
            }
        }
    }
}

impl Call {
    /// Charges the quotas of the namespace with what writing `new` adds to their use. A dry run is checked alone.
    ///
    /// # Errors
    /// 403 in Kubernetes' words if a quota has not that much left.
    pub async fn charge(&self, new: &Value, old: Option<&Value>, dry_run: bool) -> Result<()> {
        let resource = quota::resource(&self.kind.group, &self.kind.plural);
        // Events are the most numerous of all, and count for nothing.
        if !self.kind.namespaced || resource == "events" || self.server.admission_off.contains(PLUGIN) {
            return Ok(());
        }
        let namespace = &self.path.namespace;
        if quotas(&self.server, namespace).await?.is_empty() {
            return Ok(());
        }
        let demand = Demand { resource, object: new.clone(), old: old.cloned() };
        let (done, answer) = oneshot::channel();
        let waiting = Waiting { kind: self.kind.clone(), demand, dry_run, done };
        if self.server.charges.add(namespace, waiting) {
            let (server, namespace) = (self.server.clone(), namespace.clone());
            tokio::spawn(async move {
                while let Some(batch) = server.charges.take(&namespace) {
                    settle(&server, &namespace, batch).await;
                }
            });
        }
        answer.await.unwrap_or_else(|_| Err(Status::unavailable("the server is shutting down")))
    }
}

struct Quota {
    revision: Revision,
    object: Value,
    changed: bool,
}

async fn quotas(server: &Inner, namespace: &str) -> Result<Vec<Quota>> {
    let prefix = server.kinds.builtin("", "resourcequotas").prefix_in(namespace);
    let snapshot = server.storage.snapshot(&prefix, None).await.map_err(store_failed)?;
    let decoded = snapshot.iter().map(|stored| {
        let object = encode::decoded(&stored.value, stored.revision).map_err(Status::internal)?;
        Ok(Quota { revision: stored.revision, object, changed: false })
    });
    decoded.collect()
}

/// Answers every demand of a batch.
async fn settle(server: &Inner, namespace: &str, mut batch: Vec<Waiting>) {
    // Quotas that are charged with all of the batch that is left.
    let mut charged = BTreeSet::new();
    for _ in 0..ATTEMPTS {
        let outcome = match quotas(server, namespace).await {
            Ok(mut quotas) => {
                quotas.retain(|quota| !charged.contains(name(&quota.object)));
                batch = decide(&mut quotas, batch, !charged.is_empty());
                write(server, namespace, &quotas, &mut charged).await
            }
            Err(status) => Err(status),
        };
        match outcome {
            Ok(true) => return batch.into_iter().for_each(|one| one.answer(Ok(()))),
            Ok(false) => {}
            Err(status) => return batch.into_iter().for_each(|one| one.answer(Err(status.clone()))),
        }
    }
    let kind = server.kinds.builtin("", "resourcequotas");
    batch.into_iter().for_each(|one| one.answer(Err(Status::modified(kind, namespace))));
}

/// Refuses what does not fit and answers what no quota is changed by; gives those that are met once the quotas are
/// written. `partly` if some quotas are charged with them already.
fn decide(quotas: &mut [Quota], batch: Vec<Waiting>, partly: bool) -> Vec<Waiting> {
    let now = Timestamp::now();
    let mut met = Vec::new();
    for one in batch {
        let uses: Result<Vec<_>, String> =
            quotas.iter().map(|quota| quota::charge(&quota.object, &one.demand, now)).collect();
        match uses {
            Err(why) => {
                let refused = Status::forbidden_kind(&one.kind, name(&one.demand.object), &why);
                one.answer(Err(refused));
            }
            Ok(uses) if one.dry_run || (!partly && uses.iter().all(Option::is_none)) => {
                drop(uses);
                one.answer(Ok(()));
            }
            Ok(uses) => {
                for (quota, used) in quotas.iter_mut().zip(uses) {
                    if let Some(used) = used {
                        child(&mut quota.object, "status").insert("used".to_owned(), json!(used));
                        quota.changed = true;
                    }
                }
                met.push(one);
            }
        }
    }
    met
}

/// Writes those that changed, in their order, up to one that others wrote meanwhile; true if there was none. Every server
/// has the same order, so who is charged by the first of them is decided afresh only on what it met there.
async fn write(
    server: &Inner,
    namespace: &str,
    quotas: &[Quota],
    charged: &mut BTreeSet<String>,
) -> Result<bool> {
    let kind = server.kinds.builtin("", "resourcequotas");
    let storage: &dyn Storage = &*server.storage;
    for quota in quotas.iter().filter(|quota| quota.changed) {
        let key = kind.key(namespace, name(&quota.object));
        match storage.write(Write::update(key, quota.revision, encode::stored(&quota.object))).await {
            Ok(_) => drop(charged.insert(name(&quota.object).to_owned())),
            Err(StoreError::Conflict { .. }) => {
                storage.sync().await.map_err(store_failed)?;
                return Ok(false);
            }
            Err(error) => return Err(store_failed(error)),
        }
    }
    Ok(true)
}
