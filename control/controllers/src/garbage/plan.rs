//! What to do with one object.

use wharf_kit::api::Propagation;
use wharf_kit::view::{Meta, OwnerRef};

use super::{Node, Ref};

/// Keeps a deleted object until those dependents are gone that block its deletion.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Keeps a deleted object until its dependents do not name it any more.
pub const ORPHAN: &str = "orphan";

/// What an owner reference points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerState {
    Present,
    /// Deleted in the foreground: it waits for its dependents to go.
    Waiting,
    /// No object has this uid.
    Absent,
}

impl OwnerState {
    pub fn of(meta: &Meta) -> Self {
        let waiting = meta.is_deleting() && meta.has_finalizer(FOREGROUND);
        if waiting { Self::Waiting } else { Self::Present }
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Nothing,
    /// Some owner lives on: drop the references to the others.
    KeepOwners(Vec<OwnerRef>),
    Delete(Propagation),
    /// Free all dependents of this object, then let it go.
    Orphan,
    /// No dependent blocks its deletion any more: let it go.
    Finish,
}

/// `owners` are the object's, each with what it points to (not needed of an object that is being deleted).
/// No I/O: same input, same action.
pub fn plan(node: &Node, owners: &[(OwnerRef, OwnerState)], dependents: &[(Ref, Node)]) -> Action {
    if node.deleting {
        if node.has_finalizer(ORPHAN) {
            return Action::Orphan;
        }
        let blocks = |dependent: &Node| {
            dependent
                .owners
                .iter()
                .any(|owner| owner.uid == node.uid && owner.block_owner_deletion == Some(true))
        };
        if node.has_finalizer(FOREGROUND) && !dependents.iter().any(|(_, dependent)| blocks(dependent)) {
            return Action::Finish;
        }
        return Action::Nothing;
    }
    let count = |state| owners.iter().filter(|(_, one)| *one == state).count();
    let (present, waiting) = (count(OwnerState::Present), count(OwnerState::Waiting));
    if owners.is_empty() || present == owners.len() {
        return Action::Nothing;
    }
    if present > 0 {
        let kept = owners.iter().filter(|(_, state)| *state == OwnerState::Present);
        return Action::KeepOwners(kept.map(|(owner, _)| owner.clone()).collect());
    }
    // How it was to be deleted itself, if someone said so; behind an owner that waits, its own dependents
    // must be gone first too.
    Action::Delete(if node.has_finalizer(ORPHAN) {
        Propagation::Orphan
    } else if node.has_finalizer(FOREGROUND) || (waiting > 0 && !dependents.is_empty()) {
        Propagation::Foreground
    } else {
        Propagation::Background
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_kit::api::Kind;
    use wharf_kit::view::Key;

    fn owner(uid: &str, blocks: bool) -> OwnerRef {
        OwnerRef {
            api_version: "v1".into(),
            kind: "Thing".into(),
            name: uid.into(),
            uid: uid.into(),
            controller: None,
            block_owner_deletion: Some(blocks),
        }
    }

    fn node(uid: &str, finalizers: &[&str], deleting: bool) -> Node {
        let finalizers = finalizers.iter().map(|one| (*one).to_owned()).collect();
        Node { uid: uid.into(), finalizers, deleting, ..Node::default() }
    }

    fn dependent(of: &str, blocks: bool) -> (Ref, Node) {
        let node = Node { owners: vec![owner(of, blocks)], ..node("dependent", &[], false) };
        (Ref { kind: Kind::core("Thing", "things"), key: Key::new("ns", "dependent") }, node)
    }

    #[test]
    fn an_object_goes_with_its_last_owner() {
        use OwnerState::{Absent, Present, Waiting};
        let me = node("me", &[], false);
        let blocked = [dependent("me", true)];
        for (states, dependents, expected) in [
            (vec![], &blocked[..], Action::Nothing),
            (vec![Present], &[], Action::Nothing),
            (vec![Present, Present], &[], Action::Nothing),
            (vec![Present, Absent], &[], Action::KeepOwners(vec![owner("o0", false)])),
            (vec![Waiting, Present], &[], Action::KeepOwners(vec![owner("o1", false)])),
            (vec![Absent], &[], Action::Delete(Propagation::Background)),
            (vec![Absent, Absent], &blocked, Action::Delete(Propagation::Background)),
            (vec![Waiting], &[], Action::Delete(Propagation::Background)),
            (vec![Waiting, Absent], &blocked, Action::Delete(Propagation::Foreground)),
        ] {
            let owners: Vec<_> = states
                .iter()
                .enumerate()
                .map(|(place, state)| (owner(&format!("o{place}"), false), *state))
                .collect();
            assert_eq!(plan(&me, &owners, dependents), expected, "{states:?}");
        }
    }

    #[test]
    fn foreground_deletion_waits_for_what_blocks_it_alone() {
        let me = node("me", &[FOREGROUND], true);
        assert_eq!(plan(&me, &[], &[dependent("me", true)]), Action::Nothing);
        assert_eq!(plan(&me, &[], &[dependent("me", false)]), Action::Finish);
        assert_eq!(plan(&me, &[], &[]), Action::Finish);
        assert_eq!(plan(&node("me", &["other"], true), &[], &[]), Action::Nothing);
        assert_eq!(plan(&node("me", &[ORPHAN], true), &[], &[dependent("me", true)]), Action::Orphan);
    }
}
