//! What people and programs see.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Prints an error and gives the exit code.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", describe(error));
    ExitCode::FAILURE
}

/// An error with its causes on one line, each once; what the cluster says in its own words alone.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let said = match cause.downcast_ref() {
            Some(kube::Error::Api(status)) => status.message.trim().to_owned(),
            _ => cause.to_string(),
        };
        if text.is_empty() {
            text = said;
        } else if !text.contains(&said) && !cause.is::<kube::core::Status>() {
            text = format!("{text}: {said}");
        }
    }
    text
}

/// Prints a result. Whoever closed the pipe has read enough.
pub fn line(text: &str) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// A line on standard error that tells what is being done and for how long; nothing where nobody looks.
pub fn spinner(text: impl Into<String>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}").expect("the template is valid");
    let bar = ProgressBar::new_spinner().with_style(style).with_message(text.into());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Lays rows out in columns, as kubectl does: two or more blanks between, nothing after the last.
pub fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let lay = |row: &Vec<String>| {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 3 - cell.chars().count()));
        }
        text.trim_end().to_owned()
    };
    rows.iter().map(lay).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [["NAME", "AGE"], ["a-long-name", "1s"], ["ü", "22d"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(super::columns(&rows), ["NAME          AGE", "a-long-name   1s", "ü             22d"]);
    }
}
