//! The client's side of the distribution protocol: manifests, blobs, basic and token authentication.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use serde::Deserialize;

use crate::digest::Digest;
use crate::docker;
use crate::error::{Error, chain};
use crate::manifest;
use crate::reference::Reference;
use crate::registries::{Candidate, Endpoint};

/// What lets a pull in. Debug shows no secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Auth {
    /// Sent as basic authentication, or traded for a token where the registry asks for one.
    Basic {
        /// User name.
        username: String,
        /// Password or personal token.
        password: String,
    },
    /// A token for the registry itself (CRI: `registry_token`).
    Bearer(String),
    /// A refresh token to trade for one (CRI: `identity_token`).
    Identity(String),
}

impl Auth {
    /// Of `user:password` in base64, as docker's configuration and CRI have it; some writers pad it and some do not.
    pub fn basic(text: &str) -> Option<Self> {
        use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
        let text = BASE64_STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
        let text = String::from_utf8(text).ok()?;
        let (username, password) = text.split_once(':')?;
        let password = password.trim_end_matches('\0').to_owned();
        Some(Self::Basic { username: username.to_owned(), password })
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Auth::Basic",
            Self::Bearer(_) => "Auth::Bearer",
            Self::Identity(_) => "Auth::Identity",
        })
    }
}

const CONNECT: Duration = Duration::from_secs(10); // a packet lost three times in a row still gets through
const ERROR_BODY: usize = 64 << 10; // more than any error document says
const TOKEN_BODY: usize = 1 << 20; // tokens with many claims reach some 10 KiB

/// A client, with the times of the files that it was made from.
type Known = (Vec<Option<SystemTime>>, reqwest::Client);

/// Makes and keeps one HTTP client per endpoint, so that connections are reused across pulls.
pub(crate) struct Clients {
    silence: Duration,
    known: Mutex<HashMap<Endpoint, Known>>,
}

impl Clients {
    pub(crate) fn new(silence: Duration) -> Self {
        // An error says that the process has chosen a provider already: then that one serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { silence, known: Mutex::default() }
    }

    /// A session with one endpoint for one repository. Reads certificate files, so it may block briefly.
    pub(crate) fn session(
        &self,
        candidate: &Candidate,
        reference: &Reference,
        auth: Option<&Auth>,
        docker: Option<&Path>,
    ) -> Result<Session, Error> {
        let endpoint = &candidate.endpoint;
        let own = match (&endpoint.username, &endpoint.password) {
            (Some(username), Some(password)) => {
                Some(Auth::Basic { username: username.clone(), password: password.clone() })
            }
            _ => None,
        };
        let auth = match (auth.cloned().filter(|_| !candidate.mirror).or(own), docker) {
            (None, Some(file)) if !candidate.mirror => docker::credentials(file, reference.host())?,
            (auth, _) => auth,
        };
        Ok(Session {
            http: self.client(endpoint)?,
            base: endpoint.url.trim_end_matches('/').to_owned(),
            repository: reference.repository().to_owned(),
            // Mirrors that serve several registries tell them apart by it, as containerd's convention has it.
            namespace: candidate.mirror.then(|| reference.host().to_owned()),
            auth,
            granted: Mutex::default(),
        })
    }

    fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, Error> {
        let files = [&endpoint.ca, &endpoint.client_cert, &endpoint.client_key];
        let stamps: Vec<_> = files
            .iter()
            .map(|file| {
                file.as_ref().and_then(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok())
            })
            .collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, client)) = known.get(endpoint)
            && *then == stamps
        {
            return Ok(client.clone());
        }
        let client = self.build(endpoint)?;
        known.insert(endpoint.clone(), (stamps, client.clone()));
        Ok(client)
    }

    fn build(&self, endpoint: &Endpoint) -> Result<reqwest::Client, Error> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|e| {
                Error::Config(format!("{}: could not read {}: {e}", endpoint.url, path.display()))
            })
        };
        let bad =
            |what: &str, e: reqwest::Error| Error::Config(format!("{}: {what}: {}", endpoint.url, chain(&e)));
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("wharf/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(self.silence)
            .redirect(reqwest::redirect::Policy::limited(5));
        if let Some(path) = &endpoint.ca {
            let roots =
                reqwest::Certificate::from_pem_bundle(&read(path)?).map_err(|e| bad("the ca file", e))?;
            builder = builder.tls_certs_only(roots);
        }
        if let (Some(cert), Some(key)) = (&endpoint.client_cert, &endpoint.client_key) {
            let mut pem = read(cert)?;
            pem.push(b'\n');
            pem.extend(read(key)?);
            let identity = reqwest::Identity::from_pem(&pem).map_err(|e| bad("the client certificate", e))?;
            builder = builder.identity(identity);
        }
        if endpoint.skip_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        // An endpoint given by address is on our own network: a proxy of the environment is not for it.
        let by_address = reqwest::Url::parse(&endpoint.url).ok().and_then(|url| {
            url.host_str().map(|host| host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok())
        });
        if by_address == Some(true) {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|e| bad("could not set up TLS", e))
    }
}

/// A manifest or index as it came.
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
}

/// One repository at one endpoint, for the length of a pull.
pub(crate) struct Session {
    http: reqwest::Client,
    base: String,
    repository: String,
    namespace: Option<String>,
    auth: Option<Auth>,
    /// The Authorization header that the registry wanted last.
    granted: Mutex<Option<HeaderValue>>,
}

impl Session {
    /// Fetches the manifest or index under a tag or digest, checking the digest.
    pub(crate) async fn manifest(&self, target: &str, limit: u64) -> Result<Fetched, Error> {
        let url = self.url(&format!("manifests/{target}"));
        let accept =
            HeaderValue::from_str(&manifest::ACCEPT.join(", ")).expect("media types are visible ASCII");
        let mut response = self.get(&url, &[(header::ACCEPT, accept)]).await?;
        let header =
            |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let media_type = header("content-type").unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let claimed = header("docker-content-digest");
        let bytes = read_bounded(&mut response, limit, &url)
            .await?
            .ok_or_else(|| Error::Content(format!("{url}: the manifest is larger than {limit} bytes")))?;
        let digest = Digest::of(&bytes);
        let asked = target.parse::<Digest>().ok();
        let wanted = asked.or_else(|| claimed.and_then(|text| text.parse().ok()));
        if let Some(wanted) = wanted
            && wanted != digest
        {
            return Err(Error::Content(format!("{url}: the manifest has digest {digest}, not {wanted}")));
        }
        Ok(Fetched { bytes, media_type, digest })
    }

    /// Begins to fetch a blob from this byte on. The caller checks the digest.
    /// The second value is where the answer begins: 0 where the registry knows no ranges.
    pub(crate) async fn blob(&self, digest: &Digest, from: u64) -> Result<(reqwest::Response, u64), Error> {
        let url = self.url(&format!("blobs/{digest}"));
        let range = HeaderValue::from_str(&format!("bytes={from}-")).expect("digits are visible ASCII");
        let headers: &[_] = if from > 0 { &[(header::RANGE, range)] } else { &[] };
        let response = self.get(&url, headers).await?;
        let begins = if response.status() == StatusCode::PARTIAL_CONTENT { from } else { 0 };
        Ok((response, begins))
    }

    fn url(&self, rest: &str) -> String {
        let mut url = format!("{}/v2/{}/{rest}", self.base, self.repository);
        if let Some(namespace) = &self.namespace {
            url.push_str("?ns=");
            url.push_str(namespace);
        }
        url
    }

    /// A GET that answers a challenge once, and turns an error status into the registry's words.
    async fn get(
        &self,
        url: &str,
        headers: &[(header::HeaderName, HeaderValue)],
    ) -> Result<reqwest::Response, Error> {
        let granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let granted = match (&granted, &self.auth) {
            (None, Some(Auth::Bearer(token))) => Some(secret(&format!("Bearer {token}"))?),
            _ => granted,
        };
        let response = self.send(url, headers, granted).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return refuse_errors(response, url).await;
        }
        let challenges: Vec<String> = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .map(str::to_owned)
            .collect();
        let Some(authorization) = self.authorize(&challenges).await? else {
            return refuse_errors(response, url).await;
        };
        *self.granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization.clone());
        let response = self.send(url, headers, Some(authorization)).await?;
        refuse_errors(response, url).await
    }

    async fn send(
        &self,
        url: &str,
        headers: &[(header::HeaderName, HeaderValue)],
        authorization: Option<HeaderValue>,
    ) -> Result<reqwest::Response, Error> {
        let mut request = self.http.request(Method::GET, url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request.send().await.map_err(|e| unreachable(url, &e, false))
    }

    /// The Authorization header that satisfies one of these challenges, if we can.
    async fn authorize(&self, challenges: &[String]) -> Result<Option<HeaderValue>, Error> {
        for challenge in challenges {
            let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                return self.token(&parameters(rest)).await.map(Some);
            }
            if scheme.eq_ignore_ascii_case("basic")
                && let Some(Auth::Basic { username, password }) = &self.auth
            {
                return Ok(Some(basic(username, password)?));
            }
        }
        Ok(None)
    }

    /// Trades what we have (perhaps nothing) for a token, as the distribution token specification says.
    async fn token(&self, challenge: &HashMap<String, String>) -> Result<HeaderValue, Error> {
        let realm = challenge.get("realm").map(String::as_str).unwrap_or_default();
        let url = reqwest::Url::parse(realm)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| Error::Content(format!("{}: the token realm {realm:?} is no URL", self.base)))?;
        if url.scheme() == "http" && self.base.starts_with("https://") && self.auth.is_some() {
            return Err(Error::Content(format!(
                "{}: refusing to send credentials to {realm} without TLS",
                self.base
            )));
        }
        let fallback = format!("repository:{}:pull", self.repository);
        let scope = challenge.get("scope").unwrap_or(&fallback);
        let mut query: Vec<(&str, &str)> = vec![("scope", scope)];
        if let Some(service) = challenge.get("service") {
            query.push(("service", service));
        }
        let request = match &self.auth {
            Some(Auth::Identity(token)) => {
                query.extend([
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token),
                    ("client_id", "wharf"),
                ]);
                // The query serializer writes what a form is; reqwest's own form support is a feature we do without.
                let mut form = url.clone();
                form.query_pairs_mut().clear().extend_pairs(&query);
                self.http
                    .post(url.clone())
                    .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form.query().unwrap_or_default().to_owned())
            }
            Some(Auth::Basic { username, password }) => {
                query.push(("account", username));
                self.http
                    .get(url.clone())
                    .query(&query)
                    .header(header::AUTHORIZATION, basic(username, password)?)
            }
            Some(Auth::Bearer(_)) | None => self.http.get(url.clone()).query(&query),
        };
        let response = request.send().await.map_err(|e| unreachable(realm, &e, false))?;
        let mut response = refuse_errors(response, realm).await?;
        let bytes = read_bounded(&mut response, TOKEN_BODY as u64, realm).await?.unwrap_or_default();
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Content(format!("{realm}: the token answer is malformed: {e}")))?;
        match answer.token.or(answer.access_token) {
            Some(token) => secret(&format!("Bearer {token}")),
            None => Err(Error::Content(format!("{realm}: the answer has no token"))),
        }
    }
}

fn secret(text: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Error::Config("the credentials have characters that no header can carry".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn basic(username: &str, password: &str) -> Result<HeaderValue, Error> {
    use base64::Engine as _;
    secret(&format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"))
    ))
}

/// `key="value", key=value` of a challenge; quoted values may hold commas.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        rest = after.trim_start_matches([',', ' ']);
    }
    found
}

fn unreachable(url: &str, error: &reqwest::Error, midway: bool) -> Error {
    // Without its URL: ours says it already, and a redirect's may hold a signature.
    let detail = match std::error::Error::source(error) {
        Some(cause) => chain(cause),
        None => error.to_string(),
    };
    let detail = if error.is_timeout() { format!("timed out ({detail})") } else { detail };
    Error::Unreachable { url: url.to_owned(), detail, midway }
}

pub(crate) fn broken_off(url: &str, error: &reqwest::Error) -> Error {
    unreachable(url, error, true)
}

async fn read_bounded(
    response: &mut reqwest::Response,
    limit: u64,
    url: &str,
) -> Result<Option<Vec<u8>>, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| broken_off(url, &e))? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

async fn refuse_errors(mut response: reqwest::Response, url: &str) -> Result<reqwest::Response, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Item>,
        #[serde(default)]
        message: Option<String>,
        #[serde(default)]
        details: Option<String>,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
        #[serde(default)]
        detail: Option<serde_json::Value>,
    }
    let body = read_bounded(&mut response, ERROR_BODY as u64, url).await.ok().flatten().unwrap_or_default();
    let name = status.canonical_reason().unwrap_or("error").to_owned();
    let (code, message) = match serde_json::from_slice::<Body>(&body) {
        Ok(body) if !body.errors.is_empty() => {
            let words: Vec<String> = body
                .errors
                .iter()
                .map(|item| match &item.detail {
                    Some(serde_json::Value::String(detail)) if !detail.is_empty() => {
                        format!("{}: {detail}", item.message)
                    }
                    _ if item.message.is_empty() => item.code.to_lowercase().replace('_', " "),
                    _ => item.message.clone(),
                })
                .collect();
            let code = body.errors.first().map(|item| item.code.clone()).unwrap_or_default();
            (code, words.join("; "))
        }
        // Token servers and Kubernetes' Status answer in these fields.
        Ok(body) => (name.clone(), body.message.or(body.details).unwrap_or(name)),
        Err(_) => {
            let text = String::from_utf8_lossy(&body);
            let line = text.lines().next().unwrap_or_default().trim();
            let plain = !line.is_empty() && line.len() <= 200 && !line.starts_with('<');
            (name.clone(), if plain { line.to_owned() } else { name })
        }
    };
    Err(Error::Registry { url: url.to_owned(), status: status.as_u16(), code, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_taken_apart_even_with_commas_inside() {
        let found = parameters(
            r#"realm="https://auth.example/token",service="reg, istry", scope="repository:a/b:pull,push" , error=bad"#,
        );
        assert_eq!(found["realm"], "https://auth.example/token");
        assert_eq!(found["service"], "reg, istry");
        assert_eq!(found["scope"], "repository:a/b:pull,push");
        assert_eq!(found["error"], "bad");
        assert!(parameters("").is_empty());
        assert!(parameters(r#"realm="open"#).contains_key("realm"));
    }
}
