//! What went through the pods' links.

use std::collections::HashMap;
use std::path::Path;
use std::{fs, io};

use crate::Error;
use crate::network::veth_name;

/// One direction of a link since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// A link's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub received: Flow,
    pub sent: Flow,
}

/// The counters of all links of a network namespace at one moment.
///
/// Every pod of the node's bridge has one end of its link in the node's namespace, so one file tells of all of them
/// and no namespace need be entered.
#[derive(Debug, Default)]
pub struct Traffic(HashMap<String, Counters>);

impl Traffic {
    /// Reads them in the namespace that this process runs in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn here() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/net/dev")?))
    }

    /// Reads those of the pod whose namespace is mounted at `netns`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn inside(netns: &Path) -> Result<Option<Counters>, Error> {
        let all = crate::netns::within(netns, || fs::read_to_string("/proc/thread-self/net/dev"))?;
        Ok(Self::parse(&all).0.remove("eth0"))
    }

    fn parse(text: &str) -> Self {
        let links = text.lines().filter_map(|line| {
            let (name, counters) = line.split_once(':')?; // headings have none
            let numbers: Vec<u64> = counters.split_whitespace().map_while(|word| word.parse().ok()).collect();
            // bytes packets errs drop fifo frame compressed multicast, then the same eight of what was sent.
            let flow = |at: usize| {
                let [bytes, packets, errors, dropped] = numbers.get(at..at + 4)?.try_into().ok()?;
                Some(Flow { bytes, packets, errors, dropped })
            };
            Some((name.trim().to_owned(), Counters { received: flow(0)?, sent: flow(8)? }))
        });
        Self(links.collect())
    }

    /// The counters of the OCI pod `id` as its own `eth0` has them: what the node's end received, the pod sent.
    pub fn of_pod(&self, id: &str) -> Option<Counters> {
        let node = self.0.get(&veth_name(id))?;
        Some(Counters { received: node.sent, sent: node.received })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_nodes_end_received_is_what_the_pod_sent() {
        let text = "Inter-|   Receive                    |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo: 10 1 0 0 0 0 0 0 10 1 0 0 0 0 0 0\nwh-0123456789ab:     612       8    1    2    0     0          0         0      666       7    3    4    0     0       0          0\n";
        let counters = Traffic::parse(text).of_pod("0123456789abcdef").unwrap();
        assert_eq!(counters.sent, Flow { bytes: 612, packets: 8, errors: 1, dropped: 2 });
        assert_eq!(counters.received, Flow { bytes: 666, packets: 7, errors: 3, dropped: 4 });
        assert_eq!(Traffic::parse(text).of_pod("ffffffffffff"), None);
    }

    #[test]
    fn the_loopback_is_among_those_of_this_process() {
        assert!(Traffic::here().unwrap().0.contains_key("lo"));
    }
}
