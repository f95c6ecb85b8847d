//! `wctl version`.

use crate::api::Api;
use crate::{Global, output};

#[derive(clap::Args)]
pub struct Options {
    /// Ask no cluster
    #[arg(long)]
    client: bool,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    output::line(&format!("wctl     {}", env!("CARGO_PKG_VERSION")));
    if !options.client {
        let version = Api::connect(global).await?.get("/version").await?;
        output::line(&format!("cluster  {}", version["gitVersion"].as_str().unwrap_or("unknown")));
    }
    Ok(())
}
