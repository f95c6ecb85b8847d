//! Following objects: until what was applied has come about, until something is seen, until they are gone.

use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use http::Request;
use serde_json::Value;

use crate::api::{Api, is_missing};
use crate::output;
use crate::progress::{Progress, progress, trouble};
use crate::resource::Resource;
use crate::uri::{self, with_query};

/// Follows an object until it has come about, and gives what tells so; nothing for kinds without a progress. `tell` gets
/// each thing that is still missing.
///
/// # Errors
/// What keeps it, when it fails or `timeout` has passed.
pub async fn wait(
    api: &Api,
    resource: &Resource,
    namespace: &str,
    name: &str,
    timeout: Duration,
    mut tell: impl FnMut(&str),
) -> anyhow::Result<Option<String>> {
    let label = format!("{}/{name}", resource.name());
    let bar = output::spinner(format!("{label} …"));
    let mut last = "was not seen".to_owned();
    let followed = tokio::time::timeout(
        timeout,
        follow(api, resource, namespace, name, |missing| {
            if missing != last {
                bar.suspend(|| tell(missing));
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
    mut tell: impl FnMut(&str),
) -> anyhow::Result<Option<String>> {
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
            match progress(&resource.kind, &event["object"]) {
                Progress::There => return Ok(None),
                Progress::Done(text) => return Ok(Some(text)),
                Progress::Failed(what) => {
                    let why = pods_trouble(api, resource, namespace, name).await;
                    bail!(
                        "{}/{name}: {what}{}",
                        resource.name(),
                        why.map(|why| format!(": {why}")).unwrap_or_default()
                    )
                }
                Progress::Going(missing) => tell(&missing),
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
