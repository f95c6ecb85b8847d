//! Whether what was applied has come about, and what keeps it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use http::Request;
use serde_json::Value;

use crate::api::{Api, is_missing};
use crate::output;
use crate::resource::{Resource, is_true};
use crate::uri::{self, with_query};

/// How far an object is.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    Done(String),
    /// What is still missing.
    Going(String),
    /// It will not come about by itself.
    Failed(String),
}

/// Reads an object's progress from its status. Kinds without any are done as they are.
pub fn progress(kind: &str, object: &Value) -> Progress {
    match kind {
        "Deployment" => deployment(object),
        "Pod" => pod(object),
        "Namespace" if object["status"]["phase"] == "Terminating" => {
            Progress::Going("is being deleted".to_owned())
        }
        _ => Progress::Done("is there".to_owned()),
    }
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn deployment(object: &Value) -> Progress {
    let (spec, status) = (&object["spec"], &object["status"]);
    if number(&object["metadata"]["generation"]) > number(&status["observedGeneration"]) {
        return Progress::Going("waits for the controller".to_owned());
    }
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    if let Some(late) =
        conditions.iter().find(|c| c["type"] == "Progressing" && c["reason"] == "ProgressDeadlineExceeded")
    {
        return Progress::Failed(
            late["message"].as_str().unwrap_or("exceeded its progress deadline").to_owned(),
        );
    }
    let want = spec["replicas"].as_i64().unwrap_or(1);
    let (updated, total, available) = (
        number(&status["updatedReplicas"]),
        number(&status["replicas"]),
        number(&status["availableReplicas"]),
    );
    if updated < want {
        return Progress::Going(format!("{updated} of {want} new replicas made"));
    }
    if total > updated {
        return Progress::Going(format!("{} old replicas still to end", total - updated));
    }
    if available < updated {
        return Progress::Going(format!("{available} of {updated} replicas available"));
    }
    Progress::Done(format!("{available} of {want} replicas available"))
}

fn pod(object: &Value) -> Progress {
    match object["status"]["phase"].as_str() {
        Some("Succeeded") => return Progress::Done("succeeded".to_owned()),
        Some("Failed") => {
            return Progress::Failed(format!("failed: {}", trouble(object).unwrap_or_default()));
        }
        _ => {}
    }
    if is_true(object, "Ready") {
        return Progress::Done("is ready".to_owned());
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

/// Follows an object until it has come about.
///
/// # Errors
/// What keeps it, when it fails or `timeout` has passed.
pub async fn wait(
    api: &Api,
    resource: &Resource,
    namespace: &str,
    name: &str,
    timeout: Duration,
) -> anyhow::Result<String> {
    let label = format!("{}/{name}", resource.name());
    let bar = output::spinner(format!("{label} …"));
    let mut last = "was not seen".to_owned();
    let followed = tokio::time::timeout(
        timeout,
        follow(api, resource, namespace, name, |progress| {
            if let Progress::Going(missing) = progress {
                bar.set_message(format!("{label}: {missing}"));
                missing.clone_into(&mut last);
            }
        }),
    )
    .await;
    bar.finish_and_clear();
    match followed {
        Ok(done) => done,
        Err(_) => {
            let why = pods_trouble(api, resource, namespace, name).await.unwrap_or(last);
            bail!("{label} did not come about within {} s: {why}", timeout.as_secs())
        }
    }
}

/// Watches the objects at `path`, those that are there first, until `found` finds something in one. Cancel-safe.
pub async fn until<T>(
    api: &Api,
    path: &str,
    mut found: impl FnMut(&Value) -> Option<T>,
) -> anyhow::Result<T> {
    loop {
        let request = Request::get(with_query(path, [("watch", "true")])).body(Vec::new())?;
        let stream = api.client.request_stream(request).await.map_err(crate::api::unreachable)?;
        let mut lines = std::pin::pin!(stream.lines());
        while let Some(line) = lines.try_next().await? {
            let event: Value = serde_json::from_str(&line).context("the watch sent what is not JSON")?;
            match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => {}
                Some("DELETED") => continue,
                _ => break, // an error: watch anew
            }
            if let Some(found) = found(&event["object"]) {
                return Ok(found);
            }
        }
    }
}

async fn follow(
    api: &Api,
    resource: &Resource,
    namespace: &str,
    name: &str,
    mut tell: impl FnMut(&Progress),
) -> anyhow::Result<String> {
    loop {
        let path = with_query(&resource.list_of(namespace, name), [("watch", "true")]);
        let request = Request::get(path).body(Vec::new())?;
        let mut lines = std::pin::pin!(
            api.client.request_stream(request).await.map_err(crate::api::unreachable)?.lines()
        );
        while let Some(line) = lines.try_next().await? {
            let event: Value = serde_json::from_str(&line).context("the watch sent what is not JSON")?;
            match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => {}
                Some("DELETED") => bail!("{}/{name} was deleted", resource.name()),
                _ => break, // an error: watch anew
            }
            let progress = progress(&resource.kind, &event["object"]);
            tell(&progress);
            match progress {
                Progress::Done(text) => return Ok(text),
                Progress::Failed(why) => {
                    let why = pods_trouble(api, resource, namespace, name).await.unwrap_or(why);
                    bail!("{}/{name}: {why}", resource.name())
                }
                Progress::Going(_) => {}
            }
        }
    }
}

/// What the pods behind a workload say is wrong.
async fn pods_trouble(api: &Api, resource: &Resource, namespace: &str, name: &str) -> Option<String> {
    let object = api.get(&resource.object(namespace, name)).await.ok()?;
    let labels = object["spec"]["selector"]["matchLabels"].as_object()?;
    let pods = api.pods(namespace, &uri::selector(labels)).await.ok()?;
    pods["items"]
        .as_array()?
        .iter()
        .find_map(|pod| Some(format!("pod {}: {}", crate::resource::name_of(pod), trouble(pod)?)))
}

/// Waits until an object is gone.
pub async fn gone(
    api: &Api,
    resource: &Resource,
    namespace: &str,
    name: &str,
    timeout: Duration,
) -> anyhow::Result<()> {
    let label = format!("{}/{name}", resource.name());
    let bar = output::spinner(format!("{label} ends …"));
    let wait = async {
        loop {
            let list = api.get(&resource.list_of(namespace, name)).await?;
            if list["items"].as_array().is_none_or(Vec::is_empty) {
                return anyhow::Ok(());
            }
            let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            let path = with_query(
                &resource.list_of(namespace, name),
                [("watch", "true"), ("resourceVersion", version)],
            );
            let stream = api
                .client
                .request_stream(Request::get(path).body(Vec::new())?)
                .await
                .map_err(crate::api::unreachable)?;
            let mut lines = std::pin::pin!(stream.lines());
            while let Some(line) = lines.try_next().await? {
                let event: Value = serde_json::from_str(&line)?;
                if event["type"] == "DELETED" {
                    return Ok(());
                }
                if event["type"] == "ERROR" {
                    break;
                }
            }
        }
    };
    let done = tokio::time::timeout(timeout, wait).await;
    bar.finish_and_clear();
    match done {
        Ok(Err(error)) if is_missing(&error) => Ok(()),
        Ok(done) => done,
        Err(_) => bail!("{label} was not gone after {} s; finalizers may keep it", timeout.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_deployment_is_done_when_every_replica_is_new_and_available() {
        let with = |observed: i64, updated: i64, total: i64, available: i64| {
            json!({"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": {"observedGeneration": observed,
                "updatedReplicas": updated, "replicas": total, "availableReplicas": available}})
        };
        assert!(matches!(deployment(&with(1, 2, 2, 2)), Progress::Going(_)), "an old status tells nothing");
        assert!(matches!(deployment(&with(2, 1, 2, 2)), Progress::Going(_)));
        assert!(matches!(deployment(&with(2, 2, 3, 2)), Progress::Going(_)));
        assert!(matches!(deployment(&with(2, 2, 2, 1)), Progress::Going(_)));
        assert!(matches!(deployment(&with(2, 2, 2, 2)), Progress::Done(_)));
    }

    #[test]
    fn a_pod_tells_its_trouble_in_the_registrys_words() {
        let pod = json!({"status": {"containerStatuses": [{"name": "c", "state": {"waiting":
            {"reason": "ImagePullBackOff", "message": "manifest unknown\nmore"}}}]}});
        assert_eq!(trouble(&pod).unwrap(), "container c: ImagePullBackOff: manifest unknown");
    }
}
