use std::io;

/// Why a message was not passed on. After anything but [`Error::Remote`] and [`Error::Encode`] the connection is
/// of no further use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other end went away; for a [`crate::Peer`], also while a call waited for its answer.
    #[error("the connection was closed")]
    Closed,
    #[error("the connection was closed inside a message")]
    Truncated,
    #[error("a message of {len} bytes exceeds the limit of {}", crate::MAX_BODY)]
    TooLarge { len: usize },
    #[error("a message with {count} descriptors exceeds the limit of {}", crate::MAX_FDS)]
    TooManyFds { count: usize },
    /// Also when this process had no descriptor left to receive one with.
    #[error("a message announced {announced} descriptors but brought {came}")]
    MissingFds { announced: usize, came: usize },
    #[error("not a message of this protocol")]
    NotAFrame,
    #[error("could not decode a message")]
    Decode(#[source] serde_json::Error),
    #[error("could not encode a message")]
    Encode(#[source] serde_json::Error),
    #[error("the other end runs as user {uid}, which is neither root nor this process's own")]
    Stranger { uid: u32 },
    /// Events came faster than they were taken: [`crate::EVENT_BACKLOG`] waited.
    #[error("too many events waited to be taken")]
    Overrun,
    /// The other end refused a request, in its own words.
    #[error("{0}")]
    Remote(String),
    #[error("unix socket")]
    Io(#[source] io::Error),
}

impl Error {
    /// Whether a non-blocking socket just had nothing to give, or no room; call again when it is ready.
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Io(cause) if cause.kind() == io::ErrorKind::WouldBlock)
    }
}

impl From<io::Error> for Error {
    fn from(cause: io::Error) -> Self {
        match cause.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(cause),
        }
    }
}
