use std::io;

/// Why something was not done to a container or a pause process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no container or pause process {0}")]
    Unknown(String),
    #[error("{0} already exists")]
    Exists(String),
    /// The id or the spec cannot be run as it is; asking again does not help.
    #[error("{0}")]
    Invalid(String),
    /// It is not in the state that the request needs.
    #[error("container {id} is {is}")]
    State { id: String, is: &'static str },
    /// libcontainer or the kernel refused, in its own words.
    #[error("{0}")]
    Refused(String),
    #[error("no answer about {id} within {seconds} s")]
    Deadline { id: String, seconds: u64 },
    #[error("link to zygote or monitor")]
    Link(#[source] wharf_link::Error),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        cause: io::Error,
    },
}

impl From<wharf_link::Error> for Error {
    fn from(cause: wharf_link::Error) -> Self {
        match cause {
            wharf_link::Error::Remote(why) => Self::Refused(why),
            cause => Self::Link(cause),
        }
    }
}

/// `fs::…().map_err(at("write", path))`
pub(crate) fn at<'a>(doing: &'a str, path: &'a std::path::Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |cause| Error::Io { what: format!("{doing} {}", path.display()), cause }
}
