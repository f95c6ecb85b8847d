//! Bootstrap tokens: with one a machine joins a cluster as a node. Kubernetes keeps them as Secrets in `kube-system`.

use jiff::Timestamp;
use serde_json::{Value, json};

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
/// The type of their Secrets.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// What the Secret of a token is called: this and the token's id.
pub const SECRET_PREFIX: &str = "bootstrap-token-";

/// A token, `ID.SECRET`. Whoever has it can join until it expires or its Secret is deleted.
#[derive(Clone)]
pub struct Token {
    id: String,
    secret: String,
}

impl Token {
    /// A new one, which nobody can guess.
    pub fn generate() -> Self {
        let random =
            |long: usize| (0..long).map(|_| char::from(ALPHABET[rand::random_range(0..36)])).collect();
        Self { id: random(6), secret: random(16) }
    }

    /// Reads `ID.SECRET`: six and sixteen lower-case letters and digits.
    pub fn parse(text: &str) -> Option<Self> {
        let good = |part: &str, long| part.len() == long && part.bytes().all(|byte| ALPHABET.contains(&byte));
        let (id, secret) = text.split_once('.')?;
        (good(id, 6) && good(secret, 16)).then(|| Self { id: id.to_owned(), secret: secret.to_owned() })
    }

    /// `ID.SECRET`.
    pub fn text(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// The name of its Secret.
    pub fn secret_name(&self) -> String {
        format!("{SECRET_PREFIX}{}", self.id)
    }

    /// The Secret by which the API server knows it; good until `expires`, or for ever.
    pub fn object(&self, expires: Option<Timestamp>, description: &str) -> Value {
        let mut data = json!({
            "token-id": self.id,
            "token-secret": self.secret,
            "usage-bootstrap-authentication": "true",
        });
        if let Some(expires) = expires {
            data["expiration"] = json!(expires.round(jiff::Unit::Second).unwrap_or(expires).to_string());
        }
        if !description.is_empty() {
            data["description"] = json!(description);
        }
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": SECRET_TYPE,
            "metadata": {"name": self.secret_name(), "namespace": "kube-system"},
            "stringData": data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_two_parts_of_their_lengths() {
        let token = Token::generate();
        assert_eq!(Token::parse(&token.text()).expect("its own form").secret_name(), token.secret_name());
        assert_ne!(token.text(), Token::generate().text());
        for bad in
            ["abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "abcdef0123456789abcdef", "a.b.c", ""]
        {
            assert!(Token::parse(bad).is_none(), "{bad}");
        }
        assert!(Token::parse("abcdef.0123456789abcdef").is_some());
    }
}
