//! Images: present or pulled, one pull at a time for each reference and credentials, shared by all who want it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use wharf_cri::{annotation, v1};

use crate::runtime::Runtime;

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Always,
    IfNotPresent,
    Never,
}

impl Policy {
    /// As the API server defaults it: `Always` for `:latest` or no tag, else `IfNotPresent`.
    pub fn of(policy: Option<&str>, image: &str) -> Self {
        match policy {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            Some(_) => Self::IfNotPresent,
            None => {
                let name = image.rsplit('/').next().unwrap_or(image);
                let tagged =
                    name.contains('@') || name.split_once(':').is_some_and(|(_, tag)| tag != "latest");
                if tagged { Self::IfNotPresent } else { Self::Always }
            }
        }
    }
}

/// What is in an image, as its manifest tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Wasm,
    Oci,
}

/// An image that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// To create containers of, and what `imageID` says.
    pub id: String,
    pub kind: Kind,
    /// The user it runs as if nobody says otherwise: a number, or a name that only the image can resolve.
    pub uid: Option<i64>,
    pub username: String,
}

/// Why an image is not here. The text is the registry's or runtime's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("failed to pull image \"{image}\": {words}")]
    Pull { image: String, words: String },
    #[error("Container image \"{image}\" is not present with pull policy of Never")]
    Never { image: String },
    #[error("Failed to inspect image \"{image}\": {words}")]
    Inspect { image: String, words: String },
    #[error(
        "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format"
    )]
    Name { image: String },
}

impl Error {
    /// As it stands in `waiting.reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Pull { .. } => "ErrImagePull",
            Self::Never { .. } => "ErrImageNeverPull",
            Self::Inspect { .. } => "ImageInspectError",
            Self::Name { .. } => "InvalidImageName",
        }
    }
}

type Pull = Shared<BoxFuture<'static, Result<Arc<Image>, Error>>>;

/// What is pulled, and with which credentials: who may not pull an image does not get it by another's pull.
type Asked = (String, Option<v1::AuthConfig>);

/// The node's images. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    runtime: Runtime,
    pulls: Arc<Mutex<HashMap<Asked, Pull>>>,
}

impl Images {
    pub fn new(runtime: Runtime) -> Self {
        Self { runtime, pulls: Arc::default() }
    }

    /// The image, if it is here. No pull.
    ///
    /// # Errors
    /// The runtime did not answer.
    pub async fn present(&self, image: &str) -> Result<Option<Arc<Image>>, Error> {
        let spec = v1::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = v1::ImageStatusRequest { image: Some(spec), verbose: false };
        let status = self.runtime.image.clone().image_status(request).await;
        let status = status.map_err(|status| Error::Inspect {
            image: image.to_owned(),
            words: status.message().to_owned(),
        })?;
        Ok(status.into_inner().image.map(|image| {
            let kind = image.spec.as_ref().and_then(|spec| spec.annotations.get(annotation::IMAGE_KIND));
            Arc::new(Image {
                kind: if kind.is_some_and(|kind| kind == annotation::KIND_WASM) {
                    Kind::Wasm
                } else {
                    Kind::Oci
                },
                uid: image.uid.map(|uid| uid.value),
                username: image.username,
                id: image.id,
            })
        }))
    }

    /// Pulls, or joins the pull of the same reference that is on its way. Dropping the future leaves others' in peace.
    ///
    /// # Errors
    /// In the registry's own words.
    pub async fn pull(
        &self,
        image: &str,
        sandbox: Option<v1::PodSandboxConfig>,
        auth: Option<v1::AuthConfig>,
    ) -> Result<Arc<Image>, Error> {
        let pull = {
            let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            // One that nobody waits for any more stands still; joining it goes on with it.
            pulls.retain(|_, pull| pull.peek().is_none());
            let this = self.clone();
            let name = image.to_owned();
            pulls
                .entry((image.to_owned(), auth.clone()))
                .or_insert_with(|| async move { this.pull_now(name, sandbox, auth).await }.boxed().shared())
                .clone()
        };
        pull.await
    }

    async fn pull_now(
        self,
        image: String,
        sandbox: Option<v1::PodSandboxConfig>,
        auth: Option<v1::AuthConfig>,
    ) -> Result<Arc<Image>, Error> {
        let spec =
            v1::ImageSpec { image: image.clone(), user_specified_image: image.clone(), ..Default::default() };
        let request = v1::PullImageRequest { image: Some(spec), auth, sandbox_config: sandbox };
        let pulled = self.runtime.image.clone().pull_image(request).await;
        if let Err(status) = pulled {
            return Err(Error::Pull { image, words: status.message().to_owned() });
        }
        match self.present(&image).await? {
            Some(found) => Ok(found),
            None => Err(Error::Inspect { image, words: "it is gone right after its pull".to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_follows_the_tag_where_none_is_given() {
        for (policy, image, want) in [
            (None, "a", Policy::Always),
            (None, "h:5000/a", Policy::Always),
            (None, "a:latest", Policy::Always),
            (None, "h:5000/a:1", Policy::IfNotPresent),
            (None, "a@sha256:00", Policy::IfNotPresent),
            (Some("Never"), "a", Policy::Never),
            (Some("IfNotPresent"), "a:latest", Policy::IfNotPresent),
        ] {
            assert_eq!(Policy::of(policy, image), want, "{image}");
        }
    }
}
