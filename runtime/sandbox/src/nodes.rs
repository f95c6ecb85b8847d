//! What joins nodes: the switch of a development cluster, and each node's routes to the others' pods.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use crate::link::Netlink;
use crate::network::LOOPBACK;
use crate::{Error, Range, netns};

/// The bridge in the switch's namespace.
const BRIDGE: &str = "nodes";
/// A node's way to the others, in its own namespace.
const UPLINK: &str = "eth0";

/// The switch that joins the nodes of one development cluster: a bridge in a namespace of its own.
#[derive(Debug)]
pub struct Switch {
    path: PathBuf,
}

impl Switch {
    /// Makes the switch and its namespace, mounted at `path`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn create(path: &Path) -> Result<Self, Error> {
        netns::create(path)?;
        Netlink::inside(path)?.bridge(BRIDGE).await?;
        Ok(Self { path: path.to_owned() })
    }

    /// Plugs the namespace at `node` in: its loopback comes up, and its `eth0` has `address` and leads to the
    /// switch, whose port is called as the node.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn plug(&self, name: &str, node: &Path, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
        let failed = |cause| Error::Namespace { action: "open", path: node.to_owned(), cause };
        let file = File::open(node).map_err(failed)?;
        let switch = Netlink::inside(&self.path)?;
        let bridge = switch.known(BRIDGE).await?;
        switch.veth(name, UPLINK, file.as_raw_fd(), Some(bridge)).await?;
        let node = Netlink::inside(node)?;
        node.up(LOOPBACK).await?;
        let uplink = node.known(UPLINK).await?;
        node.address(uplink, address, prefix).await?;
        node.up(uplink).await
    }
}

/// The routes from this node to the pods of the others. The kernel keeps a mark of ours on them, so
/// that those of an earlier run are found again.
pub struct Routes {
    netlink: Netlink,
}

impl Routes {
    /// For the namespace that the caller runs in. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Socket`] if netlink is not to be had.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { netlink: Netlink::here()? })
    }

    /// Makes these, and no others, the routes to ranges within `all`: each range by the address of its node. A
    /// repeat changes nothing. Routes that lead to no other node (this node's own pods) are left alone.
    ///
    /// # Errors
    /// What the kernel says; the rest is tried nevertheless.
    pub async fn set(&self, all: Range, wanted: &BTreeMap<Range, Ipv4Addr>) -> Result<(), Error> {
        let present = self.netlink.routes_by_nodes(all).await?;
        let mut result = Ok(());
        for (range, gateway) in &present {
            if wanted.get(range) != Some(gateway) {
                result = result.and(self.netlink.remove_route(*range, *gateway).await);
            }
        }
        for (range, gateway) in wanted {
            if present.get(range) != Some(gateway) {
                result = result.and(self.netlink.route_by_node(*range, *gateway).await);
            }
        }
        result
    }
}
