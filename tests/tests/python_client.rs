//! The Python `kubernetes` client as any script uses it: WHARF_PYTHON is a Python that has what
//! tests/compat/python/requirements.txt names.

use std::process::{Command, ExitCode};

use wharf_tests::{Space, only_test, take_tour};

/// What the tour tells, a line a step.
const STEPS: usize = 8;

fn main() -> ExitCode {
    only_test("the_python_client_takes_its_tour", "WHARF_PYTHON", "WHARF_NO_PYTHON", tour)
}

fn tour(python: &std::ffi::OsStr) {
    let space = Space::new("python");
    let tour = concat!(env!("CARGO_MANIFEST_DIR"), "/compat/python/tour.py");
    take_tour(Command::new(python).args([tour, space.name, "registry.wharf/greeter:1"]), &space, STEPS);
}
