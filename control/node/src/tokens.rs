//! Service account tokens of the node's pods: asked for with TokenRequest, bound to their pod, renewed in good time. They
//! are held in memory and written to tmpfs alone, so that no disk keeps one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use tracing::warn;
use wharf_kit::api::{self, Kind, Rest};
use wharf_kit::chain;
use wharf_kit::view::Key;

const ACCOUNTS: Kind = Kind::core("ServiceAccount", "serviceaccounts");
/// Kubernetes' default for `expirationSeconds`.
pub const DEFAULT_SECONDS: i64 = 3600;
/// However long it is good for, a token is replaced after this, as the kubelet does.
const LONGEST_USE: Duration = Duration::from_secs(24 * 3600);
/// A renewal that failed is tried again after this, for as long as the token is good.
const AGAIN: Duration = Duration::from_secs(10);

/// Why there is no token, in the API server's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// Whose token, for whom and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenName {
    pub namespace: String,
    pub account: String,
    /// It ends with this pod.
    pub pod: String,
    pub uid: String,
    /// The API server, if none.
    pub audience: Option<String>,
    pub seconds: i64,
}

/// A token that is good now. It has no `Debug`: it must not reach a log.
#[derive(Clone)]
pub struct Token {
    pub text: Bytes,
    pub renew_at: Instant,
    expires_at: Instant,
}

/// The tokens of this node's pods.
pub struct Tokens {
    rest: Rest,
    kept: Mutex<HashMap<TokenName, Token>>,
}

#[derive(Deserialize)]
struct Answer {
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: String,
    expiration_timestamp: Timestamp,
}

impl Tokens {
    pub fn new(rest: Rest) -> Self {
        Self { rest, kept: Mutex::default() }
    }

    /// The token, asked for if there is none or its time for renewal has come. If the API then gives none, the old one
    /// serves until it expires.
    ///
    /// # Errors
    /// The API gave none, and none is good any more.
    pub async fn get(&self, name: &TokenName) -> Result<Token, Error> {
        let have = self.lock().get(name).cloned();
        let now = Instant::now();
        if let Some(token) = have.as_ref().filter(|token| now < token.renew_at) {
            return Ok(token.clone());
        }
        let token = match (self.ask(name).await, have) {
            (Ok(token), _) => token,
            (Err(error), Some(old)) if now < old.expires_at => {
                warn!(pod = name.pod, error = %chain(&error), "could not renew a token, trying again");
                Token { renew_at: (now + AGAIN).min(old.expires_at), ..old }
            }
            (Err(error), _) => return Err(Error(error.message())),
        };
        self.lock().insert(name.clone(), token.clone());
        Ok(token)
    }

    /// Drops the tokens of a pod that is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().retain(|name, _| name.uid != uid);
    }

    async fn ask(&self, name: &TokenName) -> Result<Token, api::Error> {
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"name": name.account, "namespace": name.namespace},
            "spec": {
                "audiences": name.audience.iter().collect::<Vec<_>>(),
                "expirationSeconds": name.seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name.pod, "uid": name.uid},
            },
        });
        let key = Key::new(name.namespace.as_str(), name.account.as_str());
        let Answer { status } = self.rest.create_sub(ACCOUNTS, &key, "token", &request).await?;
        let now = Instant::now();
        let life = Duration::try_from(status.expiration_timestamp.duration_since(Timestamp::now()));
        let life = life.unwrap_or_default(); // it came expired: the next look asks again
        Ok(Token { text: status.token.into(), renew_at: now + in_use(life), expires_at: now + life })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TokenName, Token>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a token that is good for `life` is used: four fifths of it, a day at most. At least a second, so that a clock
/// that goes wrong makes no storm of requests.
fn in_use(life: Duration) -> Duration {
    (life * 4 / 5).clamp(Duration::from_secs(1), LONGEST_USE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_used_for_four_fifths_of_their_life_and_a_day_at_most() {
        for (life, used) in [(0, 1), (600, 480), (3600, 2880), (7 * 86400, 86400)] {
            assert_eq!(in_use(Duration::from_secs(life)).as_secs(), used, "{life}");
        }
    }
}
