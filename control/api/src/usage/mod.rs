//! metrics.k8s.io: what nodes and pods use, built in.
//!
//! Nothing is scraped while nobody asks. A question goes to the servers of the nodes that it is about ([`Meter`]); what they
//! tell of a moment is a look ([`look`]), and usage is made of two ([`measure`]). The look before is kept, so that in a cluster
//! where somebody watches, an answer comes at once and the rate spans the time between the questions. The first question
//! after a quiet while takes a second: a node is then looked at twice, a second apart. An answer is kept for a while, but
//! not for those who ask about a container that began since.

mod look;
mod measure;
mod meter;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::Response;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use wharf_kit::quantity::Quantity;

use crate::Body;
use crate::encode;
use crate::object;
use crate::represent::{self, ListMeta};
use crate::status::{Result, Status};
use crate::storage::Stored;
use crate::verbs::{Call, store_failed};

use measure::{Measured, Usage};
pub use meter::Meter;

/// Whose usage a kind tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageOf {
    Nodes,
    Pods,
}

impl UsageOf {
    fn plural(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Pods => "pods",
        }
    }
}

impl Call {
    /// Answers a get or list.
    ///
    /// # Errors
    /// Of a get: 404 if there is no such thing or it uses nothing yet, 502 if its node cannot be asked. A list leaves such
    /// things out.
    pub async fn usage(&self, of: UsageOf) -> Result<Response<Body>> {
        let form = self.form()?;
        let name = &self.path.name;
        let things = self.measured_things(of).await?;
        if !name.is_empty() && things.is_empty() {
            return Err(self.not_found());
        }
        // What began since a node was looked at is not in that look.
        let mut nodes: BTreeMap<String, Option<Timestamp>> = BTreeMap::new();
        for thing in things.iter().filter(|thing| !thing.node(of).is_empty()) {
            let newest = nodes.entry(thing.node(of).to_owned()).or_default();
            *newest = thing.status.began().max(*newest);
        }
        let answers = self.server.ask_usage(nodes).await;
        let mut found = Vec::with_capacity(things.len());
        for thing in &things {
            let measured = match answers.get(thing.node(of)) {
                Some(Ok(measured)) => measured,
                // Not 503, at which clients would try again for minutes.
                Some(Err(status)) if !name.is_empty() => {
                    return Err(Status::relayed(502, status.to_string()));
                }
                _ => continue,
            };
            let object = match of {
                UsageOf::Nodes => measured.node.map(|usage| self.node_metrics(thing, usage)),
                UsageOf::Pods => measured
                    .pods
                    .get(&thing.metadata.uid)
                    .and_then(|containers| self.pod_metrics(thing, containers)),
            };
            found.extend(object.map(|object| self.unstored(&object)));
        }
        if name.is_empty() {
            let meta = ListMeta { revision: encode::UNSTORED, continue_: None, remaining: None };
            return represent::list(form, &self.kind, &meta, found).await;
        }
        let one = found.pop().ok_or_else(|| self.not_found())?;
        represent::object(form, &self.kind, 200, &one.value, one.revision)
    }

    /// The nodes or pods that are meant; those pods that run.
    async fn measured_things(&self, of: UsageOf) -> Result<Vec<Thing>> {
        let kind = self.server.kinds.builtin("", of.plural());
        let (namespace, name) = (&self.path.namespace, &self.path.name);
        let stored: Vec<Stored> = match name.is_empty() {
            false => self.storage().get(kind.key(namespace, name).as_str()).into_iter().collect(),
            true => {
                let snapshot = self.storage().snapshot(&kind.prefix_in(namespace), None).await;
                let snapshot = snapshot.map_err(store_failed)?;
                snapshot.iter().filter(|object| self.selection.matches(&object.meta)).cloned().collect()
            }
        };
        let mut things = Vec::with_capacity(stored.len());
        for stored in &stored {
            let thing: Thing = serde_json::from_slice(&stored.value).map_err(Status::internal)?;
            if of == UsageOf::Nodes || thing.status.phase == "Running" {
                things.push(thing);
            }
        }
        Ok(things)
    }

    /// The object with what all measurements have; `rest` has the usage.
    fn metrics(&self, of: &Thing, usage: &Usage, rest: Value) -> Value {
        let at = usage.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let Metadata { name, namespace, labels, .. } = &of.metadata;
        let mut metadata = json!({"name": name, "creationTimestamp": at});
        if let Some(namespace) = namespace {
            metadata["namespace"] = json!(namespace);
        }
        if !labels.is_empty() {
            metadata["labels"] = json!(labels);
        }
        let mut object = json!({
            "apiVersion": self.kind.api_version(), "kind": self.kind.kind, "metadata": metadata, "timestamp": at,
            "window": format!("{:.3}s", usage.window.as_secs_f64()),
        });
        object::map(&mut object).extend(rest.as_object().cloned().unwrap_or_default());
        object
    }

    fn node_metrics(&self, node: &Thing, usage: Usage) -> Value {
        self.metrics(node, &usage, json!({"usage": quantities(&usage)}))
    }

    fn pod_metrics(&self, pod: &Thing, containers: &BTreeMap<String, Usage>) -> Option<Value> {
        // What is told of the whole holds for each of its parts.
        let whole = containers.values().copied().reduce(|a, b| Usage {
            at: a.at.min(b.at),
            window: a.window.max(b.window),
            ..a
        })?;
        let containers: Vec<Value> = containers
            .iter()
            .map(|(name, usage)| json!({"name": name, "usage": quantities(usage)}))
            .collect();
        Some(self.metrics(pod, &whole, json!({"containers": containers})))
    }

    /// As the forms of answers want objects.
    fn unstored(&self, object: &Value) -> Stored {
        Arc::new(wharf_store::Object {
            key: self.kind.key(object::namespace(object), object::name(object)),
            value: encode::stored(object),
            revision: encode::UNSTORED,
            meta: encode::Facts::default(), // it was selected already
        })
    }
}

/// What is wanted of a node or pod.
#[derive(Deserialize)]
struct Thing {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Observed,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: Option<String>,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    node_name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Observed {
    #[serde(default)]
    phase: String,
    #[serde(default)]
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Deserialize)]
struct ContainerStatus {
    #[serde(default)]
    state: State,
}

#[derive(Default, Deserialize)]
struct State {
    running: Option<Running>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Running {
    started_at: Option<Timestamp>,
}

impl Observed {
    /// When the newest of its containers that run was started.
    fn began(&self) -> Option<Timestamp> {
        self.container_statuses.iter().filter_map(|one| one.state.running.as_ref()?.started_at).max()
    }
}

impl Thing {
    /// The node that measures it; empty if there is none yet.
    fn node(&self, of: UsageOf) -> &str {
        match of {
            UsageOf::Nodes => &self.metadata.name,
            UsageOf::Pods => &self.spec.node_name,
        }
    }
}

fn quantities(usage: &Usage) -> Value {
    let cpu: Option<Quantity> = format!("{}n", usage.nano_cores).parse().ok();
    let memory = Quantity::from_bytes(i64::try_from(usage.memory_bytes).unwrap_or(i64::MAX));
    json!({"cpu": cpu.map(|cpu| cpu.to_string()), "memory": memory.to_string()})
}

type Answers = HashMap<String, Result<Arc<Measured>>>;
