//! `wctl cordon`, `uncordon`, `drain` and `node delete`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use futures::stream::{self, StreamExt as _};
use http::Method;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::{Api, refused};
use crate::command::duration;
use crate::resource::{Resource, Resources, is_true, name_of};
use crate::uri::{segment, with_query};
use crate::{Global, output, rollout};

/// An eviction that a budget refuses is tried again after this, as kubectl does.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);
/// So many pods are evicted at one time.
const AT_ONCE: usize = 16;

#[derive(clap::Args)]
pub struct Named {
    /// Names of the nodes
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(clap::Args)]
pub struct DrainOptions {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    how: How,
}

/// What may be lost, and how long it may take.
#[derive(clap::Args, Clone)]
struct How {
    /// Leave the pods of DaemonSets where they are
    #[arg(long)]
    ignore_daemonsets: bool,
    /// End pods although the data of their emptyDir volumes is lost
    #[arg(long)]
    delete_emptydir_data: bool,
    /// End pods that nobody makes again
    #[arg(long)]
    force: bool,
    /// Seconds that pods get to end; their own if none are given
    #[arg(long)]
    grace_period: Option<u32>,
    /// How long to wait until the pods are gone
    #[arg(long, default_value = "5m", value_parser = duration)]
    timeout: Duration,
}

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Drain a node, end its processes if they are of a cluster here, and delete it
    Delete(DrainOptions),
}

/// Lets no new pods onto the nodes, or lets them again.
pub async fn cordon(named: Named, unschedulable: bool, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    for node in &named.nodes {
        mark(&api, node, unschedulable).await?;
    }
    Ok(())
}

pub async fn drain(options: DrainOptions, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    for node in &options.named.nodes {
        empty(&api, node, &options.how).await?;
    }
    Ok(())
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let Command::Delete(options) = options.command;
    let api = Api::connect(global).await?;
    let here = local(&api, global);
    if let (Some(_), true) =
        (&here, options.named.nodes.iter().any(|node| *node == wharf_local::node_name(1)))
    {
        bail!("{} runs the cluster's control plane; `wctl down` ends all of it", wharf_local::node_name(1));
    }
    for node in &options.named.nodes {
        if is_true(&api.get(&path(node)).await?, "Ready") {
            empty(&api, node, &options.how).await?;
        } else {
            // Nobody there would confirm that a pod ended; the cluster deletes what is left of a node that is gone.
            output::line(&format!("node/{node} is not ready, and is not drained"));
        }
        if let Some(cluster) = &here {
            wharf_local::end_node(cluster, node)?;
        }
        api.call(Method::DELETE, &path(node), &[], Vec::new()).await?;
        output::line(&format!("node/{node} deleted"));
    }
    Ok(())
}

/// The cluster of this machine that the context speaks to, if it is one.
pub fn local(api: &Api, global: &Global) -> Option<wharf_local::Cluster> {
    let mut clusters = wharf_local::list(&global.layout()).into_iter();
    clusters.find(|cluster| cluster.runs() && cluster.url().is_some_and(|url| url == api.server))
}

fn path(node: &str) -> String {
    format!("/api/v1/nodes/{}", segment(node))
}

async fn mark(api: &Api, node: &str, unschedulable: bool) -> anyhow::Result<()> {
    let now = api.get(&path(node)).await?;
    let word = if unschedulable { "cordoned" } else { "uncordoned" };
    if now["spec"]["unschedulable"].as_bool().unwrap_or(false) == unschedulable {
        output::line(&format!("node/{node} already {word}"));
        return Ok(());
    }
    let value = if unschedulable { json!(true) } else { Value::Null };
    let patch = json!({"spec": {"unschedulable": value}}).to_string().into_bytes();
    api.call(Method::PATCH, &path(node), &[("content-type", "application/merge-patch+json")], patch).await?;
    output::line(&format!("node/{node} {word}"));
    Ok(())
}

/// What becomes of a pod of a node that is drained.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Evict,
    /// It is to stay, as kubectl says too.
    Stays(&'static str),
    /// It is in the way unless the flag is given.
    Needs(&'static str, &'static str),
}

/// Pure. The rules are kubectl's.
fn fate(pod: &Value, how: &How) -> Fate {
    let owner = pod["metadata"]["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|one| one["controller"] == true);
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let volumes = pod["spec"]["volumes"].as_array();
    if !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() {
        return Fate::Stays("is a mirror pod");
    }
    if owner.is_some_and(|owner| owner["kind"] == "DaemonSet") && !ended {
        return match how.ignore_daemonsets {
            true => Fate::Stays("is of a DaemonSet"),
            false => Fate::Needs("is of a DaemonSet", "--ignore-daemonsets"),
        };
    }
    if ended {
        return Fate::Evict;
    }
    if owner.is_none() && !how.force {
        return Fate::Needs("has no controller that makes it again", "--force");
    }
    if volumes.into_iter().flatten().any(|volume| !volume["emptyDir"].is_null()) && !how.delete_emptydir_data
    {
        return Fate::Needs("has data in an emptyDir volume", "--delete-emptydir-data");
    }
    Fate::Evict
}

fn of_pod(pod: &Value) -> (&str, &str) {
    (pod["metadata"]["namespace"].as_str().unwrap_or_default(), name_of(pod))
}

/// Cordons a node and evicts its pods; nothing is evicted if one of them is in the way.
async fn empty(api: &Api, node: &str, how: &How) -> anyhow::Result<()> {
    mark(api, node, true).await?;
    let field = format!("spec.nodeName={node}");
    let list = api.get(&with_query("/api/v1/pods", [("fieldSelector", field.as_str())])).await?;
    let pods: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
    let fates: Vec<(&Value, Fate)> = pods.into_iter().map(|pod| (pod, fate(pod, how))).collect();
    let in_the_way: Vec<String> = fates
        .iter()
        .filter_map(|(pod, fate)| match fate {
            Fate::Needs(why, flag) => {
                let (namespace, name) = of_pod(pod);
                Some(format!("pod {namespace}/{name} {why}; use {flag}"))
            }
            _ => None,
        })
        .collect();
    if !in_the_way.is_empty() {
        bail!("node {node:?} is cordoned and was not drained:\n  {}", in_the_way.join("\n  "));
    }
    for (pod, fate) in &fates {
        if let Fate::Stays(why) = fate {
            let (namespace, name) = of_pod(pod);
            output::line(&format!("pod/{name} -n {namespace} stays: it {why}"));
        }
    }
    let leaving: Vec<&Value> =
        fates.iter().filter(|(_, fate)| *fate == Fate::Evict).map(|(pod, _)| *pod).collect();
    let resources = Resources::discover(api).await?;
    let kind = resources.of("v1", "Pod")?;
    let until = Instant::now() + how.timeout;
    let bar = output::spinner(format!("draining {node}"));
    let total = leaving.len();
    let mut going =
        stream::iter(leaving).map(|pod| evict(api, kind, pod, how, until, &bar)).buffer_unordered(AT_ONCE);
    let (mut gone, mut failed) = (0, Vec::new());
    while let Some(done) = going.next().await {
        match done {
            Ok(line) => {
                gone += 1;
                bar.set_message(format!("draining {node}: {gone} of {total} pods are gone"));
                bar.suspend(|| output::line(&line));
            }
            Err(error) => failed.push(output::describe(&error)),
        }
    }
    bar.finish_and_clear();
    if !failed.is_empty() {
        bail!("node {node:?} was not drained:\n  {}", failed.join("\n  "));
    }
    output::line(&format!("node/{node} drained"));
    Ok(())
}

/// Evicts a pod and waits until it is gone.
async fn evict(
    api: &Api,
    kind: &Resource,
    pod: &Value,
    how: &How,
    until: Instant,
    bar: &ProgressBar,
) -> anyhow::Result<String> {
    let (namespace, name) = of_pod(pod);
    let path = format!("{}/eviction", kind.object(namespace, name));
    let mut options = json!({"preconditions": {"uid": pod["metadata"]["uid"]}});
    if let Some(seconds) = how.grace_period {
        options["gracePeriodSeconds"] = seconds.into();
    }
    let body = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace}, "deleteOptions": options,
    })
    .to_string()
    .into_bytes();
    let headers = [("content-type", "application/json")];
    loop {
        let refusal = match api.send(Method::POST, &path, &headers, body.clone().into()).await {
            Ok(_) => break,
            // It is gone already, or another pod has its name now.
            Err(error) if refused(&error).is_some_and(|no| matches!(no.code, 404 | 409)) => {
                return Ok(format!("pod/{name} -n {namespace} is gone"));
            }
            Err(error) if refused(&error).is_some_and(|no| no.code == 429) => {
                // As kubectl tells it, at each try.
                bar.suspend(|| {
                    eprintln!(
                        "error when evicting pods/{name:?} -n {namespace:?} (will retry after {}s): {error}",
                        REFUSED_AGAIN.as_secs()
                    );
                });
                error
            }
            Err(error) => return Err(error.context(format!("pod {namespace}/{name}"))),
        };
        if Instant::now() + REFUSED_AGAIN > until {
            return Err(refusal.context(format!("pod {namespace}/{name} was not evicted in time")));
        }
        tokio::time::sleep(REFUSED_AGAIN).await;
    }
    let left = until.saturating_duration_since(Instant::now());
    rollout::gone(api, kind, namespace, name, left)
        .await
        .with_context(|| format!("pod {namespace}/{name} did not end"))?;
    Ok(format!("pod/{name} -n {namespace} evicted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_lost_is_asked_for_first() {
        let none = How {
            ignore_daemonsets: false,
            delete_emptydir_data: false,
            force: false,
            grace_period: None,
            timeout: Duration::ZERO,
        };
        let all = How { ignore_daemonsets: true, delete_emptydir_data: true, force: true, ..none.clone() };
        let owned = |kind: &str| json!({"ownerReferences": [{"kind": kind, "controller": true}]});
        let set = owned("ReplicaSet");
        let needs = |pod: &Value| match fate(pod, &none) {
            Fate::Needs(_, flag) => flag,
            Fate::Evict => "nothing",
            Fate::Stays(_) => "to stay",
        };
        for (pod, expected, with_all) in [
            (json!({"metadata": set}), "nothing", Fate::Evict),
            (json!({"metadata": {}}), "--force", Fate::Evict),
            (json!({"metadata": {}, "status": {"phase": "Succeeded"}}), "nothing", Fate::Evict),
            (
                json!({"metadata": owned("DaemonSet")}),
                "--ignore-daemonsets",
                Fate::Stays("is of a DaemonSet"),
            ),
            (
                json!({"metadata": set, "spec": {"volumes": [{"configMap": {}}, {"emptyDir": {}}]}}),
                "--delete-emptydir-data",
                Fate::Evict,
            ),
            (
                json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
                "to stay",
                Fate::Stays("is a mirror pod"),
            ),
        ] {
            assert_eq!(needs(&pod), expected, "{pod}");
            assert_eq!(fate(&pod, &all), with_all, "{pod}");
        }
    }
}
