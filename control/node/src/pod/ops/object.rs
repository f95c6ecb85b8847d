//! What is asked of the API server.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tracing::warn;
use wharf_kit::api::{Delete, Ignored, Kind, PatchKind};
use wharf_kit::chain;
use wharf_kit::event::Severity;
use wharf_kit::view::Key;

use super::{Done, PODS, Pause, Shared, event};
use crate::objects::{ObjectName, Seen};

const CLASSES: Kind = Kind::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses").cluster();

/// The handler of a RuntimeClass; waits until it can be read. Handlers never change, so each is asked for once.
pub async fn class(shared: Arc<Shared>, pod: Arc<Pod>, name: String) -> Done {
    #[derive(serde::Deserialize)]
    struct Class {
        handler: String,
    }
    let mut pause = Pause::new();
    loop {
        let known =
            shared.classes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&name).cloned();
        if let Some(handler) = known {
            return Done::Class(handler);
        }
        match shared.rest.get::<Class>(CLASSES, &Key::cluster(name.as_str())).await {
            Ok(class) => {
                shared
                    .classes
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .insert(name.clone(), class.handler);
            }
            Err(error) => {
                let message = format!("could not read RuntimeClass \"{name}\": {}", error.message());
                event(&shared, &pod, None, Severity::Warning, "FailedCreatePodSandBox", message);
                pause.wait().await;
            }
        }
    }
}

/// Ends when the object is there (with the key).
pub async fn appears(
    shared: Arc<Shared>,
    object: ObjectName,
    key: Option<String>,
    slot: Option<usize>,
) -> Done {
    let watched = shared.objects.watch(&object);
    let mut changes = watched.changes();
    let there = |seen: &Seen| match (seen, &key) {
        (Seen::Found(data), Some(key)) => data.text.contains_key(key),
        (Seen::Found(_), None) => true,
        (Seen::Unknown | Seen::Missing, _) => false,
    };
    let _ = changes.wait_for(there).await; // cannot end before us: we hold the watch
    Done::Appeared { slot }
}

/// Writes the changed parts of the status.
pub async fn write(shared: Arc<Shared>, key: Key, uid: String, status: Value) -> Done {
    let body = json!({"metadata": {"uid": uid}, "status": status});
    let written = shared.rest.patch::<Ignored>(PODS, &key, "status", PatchKind::Merge, &body).await;
    Done::Written(written.map(drop))
}

/// Deletes the API object for good. Tries until the API says that it is done or that there is none.
pub async fn delete(shared: Arc<Shared>, key: Key, uid: String) -> Done {
    let how = Delete { uid, ..Delete::default() }.with_grace(0);
    let mut pause = Pause::new();
    loop {
        match shared.rest.delete::<Ignored>(PODS, &key, &how).await {
            Ok(_) => return Done::Deleted,
            Err(error) if error.is_not_found() || error.is_conflict() => return Done::Deleted,
            Err(error) => {
                warn!(pod = %key, error = %chain(&error), "could not delete the pod's object, trying again")
            }
        }
        pause.wait().await;
    }
}
