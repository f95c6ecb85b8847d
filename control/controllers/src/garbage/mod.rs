//! Deletes what its owners left behind, and carries out foreground and orphan deletion.
//!
//! Every kind that can be listed, watched and deleted is watched by its metadata alone. The [`Graph`] knows
//! who owns whom by uid; a pass looks at one object. That an owner is gone is never concluded from our views
//! alone: either its deletion was seen, or the API server is asked for it, and the uid compared.

mod graph;
mod plan;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use futures::future::join_all;
use serde_json::json;
use tracing::{debug, info};
use wharf_kit::api::{self, Absent, Delete, Ignored, Kind, Object, PatchKind, Rest};
use wharf_kit::reconcile::{Controller, Next, Pass, Remedied, Remedy};
use wharf_kit::view::{Key, OwnerRef};

use crate::Context;

pub use graph::{Graph, Node};
pub use plan::{Action, FOREGROUND, ORPHAN, OwnerState, plan};

/// One object among all kinds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ref {
    pub kind: Kind,
    pub key: Key,
}

impl fmt::Display for Ref {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.kind.plural, self.key)
    }
}

pub(crate) async fn run(context: Context) {
    let Some(objects) = context.objects().await else { return };
    let graph = Arc::new(Mutex::new(Graph::default()));
    let by_name =
        objects.iter().map(|(kind, _)| ((kind.api_version(), kind.kind.to_owned()), *kind)).collect();
    let pass = Garbage { rest: context.rest.clone(), graph: graph.clone(), kinds: by_name };
    let mut controller = Controller::new("garbage", pass).workers(8);
    for (kind, store) in objects {
        let (kind, graph) = (*kind, graph.clone());
        controller = controller.watches(store, move |change| {
            let object = Ref { kind, key: change.key.clone() };
            graph
                .lock()
                .expect("no holder of this lock panics")
                .change(object, change.new.map(|new| &new.metadata))
        });
    }
    info!(kinds = objects.len(), "collecting garbage");
    controller.run(context.stop.clone()).await;
}

/// Why a pass could not finish.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Api(#[from] api::Error),
    #[error("{object} names an owner of the unknown kind {api_version} {kind}")]
    UnknownKind { object: Ref, api_version: String, kind: String },
}

impl Remedied for Error {
    fn remedy(&self) -> Remedy {
        match self {
            Self::Api(error) => error.remedy(),
            // Kept: an owner that cannot be asked for may well exist.
            Self::UnknownKind { .. } => Remedy::Wait,
        }
    }
}

struct Garbage {
    rest: Rest,
    graph: Arc<Mutex<Graph>>,
    /// By apiVersion and kind, as owner references name them.
    kinds: HashMap<(String, String), Kind>,
}

impl Pass for Garbage {
    type Key = Ref;
    type Error = Error;

    async fn pass(&self, key: &Ref) -> Result<Next, Error> {
        let Some(node) = self.read(|graph| graph.get(key).cloned()) else { return Ok(Next::Done) };
        let dependents = self.read(|graph| graph.dependents(&node.uid));
        let mut owners = Vec::new();
        if !node.deleting {
            for owner in &node.owners {
                owners.push((owner.clone(), self.owner_state(key, owner).await?));
            }
        }
        let action = plan(&node, &owners, &dependents);
        if action != Action::Nothing {
            debug!(object = %key, ?action, "collecting");
        }
        match action {
            Action::Nothing => {}
            Action::KeepOwners(kept) => self.write_owners(key, &node, &kept).await?,
            Action::Delete(propagation) => {
                let how =
                    Delete { uid: node.uid.to_string(), ..Delete::default() }.with_propagation(propagation);
                match self.rest.delete::<Ignored>(key.kind, &key.key, &how).await {
                    Err(error) if error.is_not_found() || error.is_conflict() => {}
                    result => drop(result?),
                }
            }
            Action::Orphan => {
                let free = dependents.iter().map(|(dependent, theirs)| {
                    let kept: Vec<OwnerRef> =
                        theirs.owners.iter().filter(|owner| owner.uid != node.uid).cloned().collect();
                    async move { self.write_owners(dependent, theirs, &kept).await }
                });
                join_all(free).await.into_iter().collect::<Result<(), _>>()?;
                self.drop_finalizer(key, &node, ORPHAN).await?;
            }
            Action::Finish => self.drop_finalizer(key, &node, FOREGROUND).await?,
        }
        Ok(Next::Done)
    }
}

impl Garbage {
    fn read<R>(&self, look: impl FnOnce(&Graph) -> R) -> R {
        look(&self.graph.lock().expect("no holder of this lock panics"))
    }

    async fn owner_state(&self, object: &Ref, owner: &OwnerRef) -> Result<OwnerState, Error> {
        let known = self.read(|graph| graph.owner_state(&owner.uid, &object.key.namespace));
        if let Some(state) = known {
            return Ok(state);
        }
        let name = (owner.api_version.clone(), owner.kind.clone());
        let Some(kind) = self.kinds.get(&name).copied() else {
            let (api_version, kind) = name;
            return Err(Error::UnknownKind { object: object.clone(), api_version, kind });
        };
        let namespace = if kind.namespaced { object.key.namespace.clone() } else { "".into() };
        let key = Key::new(namespace, owner.name.as_str());
        let found = self.rest.get::<Object>(kind, &key).await.absent_ok()?;
        Ok(match found {
            Some(found) if found.metadata.uid == owner.uid => OwnerState::of(&found.metadata),
            _ => OwnerState::Absent,
        })
    }

    async fn write_owners(&self, object: &Ref, node: &Node, owners: &[OwnerRef]) -> Result<(), Error> {
        self.write(object, node, json!({"ownerReferences": owners})).await
    }

    async fn drop_finalizer(&self, object: &Ref, node: &Node, finalizer: &str) -> Result<(), Error> {
        let left: Vec<&String> = node.finalizers.iter().filter(|one| *one != finalizer).collect();
        self.write(object, node, json!({"finalizers": left})).await
    }

    /// The revision goes along, so that what was decided on an old reading is refused.
    async fn write(&self, object: &Ref, node: &Node, mut metadata: serde_json::Value) -> Result<(), Error> {
        metadata["uid"] = json!(node.uid);
        metadata["resourceVersion"] = json!(node.resource_version);
        let patch = json!({"metadata": metadata});
        let answer = self.rest.patch::<Ignored>(object.kind, &object.key, "", PatchKind::Merge, &patch).await;
        answer.absent_ok().map(drop).map_err(Error::from)
    }
}
