//! `wctl apply`: server-side apply of every object in files.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::api::{Api, refused};
use crate::apply::Apply;
use crate::command::duration;
use crate::manifest;
use crate::resource::{Resources, name_of};
use crate::{Global, output, rollout};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    apply: Apply,
    /// Wait until what was applied is available
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "5m", value_parser = duration)]
    timeout: Duration,
    /// Let the cluster check everything and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    // Everything is read before anything is changed.
    let mut manifests = manifest::read(&options.apply.filenames)?;
    let api = Api::connect(global).await?;
    let resources = Resources::discover(&api).await?;
    for manifest in &manifests {
        resources.of(manifest.api_version(), manifest.kind()).with_context(|| manifest.place.to_string())?;
    }
    // A namespace comes before what is in it; the order is kept otherwise.
    manifests.sort_by_key(|manifest| manifest.kind() != "Namespace");

    let mut failed = 0;
    let mut applied = Vec::new();
    for manifest in &manifests {
        let resource = resources.of(manifest.api_version(), manifest.kind())?;
        let namespace =
            manifest.object["metadata"]["namespace"].as_str().unwrap_or(&api.namespace).to_owned();
        match options.apply.send(&api, resource, &namespace, manifest, options.dry_run).await {
            Ok((before, after)) => {
                let outcome = outcome(before, after);
                let note = if options.dry_run { " (dry run)" } else { "" };
                output::line(&format!("{}/{} {outcome}{note}", resource.name(), name_of(&manifest.object)));
                applied.push((resource, namespace, name_of(&manifest.object)));
            }
            Err(error) if refused(&error).is_some() => {
                failed += 1;
                eprintln!("error: {}: {error}{}", manifest.place, advice(&error));
            }
            Err(error) => return Err(error.context(manifest.place.to_string())),
        }
    }
    if failed > 0 {
        anyhow::bail!("{failed} of {} objects were not applied", manifests.len());
    }
    if options.wait && !options.dry_run {
        for (resource, namespace, name) in applied {
            if let Some(done) =
                rollout::wait(&api, resource, &namespace, name, options.timeout, |_| ()).await?
            {
                output::line(&done);
            }
        }
    }
    Ok(())
}

/// What an apply did.
fn outcome(before: Option<Value>, after: Value) -> &'static str {
    match before.map(asked) {
        None => "created",
        Some(before) if before == asked(after) => "unchanged",
        Some(_) => "configured",
    }
}

/// An object without what changes by itself.
fn asked(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("resourceVersion");
        meta.remove("managedFields");
    }
    object
}

/// What to do about a refusal, where the cluster's own words do not say.
fn advice(error: &anyhow::Error) -> &'static str {
    match refused(error).map(|refusal| (refusal.code, refusal.reason.as_str())) {
        Some((409, "Conflict")) => {
            "\n       leave those fields out, or take them over with --force-conflicts"
        }
        Some((404, _)) => "\n       apply its namespace first, or name another with --namespace",
        _ => "",
    }
}
