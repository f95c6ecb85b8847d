//! Server-side apply and the bookkeeping of everybody else's writes.

use std::fmt;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::decode::{Validation, decode_value};
use super::fieldset::FieldSet;
use super::managed::{self, Entry, Operation};
use super::merge::{self, compare, fields};
use super::model::Type;

/// Who owned an object's fields before anybody applied it.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Where client-side apply keeps what it applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The one manager that has used that annotation.
const KUBECTL: &str = "kubectl";

/// Who writes, by which door, and when.
#[derive(Clone, Copy, Debug)]
pub struct Actor<'a> {
    /// The field manager: `kubectl`, `deployment-controller`.
    pub manager: &'a str,
    /// `status`, `scale`, …; `None` for the object itself.
    pub subresource: Option<&'a str>,
    /// The time that changed entries get (whole seconds are kept).
    pub now: Timestamp,
}

/// A field that somebody else owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// As messages name the owner: `"kubectl" using apps/v1`.
    pub manager: String,
    /// As messages name the field: `.spec.containers[name="x"].image`.
    pub field: String,
}

impl Conflict {
    /// The message of the cause (its type is `FieldManagerConflict`, its field [`Conflict::field`]).
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

/// Why an apply changed nothing. Its text is the message of the answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 409, reason Conflict, one cause each; never empty, sorted by manager.
    #[error("{}", Conflicts(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration cannot be applied at all: 400.
    #[error("{0}")]
    Invalid(String),
}

/// Prints Kubernetes' message for conflicts.
struct Conflicts<'a>(&'a [Conflict]);

impl fmt::Display for Conflicts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0 {
            return write!(f, "Apply failed with 1 conflict: conflict with {}: {}", only.manager, only.field);
        }
        write!(f, "Apply failed with {} conflicts: ", self.0.len())?;
        let mut managers: Vec<&str> = self.0.iter().map(|conflict| conflict.manager.as_str()).collect();
        managers.sort_unstable();
        managers.dedup();
        let mut lines = Vec::new();
        for manager in managers {
            lines.push(format!("conflicts with {manager}:"));
            let own = self.0.iter().filter(|conflict| conflict.manager == manager);
            lines.extend(own.map(|conflict| format!("- {}", conflict.field)));
        }
        f.write_str(&lines.join("\n"))
    }
}

/// Applies `config` on `live` (`None`: it does not exist yet) and gives the object with its managed fields.
///
/// The result is neither defaulted nor admitted; fields that the server keeps (uid, resourceVersion, …) are those
/// of `live`, or of `config` where it has them. An apply that changes neither a value nor an owner gives an object
/// equal to `live`, times included.
///
/// # Errors
/// [`ApplyError::Conflicts`] unless `force`; [`ApplyError::Invalid`] if the configuration has managed fields, or
/// a list of it has two items with one key or an item without key.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    ty: Type,
    actor: &Actor<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    let node = merge::root(ty);
    if !matches!(managed::raw(Some(config)), None | Some(Value::Null)) {
        return Err(ApplyError::Invalid("metadata.managedFields must be nil".to_owned()));
    }
    let (reset, stripped) = (reset_fields(ty, actor.subresource), stripped());
    let mut wanted = fields(node, config).map_err(|what| {
        ApplyError::Invalid(format!("failed to create typed patch object ({}): {what}", name(config, ty)))
    })?;
    wanted.subtract_trees(&reset);

    let api_version = api_version(config, ty);
    let subresource = actor.subresource.unwrap_or_default();
    let empty = Value::Object(Map::new());
    let before = live.unwrap_or(&empty);
    let mut entries = managed::read(live).unwrap_or_default();
    if let Some(live) = live
        && entries.is_empty()
    {
        let mut set = compare(node, &empty, live).added;
        set.subtract(&stripped);
        set.subtract_trees(&reset);
        if !set.is_empty() {
            entries.push(Entry {
                manager: BEFORE_FIRST_APPLY.to_owned(),
                operation: Operation::Update,
                api_version: api_version.clone(),
                subresource: String::new(),
                time: Some(actor.now),
                set,
            });
        }
    }

    // The applier's own entry comes last, so that the others are a slice.
    let own =
        entries.iter().position(|entry| entry.is(actor.manager, Operation::Apply, &api_version, subresource));
    let own = own.map(|at| entries.remove(at));
    let last = own.as_ref().map(|entry| &entry.set).filter(|set| !set.is_empty());

    let mut merged = before.clone();
    if live.is_some() {
        managed::write_raw(&mut merged, None);
    }
    merge::merge(node, &mut merged, config);
    if let Some(last) = last {
        let owned = entries.iter().fold(wanted.clone(), |owned, entry| owned.union(&entry.set));
        merge::prune(node, &mut merged, last, &owned);
    }

    let mut difference = compare(node, before, &merged);
    for set in [&mut difference.added, &mut difference.modified, &mut difference.removed] {
        set.subtract_trees(&reset);
        set.subtract(&stripped); // a resourceVersion to be met is no change
    }
    let changed = difference.added.union(&difference.modified);
    let nothing = FieldSet::new();
    if !force && !conflicts(&entries, &changed, &nothing).is_empty() {
        let allowed = handed_over(live, ty, actor).unwrap_or_default();
        let conflicts = conflicts(&entries, &changed, &allowed);
        if !conflicts.is_empty() {
            return Err(ApplyError::Conflicts(conflicts));
        }
    }
    for entry in &mut entries {
        entry.set.subtract(&changed);
        entry.set.subtract(&difference.removed);
    }
    entries.retain(|entry| !entry.set.is_empty());

    wanted.subtract(&stripped);
    let same_owner = match &own {
        Some(own) => own.set == wanted && own.api_version == api_version,
        None => wanted.is_empty(),
    };
    let noted = note_last_applied(&mut merged, config, actor);
    if let Some(live) = live
        && difference.is_empty()
        && same_owner
        && !noted
    {
        return Ok(live.clone());
    }
    if !wanted.is_empty() {
        entries.push(Entry {
            manager: actor.manager.to_owned(),
            operation: Operation::Apply,
            api_version,
            subresource: subresource.to_owned(),
            time: Some(actor.now),
            set: wanted,
        });
    }
    managed::write(&mut merged, entries);
    Ok(merged)
}

/// Which of the changed fields others own, but for those that may be taken.
fn conflicts(others: &[Entry], changed: &FieldSet, allowed: &FieldSet) -> Vec<Conflict> {
    let taken = |entry: &Entry| {
        let mut taken = entry.set.intersection(changed);
        taken.subtract(allowed);
        taken.paths()
    };
    let mut found: Vec<(String, Vec<String>)> =
        others.iter().map(|entry| (entry.shown(), taken(entry))).collect();
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
        .into_iter()
        .flat_map(|(manager, paths)| {
            paths.into_iter().map(move |field| Conflict { manager: manager.clone(), field })
        })
        .collect()
}

/// What client-side `kubectl apply` set and nobody changed since. `kubectl` may take it: it only changes its way of
/// applying.
fn handed_over(live: Option<&Value>, ty: Type, actor: &Actor<'_>) -> Option<FieldSet> {
    if actor.manager != KUBECTL {
        return None;
    }
    let live = live?;
    let text = live.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()?;
    let last: Value = serde_json::from_str(text).ok()?;
    let (last, _) = decode_value(last, ty, Validation::Ignore).ok()?;
    if api_version(&last, ty) != api_version(live, ty) {
        return None;
    }
    let node = merge::root(ty);
    let mut allowed = fields(node, &last).ok()?;
    let since = compare(node, &last, live);
    allowed.subtract(&since.modified);
    allowed.subtract(&since.removed);
    Some(allowed)
}

/// Brings client-side apply's annotation up to date where there is one, so that its next use knows what was applied.
/// Says whether that changed it.
fn note_last_applied(merged: &mut Value, config: &Value, actor: &Actor<'_>) -> bool {
    let note = merged.get_mut("metadata").and_then(|meta| meta.get_mut("annotations")?.get_mut(LAST_APPLIED));
    let (KUBECTL, Some(note)) = (actor.manager, note) else { return false };
    let mut applied = config.clone();
    if let Some(Value::Object(annotations)) =
        applied.get_mut("metadata").and_then(|meta| meta.get_mut("annotations"))
    {
        annotations.remove(LAST_APPLIED);
    }
    let text = format!("{applied}\n");
    // All annotations together may have 256 KiB; a note that is too long is none.
    let text = if text.len() > 256 * 1024 { Value::from("") } else { Value::from(text) };
    let changed = *note != text;
    *note = text;
    changed
}

/// Writes into `after` who owns what, after a create (`before` is `None`), update or patch by `actor`.
///
/// Call it with defaults filled in and before admission. Owners of fields that changed or went lose them; the
/// actor gains those that changed or came. What `after` says about managed fields is kept where it is sound,
/// `[{}]` forgets all owners, and otherwise the owners are those of `before`.
pub fn track_update(before: Option<&Value>, after: &mut Value, ty: Type, actor: &Actor<'_>) {
    let node = merge::root(ty);
    let subresource = actor.subresource.unwrap_or_default();
    let given = if subresource.is_empty() { managed::raw(Some(after)) } else { None };
    let forget = given.and_then(Value::as_array).is_some_and(
        |entries| matches!(entries.as_slice(), [only] if only.as_object().is_some_and(Map::is_empty)),
    );
    let mut entries = match managed::read(given.and(Some(&*after))) {
        _ if forget => Vec::new(),
        Some(entries) if !entries.is_empty() => entries,
        _ => managed::read(before).unwrap_or_default(),
    };
    if before.is_some() && entries.is_empty() {
        // Nobody applied it and its owners are unknown or were forgotten: that stays so until somebody applies.
        managed::write_raw(after, None);
        return;
    }

    let empty = Value::Object(Map::new());
    let mut difference = compare(node, before.unwrap_or(&empty), after);
    let reset = reset_fields(ty, actor.subresource);
    for set in [&mut difference.added, &mut difference.modified, &mut difference.removed] {
        set.subtract_trees(&reset);
    }
    if difference.is_empty() {
        managed::write(after, entries);
        return;
    }
    let mut taken = difference.added.union(&difference.modified);
    for entry in &mut entries {
        entry.set.subtract(&taken);
        entry.set.subtract(&difference.removed);
    }
    taken.subtract(&stripped());
    if !taken.is_empty() {
        let api_version = api_version(after, ty);
        let own = entries
            .iter_mut()
            .find(|entry| entry.is(actor.manager, Operation::Update, &api_version, subresource));
        match own {
            Some(own) => {
                own.set = own.set.union(&taken);
                own.time = Some(actor.now);
            }
            None => entries.push(Entry {
                manager: actor.manager.to_owned(),
                operation: Operation::Update,
                api_version,
                subresource: subresource.to_owned(),
                time: Some(actor.now),
                set: taken,
            }),
        }
    }
    entries.retain(|entry| !entry.set.is_empty());
    managed::cap(&mut entries);
    managed::write(after, entries);
}

/// Fields that nobody owns: they name the object or belong to the server.
fn stripped() -> FieldSet {
    let mut set = FieldSet::new();
    for path in [["apiVersion"], ["kind"], ["metadata"]] {
        set.insert_fields(&path);
    }
    for name in [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ] {
        set.insert_fields(&["metadata", name]);
    }
    set
}

/// Fields that a request by this door cannot change, and so nobody comes to own by it.
fn reset_fields(ty: Type, subresource: Option<&str>) -> FieldSet {
    let mut set = FieldSet::new();
    match subresource {
        None if ty.has_status() => set.insert_fields(&["status"]),
        Some("status") => {
            set.insert_fields(&["spec"]);
            if ty.name().starts_with("apps.v1.") {
                set.insert_fields(&["metadata", "labels"]);
            }
            if ty.name() == "core.v1.Pod" {
                set.insert_fields(&["metadata", "deletionTimestamp"]);
                set.insert_fields(&["metadata", "ownerReferences"]);
            }
        }
        _ => {}
    }
    set
}

fn api_version(object: &Value, ty: Type) -> String {
    match object.get("apiVersion").and_then(Value::as_str) {
        Some(version) => version.to_owned(),
        None => ty.gvk().map(super::Gvk::api_version).unwrap_or_default(),
    }
}

/// As Kubernetes names the object of a failed apply: `default/web; apps/v1, Kind=Deployment`.
fn name(object: &Value, ty: Type) -> String {
    let kind = ty.gvk().map(ToString::to_string).unwrap_or_default();
    format!("{}; {kind}", named(object))
}

/// `namespace/name`
pub(super) fn named(object: &Value) -> String {
    let text = |name: &str| object.get("metadata").and_then(|meta| meta.get(name)).and_then(Value::as_str);
    format!("{}/{}", text("namespace").unwrap_or_default(), text("name").unwrap_or_default())
}
