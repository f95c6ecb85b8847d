//! Containers that another OCI runtime's binary makes (runc, crun): with the same bundle, in the same child of the monitor,
//! whose child the container becomes when the binary has ended.
//!
//! The command line is runc's, which the others took over; the OCI's own has never been finished.

use super::create::Stdio;
use crate::state::Dir;
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
    path::Path,
    process::{Command, Stdio as Standard},
};

/// The binary for one container.
pub(super) struct Binary<'a> {
    pub program: &'a Path,
    pub dir: &'a Dir,
    pub id: &'a str,
}

impl Binary<'_> {
    /// Makes the container; the pid of its first process.
    pub fn create(&self, stdio: Option<Stdio>, console: Option<&Path>) -> Result<i32, String> {
        let bundle = self.dir.bundle();
        self.make(["create".as_ref(), "--bundle".as_ref(), bundle.as_os_str()], stdio, console)
    }

    pub fn start(&self) -> Result<(), String> {
        self.run(["start"], None)
    }

    /// Starts another process in it, which a file describes; its pid.
    pub fn exec(&self, process: &Path, stdio: Option<Stdio>, console: Option<&Path>) -> Result<i32, String> {
        let arguments = ["exec".as_ref(), "--detach".as_ref(), "--process".as_ref(), process.as_os_str()];
        self.make(arguments, stdio, console)
    }

    fn make<const N: usize>(
        &self,
        arguments: [&OsStr; N],
        stdio: Option<Stdio>,
        console: Option<&Path>,
    ) -> Result<i32, String> {
        let file = self.dir.0.join("pid");
        let mut all: Vec<&OsStr> = arguments.to_vec();
        all.extend(["--pid-file".as_ref(), file.as_os_str()]);
        // A socket's path may not be long, and the binary changes its directory.
        let console = console.map(|path| {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            let dir = File::open(dir)?;
            let short =
                Path::new("/proc").join(format!("{}/fd/{}", std::process::id(), dir.as_raw_fd())).join(name);
            io::Result::Ok((short, dir))
        });
        let console = console.transpose().map_err(|cause| format!("console socket: {cause}"))?;
        if let Some((short, _)) = &console {
            all.extend(["--console-socket".as_ref(), short.as_os_str()]);
        }
        self.run(all, stdio)?;
        let pid = fs::read_to_string(&file).map_err(|cause| format!("{}: {cause}", file.display()))?;
        let _ = fs::remove_file(&file);
        pid.trim().parse().map_err(|_| format!("{pid:?} is no process"))
    }

    fn run(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        stdio: Option<Stdio>,
    ) -> Result<(), String> {
        let log = self.dir.0.join("binary.log");
        let mut command = Command::new(self.program);
        command.arg("--root").arg(self.dir.library());
        command.arg("--log").arg(&log).args(["--log-format", "json"]);
        command.args(arguments).arg(self.id);
        // What it has for streams, the container has.
        match stdio {
            Some(stdio) => command.stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr),
            None => command.stdin(Standard::null()).stdout(Standard::null()).stderr(Standard::null()),
        };
        let name = self.program.display();
        let status = command.status().map_err(|cause| format!("{name}: {cause}"))?;
        let said = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(&log);
        match status.success() {
            true => Ok(()),
            false => Err(format!("{name}: {}", reason(&said).unwrap_or_else(|| status.to_string()))),
        }
    }
}

/// The last error in a log.
fn reason(log: &str) -> Option<String> {
    let mut lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.find(|line| line["level"] == "error")?["msg"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_the_reason() {
        let log = concat!(
            r#"{"level":"error","msg":"first"}"#,
            "\n",
            r#"{"level":"error","msg":"exec: no such file"}"#,
            "\n",
            r#"{"level":"warning","msg":"later"}"#,
            "\nno JSON\n"
        );
        assert_eq!(reason(log).as_deref(), Some("exec: no such file"));
        assert_eq!(reason(""), None);
    }
}
