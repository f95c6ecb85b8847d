//! Seeing that an image is here.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Container, Pod};
use wharf_cri::v1;
use wharf_kit::event::Severity;

use super::{Done, Shared, event};
use crate::images::{self, Policy};

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
        let image = shared.images.pull(&name, sandbox).await?;
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
