//! Our answers against those of a real kube-apiserver, recorded by `tests/compat/apiserver`.
//!
//! `tests/recordings/*.yaml` are cases, lists of requests in order; the `.json` beside each has the answers. A step
//! with `differs: WHY` is a refusal in words of its own, with the same status and reason; or it has the status `ours`;
//! or it is the same but for the places `at`, JSON pointers into the answer.

use std::path::Path;

use http::Request;
use serde_json::{Value, json};

use crate::harness::{Harness, send};

#[tokio::test]
async fn answers_are_those_of_a_real_kube_apiserver() {
    let harness = Harness::start().await;
    let client = harness.client("recorder", &["system:masters"]);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    let mut failures = Vec::new();
    let mut steps = 0;
    for file in files {
        let case: Value = serde_yaml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let answers: Vec<Value> =
            serde_json::from_str(&std::fs::read_to_string(file.with_extension("json")).unwrap()).unwrap();
        let requests = case["steps"].as_array().unwrap();
        assert_eq!(requests.len(), answers.len(), "{}: record it again", file.display());
        for (at, (request, expected)) in requests.iter().zip(&answers).enumerate() {
            steps += 1;
            let mut ours = play(&client, request).await;
            let mut expected = expected.clone();
            normal(&mut expected["body"]);
            if request.get("differs").is_some() && ours == expected {
                let name = file.file_stem().unwrap().display();
                failures.push(format!("{name} step {}: {} differs no longer", at + 1, request["do"]));
                continue;
            }
            if let Some(status) = request.get("ours") {
                expected = json!({"status": status});
                ours = json!({"status": ours["status"]});
            } else if let Some(places) = request.get("at") {
                for place in places.as_array().unwrap() {
                    remove(&mut ours, place.as_str().unwrap());
                    remove(&mut expected, place.as_str().unwrap());
                }
            } else if request.get("differs").is_some() {
                assert!(expected["status"].as_u64() >= Some(400), "say `at` where {} differs", request["do"]);
                for answer in [&mut ours, &mut expected] {
                    *answer = json!({"status": answer["status"], "reason": answer["body"]["reason"]});
                }
            }
            if ours != expected {
                let mut lines = Vec::new();
                difference("", &expected, &ours, &mut lines);
                let name = file.file_stem().unwrap().display();
                failures.push(format!("{name} step {}: {}\n{}", at + 1, request["do"], lines.join("\n")));
            }
        }
    }
    assert!(steps > 100, "{steps} steps in {}", folder.display());
    assert!(failures.is_empty(), "{} of {steps} steps:\n{}", failures.len(), failures.join("\n"));
}

async fn play(client: &kube::Client, step: &Value) -> Value {
    let (method, path) = step["do"].as_str().unwrap().split_once(' ').unwrap();
    let media_type = match step["type"].as_str().unwrap_or_default() {
        "" => "application/json",
        "apply" => "application/apply-patch+yaml",
        "strategic" => "application/strategic-merge-patch+json",
        "merge" => "application/merge-patch+json",
        "json-patch" => "application/json-patch+json",
        other => other,
    };
    let body = match (step.get("text"), step.get("body")) {
        (Some(text), _) => text.as_str().unwrap().to_owned(),
        (None, Some(body)) => body.to_string(),
        (None, None) => String::new(),
    };
    let mut request = Request::builder().method(method).uri(path).header("user-agent", "Go-http-client/2.0");
    if !body.is_empty() {
        request = request.header("content-type", media_type);
    }
    let response = send(client, request.body(body.into_bytes()).unwrap()).await;
    let warnings: Vec<_> =
        response.headers().get_all("warning").iter().map(|value| value.to_str().unwrap()).collect();
    let mut answer = json!({"status": response.status().as_u16()});
    if !warnings.is_empty() {
        answer["warnings"] = json!(warnings);
    }
    answer["body"] = serde_json::from_slice(response.body())
        .unwrap_or_else(|_| String::from_utf8_lossy(response.body()).into());
    normal(&mut answer["body"]);
    answer
}

/// Without what differs from run to run, as the recorder does it.
fn normal(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(normal),
        Value::Object(fields) => {
            for name in ["uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "time"] {
                fields.remove(name);
            }
            fields.retain(|_, value| !value.is_null()); // as Go writes a time that is not set
            if let Some(Value::Array(entries)) = fields.get_mut("managedFields") {
                let key = |entry: &Value| {
                    ["manager", "operation", "subresource", "apiVersion"]
                        .map(|name| entry[name].as_str().unwrap_or_default().to_owned())
                };
                entries.sort_by_key(key);
            }
            fields.values_mut().for_each(normal);
        }
        _ => {}
    }
}

/// Takes out what a JSON pointer names, if it is there.
fn remove(value: &mut Value, pointer: &str) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    if let Some(Value::Object(fields)) = value.pointer_mut(parent) {
        fields.remove(name);
    }
}

fn difference(at: &str, expected: &Value, ours: &Value, lines: &mut Vec<String>) {
    match (expected, ours) {
        (Value::Object(a), Value::Object(b)) => {
            for (name, value) in a {
                difference(&format!("{at}.{name}"), value, b.get(name).unwrap_or(&Value::Null), lines);
            }
            for (name, value) in b.iter().filter(|(name, _)| !a.contains_key(*name)) {
                lines.push(format!("  {at}.{name} is {value}, and should not be there"));
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                difference(&format!("{at}[{index}]"), a, b, lines);
            }
        }
        _ if expected != ours => lines.push(format!("  {at} is {ours}\n  and should be {expected}")),
        _ => {}
    }
}
