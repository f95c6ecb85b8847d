//! Go programs that tests and suites drive: the modules of `tests/compat`.

use std::path::PathBuf;
use std::process::Command;

use crate::build::Places;
use crate::{Result, command};

/// Tells the tests where client-go's tour is, or why there is none.
pub fn tell(places: &Places, tests: &mut Command) {
    match build(places, "protobuf", &[]) {
        Ok(tour) => tests.env("WHARF_GO_TOUR", tour),
        Err(error) => {
            println!("    without client-go: {error}");
            tests.env("WHARF_NO_GO", error.to_string())
        }
    };
}

/// Builds the module `tests/compat/NAME` into the target directory, where it has changed: Go knows. No package is
/// asked for: Debian's Go is older than these want.
pub fn build(places: &Places, name: &str, flags: &[&str]) -> Result<PathBuf> {
    command::output(Command::new("go").arg("version")).map_err(|error| {
        format!("{error}; Go is needed, of the version that tests/compat/{name}/go.mod names")
    })?;
    let program = places.target.join("compat").join(name);
    let mut go = Command::new("go");
    go.current_dir(places.root.join("tests/compat").join(name));
    go.args(["build", "-mod=readonly", "-buildvcs=false", "-o"]).arg(&program).args(flags).arg(".");
    command::quiet(&mut go)?;
    Ok(program)
}
