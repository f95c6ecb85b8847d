//! The operations on the served kinds, as OpenAPI paths: kubectl looks here for the query parameters of a kind's PATCH
//! and for the kind behind a resource's path.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Dialect, group_version_path, types};
use crate::discovery;
use crate::kinds::{Kind, Subresource};

/// What patches are sent as; `control/api/src/verbs/patch.rs` takes them.
const PATCHES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
const FORMS: [&str; 2] = ["application/json", "application/yaml"];

/// A query parameter: name, JSON type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const DRY_RUN: Parameter = ("dryRun", "string", "All: everything is done but storing the result.");
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "The name under which the fields that change are owned; at most 128 characters.",
);
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What is done about unknown and duplicate fields: Strict refuses them, Warn (the default) drops them with a warning, \
     Ignore drops them.",
);
const FORCE: Parameter = ("force", "boolean", "An apply takes over the fields that other managers own.");
const LIST: [Parameter; 10] = [
    ("allowWatchBookmarks", "boolean", "A watch tells now and then how far it is."),
    ("continue", "string", "Where the list goes on, as the answer before said."),
    ("fieldSelector", "string", "Only objects whose fields are so."),
    ("labelSelector", "string", "Only objects whose labels are so."),
    ("limit", "integer", "At most as many objects in one answer."),
    ("resourceVersion", "string", "How new the answer has to be."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: Exact or NotOlderThan."),
    ("sendInitialEvents", "boolean", "A watch begins with all objects there are."),
    ("timeoutSeconds", "integer", "A watch ends after as many seconds."),
    ("watch", "boolean", "Tell changes as they come instead of listing."),
];
const DELETE: [Parameter; 3] = [
    ("gracePeriodSeconds", "integer", "How long the object may take to end."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground."),
];

fn parameters(verb: &str) -> Vec<Parameter> {
    match verb {
        "create" | "update" => vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
        "patch" => vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE],
        "delete" => [&[DRY_RUN][..], &DELETE].concat(),
        "deletecollection" => [&[DRY_RUN][..], &DELETE, &LIST].concat(),
        "list" => LIST.to_vec(),
        _ => Vec::new(),
    }
}

/// The method of a verb and its name in `x-kubernetes-action`; `None` for those without an operation of their own.
fn method(verb: &str) -> Option<(&'static str, &'static str)> {
    Some(match verb {
        "get" => ("get", "get"),
        "list" => ("get", "list"),
        "create" => ("post", "post"),
        "update" => ("put", "put"),
        "patch" => ("patch", "patch"),
        "delete" => ("delete", "delete"),
        "deletecollection" => ("delete", "deletecollection"),
        _ => return None, // a watch is a list
    })
}

/// One operation's place: the kind served there, the kind it speaks, and what its id is made of.
#[derive(Clone)]
struct Place<'a> {
    dialect: Dialect,
    kind: &'a Kind,
    group: String,
    version: String,
    speaks: String,
    suffix: String,
}

/// The paths of these kinds.
pub fn of(dialect: Dialect, kinds: &[&Kind]) -> Value {
    let mut paths: BTreeMap<String, Value> = BTreeMap::new();
    for kind in kinds {
        let root = format!("/{}", group_version_path(kind));
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{root}{scope}/{}", kind.plural);
        let verbs = discovery::verbs(kind);
        let place = Place {
            dialect,
            kind,
            group: kind.group.to_string(),
            version: kind.version.to_string(),
            speaks: kind.kind.to_string(),
            suffix: String::new(),
        };
        let (whole, single): (Vec<&str>, Vec<&str>) =
            verbs.iter().partition(|verb| matches!(**verb, "list" | "create" | "deletecollection"));
        paths.insert(collection.clone(), place.item(&whole, false, kind.namespaced));
        if kind.namespaced && whole.contains(&"list") {
            let all = Place { suffix: "ForAllNamespaces".to_owned(), ..place.clone() };
            paths.insert(format!("{root}/{}", kind.plural), all.item(&["list"], false, false));
        }
        if single.is_empty() {
            continue;
        }
        paths.insert(format!("{collection}/{{name}}"), place.item(&single, true, kind.namespaced));
        for sub in kind.subresources {
            let (verbs, group, version, speaks) = discovery::subresource(kind, *sub);
            let suffix = camel(sub.as_str());
            let of_sub = Place { group, version, speaks, suffix, ..place.clone() };
            let mut item = of_sub.item(verbs, true, kind.namespaced);
            if matches!(sub, Subresource::PortForward | Subresource::Proxy) {
                for method in ["delete", "get", "patch", "post", "put"] {
                    if let Some(operation) = item.get_mut(method) {
                        operation["x-kubernetes-action"] = json!("connect");
                    }
                }
            }
            paths.insert(format!("{collection}/{{name}}/{}", sub.as_str()), item);
        }
    }
    json!(paths)
}

impl Place<'_> {
    /// All operations on one path.
    fn item(&self, verbs: &[&str], named: bool, namespaced: bool) -> Value {
        let mut item = Map::new();
        for verb in verbs {
            if let Some((method, action)) = method(verb) {
                item.insert(method.to_owned(), self.operation(verb, action, namespaced));
            }
        }
        let path =
            [(named, "name", "name of the object"), (namespaced, "namespace", "namespace of the object")];
        let parameters: Vec<Value> = path
            .into_iter()
            .filter(|(there, ..)| *there)
            .map(|(_, name, text)| {
                let own = json!({"name": name, "in": "path", "required": true, "description": text});
                self.typed(own, "string")
            })
            .collect();
        if !parameters.is_empty() {
            item.insert("parameters".to_owned(), parameters.into());
        }
        item.into()
    }

    /// A parameter with its type, which stands in a schema in version 3.
    fn typed(&self, mut parameter: Value, type_: &str) -> Value {
        match self.dialect {
            Dialect::V2 => parameter["type"] = json!(type_),
            Dialect::V3 => parameter["schema"] = json!({"type": type_}),
        }
        parameter
    }

    fn operation(&self, verb: &str, action: &str, namespaced: bool) -> Value {
        let mut query: Vec<Value> = parameters(verb)
            .into_iter()
            .map(|(name, type_, text)| {
                self.typed(json!({"name": name, "in": "query", "description": text}), type_)
            })
            .collect();
        let own = self.type_of("");
        let answer = match verb {
            "list" => self.type_of("List"),
            "delete" | "deletecollection" => types::reference(self.dialect, "meta.v1.Status"),
            _ => own.clone(),
        };
        let body = match verb {
            "create" | "update" => Some((own, &FORMS[..])),
            "patch" => Some((types::reference(self.dialect, types::PATCH), &PATCHES[..])),
            "delete" | "deletecollection" => {
                Some((types::reference(self.dialect, "meta.v1.DeleteOptions"), &FORMS[..]))
            }
            _ => None,
        };
        let required = matches!(verb, "create" | "update" | "patch");
        let codes: &[(&str, &str)] = match verb {
            "create" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
            "update" | "patch" => &[("200", "OK"), ("201", "Created")],
            "delete" => &[("200", "OK"), ("202", "Accepted")],
            _ => &[("200", "OK")],
        };
        let word = match verb {
            "get" => "read",
            "update" => "replace",
            "deletecollection" => "deleteCollection",
            other => other,
        };
        let group = camel(self.kind.group.split('.').next().unwrap_or_default());
        let group = if group.is_empty() { "Core".to_owned() } else { group };
        let scope = if namespaced { "Namespaced" } else { "" };
        let id =
            format!("{word}{group}{}{scope}{}{}", camel(&self.kind.version), self.kind.kind, self.suffix);
        let mut operation = json!({
            "operationId": id, "description": format!("{word} {}", self.speaks),
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind":
                {"group": self.group, "version": self.version, "kind": self.speaks},
        });
        match self.dialect {
            Dialect::V2 => {
                if let Some((schema, forms)) = body {
                    query.insert(
                        0,
                        json!({"name": "body", "in": "body", "required": required, "schema": schema}),
                    );
                    operation["consumes"] = json!(forms);
                }
                operation["produces"] = json!(FORMS);
                let response = |(code, text): &(&str, &str)| {
                    ((*code).to_owned(), json!({"description": text, "schema": answer}))
                };
                operation["responses"] = Value::Object(codes.iter().map(response).collect());
            }
            Dialect::V3 => {
                if let Some((schema, forms)) = body {
                    operation["requestBody"] =
                        json!({"required": required, "content": content(&schema, forms)});
                }
                let response = |(code, text): &(&str, &str)| {
                    ((*code).to_owned(), json!({"description": text, "content": content(&answer, &FORMS)}))
                };
                operation["responses"] = Value::Object(codes.iter().map(response).collect());
            }
        }
        if !query.is_empty() {
            operation["parameters"] = query.into();
        }
        operation
    }

    /// A reference to the type it speaks, or to its list; any object where the schema has no such type.
    fn type_of(&self, suffix: &str) -> Value {
        let kind = format!("{}{suffix}", self.speaks);
        match crate::schema::Schema::get().kind(&self.group, &self.version, &kind) {
            Some(ty) => types::reference(self.dialect, ty.name()),
            None => json!({"type": "object"}),
        }
    }
}

fn content(schema: &Value, forms: &[&str]) -> Value {
    Value::Object(forms.iter().map(|form| ((*form).to_owned(), json!({"schema": schema}))).collect())
}

/// The word with a capital letter.
fn camel(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}
