//! `wharf node`: the agent of one node and its routes to the others. The server runs the same in its own process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::SignedDuration;
use kube::client::ConfigExt as _;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use wharf_kit::identity::Pair;

use crate::pki::Pki;
use crate::routes;
use crate::server::NODE_GRACE;

/// The kernel counts the keepalive of a connection in whole seconds, of which two must fit.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub struct Options {
    /// URL of the API server
    #[arg(long)]
    server: String,
    /// Directory with the node's certificate and key (node.crt, node.key) and the cluster's CA (ca.crt)
    #[arg(long, default_value = "/var/lib/wharf/node/pki")]
    pki: PathBuf,
    #[command(flatten)]
    node: NodeOptions,
}

/// What an agent is told of its node, in the server's process or in its own.
#[derive(Args)]
pub struct NodeOptions {
    /// Name of the node
    #[arg(long, default_value = "node-1")]
    pub node_name: String,
    /// The node's own address
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub node_address: IpAddr,
    /// Directory for volumes and pods
    #[arg(long, default_value = "/var/lib/wharf/node")]
    node_root: PathBuf,
    /// Directory for container logs
    #[arg(long, default_value = "/var/log/pods")]
    node_logs: PathBuf,
    /// The CRI runtime's socket
    #[arg(long, default_value = "/run/wharf/shim.sock")]
    runtime: PathBuf,
    /// Port of the node server
    #[arg(long, default_value_t = wharf_node::DEFAULT_PORT)]
    node_port: u16,
    /// How long the node's Lease is good; it is renewed four times in that
    #[arg(long, default_value = NODE_GRACE)]
    node_lease_duration: SignedDuration,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let stop = crate::stop_on_signal()?;
    let file = |name: &str| options.pki.join(name);
    let identity = Pair::load(&file("node.crt"), &file("node.key"))?;
    let ca = std::fs::read_to_string(file("ca.crt"))
        .with_context(|| format!("read {}", file("ca.crt").display()))?;
    let lease = lease(&options.node)?;
    let client = client(&options.server, &ca, &identity, (lease / 4).max(LEAST_PATIENCE))?;
    let node = start(&options.node, client, identity, &ca, stop.clone()).await?;
    stop.cancelled().await;
    node.stopped().await;
    tracing::info!("stopped");
    Ok(())
}

/// The certificate of a node: it serves at the node's address, and is the client `system:node:NAME`.
pub fn identity(pki: &Pki, name: &str, address: IpAddr) -> anyhow::Result<Pair> {
    let user = format!("system:node:{name}");
    let names = [name.to_owned(), address.to_string()];
    pki.pair("node", &format!("{user},{address}"), |ca| ca.peer(&user, &["system:nodes"], &names))
}

/// A client of the API server at `url`, which must show a certificate of `ca`. A connection whose other end is not
/// heard of for `patience` is given up: a watch would wait for ever on one that was cut.
fn client(url: &str, ca: &str, identity: &Pair, patience: Duration) -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::new(url.parse().with_context(|| format!("{url:?} is no URL"))?);
    config.root_cert = Some(wharf_kit::identity::certificates(ca)?.iter().map(|der| der.to_vec()).collect());
    config.auth_info.client_certificate_data = Some(base64(&identity.cert_pem));
    config.auth_info.client_key_data = Some(base64(&identity.key_pem).into());
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(patience));
    tcp.set_keepalive(Some(patience / 2));
    tcp.set_keepalive_interval(Some(patience / 2));
    tcp.set_tcp_user_timeout(Some(patience));
    let https =
        config.rustls_https_connector_with_connector(tcp).context("make a client of the API server")?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https));
    Ok(kube::Client::new(service, config.default_namespace))
}

fn base64(text: &str) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    BASE64_STANDARD.encode(text)
}

fn lease(options: &NodeOptions) -> anyhow::Result<Duration> {
    let lease = Duration::try_from(options.node_lease_duration).context("--node-lease-duration")?;
    let least = Duration::from_secs(1);
    anyhow::ensure!(lease >= least, "--node-lease-duration: a Lease counts whole seconds, at least one");
    Ok(lease)
}

/// Starts the agent and the routes to other nodes.
pub async fn start(
    options: &NodeOptions,
    client: kube::Client,
    identity: Pair,
    client_ca: &str,
    stop: CancellationToken,
) -> anyhow::Result<wharf_node::Handle> {
    let lease = lease(options)?;
    tokio::spawn(routes::keep(client.clone(), options.node_name.clone(), stop.clone()));
    let config = wharf_node::Config {
        name: options.node_name.clone(),
        client,
        runtime: wharf_cri::connect(&options.runtime),
        address: options.node_address,
        root: options.node_root.clone(),
        logs: options.node_logs.clone(),
        serving: wharf_node::Serving {
            listen: wharf_node::Listen::Address(SocketAddr::new(options.node_address, options.node_port)),
            identity,
            client_ca: client_ca.to_owned(),
        },
        labels: Default::default(),
        max_pods: wharf_node::DEFAULT_MAX_PODS,
        lease,
    };
    Ok(wharf_node::Node::start(config, stop).await?)
}
