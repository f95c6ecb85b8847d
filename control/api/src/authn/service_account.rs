//! Service accounts' tokens: what they claim, and whether what they claim is still so.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, Validation};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CREDENTIAL_ID, Refused, TokenAuthenticator, TokenHolder, TokenKeys};
use crate::UserInfo;
use crate::object::uid;
use crate::storage::Storage;

pub const USER_PREFIX: &str = "system:serviceaccount:";
pub const GROUP: &str = "system:serviceaccounts";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
/// Clocks may differ by this, and an object's tokens live on as long after its deletion began; Kubernetes' value.
const LEEWAY_SECONDS: u64 = 60;

/// The claims of a service account's token, as Kubernetes writes them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Bound,
    pub nbf: i64,
    pub sub: String,
}

/// What a token is bound to: it is good while all of this exists.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bound {
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
    /// When the holder should have got another; the token still works for a while after.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub warnafter: Option<i64>,
}

/// An object of the token's namespace, or a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

impl Reference {
    pub fn to(object: &Value) -> Self {
        Self { name: crate::object::name(object).to_owned(), uid: uid(object).to_owned() }
    }
}

/// `system:serviceaccount:NAMESPACE:NAME`.
pub fn user_name(namespace: &str, name: &str) -> String {
    format!("{USER_PREFIX}{namespace}:{name}")
}

/// Namespace and name of the account that a user name means.
pub fn split_user_name(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(USER_PREFIX)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// The groups of a namespace's accounts.
pub fn groups(namespace: &str) -> [String; 2] {
    [GROUP.to_owned(), format!("{GROUP}:{namespace}")]
}

/// Issues service accounts' tokens, and tells whose one is.
#[derive(Clone)]
pub struct ServiceAccountTokens {
    pub storage: Arc<dyn Storage>,
    pub keys: TokenKeys,
    /// The `iss` claim.
    pub issuer: String,
    /// The server's own audiences: a token that asks for none gets these.
    pub audiences: Vec<String>,
}

impl ServiceAccountTokens {
    /// The user whose token this is, if all it is bound to is still there at `now`.
    fn check(&self, claims: &Claims, now: jiff::Timestamp) -> Result<UserInfo, String> {
        let bound = &claims.kubernetes;
        let (namespace, account) = (&bound.namespace, &bound.serviceaccount);
        if claims.sub != user_name(namespace, &account.name) {
            return Err("the subject is not the service account".to_owned());
        }
        self.exists("serviceaccounts", namespace, account, now)?;
        let mut user = UserInfo::new(claims.sub.clone(), groups(namespace));
        user.uid.clone_from(&account.uid);
        let mut extra = |key: &str, value: &str| user.extra.insert(key.to_owned(), vec![value.to_owned()]);
        extra(CREDENTIAL_ID, &format!("JTI={}", claims.jti));
        if let Some(secret) = &bound.secret {
            self.exists("secrets", namespace, secret, now)?;
        }
        if let Some(pod) = &bound.pod {
            self.exists("pods", namespace, pod, now)?;
            extra(POD_NAME, &pod.name);
            extra(POD_UID, &pod.uid);
        }
        if let Some(node) = &bound.node {
            // A pod's token tells the node it was made on, and outlives it: the pod's own end is what counts.
            if bound.pod.is_none() {
                self.exists("nodes", "", node, now)?;
            }
            extra(NODE_NAME, &node.name);
            extra(NODE_UID, &node.uid);
        }
        Ok(user)
    }

    /// Whether the object exists with that uid and is not long deleted.
    fn exists(
        &self,
        plural: &str,
        namespace: &str,
        wanted: &Reference,
        now: jiff::Timestamp,
    ) -> Result<(), String> {
        let place = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        let key = format!("core/{plural}/{place}{}", wanted.name);
        let gone = || format!("{plural} {place}{} is gone", wanted.name);
        let stored = self.storage.get(&key).ok_or_else(gone)?;
        #[derive(Deserialize)]
        struct View {
            metadata: Meta,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Meta {
            #[serde(default)]
            uid: String,
            deletion_timestamp: Option<jiff::Timestamp>,
        }
        let view: View = serde_json::from_slice(&stored.value).map_err(|_| gone())?;
        if view.metadata.uid != wanted.uid {
            return Err(format!("{plural} {place}{} is another one now", wanted.name));
        }
        let leeway = jiff::SignedDuration::from_secs(LEEWAY_SECONDS as i64);
        if view.metadata.deletion_timestamp.is_some_and(|when| when + leeway < now) {
            return Err(format!("{plural} {place}{} has been deleted", wanted.name));
        }
        Ok(())
    }
}

/// The issuer that a token claims, unchecked: whether it is one of ours to judge.
fn claimed_issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claimed {
        iss: String,
    }
    jsonwebtoken::dangerous::insecure_decode_claims::<Claimed>(token).ok().map(|claimed| claimed.iss)
}

impl TokenAuthenticator for ServiceAccountTokens {
    fn holder(&self, token: &str, audiences: &[String]) -> Result<Option<TokenHolder>, Refused> {
        if claimed_issuer(token).as_ref() != Some(&self.issuer) {
            return Ok(None);
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(audiences);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;
        let claims: Claims = self
            .keys
            .verify(token, &validation)
            .map_err(|error| Refused(format!("the service account token is not good: {error}")))?;
        let user = self.check(&claims, jiff::Timestamp::now()).map_err(Refused)?;
        let audiences = audiences.iter().filter(|asked| claims.aud.contains(asked)).cloned().collect();
        Ok(Some(TokenHolder { user, audiences }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_are_taken_apart() {
        assert_eq!(split_user_name("system:serviceaccount:a:b"), Some(("a", "b")));
        assert_eq!(user_name("a", "b"), "system:serviceaccount:a:b");
        for name in
            ["system:serviceaccount:a", "system:serviceaccount::b", "system:serviceaccount:a:b:c", "jane"]
        {
            assert_eq!(split_user_name(name), None, "{name}");
        }
    }
}
