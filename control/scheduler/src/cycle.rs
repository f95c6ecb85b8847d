//! The task: keeps the cluster current, takes the next pod, chooses, binds.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use wharf_kit::api::{self, Ignored, Rest};
use wharf_kit::chain;
use wharf_kit::event::{Recorder, Subject};
use wharf_kit::view::{Hub, Key, Store, View};

use crate::choose::{Unschedulable, choose};
use crate::cluster::Cluster;
use crate::pending::{Change, Changes, Pending};
use crate::view::{NodeView, PodView};

/// Bindings under way at once. Their commits are grouped by the store, so many at once cost little more than
/// one; the bound keeps memory and the server's queue small.
const BINDINGS: usize = 256;
/// Choices between two looks at what changed.
const BATCH: usize = 64;
/// Status patches for pods that fit nowhere, under way at once.
const REPORTS: usize = 16;

/// The scheduler of a cluster.
#[derive(Debug)]
pub struct Scheduler;

impl Scheduler {
    /// Starts scheduling as the user of `client`. The task ends when `stop` is cancelled; bindings under way
    /// are finished before, as the API server would carry them out anyway.
    pub fn start(client: kube::Client, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(async move {
            let hub = Hub::new(client.clone(), stop.clone());
            let (pods, nodes) = (hub.view::<PodView>(), hub.view::<NodeView>());
            let ready = async { tokio::join!(pods.ready(), nodes.ready()) };
            if stop.run_until_cancelled(ready).await.is_none() {
                return;
            }
            info!(pods = pods.len(), nodes = nodes.len(), "scheduling");
            let cycle = Cycle {
                rest: Rest::new(client.clone()),
                recorder: Recorder::start(client, "default-scheduler", "", stop.clone()),
                pods,
                nodes,
                cluster: Cluster::default(),
                pending: Pending::default(),
                assumed: HashMap::new(),
                seen: HashMap::new(),
                seed: rand::random(),
                bindings: JoinSet::new(),
                reports: Arc::new(Semaphore::new(REPORTS)),
            };
            cycle.run(stop).await;
        })
    }
}

/// How a binding ended.
struct Bound {
    pod: Arc<PodView>,
    node: Arc<str>,
    result: Result<Ignored, api::Error>,
}

/// A pending pod as it was when it came into the queue: other changes of it do not wake it.
#[derive(PartialEq, Eq)]
struct Seen {
    uid: Arc<str>,
    generation: i64,
    labels: std::collections::BTreeMap<String, String>,
}

struct Cycle {
    rest: Rest,
    recorder: Recorder,
    pods: Store<PodView>,
    nodes: Store<NodeView>,
    cluster: Cluster,
    pending: Pending,
    /// Pods whose node is chosen but not yet seen in the store; their uid.
    assumed: HashMap<Key, Arc<str>>,
    seen: HashMap<Key, Seen>,
    seed: u64,
    bindings: JoinSet<Bound>,
    reports: Arc<Semaphore>,
}

impl Cycle {
    async fn run(mut self, stop: CancellationToken) {
        let (mut pods, mut nodes) = (self.pods.changes(), self.nodes.changes());
        loop {
            let tick = self.pending.next_tick();
            let may_choose = self.pending.has_ready() && self.bindings.len() < BINDINGS;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                key = nodes.next() => {
                    let mut changes = self.node_changed(&key);
                    for key in nodes.take() {
                        changes.extend(self.node_changed(&key));
                    }
                    self.pending.wake(changes, Instant::now());
                }
                key = pods.next() => {
                    let mut changes = self.pod_changed(&key);
                    for key in pods.take() {
                        changes.extend(self.pod_changed(&key));
                    }
                    self.pending.wake(changes, Instant::now());
                }
                Some(bound) = self.bindings.join_next(), if !self.bindings.is_empty() => {
                    if let Ok(bound) = bound {
                        self.bound(bound);
                    }
                }
                () = tokio::time::sleep_until(tick.unwrap_or_else(Instant::now)), if tick.is_some() => {
                    self.pending.tick(Instant::now());
                }
                () = std::future::ready(()), if may_choose => {
                    for _ in 0..BATCH.min(BINDINGS - self.bindings.len()) {
                        let Some(key) = self.pending.take() else { break };
                        self.schedule(&key);
                    }
                    tokio::task::yield_now().await;
                }
            }
        }
        while self.bindings.join_next().await.is_some() {}
    }

    fn node_changed(&mut self, key: &Key) -> Changes {
        match self.nodes.get(key) {
            Some(node) => self.cluster.set_node(node),
            None => {
                self.cluster.remove_node(&key.name);
                Changes::of(Change::NodeGone)
            }
        }
    }

    fn pod_changed(&mut self, key: &Key) -> Changes {
        let mut changes = Changes::default();
        let pod = self.pods.get(key);
        // An assumption is about one pod, and ends when that is seen on a node, ended, deleted or replaced.
        let assumed = match (&pod, self.assumed.get(key)) {
            (Some(pod), Some(uid)) => pod.metadata.uid == *uid && pod.spec.node_name.is_empty(),
            _ => false,
        };
        match pod {
            Some(pod) if assumed && !pod.has_ended() => {}
            Some(pod) if !pod.spec.node_name.is_empty() && !pod.has_ended() => {
                self.forget(key);
                if !self.cluster.is_placed(key) {
                    changes.add(Change::PodPlaced);
                }
                let node = pod.spec.node_name.clone();
                self.cluster.place(pod, &node);
            }
            Some(pod) if pod.is_pending() => {
                if self.cluster.displace(key) {
                    changes.add(Change::PodGone);
                }
                self.assumed.remove(key);
                let seen = Seen {
                    uid: pod.metadata.uid.clone(),
                    generation: pod.metadata.generation,
                    labels: pod.metadata.labels.clone(),
                };
                if !self.pending.contains(key) || self.seen.get(key) != Some(&seen) {
                    self.pending.add(key, pod.spec.priority);
                    self.seen.insert(key.clone(), seen);
                }
            }
            _ => {
                self.forget(key);
                if self.cluster.displace(key) {
                    changes.add(Change::PodGone);
                }
            }
        }
        changes
    }

    /// The pod waits for nothing of us any more.
    fn forget(&mut self, key: &Key) {
        self.pending.remove(key);
        self.assumed.remove(key);
        self.seen.remove(key);
    }

    fn schedule(&mut self, key: &Key) {
        let Some(pod) = self.pods.get(key).filter(|pod| pod.is_pending()) else {
            return self.forget(key);
        };
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15); // an odd step: every start comes up
        let seed = self.seed;
        match choose(&pod, &self.cluster, seed) {
            Ok(choice) => {
                debug!(pod = %key, node = %choice.node, choice.score, choice.fitting, seed, "chosen");
                self.assumed.insert(key.clone(), pod.metadata.uid.clone());
                self.cluster.place(pod.clone(), &choice.node);
                let rest = self.rest.clone();
                self.bindings.spawn(async move {
                    let result = bind(&rest, &pod, &choice.node).await;
                    Bound { pod, node: choice.node, result }
                });
            }
            Err(unschedulable) => {
                debug!(pod = %key, message = unschedulable.message, seed, "fits nowhere");
                self.pending.failed(key, unschedulable.wakes_on, Instant::now());
                self.report(pod, unschedulable);
            }
        }
    }

    fn bound(&mut self, bound: Bound) {
        let key = bound.pod.metadata.key();
        let Err(error) = bound.result else {
            let message = format!("Successfully assigned {key} to {}", bound.node);
            self.recorder.normal(&Subject::of(&*bound.pod), "Scheduled", message);
            return; // counted as assumed until the store shows it
        };
        // Only if nothing newer is known: the store may have shown its end, or its node, meanwhile.
        if self.assumed.get(&key) != Some(&bound.pod.metadata.uid) {
            return;
        }
        self.assumed.remove(&key);
        let freed = self.cluster.displace(&key);
        if error.is_not_found() || error.is_conflict() {
            debug!(pod = %key, error = chain(&error), "pod changed while it was bound");
        } else {
            warn!(pod = %key, node = %bound.node, error = chain(&error), "could not bind");
            let message = format!("binding rejected: {}", error.message());
            self.recorder.warning(&Subject::of(&*bound.pod), "FailedScheduling", message);
        }
        self.pending.retry(&key, Instant::now());
        if freed {
            self.pending.wake(Changes::of(Change::PodGone), Instant::now());
        }
    }

    /// Tells people why a pod waits, if its condition does not say that already.
    fn report(&self, pod: Arc<PodView>, unschedulable: Unschedulable) {
        let said = pod.status.conditions.iter().any(|condition| {
            &*condition.r#type == "PodScheduled"
                && &*condition.status == "False"
                && condition.message.as_deref() == Some(&unschedulable.message)
        });
        if said {
            return;
        }
        self.recorder.warning(&Subject::of(&*pod), "FailedScheduling", unschedulable.message.as_str());
        let (rest, reports) = (self.rest.clone(), self.reports.clone());
        // As many of these wait as pods do; they hold no more than a pod's view and a message.
        tokio::spawn(async move {
            let Ok(_permit) = reports.acquire().await else { return };
            let key = pod.metadata.key();
            let body = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": key.name, "namespace": key.namespace, "uid": pod.metadata.uid},
                "status": {"conditions": [{
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": unschedulable.message,
                    "lastProbeTime": null,
                    "lastTransitionTime": Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default(),
                }]},
            });
            let result =
                rest.apply::<Ignored>(PodView::KIND, &key, "status", "kube-scheduler", true, &body).await;
            match result {
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => warn!(pod = %key, error = chain(&error), "could not tell why it waits"),
                Ok(_) => {}
            }
        });
    }
}

async fn bind(rest: &Rest, pod: &PodView, node: &str) -> Result<Ignored, api::Error> {
    let key = pod.metadata.key();
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": key.name, "namespace": key.namespace, "uid": pod.metadata.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    rest.create_sub(PodView::KIND, &key, "binding", &body).await
}
