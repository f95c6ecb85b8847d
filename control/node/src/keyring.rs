//! `imagePullSecrets`: which credentials go with an image, matched by the registry's host, port and path as the kubelet
//! does.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::Deserialize;
use wharf_cri::v1::AuthConfig;

use crate::objects::Data;

/// The credentials of some secrets. It has no `Debug`: they must not reach a log.
#[derive(Default)]
pub struct Keyring(Vec<(Place, AuthConfig)>);

/// Where credentials are good for.
struct Place {
    /// As written, without scheme and API version: longer ones go first.
    text: String,
    /// May have `*` in its parts.
    host: String,
    port: Option<String>,
    path: String,
}

/// Docker Hub's name in credentials, and what an image without a host means.
const DEFAULT_REGISTRY: &str = "index.docker.io";

#[derive(Deserialize)]
struct Config {
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

impl Keyring {
    /// Adds what is in a secret of type `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`.
    ///
    /// # Errors
    /// It is neither, or not understood. The text holds nothing of the secret.
    pub fn add(&mut self, secret: &Data) -> Result<(), &'static str> {
        let auths = if let Some(json) = secret.text.get(".dockerconfigjson") {
            serde_json::from_slice::<Config>(json).map(|config| config.auths)
        } else if let Some(json) = secret.text.get(".dockercfg") {
            serde_json::from_slice(json)
        } else {
            return Err("it has neither .dockerconfigjson nor .dockercfg");
        };
        for (place, entry) in auths.map_err(|_| "it is no docker configuration")? {
            let place = Place::parse(&place);
            let auth = entry.auth().ok_or("an auth in it is not user:password in base64")?;
            self.0.push((place, auth));
        }
        // The most specific ones first, as the kubelet sorts them.
        self.0.sort_by(|(one, _), (other, _)| other.text.cmp(&one.text));
        Ok(())
    }

    /// What to try for the image, in this order.
    pub fn find(&self, image: &str) -> Vec<AuthConfig> {
        let target = Place::parse(&named(image));
        let matching = self.0.iter().filter(|(place, _)| place.covers(&target));
        let mut found: Vec<AuthConfig> = Vec::new();
        for (_, auth) in matching {
            if !found.contains(auth) {
                found.push(auth.clone());
            }
        }
        found
    }
}

/// The image with its registry's name.
fn named(image: &str) -> String {
    let first = image.split_once('/').map(|(first, _)| first);
    match first {
        Some("docker.io") => image.replacen("docker.io", DEFAULT_REGISTRY, 1),
        Some(host) if host.contains(['.', ':']) || host == "localhost" => image.to_owned(),
        _ => format!("{DEFAULT_REGISTRY}/{image}"),
    }
}

impl Entry {
    fn auth(self) -> Option<AuthConfig> {
        let (username, password) = if self.auth.is_empty() {
            (self.username, self.password)
        } else {
            // Some writers pad it and some do not.
            let engine = base64::engine::general_purpose::STANDARD_NO_PAD;
            let text = engine.decode(self.auth.trim_end_matches('=')).ok()?;
            let text = String::from_utf8(text).ok()?;
            let (username, password) = text.split_once(':')?;
            (username.to_owned(), password.trim_end_matches('\0').to_owned())
        };
        Some(AuthConfig { username, password, ..Default::default() })
    }
}

impl Place {
    fn parse(text: &str) -> Self {
        let text = text.strip_prefix("https://").or(text.strip_prefix("http://")).unwrap_or(text);
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        // The API's versions are part of no image's name.
        let path = match path {
            "v1" | "v2" => "",
            path => path.strip_prefix("v1/").or(path.strip_prefix("v2/")).unwrap_or(path),
        };
        let authority = if authority == "docker.io" { DEFAULT_REGISTRY } else { authority };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.to_owned())),
            None => (authority, None),
        };
        let text = if path.is_empty() { authority.to_owned() } else { format!("{authority}/{path}") };
        Self { text, host: host.to_owned(), port, path: path.to_owned() }
    }

    fn covers(&self, target: &Self) -> bool {
        let (mut ours, mut theirs) = (self.host.split('.'), target.host.split('.'));
        let hosts = loop {
            match (ours.next(), theirs.next()) {
                (None, None) => break true,
                (Some(pattern), Some(part)) if glob(pattern.as_bytes(), part.as_bytes()) => {}
                _ => break false,
            }
        };
        hosts && self.port == target.port && target.path.starts_with(&self.path)
    }
}

/// `*` stands for any letters, `?` for one. Goes back to the last `*` alone: both sides are a user's, and every `*`
/// tried anew would take exponential time.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    let mut star = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, seen));
                at += 1;
            }
            Some(one) if *one == b'?' || *one == text[seen] => (at, seen) = (at + 1, seen + 1),
            _ => {
                let Some((after, from)) = star else { return false };
                star = Some((after, from + 1));
                (at, seen) = (after, from + 1);
            }
        }
    }
    pattern[at..].iter().all(|one| *one == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(key: &str, value: &serde_json::Value) -> Data {
        Data { text: BTreeMap::from([(key.to_owned(), value.to_string().into())]) }
    }

    #[test]
    fn patterns_match_as_in_a_shell_and_in_no_time() {
        for (pattern, text, matches) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*b?d", "axxbcd", true),
            ("a*b", "abxb", true),
            ("a*b", "abx", false),
            ("?", "", false),
            ("**a", "a", true),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), matches, "{pattern} {text}");
        }
        // Tried anew at every star, this would outlast us all.
        assert!(!glob("*a".repeat(30).as_bytes(), &[b"a".repeat(5_000), b"b".to_vec()].concat()));
    }

    #[test]
    fn credentials_match_by_host_port_and_path_and_the_longest_goes_first() {
        let user = |name: &str| json!({"username": name, "password": "p"});
        let mut ring = Keyring::default();
        let auths = json!({"auths": {
            "https://index.docker.io/v1/": user("hub"), "quay.example": user("quay"), "quay.example/team": user("team"),
            "*.cloud.example": user("any"), "reg.example:5000": user("port"), "https://v2.example/v2/": user("v2"),
        }});
        ring.add(&secret(".dockerconfigjson", &auths)).unwrap();
        for (image, users) in [
            ("busybox", vec!["hub"]),
            ("docker.io/library/busybox:1", vec!["hub"]),
            ("me/busybox", vec!["hub"]),
            ("quay.example/other/app:1", vec!["quay"]),
            ("quay.example/team/app@sha256:00", vec!["team", "quay"]),
            ("eu.cloud.example/x", vec!["any"]),
            ("cloud.example/x", vec![]),
            ("a.eu.cloud.example/x", vec![]),
            ("reg.example:5000/x:1", vec!["port"]),
            ("reg.example/x:1", vec![]),
            ("v2.example/x", vec!["v2"]),
            ("localhost/x", vec![]),
        ] {
            let found: Vec<_> = ring.find(image).into_iter().map(|auth| auth.username).collect();
            assert_eq!(found, users, "{image}");
        }
    }

    #[test]
    fn both_types_of_secrets_are_read_and_others_refused() {
        let mut ring = Keyring::default();
        ring.add(&secret(".dockercfg", &json!({"a.example": {"auth": "bWU6aHVzaDpo", "email": "x"}})))
            .unwrap();
        let auth = ring.find("a.example/x").remove(0);
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("me", "hush:h"));
        assert!(ring.add(&secret("token", &json!({}))).is_err());
        assert!(ring.add(&secret(".dockerconfigjson", &json!({"auths": {"a": {"auth": "?"}}}))).is_err());
        assert!(ring.add(&secret(".dockercfg", &json!([]))).is_err());
    }
}
