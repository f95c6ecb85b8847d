//! `wctl rollout`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use crate::api::Api;
use crate::command::duration;
use crate::resource::{Resource, Resources, targets};
use crate::{Global, output, rollout};

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Follow a rollout until it is done
    Status {
        #[arg(required = true, value_name = "TYPE/NAME")]
        what: Vec<String>,
        /// How long to wait
        #[arg(long, default_value = "5m", value_parser = duration)]
        timeout: Duration,
    },
    /// Go back to the revision before, or to a given one
    Undo {
        #[arg(required = true, value_name = "TYPE/NAME")]
        what: Vec<String>,
        #[arg(long)]
        to_revision: Option<u64>,
    },
}

const REVISION: &str = "deployment.kubernetes.io/revision";
const HASH: &str = "pod-template-hash";

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let resources = Resources::discover(&api).await?;
    let what = match &options.action {
        Action::Status { what, .. } | Action::Undo { what, .. } => what,
    };
    for (resource, name) in targets(&resources, what)? {
        let Some(name) = name else { bail!("name what rolls out, for example deployment/web") };
        if resource.kind != "Deployment" {
            bail!("{}/{name} has no rollouts; a Deployment has", resource.name());
        }
        match &options.action {
            Action::Status { timeout, .. } => {
                let done = rollout::wait(&api, resource, &api.namespace, &name, *timeout).await?;
                output::line(&format!("{}/{name} {done}", resource.name()));
            }
            Action::Undo { to_revision, .. } => {
                let revision = undo(&api, &resources, resource, &name, *to_revision).await?;
                output::line(&format!("{}/{name} rolled back to revision {revision}", resource.name()));
            }
        }
    }
    Ok(())
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["annotations"][REVISION].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Puts the pod template of an earlier ReplicaSet back into the Deployment.
async fn undo(
    api: &Api,
    resources: &Resources,
    resource: &Resource,
    name: &str,
    to: Option<u64>,
) -> anyhow::Result<u64> {
    let path = resource.object(&api.namespace, name);
    let deployment = api.get(&path).await?;
    let sets = api.get(&resources.of("apps/v1", "ReplicaSet")?.path(Some(&api.namespace))).await?;
    let uid = &deployment["metadata"]["uid"];
    let owned = |set: &&Value| {
        set["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|owner| owner["uid"] == *uid)
    };
    let mut sets: Vec<&Value> = sets["items"].as_array().into_iter().flatten().filter(owned).collect();
    sets.sort_by_key(|set| std::cmp::Reverse(revision(set)));
    let known: Vec<u64> = sets.iter().map(|set| revision(set)).collect();
    let chosen = match to {
        Some(to) => sets.iter().find(|set| revision(set) == to),
        None => sets.get(1),
    };
    let chosen =
        chosen.with_context(|| format!("no such earlier revision of {name}; there are {known:?}"))?;
    let mut template = chosen["spec"]["template"].clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH);
    }
    let patch = json!([
        // Of the spec that was read: its status may change meanwhile.
        {"op": "test", "path": "/metadata/generation", "value": deployment["metadata"]["generation"]},
        {"op": "replace", "path": "/spec/template", "value": template},
    ]);
    api.call(
        Method::PATCH,
        &format!("{path}?fieldManager=wctl-rollout"),
        &[("content-type", "application/json-patch+json")],
        patch.to_string().into_bytes(),
    )
    .await?;
    Ok(revision(chosen))
}
