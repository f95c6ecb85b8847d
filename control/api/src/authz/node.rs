//! What node agents may do: their own Node and Lease, the pods bound to them, and what those pods refer to.

use std::sync::Arc;

use serde_json::Value;

use super::{Action, Attributes, Authorizer, Decision};
use crate::object::{list, text};
use crate::storage::Storage;

/// Decides for `system:node:NAME` in `system:nodes`; has no opinion on others.
pub struct NodeAuthorizer {
    pub storage: Arc<dyn Storage>,
}

/// Where the node agents' leases are.
const LEASES: &str = "kube-node-lease";

impl NodeAuthorizer {
    /// Whether a pod bound to `node` refers to this Secret or ConfigMap, or runs as this ServiceAccount.
    fn refers(&self, node: &str, namespace: &str, what: &str, name: &str) -> bool {
        let prefix = format!("core/pods/{namespace}/");
        let Some(snapshot) = futures::FutureExt::now_or_never(self.storage.snapshot(&prefix, None)) else {
            return false; // a snapshot of the present never waits
        };
        let Ok(snapshot) = snapshot else { return false };
        // The name as JSON has it: only pods that mention it are decoded.
        let mention = Value::from(name).to_string();
        snapshot
            .iter()
            .filter(|pod| bound_to(pod, node) && contains(&pod.value, mention.as_bytes()))
            .filter_map(|pod| serde_json::from_slice::<Value>(&pod.value).ok())
            .any(|pod| match what {
                "serviceaccounts" => text(&pod, "/spec/serviceAccountName") == name,
                _ => references(&pod, what).any(|reference| reference == name),
            })
    }

    fn pod_is_bound(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.storage.get(&format!("core/pods/{namespace}/{name}")).is_some_and(|pod| bound_to(&pod, node))
    }
}

fn bound_to(pod: &wharf_store::Object<crate::encode::Facts>, node: &str) -> bool {
    // Facts begin with name and namespace; the pod's own fields start with spec.nodeName.
    pod.meta.fields.get(2).is_some_and(|name| name == node)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// The names of the `secrets` or `configmaps` a pod refers to.
fn references<'a>(pod: &'a Value, what: &str) -> impl Iterator<Item = &'a str> {
    let secret = what == "secrets";
    let (env_from, key_ref, volume, projected) = match secret {
        true => ("/secretRef/name", "/valueFrom/secretKeyRef/name", "/secret/secretName", "/secret/name"),
        false => {
            ("/configMapRef/name", "/valueFrom/configMapKeyRef/name", "/configMap/name", "/configMap/name")
        }
    };
    let containers = ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"]
        .into_iter()
        .flat_map(|pointer| list(pod, pointer));
    let in_containers = containers.flat_map(move |container| {
        let from = list(container, "/envFrom").iter().map(move |source| text(source, env_from));
        from.chain(list(container, "/env").iter().map(move |env| text(env, key_ref)))
    });
    let in_volumes = list(pod, "/spec/volumes").iter().flat_map(move |source| {
        let sources = list(source, "/projected/sources").iter().map(move |source| text(source, projected));
        std::iter::once(text(source, volume)).chain(sources)
    });
    let pulls =
        list(pod, "/spec/imagePullSecrets").iter().filter(move |_| secret).map(|pull| text(pull, "/name"));
    in_containers.chain(in_volumes).chain(pulls).filter(|name| !name.is_empty())
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let none = || Decision::NoOpinion(String::new());
        let Some(node) = attributes.user.as_node() else { return none() };
        let Action::Resource { group, resource, subresource, namespace, name, fields } = attributes.action
        else {
            return none();
        };
        let verb = attributes.verb;
        let selects = |field: &str| fields.iter().any(|(key, value)| key == field && value == node);
        let allowed = match (group, resource, subresource, verb) {
            ("", "nodes", "", "create") => true, // which one is NodeRestriction's to say
            ("", "nodes", "" | "status", "get" | "update" | "patch") => name == node,
            ("", "nodes", "", "list" | "watch") => selects("metadata.name"),
            ("coordination.k8s.io", "leases", "", "create") => namespace == LEASES,
            ("coordination.k8s.io", "leases", "", "get" | "update" | "patch" | "delete") => {
                namespace == LEASES && name == node
            }
            ("", "pods", "", "list" | "watch") => selects("spec.nodeName"),
            ("", "pods", "", "get" | "delete") | ("", "pods", "status", "get" | "update" | "patch") => {
                // A pod that is gone is no secret, and its agent learns so by asking.
                self.pod_is_bound(node, namespace, name)
                    || self.storage.get(&format!("core/pods/{namespace}/{name}")).is_none()
            }
            ("", "pods", "eviction", "create") => self.pod_is_bound(node, namespace, name),
            // For which of its pods is NodeRestriction's to say.
            ("", "serviceaccounts", "token", "create") => self.refers(node, namespace, resource, name),
            ("", "secrets" | "configmaps", "", "get") => self.refers(node, namespace, resource, name),
            // A single object may be followed too; without its name in the selector it would be all of them.
            ("", "secrets" | "configmaps", "", "list" | "watch") => {
                let one = fields.iter().find(|(key, _)| key == "metadata.name");
                one.is_some_and(|(_, name)| self.refers(node, namespace, resource, name))
            }
            ("", "events", "", "create" | "patch" | "update")
            | ("events.k8s.io", "events", "", "create" | "patch" | "update") => true,
            ("", "services", "", "get" | "list" | "watch")
            | ("node.k8s.io", "runtimeclasses", "", "get" | "list" | "watch") => true,
            // Its node server leaves to this server who asks there, and what they may.
            ("authentication.k8s.io", "tokenreviews", "", "create")
            | ("authorization.k8s.io", "subjectaccessreviews", "", "create") => true,
            _ => false,
        };
        if allowed {
            return Decision::Allow;
        }
        match (resource, verb) {
            ("secrets" | "configmaps", "get") | ("serviceaccounts", "create") => {
                Decision::NoOpinion(format!("no relationship found between node '{node}' and this object"))
            }
            _ => none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_way_to_refer_is_found() {
        let pod = json!({"spec": {
            "containers": [{"envFrom": [{"secretRef": {"name": "a"}}, {"configMapRef": {"name": "x"}}],
                            "env": [{"valueFrom": {"secretKeyRef": {"name": "b", "key": "k"}}}]}],
            "volumes": [{"secret": {"secretName": "c"}}, {"configMap": {"name": "y"}},
                        {"projected": {"sources": [{"secret": {"name": "d"}}, {"configMap": {"name": "z"}}]}}],
            "imagePullSecrets": [{"name": "e"}],
        }});
        assert_eq!(references(&pod, "secrets").collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
        assert_eq!(references(&pod, "configmaps").collect::<Vec<_>>(), ["x", "y", "z"]);
    }
}
