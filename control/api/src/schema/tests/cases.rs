//! Server-side apply against written cases: `tests/apply/*.yaml`, each a list of steps on one object.
//!
//! A step has one of `apply`, `create`, `update` (the manager's name), for apply a `config`, for the others a
//! `patch` (a merge patch on what is there), perhaps `force`, `subresource` and `defaults` (fill them in
//! afterwards). It expects `conflicts` (as messages name them), an `error`, `unchanged`, or what then holds: the
//! `object` without its managed fields, and its `managers`. Step N happens at second N; entries say it as `at`.

use std::path::Path;

use crate::schema::{self, Actor, ApplyError, Schema, Type};
use serde_json::{Value, json};

#[test]
fn apply_does_what_the_written_cases_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apply");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "the cases are in {}", folder.display());
    let mut failures = Vec::new();
    for file in files {
        let case: Value = serde_yaml::from_str(&std::fs::read_to_string(&file).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        if let Err(what) = run(&case) {
            failures.push(format!("{}: {what}", file.file_name().unwrap().display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

fn run(case: &Value) -> Result<(), String> {
    let kind: Vec<&str> = text(case, "kind").ok_or("no kind")?.split(' ').collect();
    let (group, version) = kind[0].rsplit_once('/').unwrap_or(("", kind[0]));
    let ty = Schema::get().kind(group, version, kind[1]).ok_or("unknown kind")?;
    let mut live: Option<Value> = None;
    for (at, step) in case["steps"].as_array().ok_or("no steps")?.iter().enumerate() {
        let at = at + 1;
        let next = take(live.as_ref(), step, at, ty, kind[0], kind[1])
            .map_err(|what| format!("step {at}: {what}"))?;
        let step_failed = |what: String| format!("step {at}: {what}");
        if step.get("unchanged").is_some() && next != live {
            return Err(step_failed(format!("changed to {:#}", next.unwrap_or_default())));
        }
        let after = next.clone().unwrap_or_default();
        if let Some(expected) = step.get("object") {
            let mut bare = after.clone();
            if let Some(metadata) = bare.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
                metadata.remove("name");
            }
            let fields = bare.as_object_mut().ok_or("no object")?;
            fields.remove("apiVersion");
            fields.remove("kind");
            if fields.get("metadata") == Some(&json!({})) {
                fields.remove("metadata");
            }
            if bare != *expected {
                return Err(step_failed(format!("the object is {bare:#}")));
            }
        }
        if let Some(expected) = step.get("managers") {
            let actual = managers(&after);
            if actual != *expected {
                return Err(step_failed(format!(
                    "the managers are {}",
                    serde_yaml::to_string(&actual).unwrap()
                )));
            }
        }
        live = next;
    }
    Ok(())
}

fn take(
    live: Option<&Value>,
    step: &Value,
    at: usize,
    ty: Type,
    api_version: &str,
    kind: &str,
) -> Result<Option<Value>, String> {
    let operation = ["apply", "create", "update"].into_iter().find(|word| step.get(word).is_some());
    let operation = operation.ok_or("no operation")?;
    let actor = Actor {
        manager: text(step, operation).ok_or("no manager")?,
        subresource: text(step, "subresource"),
        now: jiff::Timestamp::from_second(at as i64).unwrap(),
    };
    let mut identity = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}});
    let mut outcome = if operation == "apply" {
        let config = step.get("config").cloned().unwrap_or_default();
        json_patch::merge(&mut identity, &config);
        let force = step.get("force").is_some();
        match schema::apply(live, &identity, ty, &actor, force) {
            Ok(object) => object,
            Err(ApplyError::Conflicts(conflicts)) => {
                let found: Vec<String> = conflicts
                    .iter()
                    .map(|conflict| format!("{}: {}", conflict.manager, conflict.field))
                    .collect();
                return match step.get("conflicts") {
                    Some(expected) if *expected == json!(found) => Ok(live.cloned()),
                    _ => Err(format!("conflicts are {found:?}")),
                };
            }
            Err(ApplyError::Invalid(what)) if text(step, "error") == Some(&what) => return Ok(live.cloned()),
            Err(error) => return Err(error.to_string()),
        }
    } else {
        let mut object = live.cloned().unwrap_or(identity);
        json_patch::merge(&mut object, step.get("patch").unwrap_or(&json!({})));
        if step.get("defaults").is_some() {
            schema::default(&mut object, ty);
        }
        schema::track_update(live, &mut object, ty, &actor);
        object
    };
    if step.get("conflicts").is_some() || step.get("error").is_some() {
        return Err("was accepted".to_owned());
    }
    if operation == "apply" && step.get("defaults").is_some() {
        schema::default(&mut outcome, ty);
    }
    Ok(Some(outcome))
}

/// The managed fields in the short form of the cases.
fn managers(object: &Value) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let short = entries.into_iter().map(|entry| {
        let time: Option<jiff::Timestamp> = text(&entry, "time").map(|time| time.parse().unwrap());
        let mut out = json!({
            text(&entry, "operation").unwrap(): entry["manager"],
            "at": time.map(jiff::Timestamp::as_second),
            "fields": entry["fieldsV1"],
        });
        if let Some(subresource) = entry.get("subresource") {
            out["subresource"] = subresource.clone();
        }
        out
    });
    short.collect()
}
