//! Approves the certificate requests of nodes, signs what is approved, and deletes what is over.
//!
//! Three signers are ours, as in Kubernetes: `kubernetes.io/kube-apiserver-client-kubelet`, with whose certificate an
//! agent is `system:node:NAME`; `kubernetes.io/kubelet-serving`, by which the API server knows a node's server; and
//! `kubernetes.io/kube-apiserver-client`, for whoever a person approves. A request that is not exactly of its signer's
//! form is never approved here, and fails when someone else approves it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};
use wharf_kit::api::{self, Absent, Delete, Ignored, Kind, PatchKind, Rest};
use wharf_kit::chain;
use wharf_kit::identity::{Ca, Purpose, Request};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Key, Meta, Store, View, or_default};

use crate::Context;
use crate::status::now;
use crate::views::{Condition, Node, condition};

const USER: &str = "kubernetes.io/kube-apiserver-client";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
/// How long a request is kept after its last verdict, and how long it may wait for one: kube-controller-manager's.
const ENDED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);
const REVIEWS: Kind =
    Kind::new("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews").cluster();

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SigningRequest {
    metadata: Meta,
    spec: Spec,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    request: String,
    signer_name: String,
    username: String,
    uid: String,
    #[serde(deserialize_with = "or_default")]
    groups: Vec<String>,
    extra: Value,
    #[serde(deserialize_with = "or_default")]
    usages: Vec<String>,
    expiration_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    certificate: Option<String>,
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
}

impl View for SigningRequest {
    const KIND: Kind =
        Kind::new("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests")
            .cluster();

    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

impl SigningRequest {
    /// Nobody decided on it yet.
    fn is_open(&self) -> bool {
        self.status.conditions.is_empty() && self.status.certificate.is_none()
    }

    /// When it is deleted.
    fn ends(&self) -> Option<Timestamp> {
        let decided = self.status.conditions.iter().filter_map(|one| one.last_update_time).max();
        let (from, kept) = match decided {
            Some(decided) => (decided, ENDED),
            None => (self.metadata.creation_timestamp?, PENDING),
        };
        from.checked_add(kept).ok()
    }
}

pub(crate) async fn run(context: Context) {
    let Some(ca) = context.config.signer.clone() else { return };
    let requests = context.hub.view::<SigningRequest>();
    let nodes = context.hub.view::<Node>();
    requests.ready().await;
    nodes.ready().await;
    let longest = context.config.signing_duration;
    let pass =
        Certificates { rest: context.rest, requests: requests.clone(), nodes: nodes.clone(), ca, longest };
    let asked = requests.clone();
    let controller = Controller::new("certificates", pass)
        .watches(&requests, |change| change.new.map(|_| change.key.clone()))
        // A node asks for its server's certificate when it starts, and tells its addresses a little later.
        .watches(&nodes, move |change| {
            let user = format!("{NODE_PREFIX}{}", change.key.name);
            let waits = |asked: &SigningRequest| asked.is_open() && asked.spec.username == user;
            let waiting = asked.all().into_iter().filter(|asked| waits(asked));
            waiting.map(|asked| asked.metadata.key()).collect::<Vec<_>>()
        });
    controller.run(context.stop).await;
}

/// What a request is for, and why it is not what its signer signs.
fn check(spec: &Spec) -> Result<(Request, Purpose), String> {
    let purpose = match spec.signer_name.as_str() {
        USER | CLIENT => Purpose::Client,
        SERVING => Purpose::Server,
        other => return Err(format!("{other} is no signer of ours")),
    };
    let pem = STANDARD.decode(&spec.request).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let request = Request::read(&pem.ok_or("the request is no PEM text")?)
        .map_err(|error| chain(&error).to_string())?;
    let mut usages: Vec<&str> = spec.usages.iter().map(String::as_str).collect();
    usages.sort_unstable();
    usages.dedup();
    if spec.signer_name == USER {
        let known = ["client auth", "digital signature", "key encipherment"];
        return match usages.contains(&"client auth") && usages.iter().all(|usage| known.contains(usage)) {
            true => Ok((request, purpose)),
            false => Err(format!("the usages must be \"client auth\", and nothing but {known:?}")),
        };
    }
    if request.groups != [NODES] {
        return Err(format!("the organization must be exactly [{NODES}]"));
    }
    if request.user.strip_prefix(NODE_PREFIX).is_none_or(str::is_empty) {
        return Err(format!("the common name must begin with {NODE_PREFIX}"));
    }
    let named = !request.dns_names.is_empty() || !request.addresses.is_empty();
    if request.other_names {
        return Err("only DNS names and IP addresses may be asked for".to_owned());
    }
    let needed = match purpose {
        Purpose::Client if named => return Err("a client's certificate is for no name or address".to_owned()),
        Purpose::Client => "client auth",
        Purpose::Server if !named => return Err("at least one DNS name or IP address is needed".to_owned()),
        Purpose::Server if spec.username != request.user => {
            return Err("the requester and the common name must be the same".to_owned());
        }
        Purpose::Server => "server auth",
    };
    let fits = |with_key: bool| {
        let mut wanted = vec![needed, "digital signature"];
        wanted.extend(with_key.then_some("key encipherment"));
        wanted.sort_unstable();
        usages == wanted
    };
    if !fits(true) && !fits(false) {
        return Err(format!(
            "the usages must be [key encipherment, digital signature, {needed}], or without the first"
        ));
    }
    Ok((request, purpose))
}

struct Certificates {
    rest: Rest,
    requests: Store<SigningRequest>,
    nodes: Store<Node>,
    ca: Arc<Ca>,
    /// What a certificate lives at most.
    longest: Duration,
}

impl Pass for Certificates {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let Some(asked) = self.requests.get(key) else { return Ok(Next::Done) };
        let Some(ends) = asked.ends() else { return Ok(Next::Done) };
        let Ok(left) = Duration::try_from(ends.duration_since(Timestamp::now())) else {
            let how = Delete::exactly(&asked.metadata);
            self.rest.delete::<Ignored>(SigningRequest::KIND, key, &how).await.absent_ok()?;
            return Ok(Next::Done);
        };
        let has = |kind| condition(&asked.status.conditions, kind).is_some();
        if asked.status.certificate.is_some() || has("Denied") || has("Failed") {
            return Ok(Next::After(left));
        }
        if !matches!(asked.spec.signer_name.as_str(), USER | CLIENT | SERVING) {
            return Ok(Next::After(left));
        }
        match (check(&asked.spec), has("Approved")) {
            (Ok((request, purpose)), true) => self.sign(key, &asked, &request, purpose).await?,
            (Ok((request, purpose)), false) => {
                if self.may(&asked.spec, &request, purpose).await? {
                    self.approve(key, &asked).await?;
                }
            }
            (Err(why), true) => {
                warn!(request = %key, why, "an approved certificate request cannot be signed");
                let failed = told("Failed", "SignerValidationFailure", &why);
                self.write(key, &asked, "status", failed, None).await?;
            }
            (Err(_), false) => {} // for a person to look at
        }
        Ok(Next::After(left))
    }
}

/// A condition that holds.
fn told(kind: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": "True", "reason": reason, "message": message,
           "lastUpdateTime": now(), "lastTransitionTime": now()})
}

impl Certificates {
    /// Whether the requester may have this certificate without a person's approval.
    async fn may(&self, spec: &Spec, request: &Request, purpose: Purpose) -> Result<bool, api::Error> {
        let right = match purpose {
            _ if spec.signer_name == USER => return Ok(false), // a person's to approve
            // A node asks for its own name, at addresses that its Node has.
            Purpose::Server => return Ok(self.is_at(request)),
            Purpose::Client if spec.username == request.user => "selfnodeclient",
            Purpose::Client => "nodeclient",
        };
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
                "resourceAttributes": {
                    "group": SigningRequest::KIND.group, "version": "*", "resource": SigningRequest::KIND.plural,
                    "verb": "create", "subresource": right,
                },
            },
        });
        let answer: Value = self.rest.create(REVIEWS, "", &review).await?;
        Ok(answer["status"]["allowed"] == true)
    }

    /// Whether a node's server asks for the node's own name and for addresses of its Node. The node writes those itself,
    /// so no DNS name comes from there: it could be the API server's. (Kubernetes approves no such request itself; here
    /// nobody could speak to a node until someone did.)
    fn is_at(&self, request: &Request) -> bool {
        let name = request.user.strip_prefix(NODE_PREFIX).unwrap_or_default();
        let Some(node) = self.nodes.get(&Key::cluster(name)) else { return false };
        let own = |asked: &str| node.status.addresses.iter().any(|at| at.address == asked);
        request.dns_names.iter().all(|asked| asked == name)
            && request.addresses.iter().all(|address| own(&address.to_string()))
    }

    async fn approve(&self, key: &Key, asked: &SigningRequest) -> Result<(), api::Error> {
        info!(request = %key, requester = asked.spec.username, signer = asked.spec.signer_name, "approved");
        let words = "Auto approving kubelet certificate after SubjectAccessReview.";
        self.write(key, asked, "approval", told("Approved", "AutoApproved", words), None).await
    }

    async fn sign(
        &self,
        key: &Key,
        asked: &SigningRequest,
        request: &Request,
        purpose: Purpose,
    ) -> Result<(), api::Error> {
        let wanted = asked.spec.expiration_seconds.map_or(self.longest, Duration::from_secs);
        let validity = wanted.min(self.longest);
        match self.ca.sign(request, purpose, validity) {
            Ok(pem) => {
                info!(request = %key, user = request.user, ?purpose, "certificate issued");
                let patch = Some(STANDARD.encode(pem));
                self.write(key, asked, "status", Value::Null, patch).await
            }
            Err(error) => {
                let failed = told("Failed", "SignerFailure", &chain(&error).to_string());
                self.write(key, asked, "status", failed, None).await
            }
        }
    }

    async fn write(
        &self,
        key: &Key,
        asked: &SigningRequest,
        subresource: &str,
        condition: Value,
        certificate: Option<String>,
    ) -> Result<(), api::Error> {
        let mut patch = json!({
            "metadata": {"uid": asked.metadata.uid, "resourceVersion": asked.metadata.resource_version},
        });
        if !condition.is_null() {
            let mut conditions = json!(asked.status.conditions);
            conditions.as_array_mut().expect("a list").push(condition);
            patch["status"]["conditions"] = conditions;
        }
        if let Some(certificate) = certificate {
            patch["status"]["certificate"] = json!(certificate);
        }
        let kind = SigningRequest::KIND;
        let written = self.rest.patch::<Ignored>(kind, key, subresource, PatchKind::Merge, &patch).await;
        written.absent_ok().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(signer: &str, user: &str, groups: &[&str], names: &[&str], usages: &[&str], by: &str) -> Spec {
        let (_, pem) = Request::make(user, groups, names).unwrap();
        Spec {
            request: STANDARD.encode(pem),
            signer_name: signer.into(),
            username: by.into(),
            usages: usages.iter().map(|usage| (*usage).to_owned()).collect(),
            ..Spec::default()
        }
    }

    #[test]
    fn only_what_a_node_needs_is_signed() {
        let (client, server) =
            (["client auth", "digital signature"], ["server auth", "digital signature", "key encipherment"]);
        let (n1, by) = ("system:node:n1", "system:bootstrap:abcdef");
        let none: [&str; 0] = [];
        for (spec, fits) in [
            (spec(CLIENT, n1, &[NODES], &none, &client, by), true),
            (spec(CLIENT, n1, &["system:masters"], &none, &client, by), false),
            (spec(CLIENT, n1, &[NODES, "system:masters"], &none, &client, by), false),
            (spec(CLIENT, n1, &[], &none, &client, by), false),
            (spec(CLIENT, "kubernetes-admin", &[NODES], &none, &client, by), false),
            (spec(CLIENT, "system:node:", &[NODES], &none, &client, by), false),
            (spec(CLIENT, n1, &[NODES], &["n1"], &client, by), false),
            (spec(CLIENT, n1, &[NODES], &none, &server, by), false),
            (spec(CLIENT, n1, &[NODES], &none, &["client auth", "cert sign"], by), false),
            (spec(SERVING, n1, &[NODES], &["n1", "10.0.0.1"], &server, n1), true),
            (spec(SERVING, n1, &[NODES], &["n1"], &server, "system:node:n2"), false),
            (spec(SERVING, n1, &[NODES], &none, &server, n1), false),
            (spec("example.com/mine", n1, &[NODES], &none, &client, by), false),
            (spec(USER, "alice", &["developers"], &none, &client, by), true),
            (spec(USER, "alice", &[], &none, &server, by), false),
        ] {
            assert_eq!(check(&spec).is_ok(), fits, "{spec:?}: {:?}", check(&spec).err());
        }
        let old = |conditions| SigningRequest {
            metadata: Meta { creation_timestamp: Some(Timestamp::UNIX_EPOCH), ..Meta::default() },
            status: Status { conditions, certificate: None },
            ..SigningRequest::default()
        };
        let denied =
            Condition { r#type: "Denied".into(), last_update_time: Some(now()), ..Condition::default() };
        assert_eq!(old(Vec::new()).ends(), Some(Timestamp::UNIX_EPOCH + PENDING));
        assert_eq!(old(vec![denied.clone()]).ends(), denied.last_update_time.map(|at| at + ENDED));
        let broken = Spec { signer_name: CLIENT.into(), request: STANDARD.encode("x"), ..Spec::default() };
        assert!(check(&broken).is_err());
    }
}
