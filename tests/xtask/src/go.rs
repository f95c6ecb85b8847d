//! The Go program that a test drives.

use std::path::PathBuf;
use std::process::Command;

use crate::build::Places;
use crate::{Result, command};

/// Tells the tests where the program is, or why there is none.
pub fn tell(places: &Places, tests: &mut Command) {
    match tour(places) {
        Ok(tour) => tests.env("WHARF_GO_TOUR", tour),
        Err(error) => {
            println!("    without client-go: {error}");
            tests.env("WHARF_NO_GO", error.to_string())
        }
    };
}

/// The program, made anew where it changed. No package is asked for: Debian's Go is older than client-go wants.
fn tour(places: &Places) -> Result<PathBuf> {
    let program = places.target.join("go/tour");
    let mut go = Command::new("go");
    go.current_dir(places.root.join("tests/compat/protobuf"));
    command::quiet(go.args(["build", "-mod=readonly", "-buildvcs=false", "-o"]).arg(&program).arg("."))?;
    Ok(program)
}
