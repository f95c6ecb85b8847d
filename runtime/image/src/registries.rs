//! Where registries are, and how to be let in: the configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How to reach registries, by the host name that references carry. Read from JSON; unknown fields are refused.
///
/// A host that is not listed is reached at `https://HOST` (`http://HOST` for localhost and loopback
/// addresses, `https://registry-1.docker.io` for docker.io) with the system's certificate authorities.
/// The host `*` is used for every host that is not listed itself.
///
/// ```json
/// { "hosts": {
///   "registry.wharf": { "server": { "url": "https://10.0.0.1:6443", "ca": "/etc/wharf/ca.crt",
///                       "client_cert": "/etc/wharf/node.crt", "client_key": "/etc/wharf/node.key" } },
///   "registry.k8s.io": { "mirrors": [ { "url": "http://127.0.0.1:5000" } ] } } }
/// ```
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistriesConfig {
    /// By host, with the port if the reference has one.
    pub hosts: BTreeMap<String, HostConfig>,
    /// A file as `docker login` writes it (`/root/.docker/config.json`): for registries, not mirrors, where neither a pull
    /// nor their entry here has credentials.
    pub docker_config: Option<PathBuf>,
}

/// How to reach one registry.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// Asked first, in this order; the next one is asked when one fails. They get only credentials of their own, never those of a pull.
    pub mirrors: Vec<Endpoint>,
    /// The registry itself; absent means the default of its name.
    pub server: Option<Endpoint>,
    /// Never ask the registry itself.
    pub mirrors_only: bool,
}

/// One server that speaks the distribution protocol.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Endpoint {
    /// `https://HOST[:PORT][/PREFIX]` or `http://…`; the protocol's `/v2/` comes after it.
    pub url: String,
    /// PEM file of the authorities to believe, instead of the system's.
    pub ca: Option<PathBuf>,
    /// PEM file of our certificate (chain); needs `client_key`. Files are read again when they change.
    pub client_cert: Option<PathBuf>,
    /// PEM file of its private key.
    pub client_key: Option<PathBuf>,
    /// Believe any certificate.
    pub skip_verify: bool,
    /// Used when a pull brings no credentials (server) or always (mirror).
    pub username: Option<String>,
    /// The password to `username`.
    pub password: Option<String>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("url", &self.url)
            .field("ca", &self.ca)
            .field("client_cert", &self.client_cert)
            .field("skip_verify", &self.skip_verify)
            .field("username", &self.username)
            .finish_non_exhaustive() // the password stays out of logs
    }
}

impl Endpoint {
    /// An endpoint at this URL, with everything else default.
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }
}

/// An endpoint to ask for one reference.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) endpoint: Endpoint,
    pub(crate) mirror: bool,
}

impl RegistriesConfig {
    /// Reads and checks a JSON file.
    ///
    /// # Errors
    /// [`Error::Config`] if it cannot be read or says something impossible.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path)
            .map_err(|e| Error::Config(format!("could not read {}: {e}", path.display())))?;
        let config: Self =
            serde_json::from_slice(&bytes).map_err(|e| Error::Config(format!("{}: {e}", path.display())))?;
        config.check()?;
        Ok(config)
    }

    /// Checks what a type cannot say.
    ///
    /// # Errors
    /// [`Error::Config`] names the host and what is wrong with it.
    pub fn check(&self) -> Result<(), Error> {
        for (host, config) in &self.hosts {
            for endpoint in config.mirrors.iter().chain(&config.server) {
                let wrong = |what: &str| Err(Error::Config(format!("registry {host}: {what}")));
                let Some(rest) =
                    endpoint.url.strip_prefix("https://").or(endpoint.url.strip_prefix("http://"))
                else {
                    return wrong(&format!("url {:?} must begin with https:// or http://", endpoint.url));
                };
                if rest.is_empty() || rest.starts_with('/') || rest.contains(['?', '#']) {
                    return wrong(&format!("url {:?} must be a host with an optional path", endpoint.url));
                }
                if endpoint.client_cert.is_some() != endpoint.client_key.is_some() {
                    return wrong("client_cert and client_key need each other");
                }
                if endpoint.username.is_some() != endpoint.password.is_some() {
                    return wrong("username and password need each other");
                }
            }
            if config.mirrors_only && config.mirrors.is_empty() {
                return Err(Error::Config(format!("registry {host}: mirrors_only without mirrors")));
            }
        }
        Ok(())
    }

    /// Whom to ask for images of this host, in order. Never empty for a checked configuration.
    pub(crate) fn candidates(&self, host: &str) -> Vec<Candidate> {
        let default = HostConfig::default();
        let config = self.hosts.get(host).or_else(|| self.hosts.get("*")).unwrap_or(&default);
        let mirrors = config.mirrors.iter().map(|e| Candidate { endpoint: e.clone(), mirror: true });
        let server = (!config.mirrors_only).then(|| Candidate {
            endpoint: config.server.clone().unwrap_or_else(|| Endpoint::at(default_url(host))),
            mirror: false,
        });
        mirrors.chain(server).collect()
    }
}

fn default_url(host: &str) -> String {
    if host == "docker.io" {
        return "https://registry-1.docker.io".to_owned();
    }
    let scheme = if is_loopback(host) { "http" } else { "https" };
    format!("{scheme}://{host}")
}

fn is_loopback(host: &str) -> bool {
    if let Ok(addr) = host.parse::<std::net::SocketAddr>() {
        return addr.ip().is_loopback();
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(config: &RegistriesConfig, host: &str) -> Vec<String> {
        config.candidates(host).into_iter().map(|c| c.endpoint.url).collect()
    }

    #[test]
    fn a_host_is_reached_where_its_name_or_the_configuration_says() {
        let none = RegistriesConfig::default();
        assert_eq!(urls(&none, "docker.io"), ["https://registry-1.docker.io"]);
        assert_eq!(urls(&none, "quay.io"), ["https://quay.io"]);
        assert_eq!(urls(&none, "localhost:5000"), ["http://localhost:5000"]);
        assert_eq!(urls(&none, "127.0.0.1:5000"), ["http://127.0.0.1:5000"]);
        assert_eq!(urls(&none, "[::1]:5000"), ["http://[::1]:5000"]);
        let some: RegistriesConfig = serde_json::from_str(
            r#"{"hosts":{"a.io":{"mirrors":[{"url":"http://m"}]},"*":{"mirrors":[{"url":"http://n"}],"mirrors_only":true}}}"#,
        )
        .unwrap();
        some.check().unwrap();
        assert_eq!(urls(&some, "a.io"), ["http://m", "https://a.io"]);
        assert_eq!(urls(&some, "b.io"), ["http://n"]);
    }

    #[test]
    fn impossible_configurations_are_refused_by_name() {
        for (json, word) in [
            (r#"{"hosts":{"a.io":{"mirrors":[{"url":"ftp://m"}]}}}"#, "a.io"),
            (r#"{"hosts":{"a.io":{"server":{"url":"https://m","client_cert":"/c"}}}}"#, "client_key"),
            (r#"{"hosts":{"a.io":{"mirrors_only":true}}}"#, "mirrors_only"),
        ] {
            let config: RegistriesConfig = serde_json::from_str(json).unwrap();
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(serde_json::from_str::<RegistriesConfig>(r#"{"hosts":{"a.io":{"mirors":[]}}}"#).is_err());
    }
}
