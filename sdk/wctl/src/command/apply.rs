//! `wctl apply`: server-side apply of every object in files.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use http::Method;
use serde_json::Value;

use crate::api::{Api, refused};
use crate::command::duration;
use crate::manifest::{self, Manifest};
use crate::resource::{Resource, Resources, name_of};
use crate::uri::with_query;
use crate::{Global, output, rollout};

#[derive(clap::Args)]
pub struct Options {
    /// File, folder, or `-` for standard input; may be repeated
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    filenames: Vec<PathBuf>,
    /// Wait until what was applied is available
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "5m", value_parser = duration)]
    timeout: Duration,
    /// Take over fields that others own
    #[arg(long)]
    force_conflicts: bool,
    /// Let the cluster check everything and change nothing
    #[arg(long)]
    dry_run: bool,
    /// The name under which fields are owned
    #[arg(long, default_value = "wctl")]
    field_manager: String,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    // Everything is read before anything is changed.
    let mut manifests = manifest::read(&options.filenames)?;
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
        match apply(&api, resource, &namespace, manifest, &options).await {
            Ok(outcome) => {
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
            let done = rollout::wait(&api, resource, &namespace, name, options.timeout).await?;
            if done != "is there" {
                output::line(&format!("{}/{name} {done}", resource.name()));
            }
        }
    }
    Ok(())
}

async fn apply(
    api: &Api,
    resource: &Resource,
    namespace: &str,
    manifest: &Manifest,
    options: &Options,
) -> anyhow::Result<&'static str> {
    let object = resource.object(namespace, name_of(&manifest.object));
    let before = match api.get(&object).await {
        Ok(object) => Some(object),
        Err(error) if refused(&error).is_some_and(|refusal| refusal.code == 404) => None,
        Err(error) => return Err(error),
    };
    let manager = [("fieldManager", options.field_manager.as_str()), ("fieldValidation", "Strict")];
    let force = options.force_conflicts.then_some(("force", "true"));
    let dry_run = options.dry_run.then_some(("dryRun", "All"));
    let path = with_query(&object, manager.into_iter().chain(force).chain(dry_run));
    let headers = [("content-type", "application/apply-patch+yaml")];
    let after = api.call(Method::PATCH, &path, &headers, serde_json::to_vec(&manifest.object)?).await?;
    Ok(match before.map(asked) {
        None => "created",
        Some(before) if before == asked(after) => "unchanged",
        Some(_) => "configured",
    })
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
