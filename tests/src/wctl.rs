use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub line: String,
    /// None if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Said {
    /// Runs a program to its end with `stdin` as its standard input.
    pub(crate) fn by(command: &mut Command, stdin: &[u8]) -> Self {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let program = Path::new(command.get_program()).file_name().unwrap_or_default();
        let line = format!("{} {}", program.to_string_lossy(), words.join(" "));
        let began = Instant::now();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut input = child.stdin.take().expect("a pipe");
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                let _ = input.write_all(stdin); // one that fails early reads none of it
            });
            child.wait_with_output().expect("it ends")
        });
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            line,
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            took: began.elapsed(),
        }
    }

    /// What it printed.
    ///
    /// # Panics
    /// If it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self}");
        self.stdout
    }

    /// The JSON that it printed.
    ///
    /// # Panics
    /// If it failed or printed something else.
    #[track_caller]
    pub fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Checks that it failed and that its errors have these words, and gives the errors.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn fails_with(self, words: &[&str]) -> String {
        assert!(self.code.is_some_and(|code| code != 0), "it was to fail: {self}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not told: {self}");
        }
        self.stderr
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { line, code, stdout, stderr, took } = self;
        write!(f, "`{line}` ended with {code:?} after {took:?}\n{stdout}\n{stderr}")
    }
}
