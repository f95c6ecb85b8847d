//! The scores: which of the nodes that fit is best.

use crate::cluster::{NodeState, weight};
use crate::prepared::{Prepared, domain};
use crate::view::PodView;

/// The best score of a node in one rule, as in Kubernetes.
pub const MAX: i64 = 100;

/// How raw scores of the nodes that fit become 0 to [`MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// They are that already.
    Given,
    /// The highest is best.
    Most,
    /// The lowest is best.
    Least,
}

/// One rule. Pure.
pub trait Score: Sync {
    /// How much it counts against the others; Kubernetes' default weights.
    fn weight(&self) -> i64;
    fn scale(&self) -> Scale;
    /// Whether it could tell nodes apart for this pod; if not it is not asked.
    fn matters(&self, _pod: &PodView, _prepared: &Prepared) -> bool {
        true
    }
    fn score(&self, pod: &PodView, node: &NodeState, prepared: &Prepared) -> i64;
}

pub const SCORES: &[&dyn Score] =
    &[&LeastAllocated, &PreferredTaints, &PreferredNodes, &PreferredPods, &SoftSpread];

/// The share of CPU and memory that would be left, so that the emptiest node wins.
struct LeastAllocated;

impl Score for LeastAllocated {
    fn weight(&self) -> i64 {
        1
    }

    fn scale(&self) -> Scale {
        Scale::Given
    }

    fn score(&self, pod: &PodView, node: &NodeState, _: &Prepared) -> i64 {
        let (cpu, memory) = weight(pod);
        let left = |have: i64, promised: i64, ask: i64| {
            if have <= 0 {
                0
            } else {
                ((have - promised - ask).max(0) as i128 * MAX as i128 / have as i128) as i64
            }
        };
        let have = &node.view.allocatable;
        (left(have.cpu, node.weighed.0, cpu) + left(have.memory, node.weighed.1, memory)) / 2
    }
}

/// As few taints as possible that ask pods to go elsewhere.
struct PreferredTaints;

impl Score for PreferredTaints {
    fn weight(&self) -> i64 {
        3
    }

    fn scale(&self) -> Scale {
        Scale::Least
    }

    fn score(&self, pod: &PodView, node: &NodeState, _: &Prepared) -> i64 {
        let soft = node.view.spec.taints.iter().filter(|taint| &*taint.effect == "PreferNoSchedule");
        soft.filter(|taint| !pod.tolerates(taint)).count() as i64
    }
}

/// Preferred node affinity.
struct PreferredNodes;

impl Score for PreferredNodes {
    fn weight(&self) -> i64 {
        2
    }

    fn scale(&self) -> Scale {
        Scale::Most
    }

    fn matters(&self, pod: &PodView, _: &Prepared) -> bool {
        let affinity = pod.spec.affinity.as_ref().and_then(|all| all.node_affinity.as_ref());
        affinity.is_some_and(|one| !one.preferred.is_empty())
    }

    fn score(&self, pod: &PodView, node: &NodeState, _: &Prepared) -> i64 {
        let affinity = pod.spec.affinity.iter().flat_map(|all| &all.node_affinity);
        let terms = affinity.flat_map(|one| &one.preferred);
        terms.filter(|one| one.preference.matches(&node.view.metadata)).map(|one| one.weight).sum()
    }
}

/// Preferred affinity and anti-affinity to pods.
struct PreferredPods;

impl Score for PreferredPods {
    fn weight(&self) -> i64 {
        2
    }

    fn scale(&self) -> Scale {
        Scale::Most
    }

    fn matters(&self, _: &PodView, prepared: &Prepared) -> bool {
        !prepared.preferred.is_empty()
    }

    fn score(&self, _: &PodView, node: &NodeState, prepared: &Prepared) -> i64 {
        prepared.preferred.iter().filter(|(_, domains)| domains.hold(node)).map(|(weight, _)| weight).sum()
    }
}

/// Topology spread constraints that only prefer.
struct SoftSpread;

impl Score for SoftSpread {
    fn weight(&self) -> i64 {
        2
    }

    fn scale(&self) -> Scale {
        Scale::Least
    }

    fn matters(&self, _: &PodView, prepared: &Prepared) -> bool {
        prepared.spread.iter().any(|spread| !spread.hard)
    }

    fn score(&self, _: &PodView, node: &NodeState, prepared: &Prepared) -> i64 {
        let soft = prepared.spread.iter().filter(|spread| !spread.hard);
        soft.map(|spread| {
            // A node outside the topology is as bad as the fullest domain.
            let most = spread.counts.values().max().copied().unwrap_or(0);
            domain(node, &spread.key).and_then(|value| spread.counts.get(value)).copied().unwrap_or(most)
        })
        .sum()
    }
}
