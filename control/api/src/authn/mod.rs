//! Who sent a request: authenticators are asked in order until one knows.
//!
//! - [`ClientCertificates`]: what the peer's certificate proves;
//! - [`BearerTokens`]: `Authorization: Bearer`, asked of each kind of token in turn: service accounts'
//!   (`service_account`, signed with `keys`) and bootstrap tokens (`bootstrap_token`).
//!
//! The first who knows decides; if none does and one has refused, the request is refused (401).
//!
//! Who they find may act as another (`impersonate`).
//!
//! All of them decide from memory: keys, and the objects in the watch cache.

use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, header};
use rustls::pki_types::CertificateDer;
use wharf_kit::client_ca::ClientCa;

use crate::UserInfo;

mod bootstrap_token;
mod impersonate;
pub mod keys;
pub mod service_account;

pub use bootstrap_token::BootstrapTokens;
pub use impersonate::impersonated;
pub use keys::TokenKeys;
pub use service_account::ServiceAccountTokens;

/// What a connection tells of its peer.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// What the client certificate proves; `None` if none was shown.
    pub certificate: Option<Result<Certified, Refused>>,
}

/// The user that a client certificate proves, and the last moment at which it does.
#[derive(Clone, Debug)]
pub struct Certified {
    pub user: Arc<UserInfo>,
    pub until: SystemTime,
}

/// Finds out who sent a request.
///
/// # Guarantees
/// - `Ok(None)`: this authenticator sees no credential of its sort.
/// - `Err`: there is one and it is not good. Another may still know.
pub trait Authenticator: Send + Sync + 'static {
    fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<Option<Arc<UserInfo>>, Refused>;
}

/// Users of client certificates: CN is the name, each O a group.
pub struct ClientCertificates;

impl Authenticator for ClientCertificates {
    fn authenticate(&self, peer: &Peer, _headers: &HeaderMap) -> Result<Option<Arc<UserInfo>>, Refused> {
        match &peer.certificate {
            None => Ok(None),
            Some(Ok(certified)) if SystemTime::now() <= certified.until => Ok(Some(certified.user.clone())),
            Some(Ok(_)) => Err(Refused("the client's certificate has expired".to_owned())),
            Some(Err(refused)) => Err(refused.clone()),
        }
    }
}

/// What the chain that a peer has shown proves to a server whose users' certificates this CA signs.
pub fn certified(ca: Option<&ClientCa>, chain: &[CertificateDer<'_>]) -> Result<Certified, Refused> {
    let ca = ca.ok_or_else(|| Refused("no CA of clients is configured".to_owned()))?;
    let proof = ca.verify(chain, SystemTime::now());
    let proof = proof.map_err(|error| Refused(wharf_kit::chain(&error).to_string()))?;
    let mut user = UserInfo::new(proof.peer.user, proof.peer.groups);
    let digest = ring::digest::digest(&ring::digest::SHA256, chain.first().map_or(&[], |first| first));
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    user.extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={hex}")]);
    Ok(Certified { user: Arc::new(user), until: proof.until })
}

/// The extra that tells which credential was shown.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Whose a good token is, and where it may be used.
#[derive(Clone, Debug)]
pub struct TokenHolder {
    pub user: UserInfo,
    /// Those of the asked audiences that the token is for.
    pub audiences: Vec<String>,
}

/// Tells whose a bearer token is.
///
/// # Guarantees
/// - `Ok(None)`: not a token of this sort; the next is asked.
/// - `Err`: one of this sort that is not good. The text says why, never what the token is.
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// `audiences`: the token must be for one of them.
    fn holder(&self, token: &str, audiences: &[String]) -> Result<Option<TokenHolder>, Refused>;
}

/// Why a credential is not good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// All the sorts of bearer tokens.
pub struct BearerTokens {
    pub sorts: Vec<Box<dyn TokenAuthenticator>>,
    /// The names by which this server is meant in tokens.
    pub audiences: Vec<String>,
}

/// No token of ours is nearly as long; what is longer is not looked at.
const TOKEN_MAX: usize = 16 << 10;

impl BearerTokens {
    /// # Errors
    /// Why the token is refused; "invalid bearer token" if it is of no known sort.
    pub fn holder(&self, token: &str, audiences: &[String]) -> Result<TokenHolder, Refused> {
        if token.len() <= TOKEN_MAX {
            for sort in &self.sorts {
                if let Some(holder) = sort.holder(token, audiences)? {
                    return Ok(holder);
                }
            }
        }
        Err(Refused("invalid bearer token".to_owned()))
    }
}

impl Authenticator for Arc<BearerTokens> {
    fn authenticate(&self, _peer: &Peer, headers: &HeaderMap) -> Result<Option<Arc<UserInfo>>, Refused> {
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
        let Some(token) = value.to_str().ok().and_then(bearer) else {
            // Other schemes are not ours; who uses them is as anonymous as who shows nothing.
            let ascii = value.as_bytes().is_ascii();
            return if ascii { Ok(None) } else { Err(Refused("Authorization is no text".to_owned())) };
        };
        self.holder(token, &self.audiences).map(|holder| Some(Arc::new(holder.user)))
    }
}

/// The token of `Bearer TOKEN`; the scheme in any case, as HTTP has it.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_asked_at_each_request_whether_it_has_expired() {
        let asked = |until: SystemTime| {
            let certified = Certified { user: Arc::new(UserInfo::new("jane", [""; 0])), until };
            let peer = Peer { certificate: Some(Ok(certified)) };
            ClientCertificates.authenticate(&peer, &HeaderMap::new())
        };
        let (now, second) = (SystemTime::now(), std::time::Duration::from_secs(1));
        assert_eq!(asked(now + second * 60).unwrap().expect("a user").name, "jane");
        assert!(asked(now - second).is_err());
    }

    #[test]
    fn the_scheme_is_told_in_any_case() {
        let cases = [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("BEARER abc", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearer ", None),
            ("Bearerabc", None),
        ];
        for (value, token) in cases {
            assert_eq!(bearer(value), token, "{value:?}");
        }
    }
}
