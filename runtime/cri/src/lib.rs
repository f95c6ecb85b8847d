//! CRI v1, the interface between the node agent and the runtime, as a typed client and server.
//!
//! Messages and services are generated from `proto/runtime/v1/api.proto` into [`v1`]. [`connect`] opens a
//! client channel on the runtime's unix socket. [`annotation`] names what Wharf's node agent and shim tell
//! each other where CRI has no field for it; other runtimes ignore these.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Messages, clients and servers of the package `runtime.v1`.
#[allow(
    clippy::all,
    clippy::pedantic,
    missing_docs,
    rust_2018_idioms,
    unused_qualifications,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");

    impl std::fmt::Debug for AuthConfig {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("AuthConfig")
                .field("username", &self.username)
                .field("server_address", &self.server_address)
                .finish_non_exhaustive()
        }
    }
}

/// Keys that Wharf's node agent and shim agree on.
pub mod annotation {
    /// On a sandbox: `runtime.wharf.dev/port.CONTAINER` is the first TCP container port of that container, the
    /// port on which a `wasi:http` component listens unless its env `PORT` says otherwise.
    pub const PORT_PREFIX: &str = "runtime.wharf.dev/port.";
    /// On the `ImageSpec` of an `Image`: [`KIND_WASM`] or [`KIND_OCI`], as told from the image's manifest.
    pub const IMAGE_KIND: &str = "runtime.wharf.dev/kind";
    /// The image holds a WebAssembly module or component.
    pub const KIND_WASM: &str = "wasm";
    /// The image holds a root file system.
    pub const KIND_OCI: &str = "oci";
}

/// Runtime handlers, as RuntimeClass names them.
pub mod handler {
    /// Pods whose containers are all WebAssembly: the network is the wasm host's, no pause process.
    pub const WASM: &str = "wasm";
    /// Pods with a network namespace of their own; the empty handler means this one.
    pub const OCI: &str = "oci";
}

/// A lazily connected channel to the runtime's unix socket; it reconnects when the runtime restarts.
///
/// Must be called within a tokio runtime. The path is not looked at before the first call.
pub fn connect(socket: &Path) -> Channel {
    let socket: PathBuf = socket.to_owned();
    Endpoint::from_static("http://runtime.invalid").connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        },
    ))
}
