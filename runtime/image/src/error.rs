//! What can go wrong, in words that an operator can use.

use std::path::PathBuf;
use std::sync::Arc;

use crate::digest::Digest;

/// Why an image was not pulled, kept or found. Each message is complete: it ends with the registry's own words where there are any.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration says something impossible.
    #[error("image configuration: {0}")]
    Config(String),
    /// Another process has the directory open.
    #[error("{} is in use by another process", .0.display())]
    Busy(PathBuf),
    /// The disk did not do what was asked.
    #[error("could not {what}: {cause}")]
    Disk {
        /// What was tried.
        what: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// No answer from the registry: name lookup, connection, TLS, silence.
    #[error("{url}: {detail}")]
    Unreachable {
        /// The request's URL.
        url: String,
        /// The transport's words, whole chain.
        detail: String,
        /// Whether bytes had flowed before; such a request is worth a repeat.
        midway: bool,
    },
    /// The registry answered with an error.
    #[error("{url}: {message} ({code}, HTTP {status})")]
    Registry {
        /// The request's URL.
        url: String,
        /// HTTP status.
        status: u16,
        /// Distribution error code (`MANIFEST_UNKNOWN`), or the status' name.
        code: String,
        /// Its own words.
        message: String,
    },
    /// What the registry sent is not what it says it is, or nothing this store can use.
    #[error("{0}")]
    Content(String),
    /// No entry of the index is for this machine.
    #[error("no image for {wanted} in the index; it has {offered}")]
    Platform {
        /// What was looked for.
        wanted: String,
        /// What is there.
        offered: String,
    },
    /// A layer cannot be unpacked.
    #[error("layer {digest}: {what}")]
    Layer {
        /// As the manifest names it.
        digest: Digest,
        /// What is wrong with it.
        what: String,
    },
    /// The pull as a whole, after all mirrors.
    #[error("could not pull {reference}: {}", joined(.causes))]
    Pull {
        /// Complete form.
        reference: String,
        /// One per endpoint asked, in order.
        causes: Vec<Arc<Error>>,
    },
}

/// What a caller can usefully do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Try again later: the network, the registry or the disk may recover.
    BackOff,
    /// The name does not exist there: correct it, or push the image.
    Absent,
    /// Bring credentials, or other ones.
    Credentials,
    /// Trying again will not help: the image or the configuration has to change.
    Correct,
}

impl Error {
    /// What a caller can usefully do next.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Busy(_) | Self::Disk { .. } | Self::Unreachable { .. } => Remedy::BackOff,
            Self::Registry { status: 404, .. } => Remedy::Absent,
            Self::Registry { status: 401 | 403, .. } => Remedy::Credentials,
            Self::Registry { status: 400..=499, .. } => Remedy::Correct,
            Self::Registry { .. } => Remedy::BackOff,
            Self::Config(_) | Self::Content(_) | Self::Platform { .. } | Self::Layer { .. } => {
                Remedy::Correct
            }
            Self::Pull { causes, .. } => causes.last().map_or(Remedy::BackOff, |cause| cause.remedy()),
        }
    }

    /// Whether the same request may well succeed in a moment.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { midway, .. } => *midway,
            Self::Registry { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    pub(crate) fn disk(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Disk { what, cause }
    }
}

fn joined(causes: &[Arc<Error>]) -> String {
    causes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// An error and its sources on one line, each said once.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}
