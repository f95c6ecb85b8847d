//! `wctl scale`.

use anyhow::bail;
use http::Method;
use serde_json::json;

use crate::api::Api;
use crate::resource::{Resources, targets};
use crate::{Global, output};

#[derive(clap::Args)]
pub struct Options {
    /// `deployment NAME` or `deployment/NAME`
    #[arg(required = true, value_name = "TYPE/NAME")]
    what: Vec<String>,
    /// How many
    #[arg(long)]
    replicas: u32,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let resources = Resources::discover(&api).await?;
    for (resource, name) in targets(&resources, &options.what)? {
        let Some(name) = name else { bail!("name what to scale, for example deployment/web") };
        let path = format!("{}/scale", resource.object(&api.namespace, &name));
        let patch = json!({"spec": {"replicas": options.replicas}}).to_string();
        api.call(
            Method::PATCH,
            &path,
            &[("content-type", "application/merge-patch+json")],
            patch.into_bytes(),
        )
        .await?;
        output::line(&format!("{}/{name} scaled to {}", resource.name(), options.replicas));
    }
    Ok(())
}
