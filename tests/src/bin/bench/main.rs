//! Measures what the design promises. `cargo xtask bench NAME` builds everything and runs this.
//!
//! Prints the machine and the versions, then a line a figure: `name value unit (target) ok|short|missing`.

mod cri;
mod figure;
mod first_apply;

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use figure::Figures;

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
    let (mut name, mut check, mut json) = (None, false, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--check" => check = true,
            "--json" => json = Some(arguments.next().context("--json needs a file")?),
            _ if name.is_none() && !argument.starts_with('-') => name = Some(argument),
            other => bail!("not understood: {other}"),
        }
    }
    let mut figures = Figures::new();
    match name.as_deref() {
        Some("cri") => cri::measure(&mut figures)?,
        Some("first-apply") => first_apply::measure(&mut figures)?,
        Some(other) => bail!("there is no bench {other:?}; there are cri and first-apply"),
        None => bail!("name one of: cri, first-apply"),
    }
    if let Some(path) = json {
        std::fs::write(&path, figures.json()).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(if check && !figures.all_ok() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
