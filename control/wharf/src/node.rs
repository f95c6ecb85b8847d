//! `wharf node`: the agent of one node and its routes to the others. The server runs the same in its own process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;
use wharf_kit::identity::{self, Pair};
use wharf_kit::renew::{self, Current};
use wharf_local::token::Token;

use crate::client::client;
use crate::join::{self, Wanted};
use crate::pki::Pki;
use crate::routes;
use crate::server::{self, NODE_GRACE};

/// The kernel counts the keepalive of a connection in whole seconds, of which two must fit.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub struct Options {
    /// URL of the API server
    #[arg(long)]
    server: String,
    /// Directory for the node's certificates and keys (node, serving) and the cluster's CA (ca.crt)
    #[arg(long, default_value = "/var/lib/wharf/node/pki")]
    pki: PathBuf,
    #[command(flatten)]
    join: JoinOptions,
    /// A descriptor that gets a byte when the machine is a node
    #[arg(long)]
    ready_fd: Option<RawFd>,
    #[command(flatten)]
    node: NodeOptions,
}

/// How a machine becomes a node. A node that has its certificate needs none of this.
#[derive(Args)]
struct JoinOptions {
    /// The bootstrap token to join with, ID.SECRET
    #[arg(long)]
    token: Option<String>,
    /// File with that token
    #[arg(long, conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Hash of the public key of the cluster's CA, sha256:HEX
    #[arg(long)]
    ca_cert_hash: Option<String>,
    /// File with the cluster's CA
    #[arg(long, conflicts_with = "ca_cert_hash")]
    ca: Option<PathBuf>,
}

impl JoinOptions {
    fn token(&self) -> anyhow::Result<String> {
        let text = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(path)) => read(path)?.trim().to_owned(),
            (None, None) => anyhow::bail!("this machine is no node yet: join with --token"),
        };
        let token = Token::parse(&text).context("the token is not of the form abcdef.0123456789abcdef")?;
        Ok(token.text())
    }

    /// The cluster's CA, PEM.
    async fn ca(&self, server: &str) -> anyhow::Result<String> {
        if let Some(path) = &self.ca {
            return read(path);
        }
        let hash = self.ca_cert_hash.as_ref();
        let hash = hash.context("whom to trust is not known: give --ca-cert-hash sha256:HEX or --ca FILE")?;
        let (host, port) = place(server)?;
        join::discover(&host, port, hash).await
    }
}

/// Host and port of a URL of the API server.
fn place(server: &str) -> anyhow::Result<(String, u16)> {
    let url: http::Uri = server.parse().with_context(|| format!("{server:?} is no URL"))?;
    let host = url.host().with_context(|| format!("{server:?} names no host"))?;
    Ok((host.trim_matches(['[', ']']).to_owned(), url.port_u16().unwrap_or(443)))
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
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
    let patience = (lease(&options.node)? / 4).max(LEAST_PATIENCE);
    let Some(joined) = stop.run_until_cancelled(joined(&options, patience, &stop)).await else {
        return Ok(());
    };
    let (client, serving, ca) = joined?;
    if let Some(fd) = options.ready_fd {
        server::tell_ready(fd)?;
    }
    let node = start(&options.node, &options.server, client, serving, &ca, stop.clone()).await?;
    stop.cancelled().await;
    node.stopped().await;
    tracing::info!("stopped");
    Ok(())
}

/// A client with the node's identity, and the certificate of its server, both renewed until `stop`; the cluster's CA.
/// The server's may come later: it is not issued before the Node tells its addresses.
async fn joined(
    options: &Options,
    patience: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<(kube::Client, Current, String)> {
    let (name, pki) = (&options.node.node_name, &options.pki);
    let trusted = pki.join("ca.crt");
    let wanted = Wanted::client(name);
    let (pair, ca) = match wanted.kept(pki) {
        Some(pair) => (pair, read(&trusted)?),
        None => {
            let ca = options.join.ca(&options.server).await?;
            let token = options.join.token()?;
            let client = client(&options.server, &ca, &Current::default(), Some(token), patience)?;
            std::fs::create_dir_all(pki).with_context(|| format!("make {}", pki.display()))?;
            // First, so that who has the certificate has this too: a good certificate alone tells a member.
            identity::write_public(&trusted, ca.as_bytes())?;
            let asked = wanted.ask(&client, pki).await;
            (asked.with_context(|| format!("could not join {} as {name}", options.server))?, ca)
        }
    };
    let current = Current::new(&pair)?;
    let client = client(&options.server, &ca, &current, None, patience)?;
    keep("node", wanted, current, Some(pair), &client, pki, stop);
    let wanted = Wanted::serving(name, options.node.node_address);
    let pair = wanted.kept(pki);
    let serving = pair.as_ref().map(Current::new).transpose()?.unwrap_or_default();
    keep("serving", wanted, serving.clone(), pair, &client, pki, stop);
    Ok((client, serving, ca))
}

/// Renews one of the node's certificates until `stop`.
fn keep(
    what: &'static str,
    wanted: Wanted,
    current: Current,
    pair: Option<Pair>,
    client: &kube::Client,
    pki: &Path,
    stop: &CancellationToken,
) {
    let (client, pki, stop) = (client.clone(), pki.to_owned(), stop.clone());
    tokio::spawn(async move {
        let renew = || wanted.ask(&client, &pki);
        stop.run_until_cancelled(renew::keep(what, &current, pair, renew)).await;
    });
}

/// The certificate of a node in the server's process: it serves at the node's address, and is the client
/// `system:node:NAME` to the registry.
pub fn kept_identity(
    pki: &Arc<Pki>,
    options: &NodeOptions,
    stop: &CancellationToken,
) -> anyhow::Result<Current> {
    let user = format!("system:node:{}", options.node_name);
    let names = [options.node_name.clone(), options.node_address.to_string()];
    let purpose = format!("{user},{}", options.node_address);
    pki.kept("node", &purpose, move |ca| ca.peer(&user, &["system:nodes"], &names), stop)
}

fn lease(options: &NodeOptions) -> anyhow::Result<Duration> {
    let lease = Duration::try_from(options.node_lease_duration).context("--node-lease-duration")?;
    let least = Duration::from_secs(1);
    anyhow::ensure!(lease >= least, "--node-lease-duration: a Lease counts whole seconds, at least one");
    Ok(lease)
}

/// Starts the agent and the routes to other nodes. `server` is the API server's URL as pods have it.
pub async fn start(
    options: &NodeOptions,
    server: &str,
    client: kube::Client,
    identity: Current,
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
        api_server: place(server)?,
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
