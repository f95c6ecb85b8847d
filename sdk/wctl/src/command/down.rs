//! `wctl down`.

use wharf_local::Keep;

use crate::{Global, output};

#[derive(clap::Args)]
pub struct Options {
    /// Name of the cluster
    #[arg(default_value = "dev")]
    name: String,
    /// Delete its data too
    #[arg(long)]
    purge: bool,
}

pub fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let cluster = global.layout().cluster(&options.name)?;
    let bar = output::spinner(format!("ending {}", cluster.name));
    let keep = if options.purge { Keep::Nothing } else { Keep::Data };
    let done = wharf_local::down(&cluster, keep);
    bar.finish_and_clear();
    done?;
    wharf_local::forget(&cluster)?;
    let name = &cluster.name;
    output::line(&match keep {
        Keep::Data => format!("cluster {name:?} ended; its data is kept in {}", cluster.data.display()),
        Keep::Nothing => format!("cluster {name:?} ended, and its data deleted"),
    });
    Ok(())
}
