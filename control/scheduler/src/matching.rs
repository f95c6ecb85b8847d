//! What matches what: taints, node terms, pod terms.

use crate::view::{NodeTerm, NodeView, PodTerm, PodView, Taint, Toleration};

impl Toleration {
    pub fn tolerates(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && match &*self.operator {
                "Exists" => true,
                "" | "Equal" => self.value == taint.value && !self.key.is_empty(),
                _ => false,
            }
    }
}

impl PodView {
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.spec.tolerations.iter().any(|toleration| toleration.tolerates(taint))
    }

    /// Whether the node is one of those that the pod's selector and required node affinity name.
    pub fn selects(&self, node: &NodeView) -> bool {
        let labels = &node.metadata.labels;
        let required =
            self.spec.affinity.as_ref().and_then(|all| all.node_affinity.as_ref()?.required.as_ref());
        self.spec.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && required.is_none_or(|one| one.node_selector_terms.iter().any(|term| term.matches(node)))
    }
}

impl NodeTerm {
    /// A term without any condition matches no node.
    pub fn matches(&self, node: &NodeView) -> bool {
        let label = |key: &str| node.metadata.labels.get(key).map(String::as_str);
        let field = |key: &str| (key == "metadata.name").then_some(&*node.metadata.name);
        !(self.match_expressions.is_empty() && self.match_fields.is_empty())
            && self.match_expressions.iter().all(|one| one.matches_value(label(&one.key)))
            && self.match_fields.iter().all(|one| one.matches_value(field(&one.key)))
    }
}

impl PodTerm {
    /// Whether `other` is one of the pods that this term of `owner` is about.
    pub fn matches(&self, owner: &PodView, other: &PodView) -> bool {
        let namespace = &*other.metadata.namespace;
        let every_namespace = self.namespace_selector.as_ref().is_some_and(|one| one.is_everything());
        let own = self.namespaces.is_empty() && self.namespace_selector.is_none();
        (every_namespace
            || self.namespaces.iter().any(|one| one == namespace)
            || (own && *owner.metadata.namespace == *namespace))
            && self.label_selector.as_ref().is_some_and(|one| one.matches(&other.metadata.labels))
    }
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
        let node: NodeView = serde_json::from_value(
            json!({"metadata": {"name": "n1", "labels": {"zone": "a", "cores": "8"}}}),
        )
        .unwrap();
        for (terms, expected) in [
            (json!([]), false),
            (json!([{}]), false),
            (json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b", "a"]}]}]), true),
            (json!([{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["8"]}]}]), false),
            (json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]), true),
            (
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]},
                    {"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}]),
                true,
            ),
        ] {
            let pod: PodView = serde_json::from_value(json!({"spec": {"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}}))
            .unwrap();
            assert_eq!(pod.selects(&node), expected, "{terms}");
        }
    }
}
