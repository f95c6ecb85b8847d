//! Running other programs.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Result;

static SHOW_ALL: AtomicBool = AtomicBool::new(false);

/// From now on every program's output is shown as it comes.
pub fn show_all() {
    SHOW_ALL.store(true, Ordering::Relaxed);
}

pub fn shows_all() -> bool {
    SHOW_ALL.load(Ordering::Relaxed)
}

/// How the command line would read.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// What a program said, on both of its outputs, in order.
pub struct Said {
    pub success: bool,
    pub text: String,
}

/// Runs a program and keeps what it says; shown meanwhile with `-v`.
pub fn listen(command: &mut Command) -> Result<Said> {
    follow(command, |line| {
        if shows_all() {
            println!("{line}");
        }
    })
}

/// Runs a program, hands on each line that it says when it comes, and keeps them.
pub fn follow(command: &mut Command, mut heard: impl FnMut(&str)) -> Result<Said> {
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let child = command.spawn();
    // The command holds the pipe's other end: with it, the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.map_err(|error| format!("cannot run `{}`: {error}", line(command)))?;
    let (mut reader, mut text, mut bytes) = (BufReader::new(reader), String::new(), Vec::new());
    while reader.read_until(b'\n', &mut bytes)? > 0 {
        let said = String::from_utf8_lossy(&bytes);
        heard(said.trim_end_matches('\n'));
        text.push_str(&said);
        bytes.clear();
    }
    Ok(Said { success: child.wait()?.success(), text })
}

/// Runs a program whose words matter only when it fails.
pub fn quiet(command: &mut Command) -> Result<String> {
    let said = listen(command)?;
    if said.success {
        return Ok(said.text);
    }
    if !shows_all() {
        print!("{}", said.text);
    }
    Err(format!("`{}` failed", line(command)).into())
}

/// Runs a program and gives what it writes to its standard output; its errors are shown.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("cannot run `{}`: {error}", line(command)))?;
    if !output.status.success() {
        return Err(format!("`{}` failed", line(command)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program that works long and shows its own progress.
pub fn shown(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status();
    let status = status.map_err(|error| format!("cannot run `{}`: {error}", line(command)))?;
    if status.success() { Ok(()) } else { Err(format!("`{}` failed", line(command)).into()) }
}
