//! Verbs of the Kubernetes API over [`kube::Client`] for any kind, decoding into whatever the caller reads.
//!
//! `kube::Api<T>` decodes every answer into the whole typed object; a loop that creates a pod wants to
//! know its uid and revision and nothing else. [`Rest`] sends any serializable body and decodes the
//! answer into the type asked for, which may be a narrow one ([`crate::view::Meta`]) or [`Ignored`].

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Mutex;

use http::{Method, Request};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::view::{Key, Meta};

/// A kind of the API and the path it is served at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// The group, empty for core.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// The resource's name in paths: `pods`.
    pub plural: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

impl Kind {
    /// A namespaced kind of core/v1.
    pub const fn core(kind: &'static str, plural: &'static str) -> Self {
        Self { group: "", version: "v1", kind, plural, namespaced: true }
    }

    /// A namespaced kind of a named group.
    pub const fn new(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
    ) -> Self {
        Self { group, version, kind, plural, namespaced: true }
    }

    /// The same for a kind whose objects belong to the cluster.
    pub const fn cluster(self) -> Self {
        Self { namespaced: false, ..self }
    }

    /// A kind that discovery told of. Its names are kept for as long as the process lives, each once: so it is
    /// for what an API server serves, not for what users write.
    pub fn discovered(api_version: &str, kind: &str, plural: &str, namespaced: bool) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self {
            group: interned(group),
            version: interned(version),
            kind: interned(kind),
            plural: interned(plural),
            namespaced,
        }
    }

    /// As in `apiVersion` fields: `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The path of the collection; all namespaces if `namespace` is empty.
    pub fn path(&self, namespace: &str) -> String {
        collection(&self.api_version(), self.plural, namespace)
    }

    pub(crate) fn object_path(&self, key: &Key, subresource: &str) -> String {
        let mut path = self.path(&key.namespace);
        path.push('/');
        path.push_str(&key.name);
        if !subresource.is_empty() {
            path.push('/');
            path.push_str(subresource);
        }
        path
    }
}

fn interned(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().expect("no holder of this lock panics");
    if let Some(known) = names.get(name) {
        return known;
    }
    let kept: &'static str = Box::leak(name.into());
    names.insert(kept);
    kept
}

/// The path of a collection known by its `apiVersion` and plural name, as discovery tells them.
pub fn collection(api_version: &str, plural: &str, namespace: &str) -> String {
    let root = if api_version.contains('/') { "/apis" } else { "/api" };
    if namespace.is_empty() {
        format!("{root}/{api_version}/{plural}")
    } else {
        format!("{root}/{api_version}/namespaces/{namespace}/{plural}")
    }
}

/// A request that the API server did not do, and what it was to do.
#[derive(Debug, thiserror::Error)]
#[error("could not {what}")]
pub struct Error {
    /// In words, with the object: `create pods/shop/cart-1`.
    pub what: String,
    #[source]
    pub cause: kube::Error,
}

impl Error {
    /// The API server's own answer, if it gave one.
    pub fn status(&self) -> Option<&kube::core::Status> {
        match &self.cause {
            kube::Error::Api(status) => Some(status),
            _ => None,
        }
    }

    /// The HTTP status code of that answer; 0 if there was none.
    pub fn code(&self) -> u16 {
        self.status().map_or(0, |status| status.code)
    }

    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|status| status.reason == "AlreadyExists")
    }

    /// Another revision, or another object of that name, is there.
    pub fn is_conflict(&self) -> bool {
        self.code() == 409 && !self.is_already_exists()
    }

    pub fn is_gone(&self) -> bool {
        self.code() == 410
    }

    /// Nothing more can be made in a namespace that is being deleted, and what is there goes with it.
    pub fn is_namespace_terminating(&self) -> bool {
        let details = self.status().and_then(|status| status.details.as_ref());
        details
            .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
    }

    /// The server's message, or the cause in words.
    pub fn message(&self) -> String {
        match self.status() {
            Some(status) => status.message.clone(),
            None => crate::chain(&self.cause).to_string(),
        }
    }
}

/// `Ok(None)` if the object was not there, for callers to whom that is an answer.
pub trait Absent<T> {
    fn absent_ok(self) -> Result<Option<T>, Error>;
}

impl<T> Absent<T> for Result<T, Error> {
    fn absent_ok(self) -> Result<Option<T>, Error> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Accepts any answer and keeps nothing of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// An answer of which just the metadata is wanted.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Object {
    #[serde(default)]
    pub metadata: Meta,
}

/// What becomes of the objects that a deleted one owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// How to delete. The default leaves everything to the server and asks no precondition.
#[derive(Debug, Clone, Default)]
pub struct Delete {
    /// Only the object with this uid; empty: whichever has the name.
    pub uid: String,
    /// Only at this revision; empty: any.
    pub resource_version: String,
    /// Seconds; `None`: the object's own.
    pub grace: Option<i64>,
    pub propagation: Option<Propagation>,
}

impl Delete {
    /// Deletes this very object, not a later one of its name.
    pub fn exactly(meta: &Meta) -> Self {
        Self { uid: meta.uid.to_string(), ..Self::default() }
    }

    pub fn with_grace(self, seconds: i64) -> Self {
        Self { grace: Some(seconds), ..self }
    }

    pub fn with_propagation(self, propagation: Propagation) -> Self {
        Self { propagation: Some(propagation), ..self }
    }

    fn body(&self) -> Value {
        let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        if !self.uid.is_empty() {
            body["preconditions"]["uid"] = json!(self.uid);
        }
        if !self.resource_version.is_empty() {
            body["preconditions"]["resourceVersion"] = json!(self.resource_version);
        }
        if let Some(grace) = self.grace {
            body["gracePeriodSeconds"] = json!(grace);
        }
        if let Some(propagation) = self.propagation {
            body["propagationPolicy"] = json!(format!("{propagation:?}"));
        }
        body
    }
}

/// The forms of a patch that need no field manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 7386.
    Merge,
    /// RFC 6902.
    Json,
    /// Kubernetes' own, which knows lists by their keys; built-in kinds only.
    Strategic,
}

impl PatchKind {
    fn content_type(self) -> &'static str {
        match self {
            Self::Merge => "application/merge-patch+json",
            Self::Json => "application/json-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

/// The API as loops use it. Cheap to clone. Each call is one request; a dropped call may or may not
/// have been carried out.
#[derive(Clone)]
pub struct Rest {
    client: kube::Client,
}

impl fmt::Debug for Rest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Rest").finish_non_exhaustive()
    }
}

const JSON: &str = "application/json";

impl Rest {
    pub fn new(client: kube::Client) -> Self {
        Self { client }
    }

    /// The client below, for what this type has no verb for.
    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    pub async fn get<T: DeserializeOwned>(&self, kind: Kind, key: &Key) -> Result<T, Error> {
        self.send("get", Method::GET, kind.object_path(key, ""), None).await
    }

    /// Creates in `namespace` (empty for kinds of the cluster).
    pub async fn create<T: DeserializeOwned>(
        &self,
        kind: Kind,
        namespace: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.write("create", Method::POST, kind, kind.path(namespace), JSON, body).await
    }

    /// Posts to a subresource: `binding`, `eviction`, `token`.
    pub async fn create_sub<T: DeserializeOwned>(
        &self,
        kind: Kind,
        key: &Key,
        subresource: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.write("create", Method::POST, kind, kind.object_path(key, subresource), JSON, body).await
    }

    /// Replaces the object, or its subresource if that is not empty.
    pub async fn replace<T: DeserializeOwned>(
        &self,
        kind: Kind,
        key: &Key,
        subresource: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.write("replace", Method::PUT, kind, kind.object_path(key, subresource), JSON, body).await
    }

    /// Patches the object, or its subresource if that is not empty. A merge patch with
    /// `metadata.resourceVersion` or `metadata.uid` in it is refused (409) if that is not the object's.
    pub async fn patch<T: DeserializeOwned>(
        &self,
        kind: Kind,
        key: &Key,
        subresource: &str,
        form: PatchKind,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let path = kind.object_path(key, subresource);
        self.write("patch", Method::PATCH, kind, path, form.content_type(), body).await
    }

    /// Server-side apply by `manager`, taking over what others own if `force`.
    pub async fn apply<T: DeserializeOwned>(
        &self,
        kind: Kind,
        key: &Key,
        subresource: &str,
        manager: &str,
        force: bool,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let asked = [("fieldManager", manager), ("force", if force { "true" } else { "false" })];
        let path = with_query(&kind.object_path(key, subresource), asked);
        self.write("apply", Method::PATCH, kind, path, "application/apply-patch+yaml", body).await
    }

    pub async fn delete<T: DeserializeOwned>(&self, kind: Kind, key: &Key, how: &Delete) -> Result<T, Error> {
        self.delete_at(kind.object_path(key, ""), how).await
    }

    /// As [`Rest::delete`] for a path made with [`collection`].
    pub async fn delete_at<T: DeserializeOwned>(&self, path: String, how: &Delete) -> Result<T, Error> {
        let body = how.body().to_string().into_bytes();
        self.send("delete", Method::DELETE, path, Some((JSON, body))).await
    }

    /// One request by its path and query: what discovery and unknown kinds need.
    pub async fn at<T: DeserializeOwned>(
        &self,
        method: Method,
        path: String,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<T, Error> {
        self.send("ask", method, path, body).await
    }

    async fn write<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        method: Method,
        kind: Kind,
        path: String,
        content_type: &'static str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(|cause| Error {
            what: format!("{verb} {}", kind.plural),
            cause: kube::Error::SerdeError(cause),
        })?;
        self.send(verb, method, path, Some((content_type, body))).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        method: Method,
        path: String,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<T, Error> {
        let failed = |cause| Error { what: format!("{verb} {}", short(&path)), cause };
        let mut request = Request::builder().method(method).uri(&path).header("accept", "application/json");
        let body = body.map_or_else(Vec::new, |(content_type, bytes)| {
            request.headers_mut().map(|headers| {
                headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type))
            });
            bytes
        });
        let request = request.body(body).map_err(|cause| failed(kube::Error::HttpError(cause)))?;
        self.client.request(request).await.map_err(failed)
    }
}

/// The path with these pairs as its query.
pub fn with_query<'a>(path: &str, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let uri = format!("{path}?");
    let start = uri.len();
    let uri = form_urlencoded::Serializer::for_suffix(uri, start).extend_pairs(pairs).finish();
    uri.strip_suffix('?').map(str::to_owned).unwrap_or(uri)
}

/// `pods/shop/cart-1` for `/api/v1/namespaces/shop/pods/cart-1`: how messages name an object.
fn short(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let skip = if parts.next() == Some("apis") { 2 } else { 1 };
    let rest: Vec<&str> = parts.skip(skip).collect();
    match rest.as_slice() {
        ["namespaces", namespace, plural, tail @ ..] if *plural != "finalize" && *plural != "status" => {
            let mut name = format!("{plural}/{namespace}");
            for part in tail {
                name.push('/');
                name.push_str(part);
            }
            name
        }
        parts => parts.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_named_shortly_in_messages() {
        for (path, name) in [
            ("/api/v1/namespaces/shop/pods/cart-1", "pods/shop/cart-1"),
            ("/api/v1/namespaces/shop/pods/cart-1/binding", "pods/shop/cart-1/binding"),
            ("/apis/apps/v1/namespaces/shop/deployments?limit=1", "deployments/shop"),
            ("/api/v1/nodes/n1", "nodes/n1"),
            ("/api/v1/namespaces/shop/finalize", "namespaces/shop/finalize"),
        ] {
            assert_eq!(short(path), name);
        }
    }

    #[test]
    fn delete_options_carry_only_what_was_asked() {
        assert_eq!(Delete::default().body(), json!({"apiVersion": "v1", "kind": "DeleteOptions"}));
        let how = Delete { uid: "u".into(), ..Delete::default() }.with_propagation(Propagation::Foreground);
        assert_eq!(how.body()["preconditions"]["uid"], "u");
        assert_eq!(how.body()["propagationPolicy"], "Foreground");
    }
}
