//! What matches what: pods and taints, pods and nodes, terms and pods.

use wharf_kit::placement::{self, Taint};

use crate::view::{NodeView, PodTerm, PodView};

impl PodView {
    pub fn tolerates(&self, taint: &Taint) -> bool {
        placement::tolerated(taint, &self.spec.tolerations)
    }

    /// Whether the node is one of those that the pod's selector and required node affinity name.
    pub fn selects(&self, node: &NodeView) -> bool {
        let affinity = self.spec.affinity.as_ref().and_then(|all| all.node_affinity.as_ref());
        placement::selects(&self.spec.node_selector, affinity, &node.metadata)
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
