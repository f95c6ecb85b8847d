//! `wharf shim`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use wharf_image::{Endpoint, HostConfig, RegistriesConfig};
use wharf_sandbox::cni::Plugins;

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
    /// Who makes the networks of pods: CNI plugins, this program with a bridge, or CNI plugins if some are configured at start
    #[arg(long, value_enum, default_value = "auto")]
    network: PodNetwork,
    /// Directory of CNI configurations; the first by name is used
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Directories of CNI plugins
    #[arg(long, value_name = "DIR", value_delimiter = ',', default_values = ["/opt/cni/bin", "/usr/lib/cni"])]
    cni_bin_dir: Vec<PathBuf>,
    /// Another OCI runtime's binary for the pods of a runtime handler; can be given more than once
    #[arg(long = "runtime", value_name = "HANDLER=PATH", value_parser = named_path)]
    runtimes: Vec<(String, PathBuf)>,
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

fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("it is no HANDLER=PATH")?;
    Ok((name.to_owned(), path.into()))
}

#[derive(Clone, Copy, ValueEnum)]
enum PodNetwork {
    Auto,
    Bridge,
    Cni,
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
    let cni = Plugins { configurations: options.cni_conf_dir, binaries: options.cni_bin_dir };
    let with_cni = match options.network {
        PodNetwork::Auto => !matches!(cni.configuration(), Err(wharf_sandbox::Error::Unconfigured(_))),
        PodNetwork::Bridge => false,
        PodNetwork::Cni => true,
    };
    let config = wharf_shim::Config {
        socket: options.socket,
        root: options.root,
        state: options.state,
        cgroup_parent: options.cgroup_parent,
        pod_range: options.pod_cidr,
        with_cni,
        cni,
        runtimes: options.runtimes.into_iter().collect(),
        registries,
    };
    Ok(wharf_shim::run(config, stop).await?)
}
