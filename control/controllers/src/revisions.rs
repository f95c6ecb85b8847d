//! What DaemonSets and StatefulSets keep of the templates they had: one ControllerRevision for each, numbered.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use wharf_kit::api::{self, Absent, Delete, Ignored, Kind, Object, PatchKind, Rest};
use wharf_kit::selector::LabelSelector;
use wharf_kit::view::{Change, Index, Key, Meta, Store, View};

use crate::template::{self, parsed, pruned};
use crate::views::ControllerRevision;
use crate::{Context, pods};

/// The label that tells the pods of a workload's templates apart.
pub const HASH: &str = "controller-revision-hash";

/// So many templates are kept besides those in use, unless the workload says otherwise; as in Kubernetes.
const KEPT: i32 = 10;

/// Whose templates these are.
#[derive(Clone, Copy)]
pub(crate) struct Workload<'a> {
    pub kind: Kind,
    pub meta: &'a Meta,
    pub selector: &'a LabelSelector,
    pub template: Option<&'a RawValue>,
    /// `status.collisionCount`: how many names made from hashes were taken.
    pub collisions: Option<i32>,
    /// The label of a revision that has its hash; another for each kind, as in Kubernetes.
    pub label: &'static str,
}

impl Workload<'_> {
    fn hash(&self) -> String {
        template::hash(self.template, self.collisions)
    }

    /// A patch that puts the template back, as `kubectl rollout undo` applies it.
    fn data(&self) -> Value {
        let mut template = parsed(self.template);
        template["$patch"] = json!("replace");
        json!({"spec": {"template": template}})
    }
}

/// The template that a revision keeps.
pub(crate) fn template_of(revision: &ControllerRevision) -> Value {
    let mut template = parsed(revision.data.as_deref())["spec"]["template"].take();
    if let Some(fields) = template.as_object_mut() {
        fields.remove("$patch");
    }
    template
}

/// A workload's revisions, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub all: Vec<Arc<ControllerRevision>>,
}

impl History {
    pub fn new(mut all: Vec<Arc<ControllerRevision>>) -> Self {
        all.sort_by_key(|one| (one.revision, one.metadata.creation_timestamp, one.metadata.name.clone()));
        Self { all }
    }

    /// The revision of this template; the newest if there are several.
    pub fn of_template(&self, template: Option<&RawValue>) -> Option<&Arc<ControllerRevision>> {
        let wanted = pruned(parsed(template));
        self.all.iter().rev().find(|one| pruned(template_of(one)) == wanted)
    }

    pub fn named(&self, name: &str) -> Option<&Arc<ControllerRevision>> {
        self.all.iter().find(|one| &*one.metadata.name == name)
    }

    /// The number of the next template.
    pub fn next(&self) -> i64 {
        self.all.last().map_or(1, |newest| newest.revision + 1)
    }

    /// The oldest of those that are not in use, beyond as many as are kept.
    pub fn surplus(&self, in_use: &BTreeSet<&str>, limit: Option<i32>) -> &[Arc<ControllerRevision>] {
        // In use are nearly always the newest, so what can go is nearly always a run from the oldest on.
        let idle = self.all.iter().take_while(|one| !in_use.contains(&*one.metadata.name)).count();
        let unused = self.all.iter().filter(|one| !in_use.contains(&*one.metadata.name)).count();
        let kept = usize::try_from(limit.unwrap_or(KEPT)).unwrap_or(0);
        &self.all[..idle.min(unused.saturating_sub(kept))]
    }
}

/// Reads and writes the revisions of all workloads.
#[derive(Clone)]
pub(crate) struct Revisions {
    rest: Rest,
    store: Store<ControllerRevision>,
    owned: Index<ControllerRevision>,
    loose: Index<ControllerRevision>,
}

impl Revisions {
    pub fn new(context: &Context) -> Self {
        let store = context.hub.view::<ControllerRevision>();
        let (owned, loose) = (pods::by_controller(&store), pods::loose(&store));
        Self { rest: context.rest.clone(), store, owned, loose }
    }

    pub fn store(&self) -> &Store<ControllerRevision> {
        &self.store
    }

    /// The revisions of a workload, with one for its present template, which is made or numbered anew if need be;
    /// and that one.
    pub async fn of(&self, of: &Workload<'_>) -> Result<(History, Arc<ControllerRevision>), api::Error> {
        let loose = self.loose.get(&of.meta.namespace);
        for one in loose.iter().filter(|one| {
            !one.metadata.is_deleting()
                && !of.selector.is_everything()
                && of.selector.matches(&one.metadata.labels)
        }) {
            pods::adopt(&self.rest, &self.store, &**one, pods::owner(of.kind, of.meta), None).await?;
        }
        let history = self.history(of);
        let newest = history.next() - 1;
        match history.of_template(of.template).cloned() {
            Some(present) if present.revision == newest => return Ok((history, present)),
            Some(present) => self.number(&present, history.next()).await?, // it came back
            None => self.create(of, history.next()).await?,
        }
        let history = self.history(of);
        // The view lags behind only if its watch was lost: the pass is then tried again.
        let present = history.of_template(of.template).cloned().ok_or_else(|| not_seen(of))?;
        Ok((history, present))
    }

    fn history(&self, of: &Workload<'_>) -> History {
        let owned = self.owned.get(&of.meta.uid);
        History::new(owned.into_iter().filter(|one| !one.metadata.is_deleting()).collect())
    }

    async fn number(&self, revision: &ControllerRevision, number: i64) -> Result<(), api::Error> {
        let patch = json!({"metadata": {"uid": revision.metadata.uid}, "revision": number});
        let key = revision.metadata.key();
        let answer =
            self.rest.patch::<Object>(ControllerRevision::KIND, &key, "", PatchKind::Merge, &patch).await?;
        pods::echo(self.store.reached(answer.metadata.revision())).await;
        Ok(())
    }

    async fn create(&self, of: &Workload<'_>, number: i64) -> Result<(), api::Error> {
        let hash = of.hash();
        let name = format!("{}-{hash}", of.meta.name);
        let mut labels = parsed(of.template)["metadata"]["labels"].take();
        labels[of.label] = json!(hash);
        let body = json!({
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": name,
                "namespace": of.meta.namespace,
                "labels": labels,
                // With the reason for the change, which histories show.
                "annotations": of.meta.annotations,
                "ownerReferences": [pods::owner(of.kind, of.meta)],
            },
            "data": of.data(),
            "revision": number,
        });
        match self.rest.create::<Object>(ControllerRevision::KIND, &of.meta.namespace, &body).await {
            Ok(made) => {
                pods::echo(self.store.reached(made.metadata.revision())).await;
                Ok(())
            }
            Err(error) if error.is_already_exists() => self.collide(of, &name, error).await,
            Err(error) => Err(error),
        }
    }

    /// A revision of that name is there: ours, which our view has not shown yet; or another template's, and then
    /// the next hash is another.
    async fn collide(&self, of: &Workload<'_>, name: &str, error: api::Error) -> Result<(), api::Error> {
        let key = Key::new(of.meta.namespace.clone(), name);
        let found: ControllerRevision = self.rest.get(ControllerRevision::KIND, &key).await?;
        let ours = found.metadata.controller().is_some_and(|owner| owner.uid == of.meta.uid);
        if ours && pruned(template_of(&found)) == pruned(parsed(of.template)) {
            pods::echo(self.store.reached(found.metadata.revision())).await;
            return Err(error); // decide again on what is there
        }
        let collisions = of.collisions.unwrap_or(0) + 1;
        let patch = json!({"metadata": {"uid": of.meta.uid}, "status": {"collisionCount": collisions}});
        self.rest.patch::<Ignored>(of.kind, &of.meta.key(), "status", PatchKind::Merge, &patch).await?;
        Err(error)
    }

    /// Deletes what is neither in use nor among those that are kept.
    pub async fn forget(
        &self,
        history: &History,
        in_use: &BTreeSet<&str>,
        limit: Option<i32>,
    ) -> Result<(), api::Error> {
        for one in history.surplus(in_use, limit) {
            let how = Delete::exactly(&one.metadata);
            let key = one.metadata.key();
            self.rest.delete::<Ignored>(ControllerRevision::KIND, &key, &how).await.absent_ok()?;
        }
        Ok(())
    }
}

fn not_seen(of: &Workload<'_>) -> api::Error {
    let what = format!("find the revision of {} {} that was just written", of.kind.kind, of.meta.key());
    let cause = std::io::Error::other("the watch has not shown it yet");
    api::Error { what, cause: kube::Error::Service(cause.into()) }
}

/// The workload of this kind whose revision the change is about.
pub(crate) fn owner<T: View>(change: &Change<'_, ControllerRevision>) -> Option<Key> {
    pods::controller::<T>(&change.object().metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(number: i64, image: &str) -> Arc<ControllerRevision> {
        let data = json!({"spec": {"template": {"$patch": "replace", "metadata": {"creationTimestamp": null},
            "spec": {"containers": [{"image": image}]}}}});
        let object = json!({"metadata": {"name": format!("r{number}")}, "revision": number, "data": data});
        Arc::new(serde_json::from_str(&object.to_string()).unwrap())
    }

    fn template(image: &str) -> Box<RawValue> {
        RawValue::from_string(json!({"spec": {"containers": [{"image": image}]}}).to_string()).unwrap()
    }

    #[test]
    fn a_template_is_known_by_what_it_says_and_the_newest_of_equals_counts() {
        let history = History::new(vec![revision(3, "a"), revision(1, "a"), revision(2, "b")]);
        assert_eq!(history.of_template(Some(&template("a"))).unwrap().revision, 3);
        assert_eq!(history.of_template(Some(&template("b"))).unwrap().revision, 2);
        assert!(history.of_template(Some(&template("c"))).is_none());
        assert_eq!((history.next(), History::default().next()), (4, 1));
    }

    #[test]
    fn what_is_in_use_stays_whatever_the_limit() {
        let history = History::new((1..=6).map(|number| revision(number, &number.to_string())).collect());
        let surplus = |in_use: &[&str], limit| -> Vec<i64> {
            let in_use = in_use.iter().copied().collect();
            history.surplus(&in_use, limit).iter().map(|one| one.revision).collect()
        };
        assert_eq!(surplus(&["r6"], Some(2)), [1, 2, 3]);
        assert_eq!(surplus(&["r6"], Some(0)), [1, 2, 3, 4, 5]);
        assert_eq!(surplus(&["r6", "r3"], Some(0)), [1, 2], "what is older than one in use goes first");
        assert_eq!(surplus(&["r6"], None), [0_i64; 0]);
    }
}
