//! Which nodes a pod may be on, as its author and the nodes' taints have it: what the scheduler asks for each pod
//! and the DaemonSet controller for a template.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::selector::{Operator, Requirement};
use crate::view::{Meta, or_default};

/// The effect of a taint that keeps pods that do not tolerate it from being placed on its node.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// The effect of a taint that also ends those that are there.
pub const NO_EXECUTE: &str = "NoExecute";

/// An entry of a Node's `spec.taints`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint {
    pub key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    pub effect: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_added: Option<Timestamp>,
}

/// An entry of a pod's `spec.tolerations`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    pub key: Box<str>,
    pub operator: Box<str>,
    pub value: Box<str>,
    pub effect: Box<str>,
    /// For ever, if there is none.
    pub toleration_seconds: Option<i64>,
}

impl Toleration {
    /// Whether it is about this taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || *self.effect == *taint.effect)
            && (self.key.is_empty() || *self.key == *taint.key)
            && match &*self.operator {
                "Exists" => true,
                "" | "Equal" => *self.value == *taint.value && !self.key.is_empty(),
                _ => false,
            }
    }
}

/// Whether one of the tolerations is about the taint.
pub fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| toleration.tolerates(taint))
}

/// A pod's `spec.affinity.nodeAffinity`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution", deserialize_with = "or_default")]
    pub preferred: Vec<PreferredTerm>,
}

impl NodeAffinity {
    /// The one node that it requires by its name, as DaemonSets require theirs.
    pub fn pinned_to(&self) -> Option<&str> {
        // Of several terms any one will do, so none of them pins.
        let [term] = &*self.required.as_ref()?.node_selector_terms else { return None };
        term.match_fields.iter().find_map(|one| match (&*one.key, one.operator, &*one.values) {
            (NAME, Operator::In, [name]) => Some(name.as_str()),
            _ => None,
        })
    }
}

/// Terms of which one must hold; without any, nothing matches.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    #[serde(deserialize_with = "or_default")]
    pub node_selector_terms: Vec<NodeTerm>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PreferredTerm {
    pub weight: i64,
    pub preference: NodeTerm,
}

/// Conditions that must all hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeTerm {
    #[serde(deserialize_with = "or_default")]
    pub match_expressions: Vec<Requirement>,
    #[serde(deserialize_with = "or_default")]
    pub match_fields: Vec<Requirement>,
}

/// The one field of nodes that terms may name.
const NAME: &str = "metadata.name";

impl NodeTerm {
    /// A term without any condition matches no node.
    pub fn matches(&self, node: &Meta) -> bool {
        let label = |key: &str| node.labels.get(key).map(String::as_str);
        let field = |key: &str| (key == NAME).then_some(&*node.name);
        !(self.match_expressions.is_empty() && self.match_fields.is_empty())
            && self.match_expressions.iter().all(|one| one.matches_value(label(&one.key)))
            && self.match_fields.iter().all(|one| one.matches_value(field(&one.key)))
    }
}

/// Whether the node is one of those that a pod's `nodeSelector` and required node affinity name.
pub fn selects(labels: &BTreeMap<String, String>, affinity: Option<&NodeAffinity>, node: &Meta) -> bool {
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    labels.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && required.is_none_or(|one| one.node_selector_terms.iter().any(|term| term.matches(node)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tolerations_match_as_kubernetes_says() {
        let taint: Taint =
            serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoSchedule"})).unwrap();
        for (toleration, expected) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "operator": "Equal", "value": "w"}), false),
            (json!({"key": "other", "operator": "Exists"}), false),
            (json!({}), false),
        ] {
            let parsed: Toleration = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(parsed.tolerates(&taint), expected, "{toleration}");
        }
    }

    #[test]
    fn node_terms_are_alternatives_of_conditions() {
        let node: Meta =
            serde_json::from_value(json!({"name": "n1", "labels": {"zone": "a", "cores": "8"}})).unwrap();
        let named = |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        for (terms, expected, pinned) in [
            (json!([]), false, None),
            (json!([{}]), false, None),
            (
                json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b", "a"]}]}]),
                true,
                None,
            ),
            (
                json!([{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["8"]}]}]),
                false,
                None,
            ),
            (json!([named("n1")]), true, Some("n1")),
            (
                json!([named("n2"), {"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}]),
                true,
                None,
            ),
            (
                json!([{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n2"]}]}]),
                true,
                None,
            ),
        ] {
            let affinity: NodeAffinity = serde_json::from_value(
                json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}),
            )
            .unwrap();
            assert_eq!(selects(&BTreeMap::new(), Some(&affinity), &node), expected, "{terms}");
            assert_eq!(affinity.pinned_to(), pinned, "{terms}");
        }
        let labels = |zone: &str| BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
        assert!(selects(&labels("a"), None, &node) && !selects(&labels("b"), None, &node));
    }
}
