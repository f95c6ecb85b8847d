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
use crate::views::{Namespace, Pod};

/// The finalizer of namespaces that this loop takes away.
const FINALIZER: &str = "kubernetes";
/// What has finalizers of its own goes when others say so; until then it is looked at this often, and only
/// while a namespace is being deleted.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

pub(crate) async fn run(context: Context) {
    let namespaces = context.hub.view::<Namespace>();
    let pods = context.hub.view::<Pod>();
    tokio::join!(namespaces.ready(), pods.ready());
    let pass = Namespaces { rest: context.rest, namespaces: namespaces.clone(), pods: pods.clone() };
    let deleting = namespaces.clone();
    let controller = Controller::new("namespace", pass)
        .watches(&namespaces, |change| change.new.filter(|one| !one.is_active()).map(|_| change.key.clone()))
        .watches(&pods, move |change| {
            let key = Key::cluster(change.key.namespace.clone());
            let gone = change.new.is_none() && deleting.get(&key).is_some_and(|one| !one.is_active());
            gone.then_some(key)
        });
    controller.run(context.stop).await;
}

/// A resource that discovery lists.
#[derive(Debug, Clone)]
pub struct Resource {
    pub kind: Kind,
    verbs: Vec<String>,
}

impl Resource {
    pub fn has(&self, verb: &str) -> bool {
        self.verbs.iter().any(|one| one == verb)
    }
}

/// Every resource that the API server serves, in the preferred version of its group.
pub async fn discover(rest: &Rest) -> Result<Vec<Resource>, api::Error> {
    #[derive(Deserialize)]
    struct Groups {
        groups: Vec<Group>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Group {
        preferred_version: Option<Version>,
        versions: Vec<Version>,
    }
    #[derive(Deserialize, Clone)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        group_version: String,
    }
    #[derive(Deserialize)]
    struct Listed {
        resources: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        name: String,
        kind: String,
        namespaced: bool,
        #[serde(default)]
        verbs: Vec<String>,
    }
    let groups: Groups = rest.at(Method::GET, "/apis".to_owned(), None).await?;
    let versions = groups.groups.into_iter().filter_map(|group| {
        group.preferred_version.or(group.versions.first().cloned()).map(|version| version.group_version)
    });
    let versions: Vec<String> = std::iter::once("v1".to_owned()).chain(versions).collect();
    let ask = |version: String| async move {
        let root = if version.contains('/') { "/apis" } else { "/api" };
        let listed: Listed = rest.at(Method::GET, format!("{root}/{version}"), None).await?;
        let resources = listed.resources.into_iter().filter(|one| !one.name.contains('/'));
        Ok(resources
            .map(|one| Resource {
                kind: Kind::discovered(&version, &one.kind, &one.name, one.namespaced),
                verbs: one.verbs,
            })
            .collect::<Vec<_>>())
    };
    let found: Result<Vec<_>, api::Error> =
        join_all(versions.into_iter().map(ask)).await.into_iter().collect();
    Ok(found?.into_iter().flatten().collect())
}

struct Namespaces {
    rest: Rest,
    namespaces: Store<Namespace>,
    pods: Store<Pod>,
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
        if self.empty(&Pod::KIND, &key.name, true).await? > 0 {
            debug!(pods = self.pods.in_namespace(&key.name).len(), "waits for pods");
            return Ok(Next::After(LOOK_AGAIN));
        }
        let resources = discover(&self.rest).await?;
        let emptied = resources
            .iter()
            .filter(|one| one.kind.namespaced && one.has("list") && one.has("delete"))
            .map(|one| self.empty(&one.kind, &key.name, one.has("deletecollection")));
        let left: usize = join_all(emptied).await.into_iter().sum::<Result<usize, _>>()?;
        if left > 0 {
            debug!(left, "waits for finalizers");
            return Ok(Next::After(LOOK_AGAIN));
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
