//! What came of the tests, read from what cargo and its test programs print.

use std::process::ExitCode;

use crate::Result;

/// Sums over all test programs.
#[derive(Default)]
pub struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// What failed, by name.
    failures: Vec<String>,
    /// What was skipped, with the reason.
    skips: Vec<String>,
    /// The test program that runs now.
    running: Option<Program>,
}

struct Program {
    name: String,
    /// Everything that it printed: shown if it fails.
    said: Vec<String>,
}

impl Tally {
    /// Counts a step other than a test if it failed; tells whether it was well.
    pub fn check(&mut self, step: Result<()>) -> bool {
        let Err(error) = step else { return true };
        println!("    {error}");
        self.failed += 1;
        self.failures.push(error.to_string());
        false
    }

    /// Counts what this machine cannot do.
    pub fn skip(&mut self, what: &str) {
        self.skipped += 1;
        self.skips.push(what.to_owned());
    }

    /// Takes the next line of `cargo test`.
    pub fn hear(&mut self, line: &str) {
        let bare = line.trim_start();
        if let Some(name) = bare.strip_prefix("Running ").or_else(|| bare.strip_prefix("Doc-tests ")) {
            // A test may print such a line too, but cargo's are indented and name the program in brackets.
            let cargos = line.starts_with("  ") && (bare.starts_with("Doc-tests ") || name.ends_with(')'));
            if cargos {
                self.finish_program();
                self.running = Some(Program { name: title(name), said: Vec::new() });
                return;
            }
        }
        if let Some(sums) = line.strip_prefix("test result: ") {
            self.result(sums);
            return;
        }
        if let Some((name, verdict)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            let within = self.running.as_ref().map_or("", |program| &program.name);
            if let Some(why) = verdict.strip_prefix("ignored") {
                let why = why.trim_start_matches([',', ' ']);
                let why = if why.is_empty() { "no reason given" } else { why };
                self.skips.push(format!("{within}: {name}: {why}"));
            } else if verdict.ends_with("FAILED") {
                self.failures.push(format!("{within}: {name}"));
            }
        }
        if let Some(program) = &mut self.running {
            program.said.push(line.to_owned());
        }
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s`
    fn result(&mut self, sums: &str) {
        let count = |what: &str| {
            let part = sums.split([';', '.']).map(str::trim).find_map(|part| part.strip_suffix(what));
            part.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
        };
        let (passed, failed, skipped): (usize, usize, usize) =
            (count("passed"), count("failed"), count("ignored"));
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
        let Some(program) = self.running.take() else { return };
        if passed + failed + skipped > 0 {
            let took = sums.rsplit("finished in ").next().filter(|took| took.len() < 12).unwrap_or("");
            println!("    {:<44} {passed:>4} passed, {failed} failed  {took}", program.name);
        }
        if failed > 0 {
            program.said.iter().for_each(|line| println!("        {line}"));
        }
    }

    /// A program that said no result has crashed.
    fn finish_program(&mut self) {
        let Some(program) = self.running.take() else { return };
        println!("    {:<44} ended without a result", program.name);
        program.said.iter().for_each(|line| println!("        {line}"));
        self.failed += 1;
        self.failures.push(format!("{}: ended without a result", program.name));
    }

    /// Cargo has ended.
    pub fn end(&mut self, success: bool) {
        self.finish_program();
        if !success && self.failed == 0 {
            self.failed += 1;
            self.failures.push("cargo test itself".to_owned());
        }
    }

    /// Prints what failed and what was skipped, then the sums as the very last line.
    pub fn close(&self) -> ExitCode {
        println!();
        self.skips.iter().for_each(|skip| println!("skipped: {skip}"));
        self.failures.iter().for_each(|failure| println!("failed: {failure}"));
        println!("{}", self.line());
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn line(&self) -> String {
        let skipped = if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() };
        format!("{} passed, {} failed{skipped}", self.passed, self.failed)
    }
}

/// `unittests src/lib.rs (target/debug/deps/wharf_kit-0123)` is `wharf_kit`, `tests/walk.rs (…/walk-0123)` is `walk`.
fn title(running: &str) -> String {
    let program = running.rsplit('/').next().and_then(|file| file.strip_suffix(')'));
    match program.and_then(|file| file.rsplit_once('-')) {
        Some((name, _)) => format!("{name} ({})", running.split(" (").next().unwrap_or_default()),
        None => format!("{running} (documentation)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(text: &str, success: bool) -> Tally {
        let mut tally = Tally::default();
        text.lines().for_each(|line| tally.hear(line));
        tally.end(success);
        tally
    }

    #[test]
    fn results_of_all_programs_are_summed() {
        let tally = heard(
            "     Running unittests src/lib.rs (target/debug/deps/a-1f)\n\nrunning 2 tests\ntest x ... ok\n\
             test y ... ignored, needs a moon\n\n\
             test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\n\
             \u{20}    Running tests/b.rs (target/debug/deps/b-2f)\ntest z ... FAILED\n\
             test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 2.00s\n",
            false,
        );
        assert_eq!(tally.line(), "5 passed, 1 failed, 1 skipped");
        assert_eq!(tally.failures, ["b (tests/b.rs): z"]);
        assert_eq!(tally.skips, ["a (unittests src/lib.rs): y: needs a moon"]);
    }

    #[test]
    fn a_crash_is_a_failure_with_its_name() {
        let text = "     Running tests/a.rs (t/debug/deps/a-1f)\nrunning 3 tests\nerror: test failed\n\
                    \u{20}  Doc-tests b\ntest result: ok. 1 passed; 0 failed; 0 ignored; finished in 0.1s\n";
        let tally = heard(text, false);
        assert_eq!(tally.line(), "1 passed, 1 failed");
        assert_eq!(tally.failures, ["a (tests/a.rs): ended without a result"]);
    }

    #[test]
    fn what_does_not_build_is_a_failure() {
        assert_eq!(heard("error: could not compile `a`\n", false).line(), "0 passed, 1 failed");
    }
}
