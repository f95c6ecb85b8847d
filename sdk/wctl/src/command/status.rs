//! `wctl status`.

use crate::api::Api;
use crate::resource::{is_true, name_of};
use crate::{Global, output};

#[derive(clap::Args)]
pub struct Options {}

pub async fn run(_: Options, global: &Global) -> anyhow::Result<()> {
    let clusters = wharf_local::list(&global.layout());
    if clusters.is_empty() {
        output::line("no cluster on this machine; `wctl up` starts one");
    } else {
        let mut rows = vec![["CLUSTER", "STATE", "API", "DATA"].map(str::to_owned).to_vec()];
        rows.extend(clusters.iter().map(|cluster| {
            let state = if cluster.runs() { "running" } else { "down" };
            vec![
                cluster.name.clone(),
                state.to_owned(),
                cluster.url().unwrap_or_default(),
                cluster.data.display().to_string(),
            ]
        }));
        output::columns(&rows).iter().for_each(|row| output::line(row));
    }
    let running = clusters.iter().any(|cluster| cluster.runs());
    if !running && global.context.is_none() {
        return Ok(());
    }
    let api = Api::connect(global).await?;
    let (nodes, pods) = (api.get("/api/v1/nodes").await?, api.get("/api/v1/pods").await?);
    let empty = Vec::new();
    let pods = pods["items"].as_array().unwrap_or(&empty);
    output::line("");
    for node in nodes["items"].as_array().unwrap_or(&empty) {
        let ready = is_true(node, "Ready");
        let here: Vec<_> =
            pods.iter().filter(|pod| pod["spec"]["nodeName"].as_str() == Some(name_of(node))).collect();
        let good = here.iter().filter(|pod| is_true(pod, "Ready")).count();
        let state = if ready { "Ready" } else { "NotReady" };
        output::line(&format!("node {}: {state}, {good} of {} pods ready", name_of(node), here.len()));
    }
    let waiting = pods.iter().filter(|pod| pod["spec"]["nodeName"].is_null()).count();
    if waiting > 0 {
        output::line(&format!("{waiting} pods wait for a node"));
    }
    Ok(())
}
