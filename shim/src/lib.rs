//! The CRI v1 server of a node: `wharf shim`.
//!
//! Enter at [`run`], which serves until its token is cancelled and leaves every container running: a shim
//! that starts again finds wasm host, monitors, containers and namespaces by its state directory.
//!
//! - `service` translates CRI's messages; it decides nothing;
//! - `sandboxes` and `containers` are what can be done, on the [`shim::Shim`] that they all share;
//! - `spec` turns CRI's configs into what a runtime is told, one function per runtime;
//! - two tasks take the ends of containers, from the wasm host and from the OCI monitors, write them down and
//!   publish them as CRI events;
//! - `recover` settles what an earlier shim wrote down with what runs;
//! - `streaming` serves the streams that CRI promises by URL.

mod cni;
mod containers;
mod deadline;
mod error;
mod events;
mod exec;
mod files;
mod handlers;
mod info;
mod lists;
mod metrics;
mod record;
mod recover;
mod sandboxes;
mod service;
mod shim;
mod spec;
mod stats;
mod streaming;
mod update;
mod user_namespace;
mod users;
mod view;

use std::collections::BTreeMap;
use std::path::PathBuf;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use wharf_cri::v1::image_service_server::ImageServiceServer;
use wharf_cri::v1::runtime_service_server::RuntimeServiceServer;
use wharf_image::RegistriesConfig;

pub use error::Error;

/// Where a shim lives.
#[derive(Clone, Debug)]
pub struct Config {
    /// The unix socket that CRI is served on. A file left there is replaced.
    pub socket: PathBuf,
    /// What outlives a boot: images and compiled code.
    pub root: PathBuf,
    /// What does not: records, namespaces, sockets.
    pub state: PathBuf,
    /// The cgroup below which the containers of pods that name none go, for example `/wharf`.
    pub cgroup_parent: String,
    /// The addresses of pods; without, those that `UpdateRuntimeConfig` told last.
    pub pod_range: Option<wharf_sandbox::Range>,
    /// Whether CNI plugins make the networks of new pods, and not this program.
    pub with_cni: bool,
    pub cni: wharf_sandbox::cni::Plugins,
    /// The binaries of other OCI runtimes, by the names of their runtime handlers.
    pub runtimes: BTreeMap<String, PathBuf>,
    pub registries: RegistriesConfig,
}

/// How long calls that are under way may take once the shim is asked to stop. Whoever made one asks again.
const GRACE: std::time::Duration = std::time::Duration::from_secs(5);

/// Serves CRI until `stop` is cancelled. Running containers are left as they are.
///
/// # Errors
/// What kept it from starting.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), Error> {
    let socket = config.socket.clone();
    let shim = shim::Shim::open(config, stop.clone()).await?;
    let listener = bind(&socket)
        .map_err(|cause| Error::Start { what: format!("listen on {}", socket.display()), cause })?;
    tracing::info!(socket = %socket.display(), "serving CRI");
    let service = service::Service::new(shim.clone());
    let serving = Server::builder()
        .layer(tower::layer::layer_fn(deadline::Deadlines))
        .add_service(RuntimeServiceServer::new(service.clone()))
        .add_service(ImageServiceServer::new(service))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.clone().cancelled_owned());
    let served = tokio::select! {
        served = serving => served,
        () = async { stop.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    };
    let _ = std::fs::remove_file(&socket);
    served.map_err(|cause| Error::Start { what: "serve CRI".to_owned(), cause: std::io::Error::other(cause) })
}

fn bind(socket: &std::path::Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir)?;
    }
    if socket.exists() {
        std::fs::remove_file(socket)?;
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
