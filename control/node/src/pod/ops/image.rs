//! Seeing that an image is here.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Container, Pod};
use tracing::debug;
use wharf_cri::v1;
use wharf_kit::chain;
use wharf_kit::event::Severity;

use super::{Done, Shared, event};
use crate::images::{self, Policy};
use crate::keyring::Keyring;
use crate::objects::{ObjectKind, ObjectName};

/// The credentials that the pod names. Those that cannot be read are told in an event, and done without.
async fn keyring(shared: &Shared, pod: &Pod) -> Keyring {
    let mut keyring = Keyring::default();
    let mut missing = Vec::new();
    let names = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    for name in names.map(|secret| &secret.name).filter(|name| !name.is_empty()) {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let object = ObjectName { kind: ObjectKind::Secret, namespace, name: name.clone() };
        let found = shared.objects.get(&object).await.map_err(|error| chain(&error).to_string());
        let added = found.and_then(|secret| {
            let secret = secret.ok_or_else(|| "it is not there".to_owned())?;
            keyring.add(&secret).map_err(str::to_owned)
        });
        if let Err(words) = added {
            debug!(secret = name, error = words, "an image pull secret is not usable");
            missing.push(name.as_str());
        }
    }
    if !missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        event(shared, pod, None, Severity::Warning, "FailedToRetrieveImagePullSecret", message);
    }
    keyring
}

/// Sees that the image is here, and tells in events how.
pub async fn image(
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    container: Container,
    slot: usize,
    sandbox: Option<v1::PodSandboxConfig>,
) -> Done {
    let name = container.image.clone().unwrap_or_default();
    let tell = |severity, reason: &str, message| {
        event(&shared, &pod, Some(&container.name), severity, reason, message)
    };
    let policy = Policy::of(container.image_pull_policy.as_deref(), &name);
    let result = async {
        if name.trim().is_empty() || name.contains(char::is_whitespace) {
            return Err(images::Error::Name { image: name.clone() });
        }
        if policy != Policy::Always {
            if let Some(image) = shared.images.present(&name).await? {
                tell(
                    Severity::Normal,
                    "Pulled",
                    format!("Container image \"{name}\" already present on machine"),
                );
                return Ok(image);
            }
            if policy == Policy::Never {
                return Err(images::Error::Never { image: name.clone() });
            }
        }
        tell(Severity::Normal, "Pulling", format!("Pulling image \"{name}\""));
        let begun = Instant::now();
        // The first credentials that are let in are the right ones; without any the registry is asked as anybody.
        let mut tries: Vec<_> = keyring(&shared, &pod).await.find(&name).into_iter().map(Some).collect();
        if tries.is_empty() {
            tries.push(None);
        }
        let mut pulled = Err(images::Error::Name { image: name.clone() });
        for auth in tries {
            pulled = shared.images.pull(&name, sandbox.clone(), auth).await;
            if pulled.is_ok() {
                break;
            }
        }
        let image = pulled?;
        tell(
            Severity::Normal,
            "Pulled",
            format!("Successfully pulled image \"{name}\" in {} ms", begun.elapsed().as_millis()),
        );
        Ok(image)
    };
    let result = result.await;
    if let Err(error) = &result {
        tell(Severity::Warning, "Failed", error.to_string());
        tell(Severity::Warning, "Failed", format!("Error: {}", error.reason()));
    }
    Done::Image { slot, result }
}
