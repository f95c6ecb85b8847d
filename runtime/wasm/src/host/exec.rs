//! Runs one more program in a container that runs.

use super::{
    channel::Channel,
    command,
    container::{Container, KILLED},
    stdio::Stdio,
    tar::{self, Tool},
};
use crate::{model::Exec, protocol::Failure};
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// To its exit code. Ended by `cancel`, and by the container's end.
///
/// The container's own command runs again, with these arguments. A guest has no other programs, so what cp needs of
/// them, `tar` and `test -d`, is done here, over what the container mounts.
pub(crate) async fn run(
    container: &Arc<Container>,
    exec: Exec,
    streams: [Option<Arc<Channel>>; 3],
    cancel: CancellationToken,
) -> Result<i32, Failure> {
    if exec.args.is_empty() {
        return Err(Failure::Exec { why: "no command is specified".to_owned() });
    }
    if let Some(tool) = Tool::parse(&exec.args) {
        return tar::run(container, tool, streams, cancel).await;
    }
    let Some(command) = container.program.command.clone() else {
        let why = "the container's component exports wasi:http/incoming-handler alone: it answers requests, and has \
                   no wasi:cli/run that could be run with these arguments";
        return Err(Failure::Exec { why: why.to_owned() });
    };
    let stderr = streams[2].clone().or_else(|| streams[1].clone());
    let stdio = Stdio::over(streams, exec.terminal);
    let (ended, end) = oneshot::channel();
    container.queue.spawn({
        let (container, stdio) = (container.clone(), stdio.clone());
        async move {
            let code = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = container.cancel.cancelled() => KILLED,
                end = command::execute(&container, &command, &exec.args, stdio.clone()) => {
                    stdio.drain().await;
                    if let Some(stderr) = stderr.filter(|_| !end.message.is_empty()) {
                        // For people; who does not listen does not get it.
                        let _ = stderr.write_all(format!("{}\n", end.message).as_bytes()).await;
                    }
                    end.code
                }
            };
            let _ = ended.send(code);
        }
    });
    Ok(end.await.unwrap_or(KILLED))
}
