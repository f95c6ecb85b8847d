//! What the loops that keep pods share: making and deleting them, and taking one over or letting it go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tracing::debug;
use wharf_kit::api::{self, Absent, Delete, Ignored, Kind, Object, PatchKind, Rest};
use wharf_kit::event::{Recorder, Subject};
use wharf_kit::view::{Change, Index, Key, Meta, OwnerRef, Store, View};

use crate::views::Pod;

/// The API server's echo of what a pass wrote is awaited this long: a pass must not hang on a lost watch.
const ECHO: Duration = Duration::from_secs(10);

/// Pods of the first batch; each batch that succeeds doubles the next. Kubernetes starts with one; eight cost a
/// refusing server little and save small workloads three round trips.
const FIRST_BATCH: usize = 8;
/// Requests of one pass under way at once.
const AT_ONCE: usize = 64;
/// How many pods one pass makes or deletes, as in Kubernetes; the next pass does more.
pub(crate) const BURST: usize = 500;

/// The index of objects by their controller's uid.
pub(crate) fn by_controller<T: View>(store: &Store<T>) -> Index<T> {
    store.index("controller", |one| {
        one.meta().controller().map(|owner| owner.uid.to_string()).into_iter().collect()
    })
}

/// The index of objects that nothing controls by their namespace.
pub(crate) fn loose<T: View>(store: &Store<T>) -> Index<T> {
    store.index("loose", |one| {
        let meta = one.meta();
        meta.controller().is_none().then(|| meta.namespace.to_string()).into_iter().collect()
    })
}

/// Which of the workload kind's objects a change of a pod may matter to: those that control it or did, and of those in
/// its namespace whoever would take `loose`, the pod where nothing controls it.
pub(crate) fn concerned<T: View>(
    workloads: &Store<T>,
    change: &Change<'_, Pod>,
    loose: Option<&Arc<Pod>>,
    willing: impl Fn(&T, &Pod) -> bool,
) -> Vec<Key> {
    let sides = change.old.into_iter().chain(change.new);
    let mut keys: Vec<Key> = sides.filter_map(|pod| controller::<T>(&pod.metadata)).collect();
    if let Some(pod) = loose.filter(|pod| pod.metadata.controller().is_none()) {
        let all = workloads.in_namespace(&pod.metadata.namespace);
        keys.extend(all.iter().filter(|one| willing(one, pod)).map(|one| one.meta().key()));
    }
    keys
}

/// What controls an object, if it is of this kind; whether or not it is still there.
pub(crate) fn controller<T: View>(meta: &Meta) -> Option<Key> {
    let owner = meta.controller().filter(|owner| owner.kind == T::KIND.kind)?;
    Some(Key::new(meta.namespace.clone(), owner.name.as_str()))
}

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

/// Makes `owner` one of the object's owners, with its finalizer if it has one, and awaits that the view shows it.
pub(crate) async fn adopt<T: View>(
    rest: &Rest,
    store: &Store<T>,
    object: &T,
    owner: OwnerRef,
    finalizer: Option<&str>,
) -> Result<(), api::Error> {
    let meta = object.meta();
    let mut owners = meta.owner_references.clone();
    owners.push(owner);
    let held = |name: &&str| !meta.has_finalizer(name);
    let more = finalizer.filter(held).map(str::to_owned);
    let finalizers: Vec<String> = meta.finalizers.iter().cloned().chain(more).collect();
    own(rest, store, meta, json!({"ownerReferences": owners, "finalizers": finalizers})).await
}

/// Takes the owner of that uid from the pod, and awaits that the view shows it.
pub(crate) async fn release(rest: &Rest, pods: &Store<Pod>, pod: &Pod, uid: &str) -> Result<(), api::Error> {
    let mut owners = pod.metadata.owner_references.clone();
    owners.retain(|owner| &*owner.uid != uid);
    own(rest, pods, &pod.metadata, json!({"ownerReferences": owners})).await
}

async fn own<T: View>(
    rest: &Rest,
    store: &Store<T>,
    meta: &Meta,
    mut fields: Value,
) -> Result<(), api::Error> {
    fields["uid"] = json!(meta.uid);
    fields["resourceVersion"] = json!(meta.resource_version);
    let patch = json!({"metadata": fields});
    let answer = rest.patch::<Object>(T::KIND, &meta.key(), "", PatchKind::Merge, &patch).await;
    if let Some(object) = answer.absent_ok()? {
        echo(store.reached(object.metadata.revision())).await;
    }
    Ok(())
}

/// What a loop makes and deletes its workloads' pods with.
#[derive(Clone)]
pub(crate) struct Hands {
    pub rest: Rest,
    pub recorder: Recorder,
    pub pods: Store<Pod>,
}

impl Hands {
    /// Takes pods over for a workload and lets go of others; tells whether there was one.
    pub async fn own<T: View>(
        &self,
        workload: &Meta,
        adopt: &[Arc<Pod>],
        release: &[Arc<Pod>],
    ) -> Result<bool, api::Error> {
        for pod in adopt {
            self::adopt(&self.rest, &self.pods, &**pod, owner(T::KIND, workload), None).await?;
        }
        for pod in release {
            self::release(&self.rest, &self.pods, pod, &workload.uid).await?;
        }
        Ok(!adopt.is_empty() || !release.is_empty())
    }

    /// Makes these pods of a workload in batches that double, so that a quota or an admission rule refuses few, and
    /// awaits that the view shows them: else the next pass would make them again.
    pub async fn create<'a>(
        &self,
        of: &Subject,
        bodies: impl Iterator<Item = &'a Value>,
    ) -> Result<(), api::Error> {
        let mut bodies = bodies.peekable();
        let (mut batch, mut seen, mut failed) = (FIRST_BATCH, 0, None);
        while bodies.peek().is_some() && failed.is_none() {
            let create = |body| self.rest.create::<Object>(Pod::KIND, &of.key.namespace, body);
            let requests: Vec<_> = bodies.by_ref().take(batch).map(create).collect();
            let mut answers = stream::iter(requests).buffer_unordered(AT_ONCE);
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(pod) => {
                        seen = seen.max(pod.metadata.revision());
                        let message = format!("Created pod: {}", pod.metadata.name);
                        self.recorder.normal(of, "SuccessfulCreate", message);
                    }
                    Err(error) => failed = Some(error),
                }
            }
            batch *= 2;
        }
        echo(self.pods.reached(seen)).await;
        let Some(error) = failed else { return Ok(()) };
        if !error.is_namespace_terminating() {
            let message = format!("Error creating: {}", error.message());
            self.recorder.warning(of, "FailedCreate", message);
        }
        Err(error)
    }

    /// Deletes these pods of a workload and awaits that the view shows them going: else the next pass might choose
    /// others.
    pub async fn delete(&self, of: &Subject, victims: &[Arc<Pod>]) -> Result<(), api::Error> {
        let delete = |pod: &Arc<Pod>| {
            let pod = pod.clone();
            async move {
                let (key, how) = (pod.metadata.key(), Delete::exactly(&pod.metadata));
                match self.rest.delete::<Ignored>(Pod::KIND, &key, &how).await {
                    Ok(_) => {
                        let message = format!("Deleted pod: {}", key.name);
                        self.recorder.normal(of, "SuccessfulDelete", message);
                        Ok(())
                    }
                    Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
                    Err(error) => Err(error),
                }
            }
        };
        let requests: Vec<_> = victims.iter().map(delete).collect();
        let mut answers = stream::iter(requests).buffer_unordered(AT_ONCE);
        let mut result = Ok(());
        while let Some(answer) = answers.next().await {
            result = result.and(answer);
        }
        result?;
        for pod in victims {
            self.going(pod).await;
        }
        Ok(())
    }

    /// Awaits that the view shows the pod going or gone.
    pub async fn going(&self, pod: &Pod) {
        let going = |now: Option<&Pod>| {
            now.is_none_or(|now| now.metadata.uid != pod.metadata.uid || now.metadata.is_deleting())
        };
        echo(self.pods.until(&pod.metadata.key(), going)).await;
    }
}

/// Awaits that a view shows what was just written.
pub(crate) async fn echo(seen: impl Future<Output = ()>) {
    if tokio::time::timeout(ECHO, seen).await.is_err() {
        debug!("no echo of what was written");
    }
}
