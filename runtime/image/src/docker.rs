//! Credentials that `docker login` and its like keep in a file.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::client::Auth;
use crate::error::Error;

/// The file's part that is read; programs that keep credentials (`credsStore`, `credHelpers`) are not run.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    /// `user:password` in base64.
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// What the file has for a registry's host. Read anew each time, so a login counts from the next pull on.
///
/// # Errors
/// [`Error::Config`] if it cannot be read or understood. The text holds nothing of its credentials.
pub(crate) fn credentials(file: &Path, host: &str) -> Result<Option<Auth>, Error> {
    let wrong = |what: String| Error::Config(format!("{}: {what}", file.display()));
    let bytes = std::fs::read(file).map_err(|cause| wrong(cause.to_string()))?;
    let config: Config =
        serde_json::from_slice(&bytes).map_err(|_| wrong("it is no docker configuration".to_owned()))?;
    let entry = config.auths.into_iter().find(|(place, _)| host_of(place) == host_of(host));
    let Some((place, entry)) = entry else { return Ok(None) };
    entry.auth().map_err(|what| wrong(format!("{place}: {what}")))
}

/// Keys are hosts, or URLs of the API's first version; Docker Hub has a name of its own there.
fn host_of(place: &str) -> &str {
    let place = place.strip_prefix("https://").or(place.strip_prefix("http://")).unwrap_or(place);
    match place.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

impl Entry {
    /// None for a login whose secret a program keeps.
    fn auth(self) -> Result<Option<Auth>, &'static str> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Auth::Identity(self.identitytoken)));
        }
        if self.auth.is_empty() {
            let (username, password) = (self.username, self.password);
            return Ok((!username.is_empty()).then_some(Auth::Basic { username, password }));
        }
        Auth::basic(&self.auth).map(Some).ok_or("auth is no user:password in base64")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_the_credentials_that_its_key_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpwOng"}, "reg.example:5000": {"username": "u", "password": "p"},
            "token.example": {"identitytoken": "t"}, "kept.example": {}, "bad.example": {"auth": "?"}
        }, "credsStore": "desktop"}"#;
        std::fs::write(&file, text).unwrap();
        let basic = |password: &str| Auth::Basic { username: "u".into(), password: password.into() };
        for (host, auth) in [
            ("docker.io", Some(basic("p:x"))),
            ("reg.example:5000", Some(basic("p"))),
            ("token.example", Some(Auth::Identity("t".into()))),
            ("kept.example", None),
            ("reg.example", None),
        ] {
            assert!(credentials(&file, host).unwrap() == auth, "{host}");
        }
        let why = |host: &str| credentials(&file, host).unwrap_err().to_string();
        assert!(
            why("bad.example").ends_with("bad.example: auth is no user:password in base64"),
            "{}",
            why("bad.example")
        );
        std::fs::write(&file, "{").unwrap();
        assert!(why("docker.io").ends_with("it is no docker configuration"), "{}", why("docker.io"));
    }
}
