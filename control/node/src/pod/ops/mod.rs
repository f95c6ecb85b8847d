//! What a worker does, each as one future that ends in a [`Done`]. They hold no state of the worker's and may be dropped
//! at any time: what they leave behind is found by the next adoption or teardown.

mod container;
mod image;
mod object;
mod record;
mod sandbox;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use wharf_kit::api::{self, Kind};
use wharf_kit::event::{Severity, Subject};
use wharf_kit::view::Key;

use super::Shared;
use super::state::{Exit, Record, Sandbox};
use crate::env::Facts;
use crate::images::{self, Image};
use crate::logs;
use crate::volumes::{self, Ready};

pub use container::{Start, StartError, Stop, Target, look, start, stop, words};
pub use image::image;
pub use object::{appears, class, delete, write};
pub use record::{exit, now, record_of};
pub use sandbox::{Adopted, adopt, release, remove_everything, sandbox, tear_down};

/// How an operation ended.
pub enum Done {
    Class(String),
    Volumes(Result<Ready, volumes::Error>),
    /// An object behind the volumes changed.
    SourcesChanged,
    Image {
        slot: usize,
        result: Result<Arc<Image>, images::Error>,
    },
    Sandbox(Result<Sandbox, String>),
    Started {
        slot: usize,
        attempt: u32,
        result: Result<Record, StartError>,
    },
    Stopped {
        id: String,
        exit: Option<Exit>,
    },
    /// A closer look at a container of which an event told too little. No exit: it is not there any more.
    Looked {
        id: String,
        exit: Option<Exit>,
    },
    /// A postStart hook came to its end.
    Hooked {
        slot: usize,
        id: String,
        result: Result<(), String>,
    },
    /// How a run ended that was found ended.
    Words {
        slot: usize,
        id: String,
        exit: Exit,
    },
    /// The object for which a slot (or, none, the volumes) waited is there.
    Appeared {
        slot: Option<usize>,
    },
    Adopted(Result<Adopted, String>),
    Released(Result<(), String>),
    TornDown(Result<(), String>),
    Written(Result<(), api::Error>),
    Deleted,
}

pub const PODS: Kind = Kind::core("Pod", "pods");

/// A pod's identity for the API and for events.
pub fn subject(pod: &Pod) -> Subject {
    let meta = &pod.metadata;
    Subject {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        key: Key::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        ),
        uid: meta.uid.clone().unwrap_or_default(),
        field: String::new(),
    }
}

fn event(
    shared: &Shared,
    pod: &Pod,
    container: Option<&str>,
    severity: Severity,
    reason: &str,
    message: String,
) {
    let mut subject = subject(pod);
    if let Some(container) = container {
        subject.field = format!("spec.containers{{{container}}}");
    }
    shared.recorder.record(&subject, severity, reason, message);
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Where the runtime opens the pod's log files.
fn log_directory(shared: &Shared, pod: &Pod) -> PathBuf {
    let meta = &pod.metadata;
    logs::pod_directory(
        &shared.logs,
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
        uid(pod),
    )
}

/// What environment and volumes may tell of the pod.
fn facts<'a>(shared: &'a Shared, pod: &'a Pod, ips: &'a [String]) -> Facts<'a> {
    Facts {
        pod,
        node: &shared.name,
        host_ip: &shared.host_ip,
        pod_ips: ips,
        api_server: (&shared.api_server.0, shared.api_server.1),
        allocatable: &shared.machine,
    }
}

/// Doubling pauses between tries that nobody needs to hear of each time.
struct Pause(Duration);

impl Pause {
    fn new() -> Self {
        Self(Duration::from_millis(100))
    }
    async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(10));
    }
}

pub async fn volumes(shared: Arc<Shared>, pod: Arc<Pod>, ips: Vec<String>) -> Done {
    let facts = facts(&shared, &pod, &ips);
    Done::Volumes(volumes::prepare(&shared.root, &facts, &shared.objects, &shared.tokens).await)
}
