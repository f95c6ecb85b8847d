//! Issues service accounts' tokens (`serviceaccounts/NAME/token`) and tells how others check them (OIDC discovery).

use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};

use crate::authn::service_account::{Bound, Claims, Reference, user_name};
use crate::kinds::Subresource;
use crate::object::{self, child, list, map, metadata, number, text, uid};
use crate::represent::{json_response, typed_response};
use crate::status::{FieldError, Result, Status};
use crate::verbs::Call;
use crate::{Body, admission, server};

const GROUP: &str = "authentication.k8s.io";
/// The bounds of a token's life, in seconds; Kubernetes' values.
const SECONDS_MIN: i64 = 10 * 60;
const SECONDS_MAX: i64 = 1 << 32;
/// The `kube-api-access` volume of each pod asks for a token with this life. Its holder may be a client that never
/// reads the file again: the token works for a year, and tells after this that it should have been renewed.
/// Kubernetes' values.
pub const RENEWABLE_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

/// What is wrong with a token's life of so many seconds.
pub fn life_problem(seconds: i64) -> Option<&'static str> {
    match seconds {
        ..SECONDS_MIN => Some("may not specify a duration less than 10 minutes"),
        SECONDS_MIN..=SECONDS_MAX => None,
        _ => Some("may not specify a duration larger than 2^32 seconds"),
    }
}

/// What a token shall be bound to besides its account.
#[derive(Default)]
struct Binding {
    pod: Option<Reference>,
    node: Option<Reference>,
    secret: Option<Reference>,
}

impl Call {
    /// Answers a TokenRequest with a signed token.
    pub fn token_request(&mut self, body: Bytes) -> Result<Response<Body>> {
        let options = self.write_options("CreateOptions")?;
        let form = self.answer_form()?;
        let mut request = self.decode_other(&body, GROUP, "TokenRequest", &options)?;
        let (namespace, name) = (self.path.namespace.clone(), self.path.name.clone());
        for (field, own, what) in [("name", &name, "name"), ("namespace", &namespace, "namespace")] {
            let given = text(&request["metadata"], &format!("/{field}")).to_owned();
            if !given.is_empty() && given != *own {
                let why = format!("must match the service account {what} if specified");
                let error = FieldError::invalid(format!("metadata.{field}"), given, why);
                return Err(Status::invalid(GROUP, "TokenRequest", &name, vec![error]));
            }
        }
        let account = self.stored("serviceaccounts", &namespace, &name)?;
        let tokens = &self.server.tokens;
        let spec = child(&mut request, "spec");
        spec.entry("expirationSeconds").or_insert_with(|| json!(3600));
        metadata(&mut request).insert("name".to_owned(), json!(name));
        metadata(&mut request).insert("namespace".to_owned(), json!(namespace));
        metadata(&mut request).insert("creationTimestamp".to_owned(), json!(object::now()));
        map(&mut request).remove("status");
        let seconds = number(&request, "/spec/expirationSeconds").unwrap_or_default();
        if let Some(why) = life_problem(seconds) {
            let error = FieldError::invalid("spec.expirationSeconds", seconds, why);
            return Err(Status::invalid(GROUP, "TokenRequest", "", vec![error]));
        }
        self.admit(admission::Operation::Create, Some(Subresource::Token), &name, &mut request, None)?;
        // Admission sees what was asked for.
        let spec = child(&mut request, "spec");
        if spec.get("audiences").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            spec.insert("audiences".to_owned(), json!(tokens.audiences));
        }
        let bound = self.bound(&request, &namespace, &name)?;
        let audiences: Vec<String> = list(&request, "/spec/audiences")
            .iter()
            .filter_map(|audience| audience.as_str().map(str::to_owned))
            .collect();
        let own = audiences.iter().all(|audience| tokens.audiences.contains(audience));
        let renewable = bound.pod.is_some() && seconds == RENEWABLE_SECONDS && own;
        let now = jiff::Timestamp::now().as_second();
        let claims = Claims {
            aud: audiences,
            exp: now + if renewable { EXTENDED_SECONDS } else { seconds },
            iat: now,
            iss: tokens.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            kubernetes: Bound {
                namespace: namespace.clone(),
                node: bound.node,
                pod: bound.pod,
                secret: bound.secret,
                serviceaccount: Reference::to(&account),
                warnafter: renewable.then_some(now + seconds),
            },
            nbf: now,
            sub: user_name(&namespace, &name),
        };
        let token = tokens.keys.sign(&claims).map_err(Status::internal)?;
        let expires = jiff::Timestamp::from_second(now + seconds).map_err(Status::internal)?;
        request["status"] = json!({
            "token": token, "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        crate::represent::value(form, 201, &request)
    }

    /// The object that the request's boundObjectRef means, and what more its token tells.
    fn bound(&self, request: &Value, namespace: &str, account: &str) -> Result<Binding> {
        let mut bound = Binding::default();
        let reference = &request["spec"]["boundObjectRef"];
        if !reference.is_object() {
            return Ok(bound);
        }
        let (kind, version) = (text(reference, "/kind"), text(reference, "/apiVersion"));
        let name = text(reference, "/name");
        let object = match (version, kind) {
            ("v1", "Pod") => {
                let pod = self.stored("pods", namespace, name)?;
                if text(&pod, "/spec/serviceAccountName") != account {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                    )));
                }
                bound.pod = Some(Reference::to(&pod));
                let node = text(&pod, "/spec/nodeName");
                // The node's object may be gone already; its name is told all the same.
                bound.node = (!node.is_empty()).then(|| match self.stored("nodes", "", node) {
                    Ok(node) => Reference::to(&node),
                    Err(_) => Reference { name: node.to_owned(), uid: String::new() },
                });
                pod
            }
            ("v1", "Secret") => {
                let secret = self.stored("secrets", namespace, name)?;
                bound.secret = Some(Reference::to(&secret));
                secret
            }
            ("v1", "Node") => {
                let node = self.stored("nodes", "", name)?;
                bound.node = Some(Reference::to(&node));
                node
            }
            _ => {
                let (group, version) = version.split_once('/').unwrap_or(("", version));
                return Err(Status::bad_request(format!(
                    "cannot bind token to object of type {group}/{version}, Kind={kind}"
                )));
            }
        };
        let wanted = text(reference, "/uid");
        if !wanted.is_empty() && wanted != uid(&object) {
            let plural = match kind {
                "Pod" => "pods",
                "Secret" => "secrets",
                _ => "nodes",
            };
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(Status::conflict(self.server.kinds.builtin("", plural), name, &why));
        }
        Ok(bound)
    }

    /// A core object as it is stored, or 404.
    fn stored(&self, plural: &str, namespace: &str, name: &str) -> Result<Value> {
        let kind = self.server.kinds.builtin("", plural);
        let stored = self.storage().get(kind.key(namespace, name).as_str());
        let stored = stored.ok_or_else(|| Status::not_found(kind, name))?;
        serde_json::from_slice(&stored.value).map_err(Status::internal)
    }
}

impl server::Inner {
    /// `/.well-known/openid-configuration`: where the keys are.
    pub fn openid_configuration(&self) -> Response<Body> {
        let body = json!({
            "issuer": self.tokens.issuer, "jwks_uri": self.jwks_uri, "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
        });
        cacheable(json_response(200, body.to_string()))
    }

    /// `/openid/v1/jwks`: the keys.
    pub fn openid_keys(&self) -> Response<Body> {
        cacheable(typed_response(200, "application/jwk-set+json", self.tokens.keys.jwks().to_string()))
    }
}

/// Others may keep these documents for an hour, as Kubernetes lets them.
fn cacheable(mut response: Response<Body>) -> Response<Body> {
    let value = http::HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(http::header::CACHE_CONTROL, value);
    response
}
