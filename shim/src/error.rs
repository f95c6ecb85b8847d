use tonic::{Code, Status};
use wharf_wasm::Failure;

/// Why the shim did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not {what}")]
    Start {
        what: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("{kind} {id} does not exist")]
    Unknown { kind: &'static str, id: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("container {id} is {is}, not {wanted}")]
    State { id: String, is: &'static str, wanted: &'static str },
    #[error("could not write down {what}")]
    Record {
        what: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("container {id} did not end within {seconds} s of being killed")]
    Deaf { id: String, seconds: u64 },
    #[error("command {command:?} timed out: timeout {seconds}s exceeded")]
    Timeout { command: String, seconds: u64 },
    #[error("pod network")]
    Network(#[from] wharf_sandbox::Error),
    #[error("wasm host")]
    Wasm(#[from] wharf_wasm::Error),
    #[error("OCI runtime")]
    Oci(#[from] wharf_oci::Error),
    #[error("image store")]
    Image(#[from] wharf_image::Error),
    #[error(transparent)]
    Pull(#[from] std::sync::Arc<wharf_image::Error>),
    #[error(transparent)]
    Busy(#[from] crate::streaming::Busy),
}

impl Error {
    fn code(&self) -> Code {
        match self {
            Self::Unknown { .. } => Code::NotFound,
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Unsupported(_) => Code::Unimplemented,
            Self::State { .. } => Code::FailedPrecondition,
            Self::Deaf { .. } | Self::Timeout { .. } => Code::DeadlineExceeded,
            Self::Busy(_) | Self::Network(wharf_sandbox::Error::Exhausted(_)) => Code::ResourceExhausted,
            Self::Network(wharf_sandbox::Error::NoRange) => Code::Unavailable,
            Self::Wasm(wharf_wasm::Error::Refused(Failure::Module { .. } | Failure::Spec { .. }))
            | Self::Oci(wharf_oci::Error::Invalid(_)) => Code::InvalidArgument,
            Self::Start { .. }
            | Self::Record { .. }
            | Self::Network(_)
            | Self::Wasm(_)
            | Self::Oci(_)
            | Self::Image(_)
            | Self::Pull(_) => Code::Unknown,
        }
    }
}

/// The error and its causes on one line, each once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), chain(&error))
    }
}
