//! Bootstrap tokens, with which a machine asks to become a node: Secrets in `kube-system` of a type of their own.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use subtle::ConstantTimeEq as _;

use super::{Refused, TokenAuthenticator, TokenHolder};
use crate::UserInfo;
use crate::object::{terminating, text};
use crate::storage::Storage;

/// The user of the token `ID.SECRET` is `system:bootstrap:ID`.
const USER_PREFIX: &str = "system:bootstrap:";
/// In every such user's groups; others have to begin with it and a colon.
const GROUP: &str = "system:bootstrappers";

/// Accepts `ID.SECRET` if the Secret `bootstrap-token-ID` holds it, has not expired, and is for authentication.
pub struct BootstrapTokens {
    pub storage: Arc<dyn Storage>,
    /// Tokens of this sort name no audience: they are good for those of the server.
    pub audiences: Vec<String>,
}

/// The parts of a token that has the form of one.
fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// A group that a token may put its holder in: no way to `system:masters`.
fn is_bootstrap_group(group: &str) -> bool {
    group.strip_prefix("system:bootstrappers:").is_some_and(|rest| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b':' | b'-');
        let end = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        rest.len() <= 256
            && rest.bytes().all(inner)
            && rest.bytes().next().is_some_and(end)
            && rest.bytes().last().is_some_and(end)
    })
}

/// Whether `secret` proves the Secret `object`, and with which groups.
fn check(object: &Value, id: &str, secret: &str, now: jiff::Timestamp) -> Result<Vec<String>, &'static str> {
    let data = |key: &str| -> Option<String> {
        let encoded = object.get("data")?.get(key)?.as_str()?;
        String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
    };
    if text(object, "/type") != "bootstrap.kubernetes.io/token" || terminating(object) {
        return Err("there is no such bootstrap token");
    }
    if data("token-id").as_deref() != Some(id) {
        return Err("the bootstrap token's Secret is for another id");
    }
    let kept =
        data("token-secret").filter(|kept| !kept.is_empty()).ok_or("the Secret has no token-secret")?;
    if !bool::from(kept.as_bytes().ct_eq(secret.as_bytes())) {
        return Err("there is no such bootstrap token");
    }
    match data("expiration").map(|when| when.parse::<jiff::Timestamp>()) {
        Some(Ok(when)) if when > now => {}
        None => {}
        Some(Ok(_)) => return Err("the bootstrap token has expired"),
        Some(Err(_)) => return Err("the bootstrap token's expiration is no time"),
    }
    if data("usage-bootstrap-authentication").as_deref() != Some("true") {
        return Err("the bootstrap token is not for authentication");
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in data("auth-extra-groups").unwrap_or_default().split(',').filter(|group| !group.is_empty()) {
        if !is_bootstrap_group(group) {
            return Err("the bootstrap token names a group that it may not");
        }
        groups.push(group.to_owned());
    }
    Ok(groups)
}

impl TokenAuthenticator for BootstrapTokens {
    fn holder(&self, token: &str, audiences: &[String]) -> Result<Option<TokenHolder>, Refused> {
        let Some((id, secret)) = parts(token) else { return Ok(None) };
        let found = self.storage.get(&format!("core/secrets/kube-system/bootstrap-token-{id}"));
        let object = found.and_then(|stored| serde_json::from_slice::<Value>(&stored.value).ok());
        let object = object.ok_or_else(|| Refused("there is no such bootstrap token".to_owned()))?;
        let groups = check(&object, id, secret, jiff::Timestamp::now())
            .map_err(|why| Refused(format!("{why} (id {id})")))?;
        let both = self.audiences.iter().filter(|own| audiences.contains(own)).cloned().collect::<Vec<_>>();
        if both.is_empty() {
            return Err(Refused("bootstrap tokens are for the API server alone".to_owned()));
        }
        let user = UserInfo::new(format!("{USER_PREFIX}{id}"), groups);
        Ok(Some(TokenHolder { user, audiences: both }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_is_good_while_its_secret_says_so() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let secret = |changes: &[(&str, Option<&str>)]| {
            let mut data = std::collections::BTreeMap::from([
                ("token-id", "abcdef"),
                ("token-secret", "0123456789abcdef"),
                ("expiration", "2026-01-01T00:00:01Z"),
                ("usage-bootstrap-authentication", "true"),
                ("auth-extra-groups", "system:bootstrappers:worker"),
            ]);
            for (key, value) in changes {
                match value {
                    Some(value) => data.insert(key, value),
                    None => data.remove(key),
                };
            }
            let data: serde_json::Map<String, Value> =
                data.iter().map(|(key, value)| ((*key).to_owned(), STANDARD.encode(value).into())).collect();
            json!({"type": "bootstrap.kubernetes.io/token", "data": data})
        };
        let groups = check(&secret(&[]), "abcdef", "0123456789abcdef", now).unwrap();
        assert_eq!(groups, ["system:bootstrappers", "system:bootstrappers:worker"]);
        assert!(check(&secret(&[("expiration", None)]), "abcdef", "0123456789abcdef", now).is_ok());
        let bad: &[(&str, Option<&str>)] = &[
            ("token-id", Some("other1")),
            ("token-secret", Some("0123456789abcdeg")),
            ("token-secret", Some("")),
            ("token-secret", None),
            ("expiration", Some("2026-01-01T00:00:00Z")),
            ("expiration", Some("tomorrow")),
            ("usage-bootstrap-authentication", None),
            ("usage-bootstrap-authentication", Some("false")),
            ("auth-extra-groups", Some("system:masters")),
            ("auth-extra-groups", Some("system:bootstrappers:")),
        ];
        for change in bad {
            let found = check(&secret(&[*change]), "abcdef", "0123456789abcdef", now);
            assert!(found.is_err(), "{change:?}: {found:?}");
        }
        assert!(check(&json!({"type": "Opaque"}), "abcdef", "", now).is_err());
    }

    #[test]
    fn only_the_form_of_a_bootstrap_token_is_looked_up() {
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for token in
            ["abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "a/../f.0123456789abcdef", "abcdef", ""]
        {
            assert_eq!(parts(token), None, "{token}");
        }
    }
}
