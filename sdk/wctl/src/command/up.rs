//! `wctl up`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;
use wharf_local::Phase;

use crate::api::Api;
use crate::command::duration;
use crate::resource::{Resource, name_of};
use crate::{Global, output, rollout};

#[derive(clap::Args)]
pub struct Options {
    /// Name of the cluster
    #[arg(default_value = "dev")]
    name: String,
    /// Port of 127.0.0.1 for the API; the one of the last time, or a free one, if none is given
    #[arg(long)]
    port: Option<u16>,
    /// Give the cluster no way out of its own network
    #[arg(long)]
    isolated: bool,
    /// The `wharf` program to run
    #[arg(long, env = "WHARF_BIN")]
    wharf: Option<PathBuf>,
    /// How long to wait for the node
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let cluster = global.layout().cluster(&options.name)?;
    let start = Instant::now();
    let bar = output::spinner("starting");
    let how = wharf_local::Options { port: options.port, isolated: options.isolated, wharf: options.wharf };
    let started = wharf_local::up(&cluster, &how, |phase| {
        bar.set_message(match phase {
            Phase::Namespaces => "making the cluster's network",
            Phase::Shim => "starting the container runtime",
            Phase::Server => "starting the control plane",
        });
    });
    bar.finish_and_clear();
    started?;
    let api_after = start.elapsed();
    let kubeconfig = wharf_local::merge(&cluster)?;
    let global = Global { context: Some(cluster.context()), ..global.clone() };
    let api = Api::connect(&global).await?;
    let node = wait_for_node(&api, options.timeout).await?;
    let ready_after = start.elapsed();
    let name = &cluster.name;
    output::line(&format!(
        "cluster {name:?} is ready after {:.2} s (its API after {:.2} s)\n\n\
         node         {node}\n\
         API          {}\n\
         kubeconfig   {}, context {}\n\
         data         {}\n\
         logs         {}\n\n\
         next:  wctl image push app.wasm app:1     makes registry.wharf/app:1 of a component\n\
         \x20      wctl apply -f FILE|FOLDER --wait   runs what it says\n\
         \x20      wctl get pods -A                   shows what runs (kubectl and Helm work too)\n\
         \x20      wctl down {name}                      ends it; `wctl up {name}` goes on with its data",
        ready_after.as_secs_f64(),
        api_after.as_secs_f64(),
        cluster.url().unwrap_or_default(),
        kubeconfig.display(),
        cluster.context(),
        cluster.data.display(),
        cluster.logs().display(),
    ));
    Ok(())
}

/// Waits until one node is Ready, by a watch, and tells its name.
async fn wait_for_node(api: &Api, timeout: Duration) -> anyhow::Result<String> {
    use futures::{AsyncBufReadExt as _, TryStreamExt as _};
    let bar = output::spinner("waiting for the node");
    let watch = async {
        loop {
            let request = http::Request::get("/api/v1/nodes?watch=true").body(Vec::new())?;
            let stream = api.client.request_stream(request).await.map_err(crate::api::unreachable)?;
            let mut lines = std::pin::pin!(stream.lines());
            while let Some(line) = lines.try_next().await? {
                let event: serde_json::Value = serde_json::from_str(&line)?;
                let node = &event["object"];
                let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
                if conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True") {
                    return anyhow::Ok(name_of(node).to_owned());
                }
                if let Some(why) =
                    conditions.iter().find(|c| c["type"] == "Ready").and_then(|c| c["message"].as_str())
                {
                    bar.set_message(format!("waiting for the node: {why}"));
                }
            }
        }
    };
    let node = tokio::time::timeout(timeout, watch).await;
    bar.finish_and_clear();
    let Ok(node) = node else {
        bail!("the node was not ready after {} s; see the logs that `wctl status` names", timeout.as_secs())
    };
    let node = node?;
    // The first pod needs its namespace's service account.
    let account = Resource {
        group: String::new(),
        version: "v1".into(),
        kind: "ServiceAccount".into(),
        plural: "serviceaccounts".into(),
        singular: "serviceaccount".into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced: true,
    };
    rollout::wait(api, &account, "default", "default", timeout).await?;
    Ok(node)
}
