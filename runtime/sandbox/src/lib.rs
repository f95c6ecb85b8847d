//! The network and the namespaces of pod sandboxes on one node.
//!
//! Enter at [`Network`]: one per node, in the node's own network namespace. [`Network::configure`] gives it
//! the node's pod range and lays the fixed parts: a bridge for OCI pods in the lower half, and for wasm pods
//! in the upper half one namespace that owns the whole half (design decision D5), so that a wasm pod's
//! address costs no kernel call. [`Network::attach`] and [`Network::detach`] make and unmake one OCI pod's
//! namespace, all over netlink and in this process. [`Network::publish`] leads ports of the node to a pod.
//!
//! Between nodes, [`Routes`] lead to the pods of the others; a development cluster's nodes hang on one [`Switch`].
//! [`netns`] has the namespace primitives, and [`cni`] has what runs the CNI plugins of a node that has those instead.

mod address;
pub mod cni;
mod link;
pub mod netns;
mod network;
mod nodes;
mod ports;
mod range;
mod traffic;

pub use address::AddressPool;
pub use network::{Attachment, Network};
pub use nodes::{Routes, Switch};
pub use ports::{PortMapping, Protocol};
pub use range::Range;
pub use traffic::{Counters, Flow, Traffic};

/// Why the network of a sandbox could not be made or unmade.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not {action} the network namespace {path}")]
    Namespace {
        action: &'static str,
        path: std::path::PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("could not {action}")]
    Netlink {
        action: String,
        #[source]
        cause: rtnetlink::Error,
    },
    #[error("could not open a netlink socket")]
    Socket(#[source] std::io::Error),
    #[error("could not set {key} to {value}")]
    Sysctl {
        key: String,
        value: &'static str,
        #[source]
        cause: std::io::Error,
    },
    #[error("{0:?} is no IPv4 range such as 10.128.0.0/17")]
    BadRange(String),
    #[error("the node has no pod range yet; it is given when the node has joined the cluster")]
    NoRange,
    #[error("all {0} pod addresses of this node are in use")]
    Exhausted(u32),
    #[error("another pod of this node has one of the host ports {0}")]
    PortTaken(String),
    #[error("could not change the host ports: {0}")]
    Nft(String),
    #[error("there is no configuration of a CNI network in {0} yet")]
    Unconfigured(std::path::PathBuf),
    #[error("the CNI network of {path} cannot be used: {why}")]
    Configuration { path: std::path::PathBuf, why: String },
    #[error("the CNI plugin {what} failed: {why}")]
    Plugin { what: String, why: String },
    #[error("the pod range is {present} and cannot become {asked} while the node runs")]
    RangeChanged { present: Range, asked: Range },
}
