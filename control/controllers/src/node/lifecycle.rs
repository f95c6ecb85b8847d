//! Watches over the heartbeat of nodes: marks those that fall silent, and taints by condition.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{info, warn};
use wharf_kit::api::{self, Absent, Ignored, PatchKind, Rest};
use wharf_kit::event::{Recorder, Subject};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Filter, Index, Key, Store, View};

use crate::Context;
use crate::status::now;
use crate::views::{Condition, Lease, Node, Pod, Taint, condition};

/// The conditions of which nothing is known once a node is silent.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// The taints that this loop owns: condition, the status that earns it, the taint's key.
const TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", "node.kubernetes.io/not-ready"),
    ("Ready", "Unknown", "node.kubernetes.io/unreachable"),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

pub(crate) async fn run(context: Context) {
    let nodes = context.hub.view::<Node>();
    let leases =
        context.hub.view_of::<Lease>(Filter { namespace: "kube-node-lease".to_owned(), ..Filter::default() });
    let pods = context.hub.view::<Pod>();
    let pods_on = super::pods::by_node(&pods);
    tokio::join!(nodes.ready(), leases.ready(), pods.ready());
    let heard: Arc<Mutex<HashMap<Key, Instant>>> = Arc::default();
    let pass = Lifecycle {
        rest: context.rest,
        recorder: context.recorder,
        nodes: nodes.clone(),
        pods_on,
        heard: heard.clone(),
        grace: context.config.node_grace,
    };
    // A renewal is only noted: it wakes nothing, since a node that speaks again posts its own conditions. The
    // time is ours, at the sight of the renewal, so a node's clock may be wrong.
    let (by_lease, by_node) = (heard.clone(), heard);
    leases.on_change(move |change| {
        let renewed =
            change.new.filter(|new| change.old.is_none_or(|old| old.spec.renew_time != new.spec.renew_time));
        if renewed.is_some() {
            let key = Key::cluster(change.key.name.clone());
            by_lease.lock().expect("no holder of this lock panics").insert(key, Instant::now());
        }
    });
    let controller = Controller::new("node-lifecycle", pass).watches(&nodes, move |change| {
        let mut heard = by_node.lock().expect("no holder of this lock panics");
        match change.new {
            Some(_) => drop(heard.entry(change.key.clone()).or_insert_with(Instant::now)),
            None => drop(heard.remove(change.key)),
        }
        change.new.map(|_| change.key.clone())
    });
    controller.run(context.stop).await;
}

/// What a node's silence or its conditions ask for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// All conditions, if they are to be written.
    pub conditions: Option<Vec<Condition>>,
    /// All taints, if they are to be written.
    pub taints: Option<Vec<Taint>>,
    /// Its pods are to be marked as not ready.
    pub silence_pods: bool,
}

/// No I/O, no clock but `now`: same input, same plan.
pub fn plan(node: &Node, silent: bool, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut conditions = node.status.conditions.clone();
    if silent {
        for kind in CONDITIONS {
            match conditions.iter_mut().find(|one| one.r#type == kind) {
                Some(one) if one.status == "Unknown" => {}
                Some(one) => {
                    one.status = "Unknown".to_owned();
                    one.reason = "NodeStatusUnknown".to_owned();
                    one.message = "Kubelet stopped posting node status.".to_owned();
                    one.last_transition_time = Some(now);
                }
                None => conditions.push(Condition {
                    r#type: kind.to_owned(),
                    status: "Unknown".to_owned(),
                    last_transition_time: Some(now),
                    last_heartbeat_time: node.metadata.creation_timestamp,
                    reason: "NodeStatusNeverUpdated".to_owned(),
                    message: "Kubelet never posted node status.".to_owned(),
                    ..Condition::default()
                }),
            }
        }
    }
    let ready = |all: &[Condition]| condition(all, "Ready").map(|one| one.status.clone());
    plan.silence_pods = silent && ready(&node.status.conditions).as_deref() == Some("True");
    let taints = taints(node, &conditions, now);
    let same = |a: &[Taint], b: &[Taint]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.key == b.key && a.effect == b.effect)
    };
    plan.taints = (!same(&taints, &node.spec.taints)).then_some(taints);
    plan.conditions = (conditions != node.status.conditions).then_some(conditions);
    plan
}

/// The node's taints with ours as the conditions say; others' stay as they are.
fn taints(node: &Node, conditions: &[Condition], now: Timestamp) -> Vec<Taint> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in TAINTS {
        // A node that never said that it is ready is not.
        let earned = match condition(conditions, kind) {
            Some(one) => one.status == status,
            None => (kind, status) == ("Ready", "False"),
        };
        if earned {
            wanted.push((key, "NoSchedule"));
            if kind == "Ready" {
                wanted.push((key, "NoExecute"));
            }
        }
    }
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours =
        |taint: &Taint| taint.key == UNSCHEDULABLE || TAINTS.iter().any(|(_, _, key)| *key == taint.key);
    let wants = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<Taint> =
        node.spec.taints.iter().filter(|one| !ours(one) || wants(one)).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                value: String::new(),
                effect: effect.to_owned(),
                time_added: Some(now),
            });
        }
    }
    taints
}

struct Lifecycle {
    rest: Rest,
    recorder: Recorder,
    nodes: Store<Node>,
    pods_on: Index<Pod>,
    heard: Arc<Mutex<HashMap<Key, Instant>>>,
    grace: Duration,
}

impl Pass for Lifecycle {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let Some(node) = self.nodes.get(key) else { return Ok(Next::Done) };
        let heard = self.heard.lock().expect("no holder of this lock panics").get(key).copied();
        let quiet = heard.map_or(Duration::ZERO, |at| at.elapsed());
        let silent = quiet >= self.grace;
        let plan = plan(&node, silent, now());
        if let Some(conditions) = &plan.conditions {
            warn!(node = %key, quiet = ?quiet, "node is silent");
            self.patch(&node, "status", json!({"status": {"conditions": conditions}})).await?;
            self.recorder.normal(
                &Subject::of(&*node),
                "NodeNotReady",
                format!("Node {key} status is now: NodeNotReady"),
            );
        }
        if plan.silence_pods {
            self.silence_pods(key).await?;
        }
        if let Some(taints) = &plan.taints {
            let keys: Vec<&str> = taints.iter().map(|taint| taint.key.as_str()).collect();
            info!(node = %key, ?keys, "node tainted anew");
            // With the revision: someone else may be changing other taints. After writing the status the
            // revision is another, and the status' change wakes this pass again.
            if plan.conditions.is_none() {
                self.patch(&node, "", json!({"spec": {"taints": taints}})).await?;
            }
        }
        Ok(if silent { Next::Done } else { Next::After(self.grace - quiet) })
    }
}

impl Lifecycle {
    async fn patch(&self, node: &Node, subresource: &str, mut patch: Value) -> Result<(), api::Error> {
        patch["metadata"] =
            json!({"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version});
        let key = node.metadata.key();
        let answer =
            self.rest.patch::<Ignored>(Node::KIND, &key, subresource, PatchKind::Merge, &patch).await;
        answer.absent_ok().map(drop)
    }

    /// No one can tell whether they are ready, so no one should be sent there.
    async fn silence_pods(&self, node: &Key) -> Result<(), api::Error> {
        for pod in self.pods_on.get(&node.name) {
            if pod.ready_since().is_none() || pod.has_ended() {
                continue;
            }
            let key = pod.metadata.key();
            let body = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": key.name, "namespace": key.namespace, "uid": pod.metadata.uid},
                "status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now()}]},
            });
            match self.rest.apply::<Ignored>(Pod::KIND, &key, "status", "node-lifecycle", true, &body).await {
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                result => drop(result?),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: Option<&str>, taints: Value) -> Node {
        let conditions: Vec<Value> =
            ready.iter().map(|status| json!({"type": "Ready", "status": status, "reason": "r"})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "n1"}, "spec": {"taints": taints}, "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn keys(plan: &Plan) -> Option<Vec<String>> {
        let taints = plan.taints.as_ref()?;
        Some(
            taints
                .iter()
                .map(|one| format!("{}:{}", one.key.trim_start_matches("node.kubernetes.io/"), one.effect))
                .collect(),
        )
    }

    #[test]
    fn a_silent_node_is_unknown_and_unreachable_once() {
        let before = node(Some("True"), json!([{"key": "mine", "effect": "NoSchedule"}]));
        let first = plan(&before, true, Timestamp::UNIX_EPOCH);
        let conditions = first.conditions.clone().unwrap();
        assert_eq!(conditions.len(), 4);
        assert!(conditions.iter().all(|one| one.status == "Unknown"));
        assert!(first.silence_pods);
        assert_eq!(
            keys(&first).unwrap(),
            ["mine:NoSchedule", "unreachable:NoSchedule", "unreachable:NoExecute"]
        );
        let mut after = before.clone();
        after.status.conditions = conditions;
        after.spec.taints = first.taints.unwrap();
        assert_eq!(plan(&after, true, Timestamp::now()), Plan::default(), "nothing is left to do");
    }

    #[test]
    fn taints_follow_the_conditions_and_leave_others_alone() {
        let unreachable = json!([
            {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"},
            {"key": "mine", "effect": "NoExecute"},
            {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
        ]);
        for (ready, taints, expected) in [
            (Some("True"), json!([]), None),
            (Some("True"), unreachable.clone(), Some(vec!["mine:NoExecute"])),
            (
                Some("False"),
                unreachable,
                Some(vec!["mine:NoExecute", "not-ready:NoSchedule", "not-ready:NoExecute"]),
            ),
            (None, json!([]), Some(vec!["not-ready:NoSchedule", "not-ready:NoExecute"])),
        ] {
            let plan = plan(&node(ready, taints), false, Timestamp::UNIX_EPOCH);
            let expected = expected.map(|all| all.into_iter().map(str::to_owned).collect());
            assert_eq!(keys(&plan), expected, "{ready:?}");
            assert_eq!(plan.conditions, None);
        }
        let mut cordoned = node(Some("True"), json!([]));
        cordoned.spec.unschedulable = true;
        assert_eq!(
            keys(&plan(&cordoned, false, Timestamp::UNIX_EPOCH)).unwrap(),
            ["unschedulable:NoSchedule"]
        );
    }
}
