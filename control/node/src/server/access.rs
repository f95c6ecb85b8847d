//! Who may ask the node server what, as the kubelet decides it: the API server says.
//!
//! A client shows a certificate of the cluster's CA, or a bearer token that a TokenReview then tells the holder of. The API
//! server itself and `system:masters` may do everything, also when nobody can be asked. For anyone else a
//! SubjectAccessReview decides about the verb on a subresource of this Node: `nodes/stats`, `nodes/metrics`, … and
//! `nodes/proxy` for all that has no name of its own.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};
use tracing::warn;
use wharf_kit::api::{Kind, Rest};
use wharf_kit::chain;
use wharf_kit::identity::Peer;

const TOKEN_REVIEWS: Kind = Kind::new("authentication.k8s.io", "v1", "TokenReview", "tokenreviews").cluster();
const ACCESS_REVIEWS: Kind =
    Kind::new("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews").cluster();
/// An answer is good for so long; a right that was taken away is gone after this. Who reads metrics asks less often, so
/// it costs them two reviews a time.
const KEPT: Duration = Duration::from_secs(10);
/// Answers that are kept; beyond that all are forgotten.
const MOST_KEPT: usize = 1000;
/// A token longer than this is none: Kubernetes' own have some 1 kB.
const LONGEST_TOKEN: usize = 16 << 10;
/// The API server answers in this time, or the client is told that it does not.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a client is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub words: String,
}

/// Decides about requests to one node's server.
pub struct Access {
    rest: Rest,
    node: String,
    kept: Mutex<HashMap<Question, Kept>>,
}

/// What a client shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Credential {
    Certificate { user: String, groups: Vec<String> },
    Token(String),
}

/// The subresources of the Node of which one is enough.
type Target = &'static [&'static str];

/// Who, which verb, on what.
type Question = (Credential, &'static str, Target);

/// When it was asked, and the answer.
type Kept = (Instant, Result<(), Refusal>);

impl Access {
    pub fn new(rest: Rest, node: String) -> Self {
        Self { rest, node, kept: Mutex::default() }
    }

    /// Whether this may be asked.
    ///
    /// # Errors
    /// 401 without a credential that holds, 403 without the right, 503 if the API server cannot be asked.
    pub async fn check(
        &self,
        peer: Option<&Peer>,
        headers: &HeaderMap,
        method: &Method,
        path: &str,
    ) -> Result<(), Refusal> {
        let credential = credential(peer, headers).ok_or_else(unauthorized)?;
        if is_master(&credential) {
            return Ok(());
        }
        let question = (credential, verb(method), target(path));
        let known = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&question).cloned();
        if let Some((_, answer)) = known.filter(|(asked, _)| asked.elapsed() < KEPT) {
            return answer;
        }
        let answer = tokio::time::timeout(PATIENCE, self.ask(&question.0, question.1, question.2))
            .await
            .unwrap_or_else(|_| Err(unavailable("the API server does not answer")));
        if answer.as_ref().is_err_and(|refusal| refusal.status == StatusCode::SERVICE_UNAVAILABLE) {
            return answer; // not an answer about the client
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        kept.insert(question, (Instant::now(), answer.clone()));
        answer
    }

    async fn ask(&self, credential: &Credential, verb: &str, target: Target) -> Result<(), Refusal> {
        let user = match credential {
            Credential::Certificate { user, groups } => json!({"username": user, "groups": groups}),
            Credential::Token(token) => self.holder(token).await?,
        };
        for subresource in target {
            if self.may(&user, verb, subresource).await? {
                return Ok(());
            }
        }
        let name = user["username"].as_str().unwrap_or_default();
        let words = format!(
            "Forbidden (user={name}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            target.join(" ")
        );
        Err(Refusal { status: StatusCode::FORBIDDEN, words })
    }

    /// The user of a token, as reviews write one.
    async fn holder(&self, token: &str) -> Result<Value, Refusal> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token},
        });
        let answer: Value = self.review(TOKEN_REVIEWS, &review).await?;
        match answer["status"]["authenticated"].as_bool() {
            Some(true) => Ok(answer["status"]["user"].clone()),
            _ => Err(unauthorized()),
        }
    }

    async fn may(&self, user: &Value, verb: &str, subresource: &str) -> Result<bool, Refusal> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": user["username"], "uid": user["uid"], "groups": user["groups"], "extra": user["extra"],
                "resourceAttributes": {
                    "verb": verb, "group": "", "version": "v1", "resource": "nodes", "subresource": subresource,
                    "name": self.node,
                },
            },
        });
        let answer: Value = self.review(ACCESS_REVIEWS, &review).await?;
        Ok(answer["status"]["allowed"].as_bool().unwrap_or(false))
    }

    async fn review(&self, kind: Kind, review: &Value) -> Result<Value, Refusal> {
        self.rest.create(kind, "", review).await.map_err(|error| {
            warn!(error = %chain(&error), "could not ask who may use the node server");
            unavailable(&error.message())
        })
    }
}

fn unauthorized() -> Refusal {
    Refusal { status: StatusCode::UNAUTHORIZED, words: "Unauthorized\n".to_owned() }
}

fn unavailable(why: &str) -> Refusal {
    let words = format!("who may do this cannot be found out now: {why}\n");
    Refusal { status: StatusCode::SERVICE_UNAVAILABLE, words }
}

/// A certificate goes before a token.
fn credential(peer: Option<&Peer>, headers: &HeaderMap) -> Option<Credential> {
    if let Some(peer) = peer {
        let groups = peer.groups.iter().cloned().chain(["system:authenticated".to_owned()]).collect();
        return Some(Credential::Certificate { user: peer.user.clone(), groups });
    }
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    let good = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= LONGEST_TOKEN;
    good.then(|| Credential::Token(token.to_owned()))
}

/// The API server, and who may do everything.
fn is_master(credential: &Credential) -> bool {
    match credential {
        Credential::Certificate { user, groups } => {
            user == "kube-apiserver-kubelet-client" || groups.iter().any(|group| group == "system:masters")
        }
        Credential::Token(_) => false, // the API server knows
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The kubelet's names of what is at a path, the narrowest first.
fn target(path: &str) -> Target {
    match path.split('/').find(|part| !part.is_empty()) {
        Some("stats") => &["stats"],
        Some("metrics") => &["metrics"],
        Some("logs") => &["log"],
        Some("healthz") => &["healthz", "proxy"],
        Some("pods") => &["pods", "proxy"],
        Some("configz") => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(user: &str, groups: &[&str]) -> Peer {
        Peer { user: user.into(), groups: groups.iter().map(|group| (*group).to_owned()).collect() }
    }

    fn bearer(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn only_the_api_server_and_masters_need_no_review() {
        let none = HeaderMap::new();
        let is = |peer: Peer| is_master(&credential(Some(&peer), &none).unwrap());
        assert!(is(peer("kube-apiserver-kubelet-client", &[])));
        assert!(is(peer("kubernetes-admin", &["x", "system:masters"])));
        assert!(!is(peer("system:node:n1", &["system:nodes"])));
        assert!(!is_master(&credential(None, &bearer("Bearer kube-apiserver-kubelet-client")).unwrap()));
    }

    #[test]
    fn a_credential_is_a_certificate_or_else_a_bearer_token() {
        assert_eq!(credential(None, &HeaderMap::new()), None);
        for wrong in ["Basic YTpi", "Bearer", "Bearer  "] {
            assert_eq!(credential(None, &bearer(wrong)), None, "{wrong}");
        }
        assert_eq!(credential(None, &bearer(&format!("Bearer {}", "x".repeat(LONGEST_TOKEN + 1)))), None);
        assert_eq!(credential(None, &bearer("bearer t")), Some(Credential::Token("t".to_owned())));
        let both = credential(Some(&peer("u", &[])), &bearer("Bearer t"));
        let groups = vec!["system:authenticated".to_owned()];
        assert_eq!(both, Some(Credential::Certificate { user: "u".to_owned(), groups }));
    }

    #[test]
    fn paths_have_the_kubelets_subresources() {
        for (path, want) in [
            ("/stats/summary", &["stats"][..]),
            ("/metrics/resource", &["metrics"]),
            ("/healthz", &["healthz", "proxy"]),
            ("/pods", &["pods", "proxy"]),
            ("/containerLogs/a/b/c", &["proxy"]),
            ("/exec/a/b/c", &["proxy"]),
            ("//stats", &["stats"]),
            ("/", &["proxy"]),
        ] {
            assert_eq!(target(path), want, "{path}");
        }
        assert_eq!((verb(&Method::HEAD), verb(&Method::POST)), ("get", "create"));
    }
}
