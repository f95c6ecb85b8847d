//! Which nodes a DaemonSet is meant for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use wharf_kit::placement::{self, NO_EXECUTE, NO_SCHEDULE, Toleration};
use wharf_kit::view::or_default;

use crate::views::{Affinity, Node};

/// What the pods of every DaemonSet tolerate, as in Kubernetes: key and effect of the taints.
pub(super) fn tolerated(host_network: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    const ALL: [(&str, &str); 7] = [
        ("node.kubernetes.io/not-ready", NO_EXECUTE),
        ("node.kubernetes.io/unreachable", NO_EXECUTE),
        ("node.kubernetes.io/disk-pressure", NO_SCHEDULE),
        ("node.kubernetes.io/memory-pressure", NO_SCHEDULE),
        ("node.kubernetes.io/pid-pressure", NO_SCHEDULE),
        ("node.kubernetes.io/unschedulable", NO_SCHEDULE),
        // A pod on the node's own network may be the one that makes the network.
        ("node.kubernetes.io/network-unavailable", NO_SCHEDULE),
    ];
    ALL.into_iter().take(if host_network { ALL.len() } else { ALL.len() - 1 })
}

/// What a template says of where its pods may go.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Placing {
    node_name: String,
    #[serde(deserialize_with = "or_default")]
    node_selector: BTreeMap<String, String>,
    affinity: Option<Affinity>,
    #[serde(deserialize_with = "or_default")]
    tolerations: Vec<Toleration>,
    host_network: bool,
}

/// Whether a node is to have a pod of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Yes,
    /// None is made there, but one that is there stays.
    Stays,
    No,
}

impl Placing {
    /// Reads the template, and adds what all DaemonSets tolerate.
    pub fn of(template: Option<&RawValue>) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Template {
            spec: Placing,
        }
        let template: Template =
            template.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        let mut placing = template.spec;
        placing.tolerations.extend(tolerated(placing.host_network).map(|(key, effect)| Toleration {
            key: key.into(),
            operator: "Exists".into(),
            effect: effect.into(),
            ..Toleration::default()
        }));
        placing
    }

    pub fn on(&self, node: &Node) -> Place {
        let affinity = self.affinity.as_ref().and_then(|all| all.node_affinity.as_ref());
        let named = self.node_name.is_empty() || *self.node_name == *node.metadata.name;
        if !named || !placement::selects(&self.node_selector, affinity, &node.metadata) {
            return Place::No;
        }
        let refused = |effect: &str| {
            let of_effect = node.spec.taints.iter().filter(|taint| taint.effect == effect);
            of_effect.into_iter().any(|taint| !placement::tolerated(taint, &self.tolerations))
        };
        match (refused(NO_EXECUTE), refused(NO_SCHEDULE)) {
            (true, _) => Place::No,
            (false, true) => Place::Stays,
            (false, false) => Place::Yes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(labels: Value, taints: &[(&str, &str)]) -> Node {
        let taints: Vec<_> =
            taints.iter().map(|(key, effect)| json!({"key": key, "effect": effect})).collect();
        serde_json::from_value(
            json!({"metadata": {"name": "n1", "labels": labels}, "spec": {"taints": taints}}),
        )
        .unwrap()
    }

    #[test]
    fn a_node_is_chosen_by_name_labels_and_taints() {
        let affine = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]}}}});
        for (spec, labels, taints, expected) in [
            (json!({}), json!({}), &[] as &[(&str, &str)], Place::Yes),
            (json!({"nodeName": "n1"}), json!({}), &[], Place::Yes),
            (json!({"nodeName": "n2"}), json!({}), &[], Place::No),
            (json!({"nodeSelector": {"disk": "ssd"}}), json!({"disk": "ssd"}), &[], Place::Yes),
            (json!({"nodeSelector": {"disk": "ssd"}}), json!({"disk": "hdd"}), &[], Place::No),
            (affine.clone(), json!({"disk": "any"}), &[], Place::Yes),
            (affine, json!({}), &[], Place::No),
            // A node in trouble, or cordoned, keeps and gets its daemons.
            (json!({}), json!({}), &[("node.kubernetes.io/not-ready", "NoExecute")], Place::Yes),
            (json!({}), json!({}), &[("node.kubernetes.io/unschedulable", "NoSchedule")], Place::Yes),
            (json!({}), json!({}), &[("node.kubernetes.io/network-unavailable", "NoSchedule")], Place::Stays),
            (
                json!({"hostNetwork": true}),
                json!({}),
                &[("node.kubernetes.io/network-unavailable", "NoSchedule")],
                Place::Yes,
            ),
            (json!({}), json!({}), &[("gpu", "NoSchedule")], Place::Stays),
            (json!({}), json!({}), &[("gpu", "PreferNoSchedule")], Place::Yes),
            (json!({}), json!({}), &[("gpu", "NoSchedule"), ("away", "NoExecute")], Place::No),
            (
                json!({"tolerations": [{"key": "gpu", "operator": "Exists"}]}),
                json!({}),
                &[("gpu", "NoSchedule"), ("gpu", "NoExecute")],
                Place::Yes,
            ),
        ] {
            let template = RawValue::from_string(json!({"spec": spec}).to_string()).unwrap();
            let place = Placing::of(Some(&template)).on(&node(labels, taints));
            assert_eq!(place, expected, "{spec} {taints:?}");
        }
    }
}
