//! Runs a `wasi:cli/command` component to its end.

use super::{
    container::{Container, KILLED, STOPPED, TRAPPED},
    guest::Guest,
    memory::HOST_BYTES,
};
use crate::model::Reason;
use std::sync::Arc;
use tokio::sync::oneshot;
use wasmtime_wasi::{I32Exit, p2::bindings::CommandPre};

struct End {
    code: i32,
    reason: Reason,
    message: String,
}

/// Ends the container when the command has ended, one way or the other.
pub(crate) async fn run(container: Arc<Container>, command: CommandPre<Guest>) {
    let (ended, end) = oneshot::channel();
    container.queue.spawn({
        let container = container.clone();
        async move {
            let end = tokio::select! {
                biased;
                () = container.cancel.cancelled() => End::new(KILLED, Reason::Error, "killed"),
                () = container.drain.cancelled() => End::new(STOPPED, Reason::Error, "stopped"),
                end = execute(&container, &command) => end,
            };
            let _ = ended.send(end);
        }
    });
    let end = end.await.unwrap_or_else(|_| End::new(KILLED, Reason::Error, "its task was lost"));
    container.finish(end.code, end.reason, end.message);
}

impl End {
    fn new(code: i32, reason: Reason, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    fn of_code(code: i32) -> Self {
        Self::new(code, if code == 0 { Reason::Completed } else { Reason::Error }, "")
    }
}

async fn execute(container: &Arc<Container>, command: &CommandPre<Guest>) -> End {
    let place = container.common.instances.clone().acquire_owned().await;
    let Some(grant) = container.budget.take(HOST_BYTES) else {
        return End::new(KILLED, Reason::OomKilled, "the memory limit is smaller than any instance");
    };
    let mut store = match Guest::store(&container.common.engine, container, grant) {
        Ok(store) => store,
        Err(error) => return End::new(128, Reason::Error, format!("{error:#}")), // as a runtime that cannot start
    };
    let ran = async {
        let instance = command.instantiate_async(&mut store).await?;
        instance.wasi_cli_run().call_run(&mut store).await
    };
    let end = match ran.await {
        Ok(Ok(())) => End::of_code(0),
        Ok(Err(())) => End::of_code(1),
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(code)) => End::of_code(*code),
            None => {
                let message = format!("{error:?}");
                container.log.say(&message);
                if store.data().limiter.denied {
                    End::new(KILLED, Reason::OomKilled, message)
                } else {
                    End::new(TRAPPED, Reason::Error, message)
                }
            }
        },
    };
    drop(store);
    drop(place);
    end
}
