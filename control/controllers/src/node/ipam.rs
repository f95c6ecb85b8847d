//! Gives each node a range of pod addresses of its own.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tracing::{error, info};
use wharf_kit::api::{self, Absent, Object, PatchKind, Rest};
use wharf_kit::event::{Recorder, Subject};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Key, Store, View};

use crate::Context;
use crate::views::Node;

pub(crate) async fn run(context: Context) {
    let nodes = context.hub.view::<Node>();
    nodes.ready().await;
    let (base, prefix) = context.config.cluster_cidr;
    let Some(pool) = Pool::new(base, prefix, context.config.node_prefix) else {
        error!(%base, prefix, node_prefix = context.config.node_prefix, "the pod range cannot be divided");
        return;
    };
    let pass = Ranges {
        rest: context.rest,
        recorder: context.recorder,
        nodes: nodes.clone(),
        pool,
        given: Arc::default(),
    };
    let all = nodes.clone();
    let controller = Controller::new("node-ipam", pass).workers(1).watches(&nodes, move |change| {
        if change.new.is_some() {
            return vec![change.key.clone()];
        }
        // A range is free again: whoever found none may have it.
        all.all()
            .iter()
            .filter(|node| node.spec.pod_cidr.is_empty())
            .map(|node| node.metadata.key())
            .collect()
    });
    controller.run(context.stop).await;
}

/// The ranges there are.
#[derive(Debug, Clone, Copy)]
pub struct Pool {
    base: u32,
    /// Of one node's range.
    prefix: u8,
    count: u32,
}

impl Pool {
    /// `base/prefix` divided into parts of `node_prefix`; `None` if that is not possible.
    pub fn new(base: Ipv4Addr, prefix: u8, node_prefix: u8) -> Option<Self> {
        if prefix > node_prefix || node_prefix > 30 || node_prefix - prefix > 24 || prefix == 0 {
            return None;
        }
        let base = u32::from(base) & (u32::MAX << (32 - prefix));
        Some(Self { base, prefix: node_prefix, count: 1 << (node_prefix - prefix) })
    }

    /// The range of this number.
    pub fn range(&self, number: u32) -> String {
        let address = Ipv4Addr::from(self.base + (number << (32 - self.prefix)));
        format!("{address}/{}", self.prefix)
    }

    /// The lowest range that is none of these.
    pub fn free<'a>(&self, taken: impl IntoIterator<Item = &'a str>) -> Option<String> {
        let taken: BTreeSet<u32> =
            taken.into_iter().filter_map(|range| self.numbers(range)).flatten().collect();
        (0..self.count).find(|number| !taken.contains(number)).map(|number| self.range(number))
    }

    /// The numbers of our ranges that a range overlaps: one of another size can take several.
    fn numbers(&self, range: &str) -> Option<std::ops::RangeInclusive<u32>> {
        let (address, prefix) = range.split_once('/')?;
        let (address, prefix) = (u32::from(address.parse::<Ipv4Addr>().ok()?), prefix.parse::<u8>().ok()?);
        if prefix == 0 || prefix > 32 {
            return None;
        }
        let first = address & (u32::MAX << (32 - prefix));
        let last = first | (u32::MAX.checked_shr(prefix.into()).unwrap_or(0));
        let shift = 32 - self.prefix;
        let end = self.base + ((self.count << shift) - 1);
        if last < self.base || first > end {
            return None;
        }
        Some(((first.max(self.base) - self.base) >> shift)..=((last.min(end) - self.base) >> shift))
    }
}

struct Ranges {
    rest: Rest,
    recorder: Recorder,
    nodes: Store<Node>,
    pool: Pool,
    /// Ranges written but perhaps not yet echoed, with the node that has them.
    given: Arc<Mutex<Vec<(Key, String)>>>,
}

impl Pass for Ranges {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let Some(node) = self.nodes.get(key) else { return Ok(Next::Done) };
        if !node.spec.pod_cidr.is_empty() || node.metadata.is_deleting() {
            return Ok(Next::Done);
        }
        let nodes = self.nodes.all();
        let range = {
            let mut given = self.given.lock().expect("no holder of this lock panics");
            given.retain(|(key, _)| self.nodes.get(key).is_some_and(|node| node.spec.pod_cidr.is_empty()));
            let known = nodes.iter().map(|node| node.spec.pod_cidr.as_str());
            let range = self.pool.free(known.chain(given.iter().map(|(_, range)| range.as_str())));
            given.extend(range.iter().map(|range| (key.clone(), range.clone())));
            range
        };
        let Some(range) = range else {
            let message = format!("Node {key} status is now: CIDRNotAvailable");
            self.recorder.warning(&Subject::of(&*node), "CIDRNotAvailable", message);
            return Ok(Next::Done);
        };
        let patch = json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "spec": {"podCIDR": range, "podCIDRs": [range]},
        });
        let answer =
            self.rest.patch::<Object>(Node::KIND, key, "", PatchKind::Merge, &patch).await.absent_ok();
        match &answer {
            Ok(Some(object)) => {
                info!(node = %key, range, "pod range given");
                let seen = self.nodes.reached(object.metadata.revision());
                let _ = tokio::time::timeout(Duration::from_secs(10), seen).await; // `given` knows it meanwhile
            }
            _ => self.given.lock().expect("no holder of this lock panics").retain(|(one, _)| one != key),
        }
        answer.map(|_| Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool() -> Pool {
        Pool::new(Ipv4Addr::new(10, 128, 0, 0), 9, 17).unwrap()
    }

    #[test]
    fn ranges_are_given_from_the_lowest_and_again_when_free() {
        assert_eq!(pool().free([]).unwrap(), "10.128.0.0/17");
        assert_eq!(pool().free(["10.128.0.0/17", "", "nonsense"]).unwrap(), "10.128.128.0/17");
        assert_eq!(pool().free(["10.128.128.0/17"]).unwrap(), "10.128.0.0/17");
        assert_eq!(pool().free(["10.128.0.0/15"]).unwrap(), "10.130.0.0/17", "a larger range takes several");
        assert_eq!(
            pool().free(["10.128.5.0/24"]).unwrap(),
            "10.128.128.0/17",
            "a smaller one takes its whole"
        );
        assert_eq!(pool().free(["192.168.0.0/16"]).unwrap(), "10.128.0.0/17");
        assert_eq!(pool().free(["0.0.0.0/1"]), None);
        assert_eq!(pool().range(255), "10.255.128.0/17");
    }

    #[test]
    fn impossible_pools_are_refused() {
        assert!(Pool::new(Ipv4Addr::UNSPECIFIED, 0, 17).is_none());
        assert!(Pool::new(Ipv4Addr::new(10, 0, 0, 0), 24, 17).is_none());
        assert!(Pool::new(Ipv4Addr::new(10, 0, 0, 0), 8, 31).is_none());
    }

    proptest! {
        #[test]
        fn no_range_is_given_twice_until_all_are(order in proptest::collection::vec(any::<bool>(), 0..400)) {
            let mut taken: Vec<String> = Vec::new();
            for give in order {
                if !give && !taken.is_empty() {
                    taken.remove(taken.len() / 2);
                    continue;
                }
                match pool().free(taken.iter().map(String::as_str)) {
                    Some(range) => { prop_assert!(!taken.contains(&range)); taken.push(range) }
                    None => prop_assert_eq!(taken.len(), 256),
                }
            }
        }
    }
}
