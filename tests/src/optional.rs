use std::ffi::{OsStr, OsString};
use std::panic::UnwindSafe;
use std::process::{Command, ExitCode};

use crate::Space;

/// Runs the only test of a program without the usual harness, which cannot skip a test for a reason that is known only
/// when it runs. `needs` is the variable that names what the test drives and is given to it; the variable `absent` says
/// why there is none.
pub fn only_test(name: &str, needs: &str, absent: &str, test: impl FnOnce(&OsStr) + UnwindSafe) -> ExitCode {
    let mut filters = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    if filters.peek().is_none() || filters.any(|filter| name.contains(&filter)) {
        match std::env::var_os(needs) {
            Some(what) => match std::panic::catch_unwind(move || test(&what)) {
                Ok(()) => {
                    passed = 1;
                    println!("test {name} ... ok");
                }
                Err(_) => {
                    failed = 1;
                    println!("test {name} ... FAILED");
                }
            },
            None => {
                ignored = 1;
                let why = std::env::var_os(absent).unwrap_or_else(|| {
                    OsString::from(format!("{needs} is not set; `cargo xtask test` makes what it names"))
                });
                println!("test {name} ... ignored, {}", why.display());
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a program that tours the namespace and tells `steps` lines, one a step.
///
/// # Panics
/// If it fails, or tells more or less.
#[track_caller]
pub fn take_tour(program: &mut Command, space: &Space, steps: usize) {
    let output = program.env("KUBECONFIG", space.cluster.kubeconfig()).output().expect("the tour starts");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    assert_eq!(said.lines().count(), steps, "{said}");
}
