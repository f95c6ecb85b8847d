//! A node's routes to the pods of the other nodes: they follow the Node objects.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wharf_kit::api::Kind;
use wharf_kit::chain;
use wharf_kit::view::{Hub, Meta, Store, View, or_default};
use wharf_sandbox::{Range, Routes};

/// All pod addresses of a cluster; what leads elsewhere is not ours to route.
const PODS: &str = "10.128.0.0/9";
/// Between two tries at what the kernel refused.
const AGAIN: Duration = Duration::from_secs(5);

/// Where a node is and which pods it has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Node {
    metadata: Meta,
    spec: Spec,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR", deserialize_with = "or_default")]
    pod_cidr: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(deserialize_with = "or_default")]
    addresses: Vec<Address>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Address {
    r#type: String,
    address: String,
}

impl View for Node {
    const KIND: Kind = Kind::core("Node", "nodes").cluster();

    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

/// Keeps the routes of the node called `own`, in whose network namespace the caller runs, until `stop`. They stay
/// when it ends: pods outlive an agent.
pub async fn keep(client: kube::Client, own: String, stop: CancellationToken) {
    let hub = Hub::new(client, stop.clone());
    let nodes = hub.view::<Node>();
    let work = async {
        let routes = match Routes::open() {
            Ok(routes) => routes,
            Err(error) => return warn!(error = %chain(&error), "other nodes' pods cannot be reached"),
        };
        let all: Range = PODS.parse().expect("a range");
        nodes.ready().await;
        let mut changes = nodes.changes();
        let mut present = None;
        loop {
            let wanted = wanted(&nodes, &own, all);
            if present.as_ref() != Some(&wanted) {
                match routes.set(all, &wanted).await {
                    Ok(()) => {
                        info!(routes = ?wanted, "routes to other nodes set");
                        present = Some(wanted);
                    }
                    Err(error) => {
                        warn!(error = %chain(&error), "could not set the routes to other nodes");
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    }
                }
            }
            changes.next().await;
        }
    };
    stop.run_until_cancelled(work).await;
}

fn wanted(nodes: &Store<Node>, own: &str, all: Range) -> BTreeMap<Range, Ipv4Addr> {
    let route = |node: &Node| {
        let range: Range = node.spec.pod_cidr.parse().ok()?;
        all.position(range.first())?;
        let internal = node.status.addresses.iter().find(|address| address.r#type == "InternalIP")?;
        Some((range, internal.address.parse().ok()?))
    };
    nodes.all().iter().filter(|node| &*node.metadata.name != own).filter_map(|node| route(node)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_routes_to_the_others_that_have_a_range_and_an_address() {
        let node = |name: &str, range: &str, address: &str| {
            serde_json::from_value::<Node>(json!({
                "metadata": {"name": name}, "spec": {"podCIDR": range},
                "status": {"addresses": [{"type": "Hostname", "address": name},
                                         {"type": "InternalIP", "address": address}]},
            }))
            .expect("a node")
        };
        let nodes = Store::fixed([
            node("own", "10.128.0.0/17", "10.64.0.11"),
            node("other", "10.128.128.0/17", "10.64.0.12"),
            node("new", "", "10.64.0.13"),
            node("nowhere", "10.129.0.0/17", ""),
            node("hostile", "0.0.0.0/1", "10.64.0.14"), // another's name for everything
            node("foreign", "10.64.0.0/24", "10.64.0.15"),
        ]);
        let wanted = wanted(&nodes, "own", PODS.parse().expect("a range"));
        let range = "10.128.128.0/17".parse().expect("a range");
        assert_eq!(wanted, BTreeMap::from([(range, Ipv4Addr::new(10, 64, 0, 12))]));
    }
}
