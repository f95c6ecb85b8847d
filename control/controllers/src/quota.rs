//! Counts what is used of each ResourceQuota. The API server charges a quota before it writes what the quota limits, and
//! never gives back: this loop does, by counting afresh when something went, or changed what it uses.
//!
//! A charge comes before the object that it is for. So a quota is counted only when it was left alone for a while
//! ([`SETTLE`]), and what was counted is written at the very version that it was counted for. Since each charge and
//! each such write wakes this loop, what a write that failed was charged is given back too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::try_join_all;
use http::Method;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use wharf_kit::api::{self, Absent, Kind, Object, PatchKind, Rest, with_query};
use wharf_kit::quantity::Quantity;
use wharf_kit::quota::{Scopes, counts, counts_until, has_measure, resource, usage};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::resources::{self, Amounts};
use wharf_kit::view::{Key, Store, View};

use crate::views::{Pod, QuotaStatus, ResourceQuota};
use crate::{Context, pods};

/// A charge this old was followed by its object, or by nothing: both are one write each, milliseconds apart.
const SETTLE: Duration = Duration::from_millis(500);
/// Everything is counted again after this, as in Kubernetes: should a charge's object have come later than that.
const RESYNC: Duration = Duration::from_secs(300);
/// Objects asked for at a time.
const PAGE: &str = "500";

pub(crate) async fn run(context: Context) {
    let quotas = context.hub.view::<ResourceQuota>();
    let pods = context.hub.view::<Pod>();
    tokio::join!(quotas.ready(), pods.ready());
    let Some(objects) = context.objects().await else { return };
    let kinds = objects.iter().map(|(kind, _)| *kind).filter(|kind| kind.namespaced).collect();
    let pass = Quotas {
        rest: context.rest.clone(),
        quotas: quotas.clone(),
        kinds,
        seen: Mutex::new(HashMap::new()),
    };
    let all = quotas.clone();
    let mut controller = Controller::new("quota", pass)
        .watches(&quotas, |change| Some(change.key.clone()))
        .watches(&pods, move |change| {
            let ended = change.new.is_some_and(|pod| pod.has_ended())
                && !change.old.is_some_and(|pod| pod.has_ended());
            if ended { keys(&all, &change.key.namespace) } else { Vec::new() }
        });
    for (kind, store) in objects.iter().filter(|(kind, _)| kind.namespaced) {
        let (all, changes) = (quotas.clone(), kind.plural == "services");
        controller = controller.watches(store, move |change| {
            let less = change.new.is_none() || changes;
            if less { keys(&all, &change.key.namespace) } else { Vec::new() }
        });
    }
    controller.run(context.stop.clone()).await;
}

fn keys(quotas: &Store<ResourceQuota>, namespace: &str) -> Vec<Key> {
    quotas.in_namespace(namespace).iter().map(|quota| quota.metadata.key()).collect()
}

struct Quotas {
    rest: Rest,
    quotas: Store<ResourceQuota>,
    /// What there may be in a namespace.
    kinds: Vec<Kind>,
    /// Since when each quota is at its version.
    seen: Mutex<HashMap<Key, (Arc<str>, Instant)>>,
}

impl Pass for Quotas {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let Some(quota) = self.quotas.get(key).filter(|quota| !quota.metadata.is_deleting()) else {
            self.seen.lock().expect("no holder of this lock panics").remove(key);
            return Ok(Next::Done);
        };
        let hard = Option::<Amounts>::deserialize(&quota.spec["hard"]).ok().flatten().unwrap_or_default();
        let age = self.left_alone(key, &quota.metadata.resource_version);
        // A quota whose limits are new is not charged by them yet.
        if hard == quota.status.hard && age < SETTLE {
            return Ok(Next::After(SETTLE - age));
        }
        let (used, recount) = self.count(&key.namespace, &quota.spec, &hard).await?;
        self.write(&quota, QuotaStatus { hard, used }).await?;
        Ok(Next::After(recount.unwrap_or(RESYNC).min(RESYNC)))
    }
}

impl Quotas {
    /// How long the quota is known to be at this version.
    fn left_alone(&self, key: &Key, version: &Arc<str>) -> Duration {
        let mut seen = self.seen.lock().expect("no holder of this lock panics");
        match seen.get(key) {
            Some((known, since)) if known == version => since.elapsed(),
            _ => {
                seen.insert(key.clone(), (version.clone(), Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// What is used, and after which time some of it is not, should nothing change.
    async fn count(
        &self,
        namespace: &str,
        spec: &Value,
        hard: &Amounts,
    ) -> Result<(Amounts, Option<Duration>), api::Error> {
        let scopes = Scopes::of(spec);
        let counted = self.kinds.iter().filter_map(|kind| {
            let resource = resource(kind.group, kind.plural);
            hard.keys()
                .any(|name| counts(&resource, name))
                .then(|| self.used(kind, resource, namespace, &scopes))
        });
        let mut used = Amounts::new();
        let mut recount = None;
        for (part, again) in try_join_all(counted).await? {
            resources::add(&mut used, &part);
            recount = recount.into_iter().chain(again).min();
        }
        let known =
            |name: &&String| self.kinds.iter().any(|kind| counts(&resource(kind.group, kind.plural), name));
        let used =
            hard.keys().filter(known).map(|name| (name.clone(), used.get(name).copied().unwrap_or_default()));
        Ok((used.collect(), recount))
    }

    async fn used(
        &self,
        kind: &Kind,
        resource: String,
        namespace: &str,
        scopes: &Scopes,
    ) -> Result<(Amounts, Option<Duration>), api::Error> {
        #[derive(Deserialize)]
        struct List {
            metadata: ListMeta,
            #[serde(default)]
            items: Vec<Value>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[derive(Default)]
        struct ListMeta {
            r#continue: String,
            remaining_item_count: i64,
        }
        let page = |limit: &str, from: &str| {
            let path = with_query(&kind.path(namespace), [("limit", limit), ("continue", from)]);
            self.rest.at::<List>(Method::GET, path, None)
        };
        let now = Timestamp::now();
        if !has_measure(&resource) {
            let list = page("1", "").await?;
            let count = list.items.len() as i64 + list.metadata.remaining_item_count;
            let held = scopes.hold(&resource, &Value::Null);
            let each = usage(&resource, &Value::Null, now).into_keys();
            let all = each.map(|name| (name, Quantity::new(if held { count } else { 0 })));
            return Ok((all.collect(), None));
        }
        let (mut used, mut until) = (Amounts::new(), None);
        let mut from = String::new();
        loop {
            let list = page(PAGE, &from).await?;
            for object in list.items.iter().filter(|object| scopes.hold(&resource, object)) {
                resources::add(&mut used, &usage(&resource, object, now));
                let ends = counts_until(object).filter(|until| *until >= now);
                until = until.into_iter().chain(ends).min();
            }
            from = list.metadata.r#continue;
            if from.is_empty() {
                break;
            }
        }
        // It counts up to that second.
        let wait =
            until.map(|until| Duration::try_from(until.duration_since(now)).unwrap_or_default() + SETTLE);
        Ok((used, wait))
    }

    async fn write(&self, quota: &ResourceQuota, new: QuotaStatus) -> Result<(), api::Error> {
        let old = &quota.status;
        if *old == new {
            return Ok(());
        }
        // In a merge patch, what is to go from a map is null.
        let merged = |old: &Amounts, new: &Amounts| {
            let gone =
                old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name.clone(), Value::Null));
            gone.chain(new.iter().map(|(name, amount)| (name.clone(), json!(amount)))).collect::<Value>()
        };
        let patch = json!({
            "metadata": {"uid": quota.metadata.uid, "resourceVersion": quota.metadata.resource_version},
            "status": {"hard": merged(&old.hard, &new.hard), "used": merged(&old.used, &new.used)},
        });
        let (kind, key) = (ResourceQuota::KIND, quota.metadata.key());
        let answer = self.rest.patch::<Object>(kind, &key, "status", PatchKind::Merge, &patch).await;
        if let Some(written) = answer.absent_ok()? {
            pods::echo(self.quotas.reached(written.metadata.revision())).await;
        }
        Ok(())
    }
}
