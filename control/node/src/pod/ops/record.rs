//! A container's run as CRI tells it, and what it left behind when it ended.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use wharf_cri::v1;

use super::super::state::{Exit, Record, Run};
use super::{Shared, log_directory, uid};
use crate::runtime::label;
use crate::{logs, volumes};

/// A run as CRI tells it. For an ended one the container's last words are looked up.
pub(super) async fn record(shared: &Shared, pod: &Pod, status: &v1::ContainerStatus) -> Record {
    let mut record = record_of(status);
    if record.exit().is_some() {
        record.run = Run::Exited(exit(shared, pod, status).await);
    }
    record
}

/// The same without what must be read from files.
pub fn record_of(status: &v1::ContainerStatus) -> Record {
    let run = match status.state() {
        v1::ContainerState::ContainerCreated => Run::Created,
        v1::ContainerState::ContainerRunning => Run::Running { since: nanos(status.started_at) },
        v1::ContainerState::ContainerExited | v1::ContainerState::ContainerUnknown => {
            Run::Exited(bare_exit(status))
        }
    };
    Record {
        id: status.id.clone(),
        attempt: attempt(status),
        hash: status.annotations.get(label::CONTAINER_HASH).cloned().unwrap_or_default(),
        image_id: if status.image_id.is_empty() { status.image_ref.clone() } else { status.image_id.clone() },
        run,
    }
}

pub(super) fn attempt(status: &v1::ContainerStatus) -> u32 {
    let told = status.annotations.get(label::RESTART_COUNT).and_then(|count| count.parse().ok());
    told.or(status.metadata.as_ref().map(|metadata| metadata.attempt)).unwrap_or(0)
}

/// How it ended, as the runtime alone tells it.
fn bare_exit(status: &v1::ContainerStatus) -> Exit {
    let unknown = status.state() == v1::ContainerState::ContainerUnknown;
    let code = if unknown { 137 } else { status.exit_code };
    let reason = match (status.reason.as_str(), code) {
        ("", _) if unknown => "ContainerStatusUnknown",
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    let finished = if status.finished_at > 0 { nanos(status.finished_at) } else { now() };
    let started = if status.started_at > 0 { nanos(status.started_at) } else { finished };
    Exit { started, finished, code, reason: reason.to_owned(), message: status.message.clone() }
}

/// How it ended, with what it left in its termination message (or its log, if so asked).
pub async fn exit(shared: &Shared, pod: &Pod, status: &v1::ContainerStatus) -> Exit {
    /// A termination message is not read beyond this, as in Kubernetes.
    const LONGEST: u64 = 4096;
    let mut exit = bare_exit(status);
    let name = status.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    let attempt = attempt(status);
    let file = volumes::pod_directory(&shared.root, uid(pod))
        .join("containers")
        .join(&name)
        .join(attempt.to_string());
    let log = log_directory(shared, pod).join(logs::relative(&name, attempt));
    let fall_back = exit.code != 0
        && status
            .annotations
            .get(label::TERMINATION_POLICY)
            .is_some_and(|policy| policy == "FallbackToLogsOnError");
    let words = tokio::task::spawn_blocking(move || {
        use std::io::Read as _;
        let mut text = Vec::new();
        if let Ok(file) = std::fs::File::open(file) {
            let _ = file.take(LONGEST).read_to_end(&mut text); // what cannot be read is no message
        }
        if text.is_empty() && fall_back {
            return logs::last_words(&log).unwrap_or_default();
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let words = words.await.unwrap_or_default();
    exit.message = match (exit.message.as_str(), words.as_str()) {
        (own, "") => own.to_owned(),
        ("", words) => words.to_owned(),
        (own, words) => format!("{own}: {words}"),
    };
    exit
}

/// Whole seconds, as the API keeps times.
pub fn now() -> Timestamp {
    seconds(Timestamp::now())
}

fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn nanos(value: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(value)).map_or(Timestamp::UNIX_EPOCH, seconds)
}
