//! `metadata.managedFields`: who owns what, as it is stored.

use std::cmp::Ordering;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::fieldset::FieldSet;

/// More Update managers than this are folded into one, as in Kubernetes.
const MOST_UPDATERS: usize = 10;
/// What that one is called.
const ANCIENT: &str = "ancient-changes";

/// Apply or Update; sorts as Kubernetes sorts the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// One entry.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    pub time: Option<Timestamp>,
    pub set: FieldSet,
}

impl Entry {
    fn parse(value: &Value) -> Option<Entry> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        let operation = match text("operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        Some(Entry {
            manager: text("manager").to_owned(),
            operation,
            api_version: text("apiVersion").to_owned(),
            subresource: text("subresource").to_owned(),
            time: text("time").parse().ok(),
            set: FieldSet::from_value(value.get("fieldsV1").unwrap_or(&json!({}))).ok()?,
        })
    }

    fn encode(&self) -> Value {
        let mut out = Map::new();
        if !self.manager.is_empty() {
            out.insert("manager".to_owned(), self.manager.as_str().into());
        }
        let operation = if self.operation == Operation::Apply { "Apply" } else { "Update" };
        out.insert("operation".to_owned(), operation.into());
        if !self.api_version.is_empty() {
            out.insert("apiVersion".to_owned(), self.api_version.as_str().into());
        }
        if let Some(time) = self.time {
            out.insert("time".to_owned(), in_seconds(time).into());
        }
        out.insert("fieldsType".to_owned(), "FieldsV1".into());
        out.insert("fieldsV1".to_owned(), self.set.to_value());
        if !self.subresource.is_empty() {
            out.insert("subresource".to_owned(), self.subresource.as_str().into());
        }
        Value::Object(out)
    }

    /// Whether an operation by these belongs to this entry. An applier is the same at every version.
    pub fn is(&self, manager: &str, operation: Operation, api_version: &str, subresource: &str) -> bool {
        self.manager == manager
            && self.operation == operation
            && self.subresource == subresource
            && (operation == Operation::Apply || self.api_version == api_version)
    }

    /// As messages name a manager: `"kubectl" with subresource "status" using apps/v1`.
    pub fn shown(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }

    /// The order in which entries are written.
    fn order(&self, other: &Entry) -> Ordering {
        let seconds = |entry: &Entry| entry.time.map_or(0, Timestamp::as_second);
        (self.operation.cmp(&other.operation))
            .then_with(|| seconds(self).cmp(&seconds(other)))
            .then_with(|| self.manager.cmp(&other.manager))
            .then_with(|| self.api_version.cmp(&other.api_version))
            .then_with(|| self.subresource.cmp(&other.subresource))
    }
}

/// The API's form of a time: `2026-01-31T12:00:00Z`.
pub(super) fn in_seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The entries of an object. `None` if they cannot be read; then nobody is known to own anything.
pub(super) fn read(object: Option<&Value>) -> Option<Vec<Entry>> {
    match raw(object) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(entries)) => entries.iter().map(Entry::parse).collect(),
        Some(_) => None,
    }
}

/// The field itself.
pub(super) fn raw(object: Option<&Value>) -> Option<&Value> {
    object?.get("metadata")?.get("managedFields")
}

/// Puts the entries into an object, in order; an empty list takes the field away.
pub(super) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.sort_by(Entry::order);
    write_raw(object, (!entries.is_empty()).then(|| entries.iter().map(Entry::encode).collect()));
}

/// Puts the field into an object as it is, or takes it away.
pub(super) fn write_raw(object: &mut Value, value: Option<Value>) {
    let Value::Object(object) = object else { return };
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if let Value::Object(metadata) = metadata {
        match value {
            Some(value) => metadata.insert("managedFields".to_owned(), value),
            None => metadata.remove("managedFields"),
        };
    }
}

/// Folds the oldest Update entries into one per version while there are too many.
pub(super) fn cap(entries: &mut Vec<Entry>) {
    let updates =
        |entries: &[Entry]| entries.iter().filter(|entry| entry.operation == Operation::Update).count();
    let mut length = updates(entries);
    if length <= MOST_UPDATERS {
        return;
    }
    let (mut updaters, mut rest): (Vec<Entry>, Vec<Entry>) =
        std::mem::take(entries).into_iter().partition(|entry| entry.operation == Operation::Update);
    updaters.sort_by(Entry::order);
    let mut kept: Vec<Entry> = Vec::with_capacity(updaters.len());
    for updater in updaters {
        // The first of a version stays as it is until there is a second to fold it with.
        let first = kept.iter().position(|entry| entry.api_version == updater.api_version);
        match first {
            Some(at) if length > MOST_UPDATERS => {
                let bucket = &mut kept[at];
                bucket.manager = ANCIENT.to_owned();
                bucket.subresource.clear();
                bucket.set = bucket.set.union(&updater.set);
                bucket.time = updater.time;
                length -= 1;
            }
            _ => kept.push(updater),
        }
    }
    rest.append(&mut kept);
    *entries = rest;
}
