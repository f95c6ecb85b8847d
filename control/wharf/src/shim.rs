//! `wharf shim`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use wharf_image::{Endpoint, HostConfig, RegistriesConfig};

/// The name under which every node knows the cluster's built-in registry.
const BUILT_IN: &str = "registry.wharf";

#[derive(Args)]
pub struct Options {
    /// The unix socket to serve CRI on
    #[arg(long, default_value = "/run/wharf/shim.sock")]
    socket: PathBuf,
    /// Directory for images and compiled code
    #[arg(long, default_value = "/var/lib/wharf/shim")]
    root: PathBuf,
    /// Directory for records, namespaces and sockets, on a file system that a reboot clears
    #[arg(long, default_value = "/run/wharf/shim")]
    state: PathBuf,
    /// The cgroup below which containers go whose pod names none
    #[arg(long, default_value = "/wharf")]
    cgroup_parent: String,
    /// The addresses of pods here, for a shim that no node agent tells them
    #[arg(long, value_name = "RANGE")]
    pod_cidr: Option<wharf_sandbox::Range>,
    /// File that says how registries are reached (mirrors, CAs, credentials)
    #[arg(long)]
    registries: Option<PathBuf>,
    /// Where the built-in registry `registry.wharf` is served, for example https://10.0.0.1:6443
    #[arg(long, requires_all = ["registry_ca", "registry_cert", "registry_key"])]
    registry: Option<String>,
    /// The CA that signed its certificate
    #[arg(long)]
    registry_ca: Option<PathBuf>,
    /// The node's client certificate
    #[arg(long)]
    registry_cert: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long)]
    registry_key: Option<PathBuf>,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let stop = crate::stop_on_signal()?;
    let mut registries = match &options.registries {
        Some(path) => RegistriesConfig::load(path).with_context(|| format!("read {}", path.display()))?,
        None => RegistriesConfig::default(),
    };
    if let Some(url) = options.registry {
        let endpoint = Endpoint {
            ca: options.registry_ca,
            client_cert: options.registry_cert,
            client_key: options.registry_key,
            ..Endpoint::at(url)
        };
        let host = HostConfig { server: Some(endpoint), ..HostConfig::default() };
        registries.hosts.insert(BUILT_IN.to_owned(), host);
    }
    let config = wharf_shim::Config {
        socket: options.socket,
        root: options.root,
        state: options.state,
        cgroup_parent: options.cgroup_parent,
        pod_range: options.pod_cidr,
        registries,
    };
    Ok(wharf_shim::run(config, stop).await?)
}
