//! The terminal of this process and the streams of one in a container.

use anyhow::{Context as _, bail};
use futures::SinkExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, AttachedProcess, TerminalSize};
use std::io::IsTerminal as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{self, unreachable};
use crate::command::port_forward::pod_of;
use crate::resource::Resources;
use crate::{Exited, Global};

/// What waits in the client for the network or the terminal.
const BUFFER: usize = 64 << 10;

/// Whose streams a command takes up, and which.
#[derive(clap::Args)]
pub struct Streams {
    /// Pod, or TYPE/NAME such as deployment/web (its first ready pod)
    #[arg(value_name = "POD|TYPE/NAME")]
    what: String,
    /// Container, if the pod has several
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input on; to be attached to, the container must have been made with stdin
    #[arg(short = 'i', long)]
    stdin: bool,
    /// A terminal; to be attached to, the container must have been made with tty
    #[arg(short, long)]
    tty: bool,
}

impl Streams {
    /// The pods of its namespace, the name of the one that is meant, and what to ask of it.
    pub async fn find(self, global: &Global) -> anyhow::Result<(Api<Pod>, String, AttachParams)> {
        let api = api::Api::connect(global).await?;
        let pod = pod_of(&api, &Resources::discover(&api).await?, &self.what).await?;
        let tty = terminal(self.stdin, self.tty);
        let params = params(self.container, self.stdin, tty);
        Ok((Api::namespaced(api.client.clone(), &api.namespace), pod, params))
    }
}

/// Which streams are wanted. A terminal has its errors among its output.
pub fn params(container: Option<String>, stdin: bool, tty: bool) -> AttachParams {
    AttachParams {
        container,
        stdin,
        stdout: true,
        stderr: !tty,
        tty,
        max_stdin_buf_size: Some(BUFFER),
        max_stdout_buf_size: Some(BUFFER),
        max_stderr_buf_size: Some(BUFFER),
    }
}

/// Why a stream was not opened: what the cluster says, in its own words alone.
pub fn refused(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        error => unreachable(error),
    }
}

/// Whether there is a terminal to give: with only standard input there is, as for every such tool.
fn terminal(stdin: bool, tty: bool) -> bool {
    if tty && !(stdin && std::io::stdin().is_terminal()) {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
        return false;
    }
    tty
}

/// Joins this process's streams to the other's until that ends; its exit code becomes ours.
pub async fn join(mut process: AttachedProcess, tty: bool) -> anyhow::Result<()> {
    let _raw = tty.then(Raw::enter).transpose()?;
    let status = process.take_status().context("the connection has no status")?;
    let stdin = process.stdin().map(|to| tokio::spawn(copy_in(to)));
    let resizing = process.terminal_size().map(|to| tokio::spawn(follow_size(to)));
    let out = copy_out(process.stdout(), tokio::io::stdout());
    let err = copy_out(process.stderr(), tokio::io::stderr());
    let (_, _, status) = tokio::join!(out, err, status);
    for task in [stdin, resizing].into_iter().flatten() {
        task.abort();
    }
    drop(process);
    judge(status)
}

/// What the end of a remote process means for this one.
pub fn judge(status: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Status>) -> anyhow::Result<()> {
    let Some(status) = status else { bail!("the connection broke before the command ended") };
    if status.status.as_deref() == Some("Success") {
        return Ok(());
    }
    let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
    let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    if let Some(code) = code.and_then(|cause| cause.message.as_ref()?.parse::<u8>().ok()) {
        return Err(Exited(code).into());
    }
    bail!("{}", status.message.as_deref().unwrap_or("the command failed, and the server does not say why"))
}

async fn copy_in(mut to: impl AsyncWrite + Unpin) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 16 << 10];
    while let Ok(n @ 1..) = stdin.read(&mut buffer).await {
        if to.write_all(&buffer[..n]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await; // so that the other process sees the end as well
}

async fn copy_out(from: Option<impl AsyncRead + Unpin>, mut to: impl AsyncWrite + Unpin) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; BUFFER];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..n]).await.is_err() || to.flush().await.is_err() {
            return; // whoever read has read enough
        }
    }
}

async fn follow_size(mut to: futures::channel::mpsc::Sender<TerminalSize>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout()) {
            let size = TerminalSize { width: size.ws_col, height: size.ws_row };
            if to.send(size).await.is_err() {
                return;
            }
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

/// The terminal gives every key as it comes, until this is dropped.
struct Raw(rustix::termios::Termios);

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("cannot set the terminal's mode")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_command_is_read_from_its_status() {
        let judge = |status: serde_json::Value| judge(Some(serde_json::from_value(status).unwrap()));
        assert!(judge(serde_json::json!({"status": "Success"})).is_ok());
        let failed = judge(serde_json::json!({
            "status": "Failure", "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "7"}]},
        }));
        assert_eq!(failed.unwrap_err().downcast::<Exited>().unwrap().0, 7);
        let broken = judge(serde_json::json!({"status": "Failure", "message": "no such program"}));
        assert_eq!(broken.unwrap_err().to_string(), "no such program");
        assert!(super::judge(None).unwrap_err().to_string().contains("broke"));
    }
}
