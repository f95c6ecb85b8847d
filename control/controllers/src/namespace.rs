//! Empties namespaces that are being deleted, pods first, and then lets them go.

use std::time::Duration;

use futures::future::join_all;
use http::Method;
use serde::Deserialize;
use serde_json::json;
use tracing::{debug, info};
use wharf_kit::api::{self, Absent, Delete, Ignored, Kind, PatchKind, Rest, collection};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Key, Meta, Store, View};

use crate::Context;
use crate::objects::discover;
use crate::views::{Namespace, Pod};

/// The finalizer of namespaces that this loop takes away.
const FINALIZER: &str = "kubernetes";
/// What is left of a kind that nobody watches (Events with finalizers) is looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

pub(crate) async fn run(context: Context) {
    let namespaces = context.hub.view::<Namespace>();
    namespaces.ready().await;
    let Some(objects) = context.objects().await else { return };
    let watched = objects.iter().map(|(kind, _)| *kind).collect();
    let pass = Namespaces { rest: context.rest.clone(), namespaces: namespaces.clone(), watched };
    let mut controller = Controller::new("namespace", pass)
        .watches(&namespaces, |change| change.new.filter(|one| !one.is_active()).map(|_| change.key.clone()));
    for (_, store) in objects.iter().filter(|(kind, _)| kind.namespaced) {
        let namespaces = namespaces.clone();
        controller = controller.watches(store, move |change| {
            let key = Key::cluster(change.key.namespace.clone());
            let gone = change.new.is_none() && namespaces.get(&key).is_some_and(|one| !one.is_active());
            gone.then_some(key)
        });
    }
    controller.run(context.stop.clone()).await;
}

struct Namespaces {
    rest: Rest,
    namespaces: Store<Namespace>,
    /// The kinds of which each object that goes wakes this loop.
    watched: Vec<Kind>,
}

impl Pass for Namespaces {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let Some(namespace) = self.namespaces.get(key).filter(|one| !one.is_active()) else {
            return Ok(Next::Done);
        };
        if namespace.status.phase.as_deref() != Some("Terminating") {
            let patch =
                json!({"metadata": {"uid": namespace.metadata.uid}, "status": {"phase": "Terminating"}});
            let answer =
                self.rest.patch::<Ignored>(Namespace::KIND, key, "status", PatchKind::Merge, &patch).await;
            if answer.absent_ok()?.is_none() {
                return Ok(Next::Done);
            }
        }
        if !namespace.spec.finalizers.iter().any(|one| one == FINALIZER) {
            return Ok(Next::Done);
        }
        // Pods first: what they use must outlive them. Each that goes wakes this pass again.
        let pods = self.empty(&Pod::KIND, &key.name, true).await?;
        if pods > 0 {
            debug!(pods, "waits for pods");
            return Ok(Next::Done);
        }
        let resources = discover(&self.rest).await?;
        let emptied = resources
            .iter()
            .filter(|one| one.kind.namespaced && one.has("list") && one.has("delete"))
            .map(|one| async {
                let left = self.empty(&one.kind, &key.name, one.has("deletecollection")).await?;
                Ok((one.kind, left))
            });
        let mut left = join_all(emptied).await.into_iter().collect::<Result<Vec<_>, api::Error>>()?;
        left.retain(|(_, count)| *count > 0);
        if !left.is_empty() {
            debug!(?left, "waits for finalizers");
            let told = left.iter().all(|(kind, _)| self.watched.contains(kind));
            return Ok(if told { Next::Done } else { Next::After(LOOK_AGAIN) });
        }
        self.finalize(&namespace).await?;
        info!(namespace = %key, "emptied");
        Ok(Next::Done)
    }
}

impl Namespaces {
    /// Deletes all objects of a kind; returns how many are still there.
    async fn empty(&self, kind: &Kind, namespace: &str, as_collection: bool) -> Result<usize, api::Error> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            items: Vec<api::Object>,
        }
        let path = collection(&kind.api_version(), kind.plural, namespace);
        let list = || self.rest.at::<List>(Method::GET, format!("{path}?limit=500"), None);
        let present: Vec<Meta> = list().await?.items.into_iter().map(|one| one.metadata).collect();
        if present.is_empty() {
            return Ok(0);
        }
        let how = Delete::default();
        if present.iter().all(Meta::is_deleting) {
            return Ok(present.len());
        }
        if as_collection {
            self.rest.delete_at::<Ignored>(path.clone(), &how).await?;
        } else {
            for meta in present.iter().filter(|meta| !meta.is_deleting()) {
                self.rest.delete::<Ignored>(*kind, &meta.key(), &how).await.absent_ok()?;
            }
        }
        Ok(list().await?.items.len())
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), api::Error> {
        let meta = &namespace.metadata;
        let left: Vec<&String> = namespace.spec.finalizers.iter().filter(|one| *one != FINALIZER).collect();
        // `finalize` replaces the object, so the present one is read for all that our view leaves out.
        let Some(mut whole) =
            self.rest.get::<serde_json::Value>(Namespace::KIND, &meta.key()).await.absent_ok()?
        else {
            return Ok(());
        };
        if whole["metadata"]["uid"] != json!(meta.uid) {
            return Ok(());
        }
        whole["spec"] = json!({"finalizers": left});
        let answer = self.rest.replace::<Ignored>(Namespace::KIND, &meta.key(), "finalize", &whole).await;
        answer.absent_ok().map(drop)
    }
}
