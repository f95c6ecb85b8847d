//! Every object of the cluster by its metadata alone: what garbage collection and the deletion of namespaces look at.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use http::Method;
use serde::Deserialize;
use tokio::sync::OnceCell;
use tracing::warn;
use wharf_kit::api::{self, Kind, Rest};
use wharf_kit::chain;
use wharf_kit::view::{Filter, Meta, Store, View};

use crate::Context;

/// The metadata of an object of any kind, without what ownership does not need.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Owned {
    pub metadata: Meta,
}

impl View for Owned {
    /// Never asked for by itself: see [`wharf_kit::view::Hub::view_at`].
    const KIND: Kind = Kind::core("Object", "objects");

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn prepare(&mut self) {
        self.metadata.labels.clear();
        self.metadata.annotations.clear();
    }
}

/// Views of every kind that can be listed, watched and deleted, once for all loops. Events are not among them: they
/// are owned by nobody and are the most numerous of all; Kubernetes' garbage collector leaves them out too.
pub(crate) type Objects = Arc<OnceCell<Vec<(Kind, Store<Owned>)>>>;

impl Context {
    /// Asks for discovery until it answers, and waits until each view is complete. None if the loops are to end.
    pub(crate) async fn objects(&self) -> Option<&[(Kind, Store<Owned>)]> {
        let stores = self.objects.get_or_init(|| async {
            let mut wait = Duration::from_millis(100);
            let resources = loop {
                match discover(&self.rest).await {
                    Ok(resources) => break resources,
                    Err(error) => warn!(error = chain(&error), "discovery failed"),
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(10));
            };
            let kinds = resources
                .into_iter()
                .filter(|one| one.has("list") && one.has("watch") && one.has("delete"))
                .map(|one| one.kind)
                .filter(|kind| kind.plural != "events");
            let stores: Vec<_> =
                kinds.map(|kind| (kind, self.hub.view_at::<Owned>(kind, Filter::default()))).collect();
            join_all(stores.iter().map(|(_, store)| store.ready())).await;
            stores
        });
        Some(self.stop.run_until_cancelled(stores).await?.as_slice())
    }
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
