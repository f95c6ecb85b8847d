//! `wctl exec`.

use crate::{Global, remote};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    streams: remote::Streams,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let (pods, pod, params) = options.streams.find(global).await?;
    let process = pods.exec(&pod, options.command, &params).await.map_err(remote::refused)?;
    remote::join(process, params.tty).await
}
