//! The four walks of server-side apply over values and their schema: which fields a value has, how two values
//! differ, how one is merged into another, and what is taken out again.
//!
//! They follow KEP-555's rules: objects field by field, maps key by key, lists as their list type says.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::fieldset::{Element, FieldSet};
use super::model::{Field, Node, Presence, Type};

static EMPTY_OBJECT: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
static NULL: Value = Value::Null;

/// How a child of an object is named and treated.
fn child(object: Node, name: &str) -> (Option<&'static Field>, Node) {
    match object {
        Node::Struct(ty) => {
            let field = ty.field(name);
            (field, field.map_or(Node::Deduced, Field::node))
        }
        Node::Map(item) => (None, item.node()),
        _ => (None, Node::Deduced),
    }
}

fn named(field: Option<&'static Field>, name: &str) -> Element {
    Element::Field(match field {
        Some(field) => Cow::Borrowed(field.name),
        None => Cow::Owned(name.to_owned()),
    })
}

/// The node as this value makes it: a value that is not of the described kind is one leaf.
fn settle(node: Node, value: &Value) -> Node {
    match (node, value) {
        (Node::Struct(_) | Node::Map(_) | Node::Deduced, Value::Object(_) | Value::Null) => node,
        (Node::Keyed(..) | Node::Set, Value::Array(_) | Value::Null) => node,
        _ => Node::Leaf,
    }
}

/// How the item of a list is told from others.
///
/// # Errors
/// What is wrong with the item, to be put behind its path.
fn element(node: Node, item: &Value) -> Result<Element, String> {
    let Node::Keyed(ty, keys) = node else {
        return match item {
            Value::Object(_) | Value::Array(_) | Value::Null => {
                Err("associative list without keys has an element that is no plain value".to_owned())
            }
            scalar => Ok(Element::Value(scalar.clone())),
        };
    };
    let Value::Object(object) = item else {
        return Err("associative list with keys may not have non-map elements".to_owned());
    };
    let mut found = Vec::with_capacity(keys.len());
    for &key in keys {
        let value = match object.get(key) {
            Some(Value::Null) | None => ty.field(key).and_then(|field| field.default.as_ref()),
            Some(value) => Some(value),
        };
        if let Some(value) = value {
            found.push((Cow::Borrowed(key), value.clone()));
        }
    }
    if found.is_empty() {
        let keys = keys.iter().map(|key| format!("{key:?}")).collect::<Vec<_>>().join(", ");
        return Err(format!(
            "associative list with keys has an element that omits all key fields {keys} (and doesn't have default values for any key fields)"
        ));
    }
    Ok(Element::Key(found.into()))
}

/// The fields that a value has, as an applier owns them.
///
/// # Errors
/// One line with the path, if a list has two items with one key, or an item without a key.
pub(super) fn fields(node: Node, value: &Value) -> Result<FieldSet, String> {
    fields_at(node, value, "").map(|(_, below)| below)
}

fn fields_at(node: Node, value: &Value, path: &str) -> Result<(bool, FieldSet), String> {
    let mut below = FieldSet::new();
    match (settle(node, value), value) {
        (node @ (Node::Struct(_) | Node::Map(_) | Node::Deduced), Value::Object(object)) => {
            for (name, value) in object {
                let (field, kind) = child(node, name);
                if field.is_some_and(|field| !field.tracked) {
                    continue;
                }
                // Paths are needed for messages alone; most values cannot fail.
                let deeper = if may_fail(kind) { format!("{path}.{name}") } else { String::new() };
                let (leaf, set) = fields_at(kind, value, &deeper)?;
                let bare = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                below.push(named(field, name), leaf || bare || field.is_none(), set);
            }
            below.sort();
            Ok((false, below))
        }
        (node @ (Node::Set | Node::Keyed(..)), Value::Array(items)) => {
            let mut seen = BTreeMap::new();
            for (at, item) in items.iter().enumerate() {
                let element = element(node, item).map_err(|what| format!("{path}: element {at}: {what}"))?;
                if seen.insert(element.clone(), ()).is_some() {
                    return Err(format!("{path}: duplicate entries for key {element}"));
                }
                let set = match node {
                    Node::Keyed(ty, _) => fields_at(ty.node(), item, &format!("{path}{element}"))?.1,
                    _ => FieldSet::new(),
                };
                below.push(element, true, set);
            }
            below.sort();
            Ok((false, below))
        }
        (Node::Leaf, _) => Ok((true, below)),
        _ => Ok((false, below)),
    }
}

fn may_fail(node: Node) -> bool {
    matches!(node, Node::Struct(_) | Node::Set | Node::Keyed(..))
}

/// How two values differ.
#[derive(Default, Debug)]
pub(super) struct Difference {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    fn sort(&mut self) {
        self.added.sort();
        self.modified.sort();
        self.removed.sort();
    }

    fn push(&mut self, element: Element, own: Change, below: Difference) {
        let adds = own == Change::Added || !below.added.is_empty();
        let modifies = own == Change::Modified || !below.modified.is_empty();
        let removes = own == Change::Removed || !below.removed.is_empty();
        if modifies {
            self.modified.push(element.clone(), own == Change::Modified, below.modified);
        }
        if removes {
            self.removed.push(element.clone(), own == Change::Removed, below.removed);
        }
        if adds {
            self.added.push(element, own == Change::Added, below.added);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Same,
    Added,
    Modified,
    Removed,
}

/// What is different in `after`. Lists with two items of one key are compared as far as it can be told: such
/// items count as one value each.
pub(super) fn compare(node: Node, before: &Value, after: &Value) -> Difference {
    compare_at(node, Some(before), Some(after)).1
}

fn compare_at(node: Node, before: Option<&Value>, after: Option<&Value>) -> (Change, Difference) {
    let mut below = Difference::default();
    let settled = [before, after].into_iter().flatten().fold(node, settle);
    let bare = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(object)) => object.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    };
    if matches!(settled, Node::Leaf) || (bare(before) && bare(after)) {
        let change = match (before, after) {
            (None, None) => Change::Same,
            (None, Some(_)) => Change::Added,
            (Some(_), None) => Change::Removed,
            (Some(before), Some(after)) if before == after => Change::Same,
            (Some(_), Some(_)) => Change::Modified,
        };
        return (change, below);
    }
    match settled {
        Node::Set | Node::Keyed(..) => compare_lists(settled, before, after, &mut below),
        _ => compare_objects(settled, before, after, &mut below),
    }
    below.sort();
    let change = match (before, after) {
        (None, _) => Change::Added,
        (_, None) => Change::Removed,
        _ => Change::Same,
    };
    (change, below)
}

fn compare_objects(node: Node, before: Option<&Value>, after: Option<&Value>, below: &mut Difference) {
    let old = before.and_then(Value::as_object);
    let new = after.and_then(Value::as_object);
    let mut one = |name: &str, mut left: Option<&Value>, mut right: Option<&Value>| {
        let (field, kind) = child(node, name);
        if let Some(field) = field {
            if !field.tracked {
                return;
            }
            // In Go such a field is there whenever the object around it is.
            let absent = match field.presence {
                Presence::Optional => None,
                Presence::EmptyObject => Some(&*EMPTY_OBJECT),
                Presence::Null => Some(&NULL),
            };
            left = left.or_else(|| before.and(absent));
            right = right.or_else(|| after.and(absent));
        }
        let (change, deeper) = compare_at(kind, left, right);
        if change != Change::Same || !deeper.is_empty() {
            below.push(named(field, name), change, deeper);
        }
    };
    for (name, value) in old.into_iter().flatten() {
        one(name, Some(value), new.and_then(|new| new.get(name)));
    }
    for (name, value) in new.into_iter().flatten() {
        if old.is_none_or(|old| !old.contains_key(name)) {
            one(name, None, Some(value));
        }
    }
}

/// The items under one key: usually one.
type Items<'a> = BTreeMap<Element, Vec<&'a Value>>;

fn index<'a>(node: Node, list: Option<&'a Value>) -> Items<'a> {
    let mut items = Items::new();
    for (at, item) in list.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let key = element(node, item).unwrap_or(Element::Index(i64::try_from(at).unwrap_or(i64::MAX)));
        items.entry(key).or_default().push(item);
    }
    items
}

fn compare_lists(node: Node, before: Option<&Value>, after: Option<&Value>, below: &mut Difference) {
    let (mut old, mut new) = (index(node, before), index(node, after));
    let keys: Vec<Element> =
        old.keys().chain(new.keys().filter(|key| !old.contains_key(key))).cloned().collect();
    for key in keys {
        let (left, right) = (old.remove(&key).unwrap_or_default(), new.remove(&key).unwrap_or_default());
        let item = |left: Option<&&Value>, right: Option<&&Value>| {
            let inner = match node {
                Node::Keyed(ty, _) => ty.node(),
                _ => Node::Leaf,
            };
            compare_at(inner, left.copied(), right.copied())
        };
        let (change, deeper) = match (left.as_slice(), right.as_slice()) {
            ([] | [_], [] | [_]) => item(left.first(), right.first()),
            // Items of one key are owned as one value while there are several.
            ([_, _, ..], [_, _, ..]) if left == right => continue,
            ([_, _, ..], [_, _, ..]) => (Change::Modified, Difference::default()),
            ([_, _, ..], only) => {
                below.push(key.clone(), Change::Removed, Difference::default());
                if only.is_empty() {
                    continue;
                }
                item(None, only.first())
            }
            (only, [_, _, ..]) => {
                below.push(key.clone(), Change::Added, Difference::default());
                if only.is_empty() {
                    continue;
                }
                item(only.first(), None)
            }
        };
        if change != Change::Same || !deeper.is_empty() {
            below.push(key, change, deeper);
        }
    }
}

/// Merges `applied` into `live`. `applied` has passed [`fields`], so its lists have no item twice.
pub(super) fn merge(node: Node, live: &mut Value, applied: &Value) {
    match (node, live, applied) {
        (Node::Struct(_) | Node::Map(_) | Node::Deduced, Value::Object(live), Value::Object(applied)) => {
            for (name, value) in applied {
                match live.get_mut(name) {
                    Some(old) => merge(child(node, name).1, old, value),
                    None => {
                        live.insert(name.clone(), value.clone());
                    }
                }
            }
        }
        (Node::Set | Node::Keyed(..), Value::Array(live), Value::Array(applied)) => {
            let merged = merge_lists(node, std::mem::take(live), applied);
            *live = merged;
        }
        (_, live, applied) => live.clone_from(applied),
    }
}

/// Items keep the order of `applied`; those that only `live` has stay before the item that followed them.
fn merge_lists(node: Node, live: Vec<Value>, applied: &[Value]) -> Vec<Value> {
    let keys: Vec<Element> = applied.iter().filter_map(|item| element(node, item).ok()).collect();
    if keys.len() != applied.len() {
        return applied.to_vec();
    }
    let wanted: BTreeMap<&Element, usize> = keys.iter().enumerate().map(|(at, key)| (key, at)).collect();
    // For each live item, the place of its counterpart.
    let partner: Vec<Option<usize>> =
        live.iter().map(|item| element(node, item).ok().and_then(|key| wanted.get(&key).copied())).collect();
    let mut shared: Vec<Vec<usize>> = vec![Vec::new(); applied.len()];
    for (at, partner) in partner.iter().enumerate() {
        if let Some(partner) = partner {
            shared[*partner].push(at);
        }
    }
    let mut old: Vec<Option<Value>> = live.into_iter().map(Some).collect();
    let mut out = Vec::with_capacity(old.len().max(applied.len()));
    let mut next_shared = (0..applied.len()).filter(|&at| !shared[at].is_empty()).peekable();
    let mut cursor = 0;
    for (at, item) in applied.iter().enumerate() {
        while cursor < old.len() {
            match partner[cursor] {
                None => out.extend(old[cursor].take()),
                Some(place) if next_shared.peek() == Some(&place) => break,
                Some(_) => {} // comes at its own turn
            }
            cursor += 1;
        }
        // An item that is there twice has no one value to merge into.
        match shared[at].as_slice() {
            [only] => {
                let mut merged = old[*only].take().unwrap_or_default();
                let inner = match node {
                    Node::Keyed(ty, _) => ty.node(),
                    _ => Node::Leaf,
                };
                merge(inner, &mut merged, item);
                out.push(merged);
            }
            _ => out.push(item.clone()),
        }
        if next_shared.peek() == Some(&at) {
            next_shared.next();
        }
    }
    for at in cursor..old.len() {
        if partner[at].is_none() {
            out.extend(old[at].take());
        }
    }
    out
}

/// Takes out of `value` what the applier had (`last`) and nobody has now (`owned`: all managers, with the
/// applier's new fields).
pub(super) fn prune(node: Node, value: &mut Value, last: &FieldSet, owned: &FieldSet) {
    match (node, value) {
        (Node::Struct(_) | Node::Map(_) | Node::Deduced, Value::Object(object)) => {
            object.retain(|name, value| {
                let (field, kind) = child(node, name);
                let verdict = keeps(&named(field, name), field.is_some(), last, owned);
                match verdict {
                    Verdict::Keep => true,
                    Verdict::Remove => false,
                    Verdict::Look(last, owned) => {
                        prune(kind, value, last, owned);
                        // What lost its last field is gone too.
                        !is_bare(value)
                    }
                }
            });
        }
        (Node::Set | Node::Keyed(..), Value::Array(items)) => {
            items.retain_mut(|item| {
                let Ok(key) = element(node, item) else { return true };
                match keeps(&key, false, last, owned) {
                    Verdict::Keep => true,
                    Verdict::Remove => false,
                    Verdict::Look(last, owned) => {
                        if let Node::Keyed(ty, _) = node {
                            prune(Node::Struct(ty), item, last, owned);
                        }
                        true
                    }
                }
            });
        }
        _ => {}
    }
}

fn is_bare(value: &Value) -> bool {
    match value {
        Value::Object(object) => object.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Null => true,
        _ => false,
    }
}

enum Verdict<'a> {
    Keep,
    Remove,
    Look(&'a FieldSet, &'a FieldSet),
}

/// A declared field counts as owned by whoever owns something in it; keys of maps and items of lists are owned
/// by themselves.
fn keeps<'a>(element: &Element, declared: bool, last: &'a FieldSet, owned: &'a FieldSet) -> Verdict<'a> {
    static NOTHING: FieldSet = FieldSet::new();
    let Some((was_member, had_below)) = last.step(element) else { return Verdict::Keep };
    let (is_member, has_below) = owned.step(element).unwrap_or((false, &NOTHING));
    let had = was_member || (declared && !had_below.is_empty());
    let has = is_member || (declared && !has_below.is_empty());
    if had && !has {
        Verdict::Remove
    } else if had_below.is_empty() {
        Verdict::Keep
    } else {
        Verdict::Look(had_below, has_below)
    }
}

/// For [`super::apply`]: the tree of a whole object.
pub(super) fn root(ty: Type) -> Node {
    Node::Struct(ty)
}
