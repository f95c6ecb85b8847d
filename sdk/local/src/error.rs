use std::io;
use std::path::{Path, PathBuf};

/// Why a cluster was not started or ended. The text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{0:?} is no cluster name; use lower-case letters, digits and '-', at most 30, starting with a letter"
    )]
    Name(String),
    #[error("a cluster needs root, for its namespaces and cgroups; run the same command with sudo")]
    NotRoot,
    #[error("this kernel cannot run a cluster: {missing}; {remedy}")]
    Kernel { missing: String, remedy: String },
    #[error(
        "the cluster {name:?} runs already; use it with `kubectl --context wharf-{name}` or end it with `wctl down {name}`"
    )]
    Runs { name: String },
    #[error("there is no cluster {name:?}; `wctl up {name}` makes it")]
    Unknown { name: String },
    #[error("no `wharf` beside {beside} and none in PATH; build it, or name it with --wharf")]
    NoBinary { beside: PathBuf },
    #[error("127.0.0.1:{port} is taken by another program; give another with --port, or end that program")]
    Port { port: u16 },
    #[error("the cluster {name:?} did not start: {why}\nits log is {log}")]
    Start { name: String, why: String, log: PathBuf },
    #[error("{count} processes of the cluster {name:?} did not end; see {procs}")]
    Left { name: String, count: usize, procs: PathBuf },
    #[error("the processes of {node} did not end; see {log}")]
    NodeLeft { node: String, log: PathBuf },
    #[error("{path} is no kubeconfig: {why}; mend or move it, or point KUBECONFIG elsewhere")]
    Kubeconfig { path: PathBuf, why: String },
    #[error("could not {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

/// `fs::…().map_err(at("write", path))`
pub(crate) fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |cause| Error::File { action, path: path.to_owned(), cause }
}
