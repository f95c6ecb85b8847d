//! The ConfigMap `kube-root-ca.crt` in every namespace: made again when deleted, put right when changed.

use serde_json::json;
use wharf_kit::api::{self, Ignored, PatchKind, Rest};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Filter, Key, Store, View};

use crate::Context;
use crate::views::{ConfigMap, Namespace};

const NAME: &str = "kube-root-ca.crt";
const ENTRY: &str = "ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                           endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                           guaranteed across distributions of Kubernetes clusters.";

pub(crate) async fn run(context: Context) {
    let namespaces = context.hub.view::<Namespace>();
    let maps = context.hub.view_of::<ConfigMap>(Filter::fields(format!("metadata.name={NAME}")));
    tokio::join!(namespaces.ready(), maps.ready());
    let pass = RootCa {
        rest: context.rest,
        namespaces: namespaces.clone(),
        maps: maps.clone(),
        ca: context.config.root_ca_pem,
    };
    let controller = Controller::new("root-ca", pass)
        .watches(&namespaces, |change| change.new.map(|_| change.key.clone()))
        .watches(&maps, |change| [Key::cluster(change.key.namespace.clone())]);
    controller.run(context.stop).await;
}

struct RootCa {
    rest: Rest,
    namespaces: Store<Namespace>,
    maps: Store<ConfigMap>,
    ca: String,
}

impl Pass for RootCa {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        if !self.namespaces.get(key).is_some_and(|namespace| namespace.is_active()) {
            return Ok(Next::Done);
        }
        let map = Key::new(key.name.clone(), NAME);
        let written = match self.maps.get(&map) {
            Some(found) if found.data.len() == 1 && found.data.get(ENTRY) == Some(&self.ca) => {
                return Ok(Next::Done);
            }
            Some(found) => {
                let patch = json!([
                    {"op": "test", "path": "/metadata/uid", "value": found.metadata.uid},
                    {"op": "add", "path": "/data", "value": {ENTRY: self.ca}},
                ]);
                self.rest.patch::<Ignored>(ConfigMap::KIND, &map, "", PatchKind::Json, &patch).await
            }
            None => {
                let body = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {
                        "name": NAME,
                        "namespace": key.name,
                        "annotations": {"kubernetes.io/description": DESCRIPTION},
                    },
                    "data": {ENTRY: self.ca},
                });
                self.rest.create::<Ignored>(ConfigMap::KIND, &key.name, &body).await
            }
        };
        match written {
            Err(error) if error.is_already_exists() || error.is_not_found() || error.code() == 403 => {
                Ok(Next::Done)
            }
            result => result.map(|_| Next::Done),
        }
    }
}
