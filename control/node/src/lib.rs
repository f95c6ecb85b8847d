//! The node agent: makes the pods that are bound to one node run, through CRI, and tells the API how they fare.
//!
//! Enter at [`Node::start`]. It speaks to the API with a `kube::Client` (in process or across the network, it does
//! not know which) and to the runtime with CRI alone. Tasks that run until the token is cancelled:
//! - *registration* creates and keeps the Node object. In: the runtime's health, the Node's `podCIDR`. Out: status
//!   writes when something changed, a Lease four times in its duration;
//! - *runtime* keeps the stream of container events and, after each (re)connection, lists what exists once.
//!   Out: an inventory or one event, to the worker of the pod it is about;
//! - *dispatcher* follows the pods of this node and owns the workers. In: pod changes, inventories. Out: one worker
//!   task a pod, wake-ups to it; sandboxes of unknown pods are removed;
//! - *worker* (one a pod, [`pod`]) decides purely ([`pod::plan`]) and acts: pulls, volumes, sandbox, containers, probes, stop.
//!   Out: the pod's status ([`pod::status`]), written only when it really changed;
//! - *node server* answers `/containerLogs`, `/portForward`, `/pods`, `/healthz`, `/stats/summary` and `/metrics/resource`
//!   over TLS ([`server`], [`stats`]).
//!
//! A node is Ready only when it runs no pod that the API no longer has, also when it comes back ([`settle`]).
//!
//! Nothing polls: an idle node makes no API request but its lease renewals. Stopping the agent touches no container;
//! the next start adopts what runs.

mod agent;
mod ask;
mod dns;
mod env;
mod follow;
mod hook;
mod images;
mod keyring;
mod logs;
mod objects;
mod pod;
mod probe;
mod registration;
mod resources;
mod runtime;
mod server;
mod settle;
mod stats;
mod tokens;
mod users;
mod volumes;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use wharf_kit::identity;
use wharf_kit::renew::Current;

pub use agent::{Handle, Node};

/// Where the node server listens.
#[derive(Debug)]
pub enum Listen {
    /// Bind this address (the kubelet's port is 10250; port 0 takes a free one, which the Node then tells).
    Address(SocketAddr),
    /// A socket that somebody bound and handed down.
    Socket(std::net::TcpListener),
}

/// The node server's socket and trust. Clients show a certificate of `client_ca` or a bearer token; beside `system:masters`
/// and the user `kube-apiserver-kubelet-client` those are let in whom the API server allows it.
#[derive(Debug)]
pub struct Serving {
    pub listen: Listen,
    /// The node server's own certificate and key; while there is none, clients are refused.
    pub identity: Current,
    /// Who signs the clients' certificates, PEM.
    pub client_ca: String,
}

/// What a node agent is told at its start.
pub struct Config {
    /// The Node's name, also its `kubernetes.io/hostname`.
    pub name: String,
    /// With the identity `system:node:NAME`, `system:nodes`.
    pub client: kube::Client,
    /// [`wharf_cri::connect`]; the socket need not exist yet.
    pub runtime: tonic::transport::Channel,
    /// The node's own address: `InternalIP`, and `hostIP` of its pods.
    pub address: IpAddr,
    /// Host and port at which pods reach the API server: `KUBERNETES_SERVICE_HOST` and `_PORT` of each container.
    pub api_server: (String, u16),
    /// Volumes and pod directories live below: `ROOT/pods/UID/…`.
    pub root: PathBuf,
    /// Container logs: `LOGS/NAMESPACE_POD_UID/CONTAINER/N.log`.
    pub logs: PathBuf,
    pub serving: Serving,
    /// Added to the Node's labels.
    pub labels: BTreeMap<String, String>,
    /// The Node's `pods` capacity; [`DEFAULT_MAX_PODS`] suits.
    pub max_pods: u32,
    /// How long the node's Lease is good: [`DEFAULT_LEASE`] suits. It is renewed four times in that.
    pub lease: Duration,
}

/// The kubelet's: its Lease is good for 40 s and renewed every 10.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(40);

/// Wasm pods cost little, so far more fit on a node than the kubelet's 110.
pub const DEFAULT_MAX_PODS: u32 = 10_000;

/// The port of a kubelet.
pub const DEFAULT_PORT: u16 = 10250;

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not listen on {address} for the node server")]
    Listen {
        address: SocketAddr,
        #[source]
        cause: std::io::Error,
    },
    #[error("could not use the node server's socket")]
    Socket(#[source] std::io::Error),
    #[error("the node server's certificate, key or client CA is not usable")]
    Tls(#[source] identity::Error),
    #[error("could not make the directory {path}")]
    Directory {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("could not read this machine's {what}")]
    Machine {
        what: &'static str,
        #[source]
        cause: std::io::Error,
    },
}
