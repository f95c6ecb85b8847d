//! Lifecycle hooks: what a container does right after its start and before its end.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::ask::{self, Answer, Asked, PortError, Target, ask};

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hook {
    Ask(Target),
    Sleep(Duration),
}

/// Does what the hook says; ends when it has done so. The caller bounds its time.
///
/// # Errors
/// Why it failed, in words for the log: they may hold what the container wrote, so they are shown to nobody else.
pub async fn run(handler: &LifecycleHandler, container: &Container, asked: &Asked) -> Result<(), String> {
    match read(handler, container)? {
        Hook::Sleep(time) => {
            tokio::time::sleep(time).await;
            Ok(())
        }
        Hook::Ask(target) => match ask(&target, asked, None).await {
            Answer::Good => Ok(()),
            Answer::Bad(words) | Answer::Refused(words) | Answer::Unknown(words) => Err(words),
        },
    }
}

fn read(handler: &LifecycleHandler, container: &Container) -> Result<Hook, String> {
    if let Some(action) = &handler.exec {
        Ok(Hook::Ask(ask::exec(action)))
    } else if let Some(get) = &handler.http_get {
        ask::http(get, container).map(Hook::Ask).map_err(|error: PortError| error.to_string())
    } else if let Some(sleep) = &handler.sleep {
        Ok(Hook::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))))
    } else {
        // tcpSocket is in the API for old objects' sake; no kubelet does it either.
        Err("no way to do this hook: exec, httpGet and sleep are known".to_owned())
    }
}
