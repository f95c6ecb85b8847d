//! `wctl delete`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use http::Method;
use serde_json::json;

use crate::api::{Api, is_missing};
use crate::command::duration;
use crate::resource::{Resource, Resources, chosen, name_of};
use crate::{Global, manifest, output, rollout};

#[derive(clap::Args)]
pub struct Options {
    /// `pod NAME`, `pod/NAME`, or a type with --all or --selector
    #[arg(value_name = "TYPE[/NAME]", required_unless_present = "filenames", conflicts_with = "filenames")]
    what: Vec<String>,
    /// Delete the objects of files
    #[arg(short, long = "filename", value_name = "FILE")]
    filenames: Vec<PathBuf>,
    /// Every object of the type in the namespace
    #[arg(long)]
    all: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Seconds that pods get to end
    #[arg(long)]
    grace_period: Option<u32>,
    /// Do not wait until they are gone
    #[arg(long)]
    no_wait: bool,
    /// Say nothing about what is not there
    #[arg(long)]
    ignore_not_found: bool,
    /// How long to wait
    #[arg(long, default_value = "2m", value_parser = duration)]
    timeout: Duration,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let resources = Resources::discover(&api).await?;
    let mut doomed: Vec<(&Resource, String, String)> = Vec::new();
    if options.filenames.is_empty() {
        let selector = options.selector.as_deref();
        let chosen = chosen(&api, &resources, &options.what, options.all, selector).await?;
        doomed.extend(chosen.into_iter().map(|(resource, name)| (resource, api.namespace.clone(), name)));
    } else {
        let manifests = manifest::read(&options.filenames)?;
        // The last applied goes first, so that a namespace outlives what is in it.
        for manifest in manifests.iter().rev() {
            let resource = resources.of(manifest.api_version(), manifest.kind())?;
            let namespace = manifest.object["metadata"]["namespace"].as_str().unwrap_or(&api.namespace);
            doomed.push((resource, namespace.to_owned(), name_of(&manifest.object).to_owned()));
        }
    }
    let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
    if let Some(seconds) = options.grace_period {
        body["gracePeriodSeconds"] = seconds.into();
    }
    let body = body.to_string().into_bytes();
    let mut gone = Vec::new();
    let mut missing = 0;
    for (resource, namespace, name) in doomed {
        let headers = [("content-type", "application/json")];
        match api.call(Method::DELETE, &resource.object(&namespace, &name), &headers, body.clone()).await {
            Ok(_) => {
                output::line(&format!("{}/{name} deleted", resource.name()));
                gone.push((resource, namespace, name));
            }
            Err(error) if is_missing(&error) => {
                if !options.ignore_not_found {
                    missing += 1;
                    eprintln!("error: {error}");
                }
            }
            Err(error) => return Err(error),
        }
    }
    if !options.no_wait {
        for (resource, namespace, name) in gone {
            rollout::gone(&api, resource, &namespace, &name, options.timeout).await?;
        }
    }
    match missing {
        0 => Ok(()),
        _ => bail!("{missing} objects were not there; --ignore-not-found lets that pass"),
    }
}
