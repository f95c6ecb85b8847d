//! `wctl create job`: what `apply` cannot make of a file alone.

use anyhow::{Context as _, bail};
use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use crate::api::Api;
use crate::resource::{Resources, name_of, targets};
use crate::{Global, output};

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Make a Job of an image, or as a CronJob would
    Job(JobOptions),
}

#[derive(clap::Args)]
struct JobOptions {
    /// Name of the Job
    name: String,
    #[command(flatten)]
    source: Source,
    /// What to run in the image
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "from")]
    command: Vec<String>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// The CronJob whose template to take
    #[arg(long, value_name = "cronjob/NAME")]
    from: Option<String>,
    /// The image to run
    #[arg(long)]
    image: Option<String>,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let What::Job(options) = options.what;
    let api = Api::connect(global).await?;
    let resources = Resources::discover(&api).await?;
    let spec = match (&options.source.from, &options.source.image) {
        (Some(from), _) => like(&cron_job(&api, &resources, from).await?),
        (None, image) => of_image(&options.name, image.as_deref().unwrap_or_default(), &options.command),
    };
    let mut job = spec;
    job["apiVersion"] = json!("batch/v1");
    job["kind"] = json!("Job");
    job["metadata"]["name"] = json!(options.name);
    let resource = resources.of("batch/v1", "Job")?;
    let path = format!("{}?fieldManager=wctl-create", resource.path(Some(&api.namespace)));
    let headers = [("content-type", "application/json")];
    let made = api.call(Method::POST, &path, &headers, job.to_string().into_bytes()).await?;
    output::line(&format!("{}/{} created", resource.name(), name_of(&made)));
    Ok(())
}

async fn cron_job(api: &Api, resources: &Resources, from: &str) -> anyhow::Result<Value> {
    let found = targets(resources, &[from.to_owned()])?;
    let (resource, name) = found.first().context("--from names nothing")?;
    let Some(name) = name.as_deref().filter(|_| resource.kind == "CronJob") else {
        bail!("--from {from:?} is no CronJob; write cronjob/NAME");
    };
    api.get(&resource.object(&api.namespace, name)).await
}

/// The Job that a CronJob would make now, but for its name. The CronJob owns it, as those that it makes itself.
fn like(cron: &Value) -> Value {
    let template = &cron["spec"]["jobTemplate"];
    let mut annotations = template["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations.insert("cronjob.kubernetes.io/instantiate".to_owned(), json!("manual"));
    let mut metadata = json!({
        "annotations": annotations,
        "ownerReferences": [{
            "apiVersion": "batch/v1", "kind": "CronJob", "controller": true,
            "name": cron["metadata"]["name"], "uid": cron["metadata"]["uid"],
        }],
    });
    if let Some(labels) = template["metadata"]["labels"].as_object() {
        metadata["labels"] = json!(labels);
    }
    json!({"metadata": metadata, "spec": template["spec"]})
}

fn of_image(name: &str, image: &str, command: &[String]) -> Value {
    let mut container = json!({"name": name, "image": image});
    if !command.is_empty() {
        container["command"] = json!(command);
    }
    json!({"metadata": {}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_as_its_cron_job_says_and_belongs_to_it() {
        let spec = json!({"backoffLimit": 1, "template": {"spec": {"containers": []}}});
        let cron = json!({
            "metadata": {"name": "tick", "uid": "1-2"},
            "spec": {"schedule": "@daily", "jobTemplate": {
                "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, "spec": spec}},
        });
        let job = like(&cron);
        assert_eq!(job["spec"], spec);
        assert_eq!(
            job["metadata"],
            json!({
                "labels": {"a": "b"},
                "annotations": {"c": "d", "cronjob.kubernetes.io/instantiate": "manual"},
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "controller": true,
                    "name": "tick", "uid": "1-2"}],
            })
        );
    }
}
