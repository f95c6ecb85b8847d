//! What is computed once per pod from the whole cluster, so that filters look at one node alone.

use std::collections::{HashMap, HashSet};

use crate::cluster::{Cluster, NodeState};
use crate::view::{PodTerm, PodView, SpreadConstraint};

/// The domains of one topology: values of a node label.
#[derive(Debug, Default)]
pub(crate) struct Domains {
    pub key: String,
    pub values: HashSet<String>,
}

impl Domains {
    /// Whether the node is in one of them.
    pub fn hold(&self, node: &NodeState) -> bool {
        domain(node, &self.key).is_some_and(|value| self.values.contains(value))
    }
}

/// How many pods that a spread constraint counts each domain has.
#[derive(Debug)]
pub(crate) struct Spread {
    pub key: String,
    pub max_skew: i64,
    pub hard: bool,
    /// Whether the pod itself is one of those counted.
    pub counts_self: bool,
    pub counts: HashMap<String, i64>,
    pub least: i64,
}

/// What the rest of the cluster means to one pod. Empty for a pod without affinity and spread where no placed
/// pod repels others: nearly every pod.
#[derive(Debug, Default)]
pub struct Prepared {
    /// For each term of required affinity, the domains with a pod it names.
    pub(crate) wanted: Vec<Domains>,
    /// Domains in which a pod is that this one avoids.
    pub(crate) avoided: Vec<Domains>,
    /// Domains in which a pod is that avoids this one.
    pub(crate) repelled: Vec<Domains>,
    pub(crate) spread: Vec<Spread>,
    /// For each weighted term (affinity above zero, anti-affinity below), its domains.
    pub(crate) preferred: Vec<(i64, Domains)>,
}

pub(crate) fn domain<'a>(node: &'a NodeState, key: &str) -> Option<&'a str> {
    node.view.metadata.labels.get(key).map(String::as_str)
}

impl Prepared {
    pub fn new(pod: &PodView, cluster: &Cluster) -> Self {
        let mut made = Self::default();
        if let Some(affinity) = &pod.spec.affinity {
            for term in affinity.pod_affinity.iter().flat_map(|one| &one.required) {
                let domains = domains(pod, term, cluster);
                // The first pod of a group that wants to be with its own kind has nobody to be with.
                let first = domains.values.is_empty() && term.matches(pod, pod);
                if first {
                    let all = cluster.nodes().iter().filter_map(|node| domain(node, &term.topology_key));
                    made.wanted.push(Domains { key: domains.key, values: all.map(str::to_owned).collect() });
                } else {
                    made.wanted.push(domains);
                }
            }
            for term in affinity.pod_anti_affinity.iter().flat_map(|one| &one.required) {
                made.avoided.push(domains(pod, term, cluster));
            }
            for (sign, side) in [(1, &affinity.pod_affinity), (-1, &affinity.pod_anti_affinity)] {
                for one in side.iter().flat_map(|side| &side.preferred) {
                    made.preferred.push((sign * one.weight, domains(pod, &one.pod_affinity_term, cluster)));
                }
            }
        }
        for key in &cluster.repelling {
            let Some(node) = cluster.node_of(key) else { continue };
            let Some(other) = node.pods.get(key) else { continue };
            let terms = other.spec.affinity.iter().flat_map(|all| &all.pod_anti_affinity);
            for term in terms.flat_map(|anti| &anti.required).filter(|term| term.matches(other, pod)) {
                if let Some(value) = domain(node, &term.topology_key) {
                    let key = &term.topology_key;
                    match made.repelled.iter_mut().find(|domains| domains.key == *key) {
                        Some(domains) => drop(domains.values.insert(value.to_owned())),
                        None => made
                            .repelled
                            .push(Domains { key: key.clone(), values: HashSet::from([value.to_owned()]) }),
                    }
                }
            }
        }
        let constraints = &pod.spec.topology_spread_constraints;
        made.spread = constraints.iter().map(|one| spread(pod, one, cluster)).collect();
        made
    }
}

fn domains(pod: &PodView, term: &PodTerm, cluster: &Cluster) -> Domains {
    let holding =
        cluster.nodes().iter().filter(|node| node.pods.values().any(|other| term.matches(pod, other)));
    let values = holding.filter_map(|node| domain(node, &term.topology_key)).map(str::to_owned).collect();
    Domains { key: term.topology_key.clone(), values }
}

fn spread(pod: &PodView, constraint: &SpreadConstraint, cluster: &Cluster) -> Spread {
    let selects = |other: &PodView| {
        other.metadata.namespace == pod.metadata.namespace
            && !other.metadata.is_deleting()
            && constraint.label_selector.as_ref().is_some_and(|one| one.matches(&other.metadata.labels))
            && constraint.match_label_keys.iter().all(|key| {
                let mine = pod.metadata.labels.get(key);
                mine.is_none() || mine == other.metadata.labels.get(key)
            })
    };
    let mut counts: HashMap<String, i64> = HashMap::new();
    for node in cluster.nodes().iter().filter(|node| pod.selects(&node.view)) {
        let Some(value) = domain(node, &constraint.topology_key) else { continue };
        let here = node.pods.values().filter(|other| selects(other)).count();
        *counts.entry(value.to_owned()).or_default() += here as i64;
    }
    Spread {
        key: constraint.topology_key.clone(),
        max_skew: constraint.max_skew.max(1),
        hard: constraint.is_hard(),
        counts_self: selects(pod),
        least: counts.values().min().copied().unwrap_or(0),
        counts,
    }
}
