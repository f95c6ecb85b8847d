//! The nodes and what is promised on each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use wharf_kit::view::Key;

use crate::pending::{Change, Changes};
use crate::resources::Resources;
use crate::view::{HostPort, NodeView, PodView};

/// Asked for nothing, a pod still counts this much when nodes are compared, as in Kubernetes: else all pods
/// without requests would go to one node.
const LEAST_CPU: i64 = 100;
const LEAST_MEMORY: i64 = 200 * 1024 * 1024;

/// A node, and the pods that are there or chosen to go there.
#[derive(Debug, Clone)]
pub struct NodeState {
    pub view: Arc<NodeView>,
    pub promised: Resources,
    /// CPU millis and memory bytes with the least amounts counted for pods that ask for none.
    pub(crate) weighed: (i64, i64),
    pub(crate) ports: Vec<HostPort>,
    pub(crate) pods: BTreeMap<Key, Arc<PodView>>,
}

impl NodeState {
    pub fn new(view: Arc<NodeView>) -> Self {
        Self {
            view,
            promised: Resources::default(),
            weighed: (0, 0),
            ports: Vec::new(),
            pods: BTreeMap::new(),
        }
    }

    pub fn name(&self) -> &Arc<str> {
        &self.view.metadata.name
    }

    fn add(&mut self, pod: Arc<PodView>) {
        self.promised.add(&pod.requests);
        let (cpu, memory) = weight(&pod);
        self.weighed = (self.weighed.0 + cpu, self.weighed.1 + memory);
        self.ports.extend(pod.ports.iter().cloned());
        self.pods.insert(pod.metadata.key(), pod);
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<PodView>> {
        let pod = self.pods.remove(key)?;
        self.promised.subtract(&pod.requests);
        let (cpu, memory) = weight(&pod);
        self.weighed = (self.weighed.0 - cpu, self.weighed.1 - memory);
        for port in &pod.ports {
            if let Some(place) = self.ports.iter().position(|one| one == port) {
                self.ports.swap_remove(place);
            }
        }
        Some(pod)
    }
}

/// What the pod counts for when nodes are compared: CPU millis, memory bytes.
pub(crate) fn weight(pod: &PodView) -> (i64, i64) {
    let or = |asked: i64, least| if asked > 0 { asked } else { least };
    (or(pod.requests.cpu, LEAST_CPU), or(pod.requests.memory, LEAST_MEMORY))
}

/// All nodes and placed pods.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    nodes: Vec<NodeState>,
    places: HashMap<Arc<str>, usize>,
    /// Where each placed pod is.
    placed: HashMap<Key, Arc<str>>,
    /// Pods on nodes that we do not know (yet).
    stray: HashMap<Arc<str>, BTreeMap<Key, Arc<PodView>>>,
    /// Placed pods that keep others away from themselves.
    pub(crate) repelling: HashSet<Key>,
}

impl Cluster {
    pub fn nodes(&self) -> &[NodeState] {
        &self.nodes
    }

    pub fn node(&self, name: &str) -> Option<&NodeState> {
        self.places.get(name).map(|place| &self.nodes[*place])
    }

    pub(crate) fn node_of(&self, pod: &Key) -> Option<&NodeState> {
        self.node(self.placed.get(pod)?)
    }

    pub(crate) fn is_placed(&self, pod: &Key) -> bool {
        self.placed.contains_key(pod)
    }

    /// Takes up a node or its new state; returns what changed of it for waiting pods.
    pub fn set_node(&mut self, view: Arc<NodeView>) -> Changes {
        let name = view.metadata.name.clone();
        if let Some(place) = self.places.get(&name) {
            let node = &mut self.nodes[*place];
            let old = std::mem::replace(&mut node.view, view);
            return differences(&old, &node.view);
        }
        let mut node = NodeState::new(view);
        for pod in self.stray.remove(&name).unwrap_or_default().into_values() {
            node.add(pod);
        }
        self.places.insert(name, self.nodes.len());
        self.nodes.push(node);
        Changes::of(Change::NodeAdded)
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some((name, place)) = self.places.remove_entry(name) else { return };
        let node = self.nodes.swap_remove(place);
        if let Some(moved) = self.nodes.get(place) {
            self.places.insert(moved.name().clone(), place);
        }
        if !node.pods.is_empty() {
            self.stray.insert(name, node.pods);
        }
    }

    /// Counts the pod on the node; moves it there if it was counted elsewhere.
    pub fn place(&mut self, pod: Arc<PodView>, node: &Arc<str>) {
        let key = pod.metadata.key();
        self.displace(&key);
        if repels(&pod) {
            self.repelling.insert(key.clone());
        }
        self.placed.insert(key.clone(), node.clone());
        match self.places.get(node) {
            Some(place) => self.nodes[*place].add(pod),
            None => drop(self.stray.entry(node.clone()).or_default().insert(key, pod)),
        }
    }

    /// Counts the pod nowhere; tells whether it was counted.
    pub fn displace(&mut self, key: &Key) -> bool {
        let Some(node) = self.placed.remove(key) else { return false };
        self.repelling.remove(key);
        if let Some(place) = self.places.get(&node) {
            self.nodes[*place].remove(key);
        } else if let Some(pods) = self.stray.get_mut(&node) {
            pods.remove(key);
            if pods.is_empty() {
                self.stray.remove(&node);
            }
        }
        true
    }
}

fn repels(pod: &PodView) -> bool {
    let anti = pod.spec.affinity.as_ref().and_then(|all| all.pod_anti_affinity.as_ref());
    anti.is_some_and(|anti| !anti.required.is_empty())
}

fn differences(old: &NodeView, new: &NodeView) -> Changes {
    let mut changes = Changes::default();
    if new.allocatable.exceeds_any(&old.allocatable) {
        changes.add(Change::NodeGrew);
    }
    if new.metadata.labels != old.metadata.labels {
        changes.add(Change::NodeLabels);
    }
    if new.spec.taints != old.spec.taints || new.spec.unschedulable != old.spec.unschedulable {
        changes.add(Change::NodeTaints);
    }
    changes
}
