//! What the server serves, told in both of Kubernetes' forms: a document a group version, and one for all.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, Response, header};
use serde_json::{Value, json};

use crate::Body;
use crate::kinds::{Kind, Kinds, Subresource};
use crate::represent::{self, Form, json_response, wants_aggregated_discovery};
use crate::status::{Result, Status};

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The verbs of a subresource and the kind it speaks.
pub fn subresource(
    kind: &Kind,
    subresource: Subresource,
) -> (&'static [&'static str], String, String, String) {
    let own = (kind.group.to_string(), kind.version.to_string(), kind.kind.to_string());
    let other =
        |group: &str, version: &str, kind: &str| (group.to_owned(), version.to_owned(), kind.to_owned());
    let (verbs, (group, version, name)): (&'static [&'static str], _) = match subresource {
        Subresource::Status | Subresource::Approval | Subresource::EphemeralContainers => {
            (&["get", "patch", "update"], own)
        }
        Subresource::Scale => (&["get", "patch", "update"], other("autoscaling", "v1", "Scale")),
        Subresource::Binding => (&["create"], other("", "v1", "Binding")),
        Subresource::Eviction => (&["create"], other("policy", "v1", "Eviction")),
        Subresource::Log => (&["get"], own),
        Subresource::PortForward => (&["create", "get"], other("", "v1", "PodPortForwardOptions")),
        Subresource::Exec => (&["create", "get"], other("", "v1", "PodExecOptions")),
        Subresource::Attach => (&["create", "get"], other("", "v1", "PodAttachOptions")),
        Subresource::Finalize => (&["update"], own),
        Subresource::Proxy => (
            &["create", "delete", "get", "patch", "update"],
            other("", "v1", &format!("{}ProxyOptions", kind.kind)),
        ),
        Subresource::Token => (&["create"], other("authentication.k8s.io", "v1", "TokenRequest")),
    };
    (verbs, group, version, name)
}

fn group_versions(kinds: &Kinds) -> BTreeMap<String, Vec<String>> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for kind in kinds.rows() {
        let versions = groups.entry(kind.group.to_string()).or_default();
        if !versions.contains(&kind.version.to_string()) {
            versions.push(kind.version.to_string());
        }
    }
    groups
}

/// Measurements have none, so that `node` and `pod` mean the things themselves.
fn singular(kind: &Kind) -> String {
    if kind.usage.is_some() { String::new() } else { kind.kind.to_lowercase() }
}

/// `/api` and `/apis`, classic or aggregated as `Accept` says.
pub fn roots(kinds: &Kinds, headers: &HeaderMap, form: Form, core: bool) -> Result<Response<Body>> {
    if let Some(version) = wants_aggregated_discovery(headers) {
        let body = aggregated(kinds, core, version).to_string();
        let type_ = match version {
            "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        };
        let mut response = json_response(200, body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(type_));
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        return Ok(response);
    }
    let body = match core {
        true => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
        }),
        false => {
            let groups = group_versions(kinds);
            let groups: Vec<Value> = groups
                .iter()
                .filter(|(name, _)| !name.is_empty())
                .map(|(name, versions)| group(name, versions))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
    };
    let mut response = represent::value(form, 200, &body)?;
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

fn group(name: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions.first()})
}

/// `/apis/GROUP`.
pub fn one_group(kinds: &Kinds, name: &str) -> Result<Value> {
    let groups = group_versions(kinds);
    let versions = groups.get(name).filter(|_| !name.is_empty()).ok_or_else(Status::no_route)?;
    let mut body = group(name, versions);
    body["kind"] = json!("APIGroup");
    body["apiVersion"] = json!("v1");
    Ok(body)
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub fn resources(kinds: &Kinds, group: &str, version: &str) -> Result<Value> {
    let rows: Vec<_> =
        kinds.rows().iter().filter(|kind| kind.group == group && kind.version == version).collect();
    let first = rows.first().ok_or_else(Status::no_route)?;
    let mut resources = Vec::new();
    for kind in &rows {
        let mut resource = json!({
            "name": kind.plural, "singularName": singular(kind), "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": verbs(kind),
        });
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        resources.push(resource);
        for sub in kind.subresources {
            let (verbs, sub_group, sub_version, sub_kind) = subresource(kind, *sub);
            let mut resource = json!({
                "name": format!("{}/{}", kind.plural, sub.as_str()), "singularName": "",
                "namespaced": kind.namespaced, "kind": sub_kind, "verbs": verbs,
            });
            if (&sub_group, &sub_version) != (&kind.group.to_string(), &kind.version.to_string()) {
                resource["group"] = json!(sub_group);
                resource["version"] = json!(sub_version);
            }
            resources.push(resource);
        }
    }
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(), "resources": resources,
    }))
}

/// Namespaces are not deleted by the collection; reviews are created alone, and measurements read.
pub fn verbs(kind: &Kind) -> Vec<&'static str> {
    if kind.review.is_some() {
        return vec!["create"];
    }
    if kind.usage.is_some() {
        return vec!["get", "list"];
    }
    let whole = kind.group.is_empty() && kind.plural == "namespaces";
    VERBS.iter().filter(|verb| !whole || **verb != "deletecollection").copied().collect()
}

fn aggregated(kinds: &Kinds, core: bool, version: &str) -> Value {
    let groups: Vec<Value> = group_versions(kinds)
        .into_iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let rows =
                        kinds.rows().iter().filter(|kind| kind.group == name && kind.version == *version);
                    let resources: Vec<Value> = rows.map(|kind| aggregated_resource(kind)).collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": groups,
    })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| {
            let (verbs, group, version, name) = subresource(kind, *sub);
            json!({
                "subresource": sub.as_str(), "verbs": verbs,
                "responseKind": {"group": group, "version": version, "kind": name},
            })
        })
        .collect();
    let mut resource = json!({
        "resource": kind.plural, "singularResource": singular(kind), "verbs": verbs(kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    if !subresources.is_empty() {
        resource["subresources"] = json!(subresources);
    }
    resource
}
