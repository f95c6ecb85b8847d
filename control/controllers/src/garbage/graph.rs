//! Who owns whom.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use wharf_kit::view::{Meta, OwnerRef};

use super::Ref;
use super::plan::{FOREGROUND, ORPHAN, OwnerState};

/// Deleted uids that are remembered, so that their dependents need not ask the API server for them.
const DELETED: usize = 4096;

/// What ownership needs of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    pub uid: Arc<str>,
    pub resource_version: Arc<str>,
    pub deleting: bool,
    pub owners: Vec<OwnerRef>,
    pub finalizers: Vec<String>,
}

impl Node {
    pub fn of(meta: &Meta) -> Self {
        Self {
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            deleting: meta.is_deleting(),
            owners: meta.owner_references.clone(),
            finalizers: meta.finalizers.clone(),
        }
    }

    pub fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|one| one == name)
    }

    /// Whether it is being deleted and waits for its dependents to go, or to be set free.
    pub fn waits_for_dependents(&self) -> bool {
        self.deleting && (self.has_finalizer(FOREGROUND) || self.has_finalizer(ORPHAN))
    }
}

/// All watched objects by reference and by uid.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<Ref, Node>,
    by_uid: HashMap<Arc<str>, Ref>,
    dependents: HashMap<Arc<str>, HashSet<Ref>>,
    deleted: HashSet<Arc<str>>,
    deleted_order: VecDeque<Arc<str>>,
}

impl Graph {
    /// Takes up an object as it is now (`None`: gone); returns whom a pass must look at because of that.
    pub fn change(&mut self, object: Ref, now: Option<&Meta>) -> Vec<Ref> {
        let new = now.map(Node::of);
        let old = match &new {
            Some(node) => self.nodes.insert(object.clone(), node.clone()),
            None => self.nodes.remove(&object),
        };
        let mut look = Vec::new();
        if let Some(old) = &old {
            for owner in &old.owners {
                let kept = new.as_ref().is_some_and(|new| {
                    new.owners.iter().any(|one| one.uid == owner.uid) && new.uid == old.uid
                });
                if kept {
                    continue;
                }
                if let Some(theirs) = self.dependents.get_mut(&owner.uid) {
                    theirs.remove(&object);
                    if theirs.is_empty() {
                        self.dependents.remove(&owner.uid);
                    }
                }
                // An owner that waits for its dependents has one fewer.
                look.extend(self.waiting_owner(&owner.uid));
            }
            if new.as_ref().is_none_or(|new| new.uid != old.uid) {
                self.by_uid.remove(&old.uid);
                self.remember_deleted(old.uid.clone());
                look.extend(self.dependents.get(&old.uid).into_iter().flatten().cloned());
            }
        }
        let Some(new) = new else { return look };
        self.by_uid.insert(new.uid.clone(), object.clone());
        for owner in &new.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(object.clone());
            // It may block its owner no longer.
            look.extend(self.waiting_owner(&owner.uid));
        }
        if new.waits_for_dependents() {
            look.extend(self.dependents.get(&new.uid).into_iter().flatten().cloned());
            look.push(object);
        } else if !new.owners.is_empty() && !new.deleting {
            let same = old.is_some_and(|old| old.owners == new.owners && old.uid == new.uid);
            if !same {
                look.push(object);
            }
        }
        look
    }

    pub fn get(&self, object: &Ref) -> Option<&Node> {
        self.nodes.get(object)
    }

    /// The objects that name this uid as an owner, in the order of their names.
    pub fn dependents(&self, uid: &str) -> Vec<(Ref, Node)> {
        let all = self.dependents.get(uid).into_iter().flatten();
        let all = all.filter_map(|one| {
            Some(((one.kind.plural, one.key.clone()), (one.clone(), self.nodes.get(one)?.clone())))
        });
        all.collect::<BTreeMap<_, _>>().into_values().collect()
    }

    /// What is known of an owner without asking; `None`: nothing. An owner in another namespace than its
    /// dependent is no owner of it.
    pub fn owner_state(&self, uid: &str, namespace: &str) -> Option<OwnerState> {
        if self.deleted.contains(uid) {
            return Some(OwnerState::Absent);
        }
        let owner = self.by_uid.get(uid)?;
        if !owner.key.namespace.is_empty() && &*owner.key.namespace != namespace {
            return Some(OwnerState::Absent);
        }
        let node = self.nodes.get(owner)?;
        let waiting = node.deleting && node.has_finalizer(FOREGROUND);
        Some(if waiting { OwnerState::Waiting } else { OwnerState::Present })
    }

    fn waiting_owner(&self, uid: &str) -> Option<Ref> {
        let owner = self.by_uid.get(uid)?;
        self.nodes.get(owner)?.waits_for_dependents().then(|| owner.clone())
    }

    fn remember_deleted(&mut self, uid: Arc<str>) {
        if self.deleted.insert(uid.clone()) {
            self.deleted_order.push_back(uid);
        }
        if self.deleted_order.len() > DELETED
            && let Some(oldest) = self.deleted_order.pop_front()
        {
            self.deleted.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use wharf_kit::api::Kind;
    use wharf_kit::view::Key;

    fn object(name: &str) -> Ref {
        Ref { kind: Kind::core("Thing", "things"), key: Key::new("ns", name) }
    }

    fn meta(name: &str, owners: &[&str], extra: Value) -> Meta {
        let owners: Vec<Value> = owners
            .iter()
            .map(|uid| json!({"apiVersion": "v1", "kind": "Thing", "name": uid, "uid": uid}))
            .collect();
        let mut meta = json!({"name": name, "namespace": "ns", "uid": name, "ownerReferences": owners});
        for (key, value) in extra.as_object().unwrap() {
            meta[key] = value.clone();
        }
        serde_json::from_value(meta).unwrap()
    }

    fn names(refs: Vec<Ref>) -> Vec<String> {
        let mut names: Vec<String> = refs.into_iter().map(|one| one.key.name.to_string()).collect();
        names.sort();
        names.dedup();
        names
    }

    #[test]
    fn the_dependents_of_a_deleted_object_are_looked_at() {
        let mut graph = Graph::default();
        graph.change(object("owner"), Some(&meta("owner", &[], json!({}))));
        assert_eq!(names(graph.change(object("a"), Some(&meta("a", &["owner"], json!({}))))), ["a"]);
        graph.change(object("b"), Some(&meta("b", &["owner", "other"], json!({}))));
        assert!(graph.change(object("a"), Some(&meta("a", &["owner"], json!({})))).is_empty(), "nothing new");
        assert_eq!(graph.owner_state("owner", "ns"), Some(OwnerState::Present));
        assert_eq!(graph.owner_state("owner", "elsewhere"), Some(OwnerState::Absent));
        assert_eq!(graph.owner_state("other", "ns"), None);
        assert_eq!(names(graph.change(object("owner"), None)), ["a", "b"]);
        assert_eq!(graph.owner_state("owner", "ns"), Some(OwnerState::Absent));
    }

    #[test]
    fn an_object_of_the_same_name_is_another_owner() {
        let mut graph = Graph::default();
        graph.change(object("owner"), Some(&meta("owner", &[], json!({}))));
        graph.change(object("a"), Some(&meta("a", &["owner"], json!({}))));
        let again = meta("owner", &[], json!({"uid": "second"}));
        assert_eq!(names(graph.change(object("owner"), Some(&again))), ["a"]);
        assert_eq!(graph.owner_state("owner", "ns"), Some(OwnerState::Absent));
        assert_eq!(graph.owner_state("second", "ns"), Some(OwnerState::Present));
    }

    #[test]
    fn a_waiting_owner_is_looked_at_as_its_dependents_go() {
        let mut graph = Graph::default();
        let deleting = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]});
        graph.change(object("owner"), Some(&meta("owner", &[], json!({}))));
        graph.change(object("a"), Some(&meta("a", &["owner"], json!({}))));
        assert_eq!(names(graph.change(object("owner"), Some(&meta("owner", &[], deleting)))), ["a", "owner"]);
        assert_eq!(graph.owner_state("owner", "ns"), Some(OwnerState::Waiting));
        assert_eq!(names(graph.change(object("a"), None)), ["owner"]);
        assert!(graph.dependents("owner").is_empty());
    }
}
