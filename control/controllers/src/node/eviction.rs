//! Ends the pods that do not, or no longer, tolerate a NoExecute taint of their node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tracing::info;
use wharf_kit::api::{self, Delete, Ignored, Rest};
use wharf_kit::event::{Recorder, Subject};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Key, Store, View};

use crate::Context;
use crate::status::now;
use crate::views::{NO_EXECUTE, Node, Pod, Taint};

pub(crate) async fn run(context: Context) {
    let nodes = context.hub.view::<Node>();
    let pods = context.hub.view::<Pod>();
    let on = super::pods::by_node(&pods);
    tokio::join!(nodes.ready(), pods.ready());
    let seen: Seen = Arc::default();
    let pass = Eviction {
        rest: context.rest,
        recorder: context.recorder,
        nodes: nodes.clone(),
        pods: pods.clone(),
        seen: seen.clone(),
    };
    let controller = Controller::new("taint-eviction", pass)
        .watches(&pods, |change| {
            let bound = change.new.filter(|pod| !pod.spec.node_name.is_empty());
            bound.map(|_| change.key.clone())
        })
        .watches(&nodes, move |change| {
            let effects =
                |node: Option<&Arc<Node>>| node.map(|node| ending(&node.spec.taints)).unwrap_or_default();
            let (old, new) = (effects(change.old), effects(change.new));
            if old == new {
                return Vec::new();
            }
            note(&seen, change.key, &new);
            on.get(&change.key.name).iter().map(|pod| pod.metadata.key()).collect()
        });
    controller.run(context.stop).await;
}

/// When a taint that does not tell its time was first seen, by node and by the taint's key.
type Seen = Arc<Mutex<HashMap<(Key, String), Timestamp>>>;

fn note(seen: &Seen, node: &Key, taints: &[Taint]) {
    let mut seen = seen.lock().expect("no holder of this lock panics");
    seen.retain(|(of, key), _| of != node || taints.iter().any(|taint| taint.key == *key));
    for taint in taints.iter().filter(|taint| taint.time_added.is_none()) {
        seen.entry((node.clone(), taint.key.clone())).or_insert_with(Timestamp::now);
    }
}

/// The taints that end pods.
fn ending(taints: &[Taint]) -> Vec<Taint> {
    taints.iter().filter(|taint| taint.effect == NO_EXECUTE).cloned().collect()
}

/// Until when a pod may stay on a node with these taints (all NoExecute, each since `since`); `None`: for ever.
pub fn until(pod: &Pod, taints: &[Taint], since: impl Fn(&Taint) -> Timestamp) -> Option<Timestamp> {
    let of = |taint: &Taint| {
        let tolerations = pod.spec.tolerations.iter().filter(|one| one.tolerates(taint));
        let seconds: Vec<Option<i64>> = tolerations.map(|one| one.toleration_seconds).collect();
        if seconds.is_empty() {
            return Some(Timestamp::MIN); // not tolerated at all
        }
        // As in Kubernetes, one that is for a time counts, even beside one that is for ever.
        let shortest = seconds.into_iter().flatten().min()?.max(0);
        Some(since(taint).saturating_add(SignedDuration::from_secs(shortest)).unwrap_or(Timestamp::MAX))
    };
    taints.iter().filter_map(of).min()
}

struct Eviction {
    rest: Rest,
    recorder: Recorder,
    nodes: Store<Node>,
    pods: Store<Pod>,
    seen: Seen,
}

impl Pass for Eviction {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let Some(pod) = self.pods.get(key).filter(|pod| !pod.metadata.is_deleting()) else {
            return Ok(Next::Done);
        };
        let node = Key::cluster(pod.spec.node_name.clone());
        let taints = self.nodes.get(&node).map(|node| ending(&node.spec.taints)).unwrap_or_default();
        let deadline = {
            let seen = self.seen.lock().expect("no holder of this lock panics");
            let noted = |taint: &Taint| seen.get(&(node.clone(), taint.key.clone())).copied();
            // The API keeps that time in whole seconds, so the taint may be nearly one younger than it says.
            let told = |taint: &Taint| {
                let second = SignedDuration::from_secs(1);
                taint.time_added.map(|at| at.saturating_add(second).unwrap_or(Timestamp::MAX))
            };
            until(&pod, &taints, |taint| told(taint).or_else(|| noted(taint)).unwrap_or_else(Timestamp::now))
        };
        let Some(deadline) = deadline else { return Ok(Next::Done) };
        let left = deadline.duration_since(Timestamp::now());
        if let Ok(left) = std::time::Duration::try_from(left)
            && !left.is_zero()
        {
            return Ok(Next::After(left));
        }
        self.evict(key, &pod).await?;
        Ok(Next::Done)
    }
}

impl Eviction {
    async fn evict(&self, key: &Key, pod: &Pod) -> Result<(), api::Error> {
        info!(pod = %key, node = &*pod.spec.node_name, "evicting a pod that does not tolerate its node");
        let body = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": pod.metadata.uid},
            "status": {"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now(),
            }]},
        });
        let told = self
            .rest
            .apply::<Ignored>(Pod::KIND, key, "status", "taint-eviction-controller", true, &body)
            .await;
        let how = Delete::exactly(&pod.metadata);
        let done = match told {
            Ok(_) => self.rest.delete::<Ignored>(Pod::KIND, key, &how).await,
            Err(error) => Err(error),
        };
        match done {
            Err(error) if error.is_not_found() || error.is_conflict() => {} // it, or another of its name, is not ours
            done => {
                done?;
                let words = format!("Marking for deletion Pod {key}");
                self.recorder.normal(&Subject::of(pod), "TaintManagerEviction", words);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

    fn pod(tolerations: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"nodeName": "n1", "tolerations": tolerations}})).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates_every_taint() {
        let taint = |key: &str, second| Taint {
            key: key.into(),
            value: "v".into(),
            effect: NO_EXECUTE.into(),
            time_added: Some(at(second)),
        };
        let (one, other) = (taint(UNREACHABLE, 100), taint("mine", 50));
        let exists = json!({"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute"});
        let timed = |seconds: i64| {
            let mut one = exists.clone();
            one["tolerationSeconds"] = json!(seconds);
            one
        };
        for (tolerations, taints, expected) in [
            (json!([]), vec![], None),
            (json!([]), vec![one.clone()], Some(Timestamp::MIN)),
            (json!([exists]), vec![one.clone()], None),
            (json!([timed(30)]), vec![one.clone()], Some(at(130))),
            (json!([timed(-1)]), vec![one.clone()], Some(at(100))),
            (json!([exists, timed(30), timed(20)]), vec![one.clone()], Some(at(120))),
            (json!([timed(30)]), vec![one.clone(), other.clone()], Some(Timestamp::MIN)),
            (
                json!([timed(30), {"key": "mine", "value": "v"}]),
                vec![one.clone(), other.clone()],
                Some(at(130)),
            ),
            (
                json!([timed(30), {"key": "mine", "value": "w"}]),
                vec![one.clone(), other.clone()],
                Some(Timestamp::MIN),
            ),
            (json!([{"operator": "Exists"}]), vec![one, other], None),
        ] {
            let until = until(&pod(tolerations.clone()), &taints, |taint| taint.time_added.unwrap());
            assert_eq!(until, expected, "{tolerations}");
        }
    }

    #[test]
    fn a_taint_without_a_time_counts_from_when_it_was_first_seen() {
        let (seen, node) = (Seen::default(), Key::cluster("n1"));
        let taint = Taint { key: "mine".into(), effect: NO_EXECUTE.into(), ..Taint::default() };
        note(&seen, &node, std::slice::from_ref(&taint));
        let first = *seen.lock().unwrap().values().next().unwrap();
        note(&seen, &node, &[taint, Taint { key: "other".into(), ..Taint::default() }]);
        assert_eq!(seen.lock().unwrap()[&(node.clone(), "mine".into())], first);
        note(&seen, &node, &[]);
        assert!(seen.lock().unwrap().is_empty(), "forgotten with the taint");
    }
}
