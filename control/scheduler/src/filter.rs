//! The filters: which nodes a pod cannot run on, why, and what could change that.

use std::fmt;
use std::sync::Arc;

use wharf_kit::placement::{NO_EXECUTE, NO_SCHEDULE, Taint};

use crate::cluster::NodeState;
use crate::pending::Change;
use crate::prepared::{Prepared, domain};
use crate::view::PodView;

/// Why a node was refused. Printed as Kubernetes prints it, after the number of nodes it applies to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    Text(&'static str),
    /// Some resources are short: `Insufficient cpu`, `Too many pods`.
    Short(Short),
    /// The taint's key and value.
    Taint(Arc<str>, Arc<str>),
}

/// Which resources are short.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Short {
    pub cpu: bool,
    pub memory: bool,
    pub ephemeral: bool,
    pub pods: bool,
    pub extended: Option<Arc<str>>,
}

impl Reason {
    /// Each thing it says, on its own.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::Text(text) => vec![(*text).to_owned()],
            Self::Taint(key, value) => vec![format!("node(s) had untolerated taint {{{key}: {value}}}")],
            Self::Short(short) => {
                let named =
                    [(short.cpu, "cpu"), (short.memory, "memory"), (short.ephemeral, "ephemeral-storage")];
                let named = named.into_iter().filter(|(is, _)| *is).map(|(_, name)| name);
                let mut texts: Vec<String> = named
                    .chain(short.extended.as_deref())
                    .map(|name| format!("Insufficient {name}"))
                    .collect();
                if short.pods {
                    texts.push("Too many pods".to_owned());
                }
                texts
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.texts().join(", "))
    }
}

/// What a filter says of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Fits,
    /// Not while these pods are there: preemption may help.
    NotNow(Reason),
    /// Not even if the node were empty.
    Never(Reason),
}

/// One rule. Pure; called for many nodes per pod, so it allocates only to refuse.
pub trait Filter: Sync {
    fn check(&self, pod: &PodView, node: &NodeState, prepared: &Prepared) -> Verdict;

    /// The changes that can turn this filter's no into a yes; waiting pods wake on no others.
    fn wakes_on(&self) -> &'static [Change];
}

/// In the order in which they are asked; the first no decides, so cheap and frequent ones come first.
pub const FILTERS: &[&dyn Filter] =
    &[&Schedulable, &Taints, &NodeAffinity, &Ports, &Fit, &Spread, &PodAffinity];

/// The node takes new pods at all.
struct Schedulable;

impl Filter for Schedulable {
    fn check(&self, pod: &PodView, node: &NodeState, _: &Prepared) -> Verdict {
        if !node.view.spec.unschedulable {
            return Verdict::Fits;
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: NO_SCHEDULE.to_owned(),
            ..Taint::default()
        };
        if pod.tolerates(&taint) {
            Verdict::Fits
        } else {
            Verdict::Never(Reason::Text("node(s) were unschedulable"))
        }
    }

    fn wakes_on(&self) -> &'static [Change] {
        &[Change::NodeAdded, Change::NodeTaints]
    }
}

struct Taints;

impl Filter for Taints {
    fn check(&self, pod: &PodView, node: &NodeState, _: &Prepared) -> Verdict {
        let hard = |taint: &&Taint| matches!(&*taint.effect, NO_SCHEDULE | NO_EXECUTE);
        match node.view.spec.taints.iter().filter(hard).find(|taint| !pod.tolerates(taint)) {
            None => Verdict::Fits,
            Some(taint) => {
                Verdict::Never(Reason::Taint(taint.key.as_str().into(), taint.value.as_str().into()))
            }
        }
    }

    fn wakes_on(&self) -> &'static [Change] {
        &[Change::NodeAdded, Change::NodeTaints]
    }
}

/// `nodeSelector` and required node affinity.
struct NodeAffinity;

impl Filter for NodeAffinity {
    fn check(&self, pod: &PodView, node: &NodeState, _: &Prepared) -> Verdict {
        if pod.selects(&node.view) {
            Verdict::Fits
        } else {
            Verdict::Never(Reason::Text("node(s) didn't match Pod's node affinity/selector"))
        }
    }

    fn wakes_on(&self) -> &'static [Change] {
        &[Change::NodeAdded, Change::NodeLabels]
    }
}

struct Ports;

impl Filter for Ports {
    fn check(&self, pod: &PodView, node: &NodeState, _: &Prepared) -> Verdict {
        if pod.ports.iter().any(|port| node.ports.iter().any(|taken| taken.conflicts(port))) {
            Verdict::NotNow(Reason::Text("node(s) didn't have free ports for the requested pod ports"))
        } else {
            Verdict::Fits
        }
    }

    fn wakes_on(&self) -> &'static [Change] {
        &[Change::NodeAdded, Change::PodGone]
    }
}

/// What the pod asks is there and not promised to others.
struct Fit;

impl Filter for Fit {
    fn check(&self, pod: &PodView, node: &NodeState, _: &Prepared) -> Verdict {
        let (ask, have, promised) = (&pod.requests, &node.view.allocatable, &node.promised);
        // A pod that asks nothing of a resource fits even where more than all is promised.
        let lacks = |ask: i64, have: i64, promised: i64| ask > 0 && ask > have - promised;
        let short = Short {
            cpu: lacks(ask.cpu, have.cpu, promised.cpu),
            memory: lacks(ask.memory, have.memory, promised.memory),
            ephemeral: lacks(ask.ephemeral, have.ephemeral, promised.ephemeral),
            pods: lacks(ask.pods, have.pods, promised.pods),
            extended: ask
                .extended
                .iter()
                .find(|(name, ask)| {
                    let of = |all: &crate::Resources| all.extended.get(*name).copied().unwrap_or(0);
                    lacks(**ask, of(have), of(promised))
                })
                .map(|(name, _)| name.clone()),
        };
        if short == Short::default() {
            Verdict::Fits
        } else if ask.exceeds_any(have) {
            Verdict::Never(Reason::Short(short))
        } else {
            Verdict::NotNow(Reason::Short(short))
        }
    }

    fn wakes_on(&self) -> &'static [Change] {
        &[Change::NodeAdded, Change::NodeGrew, Change::PodGone]
    }
}

/// Hard topology spread constraints.
struct Spread;

impl Filter for Spread {
    fn check(&self, _: &PodView, node: &NodeState, prepared: &Prepared) -> Verdict {
        for spread in prepared.spread.iter().filter(|spread| spread.hard) {
            let Some(value) = domain(node, &spread.key) else {
                return Verdict::Never(Reason::Text(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let count = spread.counts.get(value).copied().unwrap_or(0) + i64::from(spread.counts_self);
            if count - spread.least > spread.max_skew {
                return Verdict::NotNow(Reason::Text("node(s) didn't match pod topology spread constraints"));
            }
        }
        Verdict::Fits
    }

    fn wakes_on(&self) -> &'static [Change] {
        &[Change::NodeAdded, Change::NodeGone, Change::NodeLabels, Change::PodGone, Change::PodPlaced]
    }
}

/// Required affinity and anti-affinity between pods, in both directions.
struct PodAffinity;

impl Filter for PodAffinity {
    fn check(&self, _: &PodView, node: &NodeState, prepared: &Prepared) -> Verdict {
        if !prepared.wanted.iter().all(|domains| domains.hold(node)) {
            Verdict::Never(Reason::Text("node(s) didn't match pod affinity rules"))
        } else if prepared.avoided.iter().any(|domains| domains.hold(node)) {
            Verdict::NotNow(Reason::Text("node(s) didn't match pod anti-affinity rules"))
        } else if prepared.repelled.iter().any(|domains| domains.hold(node)) {
            Verdict::NotNow(Reason::Text("node(s) didn't satisfy existing pods anti-affinity rules"))
        } else {
            Verdict::Fits
        }
    }

    fn wakes_on(&self) -> &'static [Change] {
        &[Change::NodeAdded, Change::NodeLabels, Change::PodGone, Change::PodPlaced]
    }
}
