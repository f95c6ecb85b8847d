//! The Python `kubernetes` client as any script uses it.
//!
//! Without the usual harness, which cannot skip a test for a reason that is known only when it runs: WHARF_PYTHON is a
//! Python that has what tests/compat/python/requirements.txt names, and WHARF_NO_PYTHON says why there is none.

use std::process::{Command, ExitCode};

use wharf_tests::Space;

const NAME: &str = "the_python_client_takes_its_tour";
/// What the tour tells, a line a step.
const STEPS: usize = 8;

fn main() -> ExitCode {
    let mut filters = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    if filters.peek().is_none() || filters.any(|filter| NAME.contains(&filter)) {
        match std::env::var_os("WHARF_PYTHON") {
            Some(python) => match std::panic::catch_unwind(|| tour(&python)) {
                Ok(()) => {
                    passed = 1;
                    println!("test {NAME} ... ok");
                }
                Err(_) => {
                    failed = 1;
                    println!("test {NAME} ... FAILED");
                }
            },
            None => {
                ignored = 1;
                let why = std::env::var("WHARF_NO_PYTHON").unwrap_or_else(|_| {
                    "WHARF_PYTHON names no Python with the client; `cargo xtask test` makes one".to_owned()
                });
                println!("test {NAME} ... ignored, {why}");
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tour(python: &std::ffi::OsStr) {
    let space = Space::new("python");
    let tour = concat!(env!("CARGO_MANIFEST_DIR"), "/compat/python/tour.py");
    let output = Command::new(python)
        .args([tour, space.name, "registry.wharf/greeter:1"])
        .env("KUBECONFIG", space.cluster.kubeconfig())
        .output()
        .expect("python runs");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    assert_eq!(said.lines().count(), STEPS, "{said}");
}
