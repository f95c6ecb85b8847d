//! `wctl image`.

use std::path::PathBuf;

use clap::Subcommand;

use crate::api::Api;
use crate::image::{self, Settings};
use crate::{Global, output};

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Put an image into the cluster's registry and print its name for manifests
    Push {
        /// A `.wasm` file, an OCI layout (folder or tar archive), or a folder that is the root file system
        source: PathBuf,
        /// NAME:TAG
        name: String,
        /// The program of a root file system, with its arguments; words are split at blanks
        #[arg(long)]
        entrypoint: Option<String>,
        /// NAME=VALUE in the environment of a root file system's program; may be repeated
        #[arg(long)]
        env: Vec<String>,
        /// Working directory of a root file system's program
        #[arg(long)]
        workdir: Option<String>,
    },
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let Action::Push { source, name, entrypoint, env, workdir } = options.action;
    let name: image::Name = name.parse()?;
    let settings = Settings {
        entrypoint: entrypoint.unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        env,
        workdir: workdir.unwrap_or_default(),
    };
    let bar = output::spinner(format!("reading {}", source.display()));
    let image = image::read(&source, &settings)?;
    let api = Api::connect(global).await?;
    let pushed = image::push(&api, &image, &name, |what| bar.set_message(what.to_owned())).await;
    bar.finish_and_clear();
    pushed?;
    output::line(&format!("registry.wharf/{name}"));
    Ok(())
}
