//! How far an object is, read from its status. The words are those of `kubectl rollout status`.

use serde_json::Value;

use crate::resource::{is_true, name_of};

/// How far an object is.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Its kind has no progress of its own.
    There,
    Done(String),
    /// What is still missing.
    Going(String),
    /// It will not come about by itself.
    Failed(String),
}

/// Pure.
pub fn progress(kind: &str, object: &Value) -> Progress {
    match kind {
        "Deployment" => deployment(object),
        "DaemonSet" => daemon_set(object),
        "StatefulSet" => stateful_set(object),
        "Pod" => pod(object),
        "Namespace" if object["status"]["phase"] == "Terminating" => {
            Progress::Going("is being deleted".to_owned())
        }
        _ => Progress::There,
    }
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// Whether the status tells of an older spec.
fn is_behind(object: &Value) -> bool {
    number(&object["metadata"]["generation"]) > number(&object["status"]["observedGeneration"])
}

/// Whether new pods take the place of old ones by themselves, in a DaemonSet or a StatefulSet.
pub fn rolls(object: &Value) -> bool {
    object["spec"]["updateStrategy"]["type"] != "OnDelete"
}

fn deployment(object: &Value) -> Progress {
    let (name, spec, status) = (name_of(object), &object["spec"], &object["status"]);
    if is_behind(object) {
        return Progress::Going("Waiting for deployment spec update to be observed...".to_owned());
    }
    let conditions = status["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    if conditions.any(|one| one["type"] == "Progressing" && one["reason"] == "ProgressDeadlineExceeded") {
        return Progress::Failed(format!("deployment {name:?} exceeded its progress deadline"));
    }
    let want = spec["replicas"].as_i64().unwrap_or(1);
    let (updated, total, available) = (
        number(&status["updatedReplicas"]),
        number(&status["replicas"]),
        number(&status["availableReplicas"]),
    );
    let missing = if updated < want {
        format!("{updated} out of {want} new replicas have been updated...")
    } else if total > updated {
        format!("{} old replicas are pending termination...", total - updated)
    } else if available < updated {
        format!("{available} of {updated} updated replicas are available...")
    } else {
        return Progress::Done(format!("deployment {name:?} successfully rolled out"));
    };
    Progress::Going(format!("Waiting for deployment {name:?} rollout to finish: {missing}"))
}

fn daemon_set(object: &Value) -> Progress {
    let (name, status) = (name_of(object), &object["status"]);
    if is_behind(object) {
        return Progress::Going("Waiting for daemon set spec update to be observed...".to_owned());
    }
    let (want, updated, available) = (
        number(&status["desiredNumberScheduled"]),
        number(&status["updatedNumberScheduled"]),
        number(&status["numberAvailable"]),
    );
    let missing = if rolls(object) && updated < want {
        format!("{updated} out of {want} new pods have been updated...")
    } else if available < want {
        format!("{available} of {want} updated pods are available...")
    } else {
        return Progress::Done(format!("daemon set {name:?} successfully rolled out"));
    };
    Progress::Going(format!("Waiting for daemon set {name:?} rollout to finish: {missing}"))
}

fn stateful_set(object: &Value) -> Progress {
    let (spec, status) = (&object["spec"], &object["status"]);
    let going = |text: String| Progress::Going(text);
    if is_behind(object) {
        return going("Waiting for statefulset spec update to be observed...".to_owned());
    }
    let want = spec["replicas"].as_i64().unwrap_or(1);
    let (ready, updated) = (number(&status["readyReplicas"]), number(&status["updatedReplicas"]));
    if ready < want {
        return going(format!("Waiting for {} pods to be ready...", want - ready));
    }
    if let Some(partition) = spec["updateStrategy"]["rollingUpdate"]["partition"].as_i64() {
        let new = want - partition;
        return if updated < new {
            going(format!(
                "Waiting for partitioned roll out to finish: {updated} out of {new} new pods have been updated..."
            ))
        } else {
            Progress::Done(format!("partitioned roll out complete: {updated} new pods have been updated..."))
        };
    }
    let revision = status["updateRevision"].as_str().unwrap_or_default();
    if rolls(object) && status["updateRevision"] != status["currentRevision"] {
        return going(format!(
            "waiting for statefulset rolling update to complete {updated} pods at revision {revision}..."
        ));
    }
    let current = number(&status["currentReplicas"]);
    Progress::Done(format!("statefulset rolling update complete {current} pods at revision {revision}..."))
}

fn pod(object: &Value) -> Progress {
    match object["status"]["phase"].as_str() {
        Some("Succeeded") => return Progress::Done(format!("pod/{} succeeded", name_of(object))),
        Some("Failed") => {
            return Progress::Failed(format!("failed: {}", trouble(object).unwrap_or_default()));
        }
        _ => {}
    }
    if is_true(object, "Ready") {
        return Progress::Done(format!("pod/{} is ready", name_of(object)));
    }
    Progress::Going(trouble(object).unwrap_or_else(|| "is not ready".to_owned()))
}

/// What a pod itself says is wrong with it.
pub fn trouble(pod: &Value) -> Option<String> {
    let statuses = ["initContainerStatuses", "containerStatuses"]
        .iter()
        .flat_map(|list| pod["status"][list].as_array())
        .flatten();
    for status in statuses {
        let name = status["name"].as_str().unwrap_or_default();
        for state in
            [&status["state"]["waiting"], &status["state"]["terminated"], &status["lastState"]["terminated"]]
        {
            let reason = state["reason"].as_str().unwrap_or_default();
            if !["", "ContainerCreating", "PodInitializing", "Completed"].contains(&reason) {
                let message = state["message"].as_str().unwrap_or_default();
                let first = message.lines().next().unwrap_or_default();
                return Some(format!(
                    "container {name}: {reason}{}{first}",
                    if first.is_empty() { "" } else { ": " }
                ));
            }
        }
    }
    let conditions = pod["status"]["conditions"].as_array()?;
    let unscheduled = conditions.iter().find(|c| c["type"] == "PodScheduled" && c["status"] == "False")?;
    Some(unscheduled["message"].as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The word that tells how it goes, and the text.
    fn told(kind: &str, object: &Value) -> String {
        match progress(kind, object) {
            Progress::There => "there".to_owned(),
            Progress::Done(text) => format!("done: {text}"),
            Progress::Going(text) => format!("going: {text}"),
            Progress::Failed(text) => format!("failed: {text}"),
        }
    }

    #[test]
    fn a_deployment_is_done_when_every_replica_is_new_and_available() {
        let with = |observed: i64, updated: i64, total: i64, available: i64| {
            let object = json!({
                "metadata": {"name": "web", "generation": 2}, "spec": {"replicas": 2},
                "status": {"observedGeneration": observed, "updatedReplicas": updated, "replicas": total,
                    "availableReplicas": available},
            });
            told("Deployment", &object)
        };
        let finish = |what: &str| format!("going: Waiting for deployment \"web\" rollout to finish: {what}");
        assert_eq!(with(1, 2, 2, 2), "going: Waiting for deployment spec update to be observed...");
        assert_eq!(with(2, 1, 2, 2), finish("1 out of 2 new replicas have been updated..."));
        assert_eq!(with(2, 2, 3, 2), finish("1 old replicas are pending termination..."));
        assert_eq!(with(2, 2, 2, 1), finish("1 of 2 updated replicas are available..."));
        assert_eq!(with(2, 2, 2, 2), "done: deployment \"web\" successfully rolled out");
        let late = json!({"metadata": {"name": "web"}, "status": {"conditions": [
            {"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]}});
        assert_eq!(told("Deployment", &late), "failed: deployment \"web\" exceeded its progress deadline");
    }

    #[test]
    fn a_daemon_set_is_done_when_each_of_its_nodes_has_a_new_and_available_pod() {
        let with = |observed: i64, updated: i64, available: i64, strategy: &str| {
            let object = json!({
                "metadata": {"name": "each", "generation": 2}, "spec": {"updateStrategy": {"type": strategy}},
                "status": {"observedGeneration": observed, "desiredNumberScheduled": 3,
                    "updatedNumberScheduled": updated, "numberAvailable": available},
            });
            told("DaemonSet", &object)
        };
        let finish = |what: &str| format!("going: Waiting for daemon set \"each\" rollout to finish: {what}");
        assert_eq!(
            with(1, 3, 3, "RollingUpdate"),
            "going: Waiting for daemon set spec update to be observed..."
        );
        assert_eq!(with(2, 1, 3, "RollingUpdate"), finish("1 out of 3 new pods have been updated..."));
        assert_eq!(with(2, 3, 2, "RollingUpdate"), finish("2 of 3 updated pods are available..."));
        assert_eq!(with(2, 3, 3, "RollingUpdate"), "done: daemon set \"each\" successfully rolled out");
        assert_eq!(with(2, 0, 3, "OnDelete"), "done: daemon set \"each\" successfully rolled out");
    }

    #[test]
    fn a_stateful_set_is_done_when_all_pods_are_ready_and_those_above_the_partition_new() {
        let with = |ready: i64, updated: i64, strategy: Value, new: &str| {
            let object = json!({
                "metadata": {"name": "named", "generation": 1},
                "spec": {"replicas": 3, "updateStrategy": strategy},
                "status": {"observedGeneration": 1, "readyReplicas": ready, "updatedReplicas": updated,
                    "currentReplicas": 3, "currentRevision": "named-a", "updateRevision": new},
            });
            told("StatefulSet", &object)
        };
        let part =
            |partition: i64| json!({"type": "RollingUpdate", "rollingUpdate": {"partition": partition}});
        assert_eq!(with(1, 3, part(0), "named-a"), "going: Waiting for 2 pods to be ready...");
        assert_eq!(
            with(3, 1, part(0), "named-b"),
            "going: Waiting for partitioned roll out to finish: 1 out of 3 new pods have been updated..."
        );
        let complete = "done: partitioned roll out complete: 1 new pods have been updated...";
        assert_eq!(with(3, 1, part(2), "named-b"), complete);
        let whole = json!({"type": "RollingUpdate"});
        assert_eq!(
            with(3, 1, whole.clone(), "named-b"),
            "going: waiting for statefulset rolling update to complete 1 pods at revision named-b..."
        );
        let complete = "done: statefulset rolling update complete 3 pods at revision named-a...";
        assert_eq!(with(3, 3, whole, "named-a"), complete);
    }

    #[test]
    fn a_pod_tells_its_trouble_in_the_registrys_words() {
        let pod = json!({"status": {"containerStatuses": [{"name": "c", "state": {"waiting":
            {"reason": "ImagePullBackOff", "message": "manifest unknown\nmore"}}}]}});
        assert_eq!(trouble(&pod).unwrap(), "container c: ImagePullBackOff: manifest unknown");
    }
}
