//! The templates that a workload had: ReplicaSets keep a Deployment's, ControllerRevisions a DaemonSet's and a
//! StatefulSet's.

use serde_json::{Value, json};

use crate::api::Api;
use crate::resource::{Resource, Resources};

const REVISION: &str = "deployment.kubernetes.io/revision";
const HASH: &str = "pod-template-hash";
/// Why a change was made, as people write it.
pub const CAUSE: &str = "kubernetes.io/change-cause";

/// A template that a workload had, or has.
#[derive(Debug, PartialEq)]
pub struct Revision {
    pub number: u64,
    /// Why it was made.
    pub cause: Option<String>,
    /// The pod template.
    pub template: Value,
}

/// Kinds whose templates are kept.
pub fn is_kept(kind: &str) -> bool {
    matches!(kind, "Deployment" | "DaemonSet" | "StatefulSet")
}

/// All that is kept of `object`, oldest first.
pub async fn of(
    api: &Api,
    resources: &Resources,
    resource: &Resource,
    object: &Value,
) -> anyhow::Result<Vec<Revision>> {
    let (kind, read): (_, fn(&Value) -> Revision) = match resource.kind.as_str() {
        "Deployment" => ("ReplicaSet", of_set),
        _ => ("ControllerRevision", of_revision),
    };
    let list = api.get(&resources.of("apps/v1", kind)?.path(Some(&api.namespace))).await?;
    let uid = &object["metadata"]["uid"];
    let owners = |kept: &Value| kept["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
    let is_own = |kept: &&Value| owners(kept).iter().any(|owner| owner["uid"] == *uid);
    let mut all: Vec<Revision> =
        list["items"].as_array().into_iter().flatten().filter(is_own).map(read).collect();
    all.sort_by_key(|revision| revision.number);
    Ok(all)
}

fn cause(kept: &Value) -> Option<String> {
    kept["metadata"]["annotations"][CAUSE].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn of_set(set: &Value) -> Revision {
    let number = set["metadata"]["annotations"][REVISION].as_str().and_then(|text| text.parse().ok());
    let mut template = set["spec"]["template"].clone();
    remove(&mut template, "/metadata/labels", HASH);
    Revision { number: number.unwrap_or(0), cause: cause(set), template }
}

fn of_revision(revision: &Value) -> Revision {
    let mut template = revision["data"]["spec"]["template"].clone();
    remove(&mut template, "", "$patch"); // it is kept as a patch that replaces
    Revision { number: revision["revision"].as_u64().unwrap_or(0), cause: cause(revision), template }
}

fn remove(value: &mut Value, pointer: &str, field: &str) {
    if let Some(fields) = value.pointer_mut(pointer).and_then(Value::as_object_mut) {
        fields.remove(field);
    }
}

/// Which revision an undo goes back to: the one before, or that with the number `to`. In kubectl's words.
///
/// # Errors
/// If there is none.
pub fn earlier<'a>(all: &'a [Revision], what: &str, to: Option<u64>) -> anyhow::Result<&'a Revision> {
    match to {
        Some(to) => all
            .iter()
            .find(|revision| revision.number == to)
            .ok_or_else(|| anyhow::anyhow!("unable to find specified revision {to} in history")),
        None => all
            .len()
            .checked_sub(2)
            .map(|before| &all[before])
            .ok_or_else(|| anyhow::anyhow!("no rollout history found for {what}")),
    }
}

/// A JSON patch that puts `revision` in the place of what `object` has, if its spec is still the one that was read.
pub fn put_back(object: &Value, revision: &Revision) -> Value {
    let mut steps = vec![
        // Not of the object's version: its status may change meanwhile.
        json!({"op": "test", "path": "/metadata/generation", "value": object["metadata"]["generation"]}),
        json!({"op": "replace", "path": "/spec/template", "value": revision.template}),
    ];
    let annotations = &object["metadata"]["annotations"];
    let path = format!("/metadata/annotations/{}", CAUSE.replace('/', "~1"));
    match &revision.cause {
        Some(cause) if annotations.is_object() => {
            steps.push(json!({"op": "add", "path": path, "value": cause}));
        }
        None if annotations[CAUSE].is_string() => steps.push(json!({"op": "remove", "path": path})),
        _ => {}
    }
    Value::Array(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_read_without_what_keeping_them_added() {
        let set = json!({
            "metadata": {"annotations": {REVISION: "3", CAUSE: "faster"}},
            "spec": {"template": {"metadata": {"labels": {"app": "web", HASH: "abc"}}, "spec": {"a": 1}}},
        });
        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"a": 1}});
        let cause = Some("faster".to_owned());
        assert_eq!(of_set(&set), Revision { number: 3, cause, template: template.clone() });
        let mut kept = template.clone();
        kept["$patch"] = json!("replace");
        let revision = json!({"metadata": {}, "revision": 2, "data": {"spec": {"template": kept}}});
        assert_eq!(of_revision(&revision), Revision { number: 2, cause: None, template });
    }

    #[test]
    fn an_undo_goes_to_the_revision_before_or_to_the_one_asked_for() {
        let revision = |number| Revision { number, cause: None, template: Value::Null };
        let all = [revision(1), revision(4), revision(5)];
        assert_eq!(earlier(&all, "web", None).unwrap().number, 4);
        assert_eq!(earlier(&all, "web", Some(1)).unwrap().number, 1);
        let words = |found: anyhow::Result<&Revision>| found.unwrap_err().to_string();
        assert_eq!(words(earlier(&all, "web", Some(9))), "unable to find specified revision 9 in history");
        assert_eq!(words(earlier(&all[..1], "web", None)), "no rollout history found for web");
        assert_eq!(words(earlier(&[], "web", None)), "no rollout history found for web");
    }
}
