//! `wctl diff`: what an apply would change.

use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::Value;
use similar::TextDiff;

use crate::api::Api;
use crate::apply::Apply;
use crate::resource::{Resources, name_of};
use crate::{Global, manifest, output};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    apply: Apply,
}

/// Prints a unified diff. Exits with 0 if nothing would change and with 1 if something would, as `diff` does; with 2 if
/// that could not be found out.
pub async fn run(options: Options, global: &Global) -> ExitCode {
    match differences(&options, global).await {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::from(1),
        Err(error) => {
            output::fail(&error);
            ExitCode::from(2)
        }
    }
}

async fn differences(options: &Options, global: &Global) -> anyhow::Result<bool> {
    let manifests = manifest::read(&options.apply.filenames)?;
    let api = Api::connect(global).await?;
    let resources = Resources::discover(&api).await?;
    let mut differ = false;
    for manifest in &manifests {
        let place = || manifest.place.to_string();
        let resource = resources.of(manifest.api_version(), manifest.kind()).with_context(place)?;
        let namespace = manifest.object["metadata"]["namespace"].as_str().unwrap_or(&api.namespace);
        let name = name_of(&manifest.object);
        let (before, after) =
            options.apply.send(&api, resource, namespace, manifest, true).await.with_context(place)?;
        let label = format!("{}/{name}", resource.name());
        let (before, after) = (before.map(text).transpose()?.unwrap_or_default(), text(after)?);
        if let Some(diff) = unified(&label, &before, &after) {
            differ = true;
            output::line(diff.trim_end());
        }
    }
    Ok(differ)
}

/// An object as it is compared: without what the server alone writes at every change.
fn text(mut object: Value) -> anyhow::Result<String> {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        // Of an object that is not there yet, these are made up by the dry run.
        for field in ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"] {
            meta.remove(field);
        }
    }
    Ok(serde_yaml::to_string(&object)?)
}

/// The unified diff of two texts, if they differ.
fn unified(label: &str, before: &str, after: &str) -> Option<String> {
    if before == after {
        return None;
    }
    let diff = TextDiff::from_lines(before, after);
    let header = (format!("live/{label}"), format!("applied/{label}"));
    Some(diff.unified_diff().context_radius(3).header(&header.0, &header.1).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_was_asked_for_differs() {
        let object = |replicas: i64, version: &str| {
            json!({"kind": "Deployment", "metadata": {"name": "web", "resourceVersion": version, "generation": 1},
                "spec": {"replicas": replicas}})
        };
        let text = |replicas, version| text(object(replicas, version)).unwrap();
        assert_eq!(unified("deployment.apps/web", &text(1, "5"), &text(1, "9")), None);
        let diff = unified("deployment.apps/web", &text(1, "5"), &text(2, "9")).unwrap();
        assert!(
            diff.starts_with("--- live/deployment.apps/web\n+++ applied/deployment.apps/web\n@@"),
            "{diff}"
        );
        assert!(diff.contains("\n-  replicas: 1\n+  replicas: 2\n"), "{diff}");
    }
}
