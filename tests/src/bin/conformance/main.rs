//! Other people's programs against a cluster of ours. `cargo xtask conformance NAME` builds all and runs this.
//!
//! `conformance kubectl [AREA]...` takes a stock kubectl on a tour: [`areas`] says what is run and what has to come of
//! it, [`tour`] runs it and tells a line a command, [`skips`] knows what may be left out, and why.

mod areas;
mod pattern;
mod row;
mod skips;
mod tour;

use std::process::ExitCode;

use anyhow::{Context as _, bail};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("kubectl") => {
            let kubectl = std::env::var_os("WHARF_KUBECTL")
                .context("WHARF_KUBECTL names no kubectl; `cargo xtask conformance kubectl` builds one")?;
            tour::take(kubectl.as_ref(), &arguments.collect::<Vec<_>>())
        }
        other => bail!("name what is to be tried, kubectl; not {other:?}"),
    }
}
