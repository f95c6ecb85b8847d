//! What is done to a write between decoding and validation: an ordered table of plugins.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::UserInfo;
use crate::kinds::{Kind, Kinds, Subresource};
use crate::status::Result;
use crate::storage::Storage;

mod certificates;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod pods;
mod priority;
mod service_account;

/// What is about to happen to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// A write on its way to the store.
pub struct Request<'a> {
    pub operation: Operation,
    pub kind: &'a Kind,
    pub subresource: Option<Subresource>,
    pub namespace: &'a str,
    /// Empty for a create whose name is still to be generated.
    pub name: &'a str,
    pub user: &'a UserInfo,
    /// The object as it is to be stored; for a delete as it is.
    pub object: &'a mut Value,
    pub old: Option<&'a Value>,
}

impl Request<'_> {
    /// Whether a pod is about to be made.
    fn is_new_pod(&self) -> bool {
        let is_pod = self.kind.group.is_empty() && self.kind.plural == "pods";
        is_pod && self.operation == Operation::Create && self.subresource.is_none()
    }
}

/// What plugins look things up in.
pub struct World<'a> {
    pub storage: &'a dyn Storage,
    pub kinds: &'a Kinds,
}

impl World<'_> {
    /// A built-in object, decoded; `None` if it does not exist.
    pub fn object(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let kind = self.kinds.builtin(group, plural);
        let stored = self.storage.get(kind.key(namespace, name).as_str())?;
        serde_json::from_slice(&stored.value).ok()
    }
}

impl World<'_> {
    /// All objects of a built-in cluster-wide kind, decoded.
    pub fn all(&self, group: &str, plural: &str) -> Vec<Value> {
        self.all_in(group, plural, "")
    }

    /// All objects of a built-in kind in a namespace, decoded.
    pub fn all_in(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        let prefix = self.kinds.builtin(group, plural).prefix_in(namespace);
        let snapshot = futures::FutureExt::now_or_never(self.storage.snapshot(&prefix, None));
        // A snapshot of the present never waits.
        let Some(Ok(snapshot)) = snapshot else { return Vec::new() };
        snapshot.iter().filter_map(|stored| serde_json::from_slice(&stored.value).ok()).collect()
    }
}

type Plugin = fn(&mut Request<'_>, &World<'_>) -> Result<()>;

/// The chain, in its order: later plugins see what earlier ones set.
const CHAIN: &[(&str, Plugin)] = &[
    ("NamespaceLifecycle", namespace_lifecycle::admit),
    ("LimitRanger", limit_ranger::admit),
    ("CertificateRequester", certificates::requester),
    ("CertificateSubjectRestriction", certificates::subject),
    ("NodeRestriction", node_restriction::admit),
    ("ServiceAccount", service_account::admit),
    ("Priority", priority::admit),
    ("RuntimeClass", pods::runtime_class),
    ("DefaultTolerationSeconds", pods::default_toleration_seconds),
];

/// Waits for what a new object needs and will get from elsewhere in a moment; the chain itself never waits.
pub async fn ready(kind: &Kind, namespace: &str, object: &Value, world: &World<'_>, off: &BTreeSet<String>) {
    if kind.group.is_empty() && kind.plural == "pods" && !off.contains("ServiceAccount") {
        service_account::await_default(object, namespace, world).await;
    }
}

/// Runs the chain, except for the plugins that the server's configuration turned off.
pub fn admit(request: &mut Request<'_>, world: &World<'_>, off: &BTreeSet<String>) -> Result<()> {
    for (name, plugin) in CHAIN {
        if !off.contains(*name) {
            plugin(request, world)?;
        }
    }
    Ok(())
}
