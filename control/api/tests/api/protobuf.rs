//! The protobuf form of everything: what a client gets in it says the same as JSON, and what it sends does the same.

use std::collections::BTreeMap;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde::Deserialize as _;
use serde_json::{Value, json};
use wharf_api::protobuf;

use crate::harness::{DEADLINE, Harness, call, call_as, get, send};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Sends in protobuf and accepts protobuf, as client-go does.
async fn call_protobuf(client: &kube::Client, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { Vec::new() } else { protobuf::encode(&body).unwrap().to_vec() };
    ask(client, method, path, &format!("{PROTOBUF},application/json"), body).await
}

async fn ask(client: &kube::Client, method: &str, path: &str, accept: &str, body: Vec<u8>) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("accept", accept);
    let response = send(client, request.header("content-type", PROTOBUF).body(body).unwrap()).await;
    (response.status().as_u16(), decoded(&response))
}

fn decoded(response: &Response<Vec<u8>>) -> Value {
    assert_eq!(response.headers()["content-type"], PROTOBUF, "{}", String::from_utf8_lossy(response.body()));
    protobuf::decode(response.body(), "", "").unwrap()
}

/// Without what Go writes though it is empty, and protobuf does not tell from what is not there.
fn told(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (name, told(value)))
            .filter(|(_, value)| !says_nothing(value))
            .collect(),
        Value::Array(items) => items.into_iter().map(told).collect(),
        other => other,
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// Everything that is not of one object alone.
fn common(object: &Value) -> Value {
    let own = |field: &str| object["metadata"][field].to_string();
    let text = object.to_string().replace(&own("name"), "\"NAME\"").replace(&own("uid"), "\"UID\"");
    let mut object: Value = serde_json::from_str(&text).unwrap();
    let metadata = object["metadata"].as_object_mut().unwrap();
    for own in ["resourceVersion", "creationTimestamp"] {
        metadata.remove(own);
    }
    let managed = metadata.get_mut("managedFields").and_then(Value::as_array_mut);
    managed.into_iter().flatten().for_each(|entry| drop(entry.as_object_mut().unwrap().remove("time")));
    object
}

/// The path of a kind's collection, found as a client finds it.
async fn collections(client: &kube::Client) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    let (_, groups) = get(client, "/apis").await;
    let groups = groups["groups"].as_array().unwrap().iter();
    let groups = groups.map(|group| group["preferredVersion"]["groupVersion"].as_str().unwrap().to_owned());
    for (version, root) in groups
        .map(|version| (version.clone(), format!("/apis/{version}")))
        .chain([("v1".to_owned(), "/api/v1".to_owned())])
    {
        let (_, list) = get(client, &root).await;
        for resource in list["resources"].as_array().unwrap() {
            let name = resource["name"].as_str().unwrap();
            let stored = resource["verbs"].as_array().unwrap().contains(&json!("watch"));
            if !name.contains('/') && stored {
                let within = if resource["namespaced"] == true { "/namespaces/default" } else { "" };
                let kind = resource["kind"].as_str().unwrap().to_owned();
                found.insert((version.clone(), kind), format!("{root}{within}/{name}"));
            }
        }
    }
    found
}

#[tokio::test]
async fn every_kind_is_the_same_in_both_forms() {
    let harness = Harness::start().await;
    let client = harness.local();
    let mut left = collections(&client).await;
    for document in serde_yaml::Deserializer::from_str(include_str!("protobuf.yaml")) {
        let mut object = Value::deserialize(document).unwrap();
        let text = |field: &str| object[field].as_str().unwrap().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let path =
            left.remove(&(version.clone(), kind.clone())).unwrap_or_else(|| panic!("{version} {kind}"));
        let status = object.as_object_mut().unwrap().remove("status");
        let named = |name: &str| {
            let mut object = object.clone();
            object["metadata"]["name"] = json!(name);
            object
        };
        // Made from either, it is the same: defaults, managers' fields, all.
        let (code, one) = call(&client, "POST", &path, named("one")).await;
        assert_eq!(code, 201, "{kind}: {one}");
        let (code, two) = call_protobuf(&client, "POST", &path, named("two")).await;
        assert_eq!(code, 201, "{kind}: {two}");
        let (_, stored) = get(&client, &format!("{path}/two")).await;
        assert_eq!(told(two), told(stored.clone()), "{kind}, as it was made");
        let mut first = common(&one);
        if kind == "Service" {
            // Every Service gets an address of its own where there is somebody to give it.
            first["spec"]["clusterIP"] = stored["spec"]["clusterIP"].clone();
            first["spec"]["clusterIPs"] = stored["spec"]["clusterIPs"].clone();
        }
        let second = common(&stored);
        let managed = "/metadata/managedFields";
        assert_eq!(first.pointer(managed), second.pointer(managed), "{kind}, from JSON and from protobuf");
        // Go writes what is empty, so objects from protobuf have it.
        assert_eq!(told(first), told(second), "{kind}, from JSON and from protobuf");

        // Replaced by what was read, it stays as it is.
        let (_, read) = call_protobuf(&client, "GET", &format!("{path}/two"), Value::Null).await;
        let (code, same) = call_protobuf(&client, "PUT", &format!("{path}/two"), read).await;
        assert_eq!((code, told(same)), (200, told(stored.clone())), "{kind}, replaced by itself");
        if let Some(status) = status {
            let mut with_status = stored.clone();
            with_status["status"] = status;
            let (code, wrote) =
                call_protobuf(&client, "PUT", &format!("{path}/two/status"), with_status).await;
            let (_, read) = get(&client, &format!("{path}/two")).await;
            assert_eq!((code, told(wrote)), (200, told(read)), "{kind}, with its status");
        }

        // Lists.
        let (_, in_json) = get(&client, &path).await;
        let (code, list) = call_protobuf(&client, "GET", &path, Value::Null).await;
        assert_eq!((code, &list["kind"]), (200, &json!(format!("{kind}List"))));
        assert_eq!(told(list), told(without_types(in_json.clone())), "{kind}, listed");

        // Watches.
        let at = in_json["metadata"]["resourceVersion"].as_str().unwrap();
        let query = format!(
            "{path}?watch=1&timeoutSeconds=1&resourceVersionMatch=NotOlderThan&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersion={at}"
        );
        let mut frames = Frames::open(&client, &query, PROTOBUF).await;
        for wanted in in_json["items"].as_array().unwrap() {
            let (type_, object) = frames.next().await.unwrap();
            let mut wanted = wanted.clone();
            wanted["apiVersion"] = json!(version);
            wanted["kind"] = json!(kind);
            assert_eq!((type_.as_str(), told(object)), ("ADDED", told(wanted)), "{kind}, watched");
        }
        let (type_, end) = frames.next().await.unwrap();
        assert_eq!((type_.as_str(), &end["kind"]), ("BOOKMARK", &json!(kind)));
        assert_eq!(end["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");

        // And away.
        let options = json!({"kind": "DeleteOptions", "apiVersion": version, "gracePeriodSeconds": 0, "propagationPolicy": "Background"});
        let (code, gone) = call_protobuf(&client, "DELETE", &format!("{path}/one"), options).await;
        assert_eq!(code, 200, "{kind}: {gone}");
    }
    assert!(left.is_empty(), "kinds without an object in protobuf.yaml: {left:?}");
}

/// Items of a list have no types of their own in protobuf.
fn without_types(mut list: Value) -> Value {
    for item in list["items"].as_array_mut().unwrap() {
        let item = item.as_object_mut().unwrap();
        item.remove("apiVersion");
        item.remove("kind");
    }
    list
}

/// The frames of a watch.
struct Frames {
    body: Body,
    buffer: Vec<u8>,
}

impl Frames {
    async fn open(client: &kube::Client, path: &str, accept: &str) -> Self {
        let request = Request::builder().uri(path).header("accept", accept).body(Body::empty()).unwrap();
        let response = client.send(request).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
        Self { body: response.into_body(), buffer: Vec::new() }
    }

    /// The next event's type and object; `None` if the watch has ended.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((length, rest)) = self.buffer.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if let Some(event) = rest.get(..length) {
                    let event = event_of(event);
                    self.buffer.drain(..4 + length);
                    return Some(event);
                }
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("an event comes")?;
            self.buffer.extend_from_slice(frame.unwrap().data_ref().unwrap());
        }
    }
}

/// A WatchEvent, in the one order in which it is written: the type, the object in a RawExtension.
fn event_of(bytes: &[u8]) -> (String, Value) {
    let (tag, rest) = bytes.split_first().unwrap();
    assert_eq!(*tag, 0x0a);
    let (type_, rest) = delimited(rest);
    assert_eq!(rest[0], 0x12);
    let (raw, rest) = delimited(&rest[1..]);
    assert!(rest.is_empty() && raw[0] == 0x0a, "{bytes:?}");
    let (envelope, rest) = delimited(&raw[1..]);
    assert!(rest.is_empty(), "{bytes:?}");
    (String::from_utf8(type_.to_vec()).unwrap(), protobuf::decode(envelope, "", "").unwrap())
}

fn delimited(mut bytes: &[u8]) -> (&[u8], &[u8]) {
    let length = prost::decode_length_delimiter(&mut bytes).unwrap();
    bytes.split_at(length)
}

#[tokio::test]
async fn watchers_of_either_form_see_the_same_changes() {
    let harness = Harness::start().await;
    let client = harness.admin();
    let path = format!("{MAPS}?watch=1&resourceVersion=0&labelSelector=l%3Dx");
    let mut whole = Frames::open(&client, &path, &format!("{PROTOBUF};stream=watch, application/json")).await;
    let metadata = format!("{PROTOBUF};as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
    let mut metadata = Frames::open(&client, &path, &metadata).await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"l": "x"}}, "data": {"k": "v"}});
    assert_eq!(call_protobuf(&client, "POST", MAPS, map).await.0, 201);
    let patch =
        |label: &str| json!({"metadata": {"labels": {"l": label}, "annotations": {"n": label}}}).to_string();
    let one = format!("{MAPS}/a");
    for label in ["x", "y"] {
        assert_eq!(
            call_as(&client, "PATCH", &one, "application/merge-patch+json", patch(label)).await.0,
            200
        );
    }
    for wanted in ["ADDED", "MODIFIED", "DELETED"] {
        let (type_, object) = whole.next().await.unwrap();
        assert_eq!((type_.as_str(), &object["data"]), (wanted, &json!({"k": "v"})));
        let (type_, object) = metadata.next().await.unwrap();
        assert_eq!((type_.as_str(), &object["kind"]), (wanted, &json!("PartialObjectMetadata")));
        assert_eq!((&object["metadata"]["name"], &object["data"]), (&json!("a"), &Value::Null));
    }
    let too_new = format!("{MAPS}?watch=1&resourceVersion=999999");
    let (code, status) = ask(&harness.local(), "GET", &too_new, PROTOBUF, Vec::new()).await;
    assert_eq!((code, &status["details"]["causes"][0]["reason"]), (504, &json!("ResourceVersionTooLarge")));
}

#[tokio::test]
async fn metadata_alone_comes_in_protobuf_too() {
    let harness = Harness::start().await;
    let client = harness.local();
    let (_, made) = call(
        &client,
        "POST",
        MAPS,
        json!({"metadata": {"name": "a", "labels": {"l": "x"}}, "data": {"k": "v"}}),
    )
    .await;
    let accept = format!(
        "{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    );
    let (code, list) = ask(&client, "GET", MAPS, &accept, Vec::new()).await;
    assert_eq!((code, &list["kind"]), (200, &json!("PartialObjectMetadataList")));
    assert_eq!(told(list["items"].clone()), told(json!([{"metadata": made["metadata"]}])));
    let (_, one) = ask(&client, "GET", &format!("{MAPS}/a"), &accept, Vec::new()).await;
    assert_eq!(told(one["metadata"].clone()), told(made["metadata"].clone()));
    assert_eq!(one["kind"], "PartialObjectMetadata");
}

#[tokio::test]
async fn forms_are_negotiated_with_their_weights() {
    let harness = Harness::start().await;
    let client = harness.local();
    let table = "as=Table;g=meta.k8s.io;v=v1";
    let cases = [
        (PROTOBUF.to_owned(), PROTOBUF),
        (format!("{PROTOBUF};q=0.5,application/json"), "application/json"),
        (format!("application/json;q=0.2,{PROTOBUF};q=0.3"), PROTOBUF),
        (format!("{PROTOBUF};q=0,*/*;q=0.1"), "application/json"),
        // Kubernetes has no Table in protobuf.
        (format!("{PROTOBUF};{table},application/json;{table}"), "application/json"),
    ];
    for (accept, wanted) in cases {
        let request = Request::get(MAPS).header("accept", &accept).body(Vec::new()).unwrap();
        let response = send(&client, request).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (200, &http::HeaderValue::from_static(wanted)),
            "{accept}"
        );
    }
    let only = format!("{PROTOBUF};{table}");
    let request = Request::get(MAPS).header("accept", only).body(Vec::new()).unwrap();
    let response = send(&client, request).await;
    let status: Value = serde_json::from_slice(response.body()).unwrap();
    let why = format!(
        "only the following media types are accepted: application/json, application/yaml, {PROTOBUF}"
    );
    assert_eq!((&status["code"], &status["message"]), (&json!(406), &json!(why)));
}

#[tokio::test]
async fn kinds_that_kubernetes_has_no_message_of_speak_json_alone() {
    let foreign =
        || wharf_api::Kind::new("apiregistration.k8s.io", "v1", "APIService", "apiservices").cluster_wide();
    let harness = Harness::with(|config| config.kinds.push(foreign())).await;
    let client = harness.local();
    let path = "/apis/apiregistration.k8s.io/v1/apiservices";
    let both = format!("{PROTOBUF},application/json");
    let request = Request::get(path).header("accept", both).body(Vec::new()).unwrap();
    assert_eq!(send(&client, request).await.headers()["content-type"], "application/json");
    let (code, status) = ask(&client, "GET", path, PROTOBUF, Vec::new()).await;
    let types = "application/json, application/yaml";
    assert_eq!(
        (code, status["message"].as_str()),
        (406, Some(format!("only the following media types are accepted: {types}").as_str()))
    );
    let (code, status) = call_as(&client, "POST", path, PROTOBUF, b"k8s\0".to_vec()).await;
    let why =
        format!("the body of the request was in an unknown format - accepted media types include: {types}");
    assert_eq!((code, status["message"].as_str()), (415, Some(why.as_str())));
    let watch = format!("{path}?watch=1");
    assert_eq!(ask(&client, "GET", &watch, PROTOBUF, Vec::new()).await.0, 406);
}

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be_are_refused() {
    let harness = Harness::start().await;
    let client = harness.local();
    let secret =
        protobuf::encode(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}})).unwrap();
    let renamed = protobuf::encode(
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "s", "namespace": "other"}}),
    )
    .unwrap();
    let unknown = b"k8s\0\x0a\x0a\x0a\x02v7\x12\x04None\x12\x00";
    let cases: [(Vec<u8>, u16, &str); 7] = [
        (
            Vec::new(),
            400,
            "the object provided is unrecognized (must be of type ConfigMap): empty data (<empty>)",
        ),
        (
            b"{\"kind\":\"ConfigMap\"}".to_vec(),
            400,
            "the object provided is unrecognized (must be of type ConfigMap): provided data does not appear to be a protobuf message, expected prefix [107 56 115 0] ({\"kind\":\"ConfigMap\"})",
        ),
        (
            b"k8s\0\x12\x09".to_vec(),
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: unexpected EOF",
        ),
        (
            unknown.to_vec(),
            400,
            "None in version \"v7\" cannot be handled as a ConfigMap: no kind \"None\" is registered for version \"v7\"",
        ),
        (secret.to_vec(), 400, "Secret in version \"v1\" cannot be handled as a ConfigMap"),
        (
            renamed.to_vec(),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            [b"k8s\0\x12\xfe\xff\xbf\x01".as_slice(), &[0; 3 << 20]].concat(),
            413,
            "Request entity too large: limit is 3145728",
        ),
    ];
    for (body, wanted, why) in cases {
        let (code, status) = ask(&client, "POST", MAPS, PROTOBUF, body).await;
        let message = status["message"].as_str().unwrap();
        assert!(code == wanted && message.starts_with(why), "{code}: {message}");
        assert_eq!(status["kind"], "Status");
    }
}

#[tokio::test]
async fn failures_are_told_in_the_form_that_was_asked_for() {
    let harness = Harness::start().await;
    let client = harness.local();
    let missing = format!("{MAPS}/none");
    let (code, status) = call_protobuf(&client, "GET", &missing, Value::Null).await;
    let (_, in_json) = get(&client, &missing).await;
    assert_eq!((code, told(status)), (404, told(in_json)));
    let (code, invalid) = call_protobuf(
        &client,
        "POST",
        MAPS,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "No Name"}}),
    )
    .await;
    assert_eq!((code, &invalid["details"]["causes"][0]["field"]), (422, &json!("metadata.name")));
    let request = Request::get(&missing).header("accept", "application/yaml").body(Vec::new()).unwrap();
    assert_eq!(send(&client, request).await.headers()["content-type"], "application/yaml");
}

#[tokio::test]
async fn subresources_and_reviews_speak_it() {
    let harness = Harness::start().await;
    let client = harness.local();
    let (pods, accounts) = ("/api/v1/namespaces/default/pods", "/api/v1/namespaces/default/serviceaccounts");
    for name in ["p", "q"] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        assert_eq!(call_protobuf(&client, "POST", pods, pod).await.0, 201);
    }
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let (code, bound) = call_protobuf(&client, "POST", &format!("{pods}/p/binding"), binding).await;
    assert_eq!((code, &bound["status"]), (201, &json!("Success")));
    assert_eq!(get(&client, &format!("{pods}/p")).await.1["spec"]["nodeName"], "n");
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "q", "namespace": "default"}, "deleteOptions": {"gracePeriodSeconds": 0}});
    assert_eq!(call_protobuf(&client, "POST", &format!("{pods}/q/eviction"), eviction).await.0, 201);
    assert_eq!(get(&client, &format!("{pods}/q")).await.0, 404);

    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    assert_eq!(call_protobuf(&client, "POST", accounts, account).await.0, 201);
    let ask_token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": {"audiences": ["a"], "expirationSeconds": 700}});
    let (code, token) = call_protobuf(&client, "POST", &format!("{accounts}/robot/token"), ask_token).await;
    assert_eq!((code, &token["spec"]["expirationSeconds"]), (201, &json!(700)));
    assert!(token["status"]["token"].as_str().unwrap().contains('.'), "{token}");

    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template}});
    assert_eq!(call_protobuf(&client, "POST", deployments, deployment).await.0, 201);
    let scale_path = format!("{deployments}/d/scale");
    let (_, mut scale) = call_protobuf(&client, "GET", &scale_path, Value::Null).await;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(2), &json!("a=b")));
    scale["spec"]["replicas"] = json!(0);
    let (code, scaled) = call_protobuf(&client, "PUT", &scale_path, scale).await;
    assert_eq!(
        (code, &scaled["kind"], scaled["spec"].get("replicas")),
        (200, &json!("Scale"), None),
        "{scaled}"
    );
    assert_eq!(get(&client, &format!("{deployments}/d")).await.1["spec"]["replicas"], 0);

    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
        "spec": {"user": "u", "groups": ["system:masters"], "extra": {"k": ["a", "b"]}, "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let (code, answer) = call_protobuf(&client, "POST", path, review.clone()).await;
    assert_eq!((code, &answer["status"]["allowed"]), (201, &json!(true)));
    assert_eq!(answer["spec"]["extra"], review["spec"]["extra"]);

    let query = format!("{MAPS}?labelSelector=l%3Dx");
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "labels": {"l": "x"}}});
    assert_eq!(call_protobuf(&client, "POST", MAPS, map).await.0, 201);
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "dryRun": ["All"]});
    let (code, list) = call_protobuf(&client, "DELETE", &query, options.clone()).await;
    assert_eq!((code, &list["items"][0]["metadata"]["name"]), (200, &json!("m")));
    assert_eq!(get(&client, &format!("{MAPS}/m")).await.0, 200, "it was a dry run");
    let stale = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "another"}});
    assert_eq!(call_protobuf(&client, "DELETE", &format!("{MAPS}/m"), stale).await.0, 409);
}

#[tokio::test]
async fn discovery_comes_in_protobuf_to_who_asks() {
    let harness = Harness::start().await;
    let client = harness.local();
    for path in ["/api", "/apis", "/apis/apps", "/api/v1", "/apis/apps/v1"] {
        let (_, in_json) = get(&client, path).await;
        let (code, found) = ask(&client, "GET", path, PROTOBUF, Vec::new()).await;
        assert_eq!((code, told(found)), (200, told(in_json)), "{path}");
    }
}

#[tokio::test]
async fn long_lists_come_whole() {
    let harness = Harness::start().await;
    let client = harness.admin();
    for n in 0..20 {
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{n}")}, "data": {"k": "x".repeat(30_000)}});
        assert_eq!(call_protobuf(&client, "POST", MAPS, body).await.0, 201);
    }
    let (code, list) = call_protobuf(&client, "GET", &format!("{MAPS}?limit=15"), Value::Null).await;
    assert_eq!((code, list["items"].as_array().unwrap().len()), (200, 15));
    assert_eq!(list["metadata"]["remainingItemCount"], 5);
    assert!(
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|map| map["data"]["k"].as_str().unwrap().len() == 30_000)
    );
}
