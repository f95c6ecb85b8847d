//! `wctl attach`.

use crate::{Global, remote};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    streams: remote::Streams,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let (pods, pod, params) = options.streams.find(global).await?;
    let process = pods.attach(&pod, &params).await.map_err(remote::refused)?;
    remote::join(process, params.tty).await
}
