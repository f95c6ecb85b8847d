//! Runs a command to its end.

use super::{
    container::{Container, KILLED, STOPPED, TRAPPED},
    guest::Guest,
    memory::HOST_BYTES,
    program::Command,
    stdio::Stdio,
};
use crate::model::Reason;
use std::sync::Arc;
use tokio::sync::oneshot;

/// How a command ended.
pub(crate) struct End {
    pub code: i32,
    pub reason: Reason,
    pub message: String,
}

/// Ends the container when the command has ended, one way or the other.
pub(crate) async fn run(container: Arc<Container>, command: Command, stdio: Stdio) {
    let (ended, end) = oneshot::channel();
    container.queue.spawn({
        let container = container.clone();
        async move {
            let end = tokio::select! {
                biased;
                () = container.cancel.cancelled() => End::new(KILLED, Reason::Error, "killed"),
                () = container.drain.cancelled() => End::new(STOPPED, Reason::Error, "stopped"),
                end = execute(&container, &command, &container.spec.args, stdio) => {
                    container.log.say(&end.message);
                    end
                }
            };
            let _ = ended.send(end);
        }
    });
    let end = end.await.unwrap_or_else(|_| End::new(KILLED, Reason::Error, "its task was lost"));
    container.finish(end.code, end.reason, end.message);
}

impl End {
    pub fn new(code: i32, reason: Reason, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    fn of_code(code: i32) -> Self {
        Self::new(code, if code == 0 { Reason::Completed } else { Reason::Error }, "")
    }
}

/// On the executors: one run in an instance of its own, with what the container has.
pub(crate) async fn execute(
    container: &Arc<Container>,
    command: &Command,
    args: &[String],
    stdio: Stdio,
) -> End {
    let place = container.common.instances.clone().acquire_owned().await;
    let Some(grant) = container.budget.take(HOST_BYTES) else {
        return End::new(KILLED, Reason::OomKilled, "the memory limit leaves no room for an instance");
    };
    let mut store = match Guest::store(container, grant, args, stdio) {
        Ok(store) => store,
        Err(error) => return End::new(128, Reason::Error, format!("{error:#}")), // as a runtime that cannot start
    };
    let end = match command.run(&mut store).await {
        Ok(code) => End::of_code(code),
        Err(error) if store.data().limiter.denied => {
            End::new(KILLED, Reason::OomKilled, format!("{error:?}"))
        }
        Err(error) => End::new(TRAPPED, Reason::Error, format!("{error:?}")),
    };
    drop(store);
    drop(place);
    end
}
