//! What the loops that keep pods share: making one from a template, and taking it over or letting it go.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tracing::debug;
use wharf_kit::api::{self, Absent, Kind, Object, PatchKind, Rest};
use wharf_kit::view::{Meta, OwnerRef, Store, View};

use crate::views::Pod;

/// The API server's echo of what a pass wrote is awaited this long: a pass must not hang on a lost watch.
const ECHO: Duration = Duration::from_secs(10);

/// The reference by which a workload controls its pods.
pub(crate) fn owner(kind: Kind, meta: &Meta) -> OwnerRef {
    OwnerRef {
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        name: meta.name.to_string(),
        uid: meta.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The pod to create: the template, with a name that starts with `prefix` and owned by `owner`.
pub(crate) fn from_template(
    template: Option<&RawValue>,
    namespace: &str,
    prefix: &str,
    owner: &OwnerRef,
) -> Value {
    let template: BTreeMap<String, Value> =
        serde_json::from_str(template.map_or("{}", |raw| raw.get())).unwrap_or_default();
    let mut metadata = template.get("metadata").cloned().unwrap_or_else(|| json!({}));
    if let Some(fields) = metadata.as_object_mut() {
        fields.retain(|name, _| ["labels", "annotations", "finalizers"].contains(&name.as_str()));
        // A generated name adds five characters to at most 58.
        let prefix: String = format!("{prefix}-").chars().take(247).collect();
        fields.insert("generateName".to_owned(), json!(prefix));
        fields.insert("namespace".to_owned(), json!(namespace));
        fields.insert("ownerReferences".to_owned(), json!([owner]));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": template.get("spec").cloned().unwrap_or_default(),
    })
}

/// Makes `owner` one of the pod's owners, with its finalizer if it has one, and awaits that the view shows it.
pub(crate) async fn adopt(
    rest: &Rest,
    pods: &Store<Pod>,
    pod: &Pod,
    owner: OwnerRef,
    finalizer: Option<&str>,
) -> Result<(), api::Error> {
    let mut owners = pod.metadata.owner_references.clone();
    owners.push(owner);
    let held = |name: &&str| !pod.metadata.has_finalizer(name);
    let more = finalizer.filter(held).map(str::to_owned);
    let finalizers: Vec<String> = pod.metadata.finalizers.iter().cloned().chain(more).collect();
    own(rest, pods, pod, json!({"ownerReferences": owners, "finalizers": finalizers})).await
}

/// Takes the owner of that uid from the pod, and awaits that the view shows it.
pub(crate) async fn release(rest: &Rest, pods: &Store<Pod>, pod: &Pod, uid: &str) -> Result<(), api::Error> {
    let mut owners = pod.metadata.owner_references.clone();
    owners.retain(|owner| &*owner.uid != uid);
    own(rest, pods, pod, json!({"ownerReferences": owners})).await
}

async fn own(rest: &Rest, pods: &Store<Pod>, pod: &Pod, mut fields: Value) -> Result<(), api::Error> {
    let meta = &pod.metadata;
    fields["uid"] = json!(meta.uid);
    fields["resourceVersion"] = json!(meta.resource_version);
    let patch = json!({"metadata": fields});
    let answer = rest.patch::<Object>(Pod::KIND, &meta.key(), "", PatchKind::Merge, &patch).await;
    if let Some(object) = answer.absent_ok()? {
        echo(pods.reached(object.metadata.revision())).await;
    }
    Ok(())
}

/// Awaits that a view shows what was just written.
pub(crate) async fn echo(seen: impl Future<Output = ()>) {
    if tokio::time::timeout(ECHO, seen).await.is_err() {
        debug!("no echo of what was written");
    }
}
