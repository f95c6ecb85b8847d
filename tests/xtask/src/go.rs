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
    make(places, name, name, &[&["build", "-buildvcs=false"], flags, &["."]].concat())
}

/// Builds the tests of a package that the module `tests/compat/NAME` pins, as a program.
pub fn build_tests(places: &Places, name: &str, package: &str) -> Result<PathBuf> {
    make(places, name, name, &["test", "-c", package])
}

/// Builds a program that the module `tests/compat/NAME` pins.
pub fn build_package(places: &Places, name: &str, program: &str, package: &str) -> Result<PathBuf> {
    make(places, name, program, &["build", "-buildvcs=false", package])
}

fn make(places: &Places, name: &str, program: &str, arguments: &[&str]) -> Result<PathBuf> {
    command::output(Command::new("go").arg("version")).map_err(|error| {
        format!("{error}; Go is needed, of the version that tests/compat/{name}/go.mod names")
    })?;
    let program = places.target.join("compat").join(program);
    let (verb, rest) = arguments.split_at(1);
    let mut go = Command::new("go");
    go.current_dir(places.root.join("tests/compat").join(name));
    go.args(verb).args(["-mod=readonly", "-o"]).arg(&program).args(rest);
    command::quiet(&mut go)?;
    Ok(program)
}
