//! The three kinds of patch that are not apply. Each changes a copy of the live object; the outcome then goes
//! through [`decode_value`](super::decode_value) like any body.

use json_patch::{AddOperation, Patch, PatchOperation, ReplaceOperation};
use serde_json::{Map, Value};

use super::model::{Field, Shape, Type};

/// As many operations may be in one JSON patch, as in kube-apiserver.
const MAX_OPERATIONS: usize = 10_000;
/// What one JSON patch may copy in all, and how deep its outcome may be: without these a few operations that copy
/// into one another make an object of any size.
const MAX_COPIED: usize = 3 * 1024 * 1024;
const MAX_DEPTH: usize = 120;

/// Why a patch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 400: it is no patch.
    #[error("{0}")]
    Malformed(String),
    /// 413: it is too much.
    #[error("{0}")]
    TooLarge(String),
    /// 422: it does not fit the object: a path is not there, a `test` failed.
    #[error("the server rejected our request due to an error in our request: {0}")]
    Rejected(String),
}

/// Applies a JSON patch (RFC 6902). After an error `object` is anything between before and after.
///
/// # Errors
/// See [`Error`].
pub fn json_patch(object: &mut Value, patch: &[u8]) -> Result<(), Error> {
    let malformed = |error: serde_json::Error| Error::Malformed(format!("error decoding patch: {error}"));
    let operations: Vec<Map<String, Value>> = serde_json::from_slice(patch).map_err(malformed)?;
    if operations.len() > MAX_OPERATIONS {
        return Err(Error::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let patch: Patch =
        serde_json::from_value(operations.into()).map_err(|error| Error::Rejected(error.to_string()))?;
    let mut copied = 0;
    for operation in patch.iter() {
        let moved = match operation {
            PatchOperation::Copy(copy) => object.pointer(copy.from.as_str()),
            PatchOperation::Move(moved) => object.pointer(moved.from.as_str()),
            PatchOperation::Add(add) => Some(&add.value),
            PatchOperation::Replace(replace) => Some(&replace.value),
            PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
        };
        if let Some(value) = moved {
            if let PatchOperation::Copy(_) = operation {
                copied += size(value);
            }
            let steps = operation.path().as_str().matches('/').count();
            if copied > MAX_COPIED || steps + depth(value) > MAX_DEPTH {
                return Err(Error::TooLarge("the JSON patch copies too much or nests too deep".to_owned()));
            }
        }
        let added = adding(object, operation);
        json_patch::patch(object, std::slice::from_ref(added.as_ref().unwrap_or(operation)))
            .map_err(|error| Error::Rejected(error.to_string()))?;
    }
    Ok(())
}

/// Kubernetes replaces what is not there too, unless it would be an item of a list: that is an `add`.
fn adding(object: &Value, operation: &PatchOperation) -> Option<PatchOperation> {
    let PatchOperation::Replace(ReplaceOperation { path, value }) = operation else { return None };
    let parent = object.pointer(path.parent()?.as_str());
    let new = object.pointer(path.as_str()).is_none() && !parent.is_some_and(Value::is_array);
    new.then(|| PatchOperation::Add(AddOperation { path: path.clone(), value: value.clone() }))
}

/// About the length of a value's text.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| size(item) + 1).sum::<usize>(),
        Value::Object(object) => {
            2 + object.iter().map(|(name, value)| name.len() + 4 + size(value)).sum::<usize>()
        }
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

/// Applies a JSON merge patch (RFC 7386): objects are merged, null removes, anything else replaces.
pub fn merge_patch(object: &mut Value, patch: &Value) {
    json_patch::merge(object, patch);
}

/// What a key of a patch starts with, if it orders the list named behind it.
const SET_ORDER: &str = "$setElementOrder/";
/// Likewise for items to take out of a list of plain values.
const DELETE_PLAIN: &str = "$deleteFromPrimitiveList/";
const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";

/// Applies a strategic merge patch: as a merge patch, but lists are merged by the schema's patch strategies, and
/// `$patch`, `$retainKeys`, `$setElementOrder` and `$deleteFromPrimitiveList` are understood.
///
/// # Errors
/// [`Error::Malformed`] for an unknown directive or an item without its merge key.
pub fn strategic_merge(object: &mut Value, patch: Value, ty: Type) -> Result<(), Error> {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => merge_objects(object, patch, Some(ty)),
        _ => Err(Error::Malformed("a strategic merge patch is an object".to_owned())),
    }
}

/// What `$patch` says of the object it is in.
enum Directive {
    Merge,
    Replace,
    Delete,
}

fn directive(patch: &mut Map<String, Value>) -> Result<Directive, Error> {
    match patch.remove(DIRECTIVE) {
        None => Ok(Directive::Merge),
        Some(Value::String(word)) if word == "merge" => Ok(Directive::Merge),
        Some(Value::String(word)) if word == "replace" => Ok(Directive::Replace),
        Some(Value::String(word)) if word == "delete" => Ok(Directive::Delete),
        Some(other) => Err(Error::Malformed(format!("unrecognized patch type: {other}"))),
    }
}

/// `ty` is the type of both; without one, lists are replaced.
fn merge_objects(
    object: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    ty: Option<Type>,
) -> Result<(), Error> {
    match directive(&mut patch)? {
        Directive::Merge => {}
        Directive::Delete => {
            object.clear();
            return Ok(());
        }
        Directive::Replace => {
            object.clear();
            // What replaces may hold directives of its own further down.
        }
    }
    if let Some(kept) = patch.remove(RETAIN_KEYS) {
        let Value::Array(kept) = kept else {
            return Err(Error::Malformed("invalid retainKeys list".to_owned()));
        };
        object.retain(|name, _| kept.iter().any(|kept| kept.as_str() == Some(name)));
    }
    let mut orders = Map::new();
    let mut deletions = Map::new();
    let mut fields = Map::new();
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix(SET_ORDER) {
            orders.insert(list.to_owned(), value);
        } else if let Some(list) = name.strip_prefix(DELETE_PLAIN) {
            deletions.insert(list.to_owned(), value);
        } else {
            fields.insert(name, value);
        }
    }
    for (name, gone) in deletions {
        let (Some(Value::Array(items)), Value::Array(gone)) = (object.get_mut(&name), gone) else { continue };
        items.retain(|item| !gone.contains(item));
    }
    // Where items stood on the server, for those that the patch does not order.
    let before: Map<String, Value> =
        orders.keys().filter_map(|name| object.get(name).map(|list| (name.clone(), list.clone()))).collect();
    let key_of =
        |name: &str| ty.and_then(|ty| ty.field(name)).and_then(|field| field.patch.merge).unwrap_or_default();
    for (name, order) in &orders {
        if let (Some(Value::Array(items)), Value::Array(order)) = (fields.get(name), order) {
            in_order(name, items, order, key_of(name))?;
        }
    }
    for (name, value) in fields {
        merge_field(object, name, value, ty)?;
    }
    for (name, order) in orders {
        let key = key_of(&name);
        if let (Some(Value::Array(items)), Value::Array(order)) = (object.get_mut(&name), order) {
            let server = before.get(&name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            reorder(items, &order, server, key);
        }
    }
    Ok(())
}

fn merge_field(
    object: &mut Map<String, Value>,
    name: String,
    patch: Value,
    ty: Option<Type>,
) -> Result<(), Error> {
    let field = ty.and_then(|ty| ty.field(&name));
    let shape = field.map(|field| &field.shape);
    match patch {
        Value::Null => {
            object.remove(&name);
        }
        Value::Object(mut patch) => {
            let slot = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if !slot.is_object() || field.is_some_and(|field| field.patch.replace) {
                *slot = Value::Object(Map::new());
            }
            let Value::Object(inner) = slot else { return Ok(()) };
            match shape {
                Some(Shape::Map(item)) => merge_map(inner, patch, item)?,
                Some(Shape::Any | Shape::Object) => {
                    patch.remove(DIRECTIVE);
                    merge_objects(inner, patch, None)?;
                }
                shape => merge_objects(inner, patch, shape.and_then(Shape::as_type))?,
            }
        }
        Value::Array(items) => {
            let merged = match (field, object.get_mut(&name)) {
                (Some(Field { patch: strategy, shape: Shape::List(item), .. }), old)
                    if strategy.merge.is_some() =>
                {
                    let old = old.and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
                    let key = strategy.merge.unwrap_or_default();
                    let (order, server) = (items.clone(), old.clone());
                    let mut merged = merge_list(old, items, key, item.as_type())?;
                    // What the patch brings goes before what only the server has, as in Kubernetes.
                    reorder(&mut merged, &order, &server, key);
                    merged
                }
                _ => items,
            };
            object.insert(name, Value::Array(merged));
        }
        scalar => {
            object.insert(name, scalar);
        }
    }
    Ok(())
}

/// A map with free keys; its values may be objects of a type.
fn merge_map(
    object: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    item: &Shape,
) -> Result<(), Error> {
    match directive(&mut patch)? {
        Directive::Merge => {}
        Directive::Replace => object.clear(),
        Directive::Delete => {
            object.clear();
            return Ok(());
        }
    }
    for (name, value) in patch {
        match value {
            Value::Null => {
                object.remove(&name);
            }
            Value::Object(patch) => {
                let slot = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(inner) = slot {
                    merge_objects(inner, patch, item.as_type())?;
                } else {
                    *slot = Value::Object(patch);
                }
            }
            other => {
                object.insert(name, other);
            }
        }
    }
    Ok(())
}

fn merge_list(
    mut items: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
    ty: Option<Type>,
) -> Result<Vec<Value>, Error> {
    if key.is_empty() {
        for item in patch {
            if !items.contains(&item) {
                items.push(item);
            }
        }
        return Ok(items);
    }
    let replaces = |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str) == Some("replace");
    if patch.iter().any(replaces) {
        items.clear();
    }
    for entry in patch {
        let Value::Object(mut entry) = entry else {
            return Err(Error::Malformed(format!("a list merged by {key:?} holds objects only")));
        };
        let what = directive(&mut entry)?;
        let Some(id) = entry.get(key).cloned() else {
            if matches!(what, Directive::Replace) {
                continue; // only says that the list is replaced
            }
            let entry = Value::Object(entry);
            return Err(Error::Malformed(format!("map: {entry} does not contain declared merge key: {key}")));
        };
        if matches!(what, Directive::Delete) {
            items.retain(|item| item.get(key) != Some(&id));
            continue;
        }
        let at = items.iter().position(|item| item.get(key) == Some(&id));
        let mut slot = at
            .map(|at| items[at].take())
            .filter(Value::is_object)
            .unwrap_or_else(|| Value::Object(Map::new()));
        if let Value::Object(object) = &mut slot {
            merge_objects(object, entry, ty)?;
        }
        match at {
            Some(at) => items[at] = slot,
            None => items.push(slot),
        }
    }
    Ok(items)
}

/// The items that a patch gives are in the order that it asks for.
fn in_order(name: &str, items: &[Value], order: &[Value], key: &str) -> Result<(), Error> {
    let id = |item: &Value| if key.is_empty() { Some(item.clone()) } else { item.get(key).cloned() };
    let order: Vec<_> = order.iter().map(id).collect();
    let mut rest = order.iter();
    for item in items {
        // Those that are taken out, and the one that says `replace`, have no place.
        if item.get(DIRECTIVE).is_none() && !rest.any(|wanted| *wanted == id(item)) {
            let shown = serde_json::json!(order);
            return Err(Error::Malformed(format!(
                "The order in patch list doesn't match $setElementOrder list: {name}: {item} is not where {shown} has it"
            )));
        }
    }
    Ok(())
}

/// Puts items into the order that the patch asks; those it does not name keep their place after those that stood
/// before them on the server.
fn reorder(items: &mut Vec<Value>, order: &[Value], server: &[Value], key: &str) {
    let same = |a: &Value, b: &Value| {
        if key.is_empty() { a == b } else { a.get(key).is_some() && a.get(key) == b.get(key) }
    };
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item));
    let (mut asked, others): (Vec<Value>, Vec<Value>) =
        std::mem::take(items).into_iter().partition(|item| place(order, item).is_some());
    asked.sort_by_key(|item| place(order, item));
    let mut others = others.into_iter().peekable();
    for item in asked {
        while let Some(other) = others.peek() {
            let before = matches!((place(server, other), place(server, &item)), (Some(a), Some(b)) if a < b);
            if !before {
                break;
            }
            items.extend(others.next());
        }
        items.push(item);
    }
    items.extend(others);
}
