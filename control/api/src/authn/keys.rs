//! The keys that sign and check service-account tokens: ES256 over *ring*, which TLS uses already.
//!
//! `jsonwebtoken` does the JWT part and takes its cryptography from a provider; the two that it brings are a second
//! library of the same algorithms each.

use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result as JwtResult};
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Why keys cannot be used. Never holds key material.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no key to sign tokens with")]
    None,
    #[error("a token signing key is not PEM")]
    Pem(#[source] wharf_kit::identity::Error),
    #[error("a token signing key is no ECDSA P-256 key in PKCS #8")]
    Sort,
}

/// The keys of one issuer. Clones are handles on the same set, so that it can be replaced while the server runs.
#[derive(Clone)]
pub struct TokenKeys(Arc<RwLock<Arc<Set>>>);

/// The first signs; each checks what names its id.
struct Set(Vec<Key>);

struct Key {
    /// The key's JWK thumbprint (RFC 7638): the same wherever and whenever the key is loaded.
    id: String,
    sign: EncodingKey,
    verify: DecodingKey,
    x: String,
    y: String,
}

impl std::fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.set().0.iter().map(|key| &key.id)).finish()
    }
}

impl TokenKeys {
    /// `pems`: private keys (PKCS #8, ECDSA P-256). The first signs, all are accepted.
    pub fn new<S: AsRef<str>>(pems: &[S]) -> Result<Self, Error> {
        // Whoever installed one first in this process did so with the same provider.
        let _ = PROVIDER.install_default();
        Ok(Self(Arc::new(RwLock::new(Arc::new(Set::load(pems)?)))))
    }

    /// A key that lives as long as this process.
    pub fn ephemeral() -> Self {
        let pem = wharf_kit::identity::signing_key().expect("a P-256 key can always be made");
        Self::new(&[pem]).expect("a key that was just made can be loaded")
    }

    /// Takes up other keys; tokens of keys that are no longer there are refused from now on. In case of an error
    /// the old ones stay.
    pub fn replace<S: AsRef<str>>(&self, pems: &[S]) -> Result<(), Error> {
        let set = Arc::new(Set::load(pems)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = set;
        Ok(())
    }

    fn set(&self) -> Arc<Set> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A signed JWT.
    pub fn sign<C: Serialize>(&self, claims: &C) -> JwtResult<String> {
        let set = self.set();
        let key = set.0.first().ok_or(ErrorKind::InvalidKeyFormat)?;
        let mut header = Header::new(Algorithm::ES256);
        // As Kubernetes writes it: key id and algorithm alone.
        header.typ = None;
        header.kid = Some(key.id.clone());
        jsonwebtoken::encode(&header, claims, &key.sign)
    }

    /// The claims of a JWT that one of these keys signed, if `validation` finds nothing wrong.
    pub fn verify<C: DeserializeOwned>(&self, token: &str, validation: &Validation) -> JwtResult<C> {
        let set = self.set();
        let id = jsonwebtoken::decode_header(token)?.kid;
        let key = set.0.iter().find(|key| Some(&key.id) == id.as_ref()).ok_or(ErrorKind::InvalidSignature)?;
        Ok(jsonwebtoken::decode(token, &key.verify, validation)?.claims)
    }

    /// The public keys as a JWK set, for `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        let jwk = |key: &Key| json!({"use": "sig", "kty": "EC", "kid": key.id, "crv": "P-256", "alg": "ES256", "x": key.x, "y": key.y});
        json!({"keys": self.set().0.iter().map(jwk).collect::<Vec<_>>()})
    }
}

impl Set {
    fn load<S: AsRef<str>>(pems: &[S]) -> Result<Self, Error> {
        let keys = pems.iter().map(|pem| Key::load(pem.as_ref())).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(Error::None) } else { Ok(Self(keys)) }
    }
}

impl Key {
    fn load(pem: &str) -> Result<Self, Error> {
        let der = wharf_kit::identity::private_key(pem).map_err(Error::Pem)?;
        let der = der.secret_der();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &SystemRandom::new())
            .map_err(|_| Error::Sort)?;
        let point = pair.public_key().as_ref();
        // An uncompressed point: 4, then both coordinates.
        let (x, y) = point[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let digest = ring::digest::digest(&ring::digest::SHA256, canonical.as_bytes());
        Ok(Self {
            id: URL_SAFE_NO_PAD.encode(digest),
            sign: EncodingKey::from_ec_der(der),
            verify: DecodingKey::from_ec_der(point),
            x,
            y,
        })
    }
}

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

struct Es256Signer(EcdsaKeyPair);
struct Es256Verifier(Vec<u8>);

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> JwtResult<Box<dyn JwtSigner>> {
    if *algorithm != Algorithm::ES256 {
        return Err(ErrorKind::UnsupportedAlgorithm.into());
    }
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_bytes(), &SystemRandom::new());
    Ok(Box::new(Es256Signer(pair.map_err(|_| ErrorKind::InvalidEcdsaKey)?)))
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> JwtResult<Box<dyn JwtVerifier>> {
    if *algorithm != Algorithm::ES256 {
        return Err(ErrorKind::UnsupportedAlgorithm.into());
    }
    Ok(Box::new(Es256Verifier(key.try_get_as_bytes()?.to_vec())))
}

impl Signer<Vec<u8>> for Es256Signer {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let signature = self.0.sign(&SystemRandom::new(), message).map_err(|_| SignatureError::new())?;
        Ok(signature.as_ref().to_vec())
    }
}

impl JwtSigner for Es256Signer {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}

impl Verifier<Vec<u8>> for Es256Verifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.0);
        key.verify(message, signature).map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for Es256Verifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validation() -> Validation {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_aud = false;
        validation
    }

    #[test]
    fn a_set_checks_what_any_of_its_keys_signed_and_nothing_else() {
        let pem = || wharf_kit::identity::signing_key().unwrap();
        let (old, new, strange) = (pem(), pem(), pem());
        let claims = json!({"exp": 4_000_000_000_u64, "sub": "s"});
        let keys = TokenKeys::new(&[&old]).unwrap();
        let token = keys.sign(&claims).unwrap();
        assert_eq!(keys.verify::<Value>(&token, &validation()).unwrap(), claims);
        keys.replace(&[&new, &old]).unwrap();
        assert_eq!(
            keys.verify::<Value>(&token, &validation()).unwrap(),
            claims,
            "the old key is still there"
        );
        assert_ne!(
            keys.sign(&claims).unwrap().split('.').next(),
            token.split('.').next(),
            "the new one signs"
        );
        assert!(keys.replace(&["no key"]).is_err());
        assert!(keys.replace::<&str>(&[]).is_err());
        assert_eq!(keys.jwks()["keys"].as_array().unwrap().len(), 2, "an error changes nothing");
        keys.replace(&[&new]).unwrap();
        assert!(keys.verify::<Value>(&token, &validation()).is_err(), "the old key is gone");
        let strange = TokenKeys::new(&[&strange]).unwrap();
        assert!(strange.verify::<Value>(&keys.sign(&claims).unwrap(), &validation()).is_err());
    }

    #[test]
    fn tampered_and_unsigned_tokens_are_refused() {
        let keys = TokenKeys::ephemeral();
        let token = keys.sign(&json!({"exp": 4_000_000_000_u64, "sub": "s"})).unwrap();
        let (head, rest) = token.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let forged = encode(json!({"exp": 4_000_000_000_u64, "sub": "t"}));
        let id = jsonwebtoken::decode_header(&token).unwrap().kid;
        for (name, token) in [
            ("other claims", format!("{head}.{forged}.{signature}")),
            ("no signature", format!("{head}.{forged}.")),
            ("alg none", format!("{}.{forged}.", encode(json!({"alg": "none", "kid": id})))),
            ("an HMAC", format!("{}.{forged}.{signature}", encode(json!({"alg": "HS256", "kid": id})))),
            ("two parts", format!("{head}.{forged}")),
            ("nothing", String::new()),
        ] {
            assert!(keys.verify::<Value>(&token, &validation()).is_err(), "{name}");
        }
    }
}
