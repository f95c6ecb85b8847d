//! Whole Wharf clusters on one machine, each in network namespaces of its own: what `wctl up` and `wctl down`
//! do, and what the demo and the tests stand on.
//!
//! [`up`] checks the machine, starts one `wharf keeper` and returns when the API answers; the keeper makes the
//! namespaces and starts the rest. [`down`] ends the keeper and all that ever came from it, and removes what they
//! leave: mounts, namespaces, cgroups. Nothing here touches the host's own interfaces, routes or firewall.

pub mod cgroup;
mod check;
mod down;
mod error;
mod kubeconfig;
mod layout;
pub mod token;
mod up;

pub use down::{Keep, down, end_node, sweep_node};
pub use error::Error;
pub use kubeconfig::{forget, merge};
pub use layout::{Cluster, Layout, MAX_NODES, list, node_name};
pub use up::{Options, Phase, up};
