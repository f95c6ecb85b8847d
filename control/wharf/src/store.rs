//! Where objects are kept: the options that say so, and the engine that they name.

pub mod tool;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use clap::Args;
use wharf_store::{Error, Etcd, EtcdConfig, EtcdTls, EtcdUser, Redb};

/// The variable that names etcd's user where no file does.
const USER: &str = "WHARF_ETCD_USER";

/// Where in etcd objects are, unless the URL says.
const PREFIX: &str = "wharf";

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file; none: the server's own.
    Redb(Option<PathBuf>),
    /// The members of an etcd, and the prefix of our keys.
    Etcd { members: Vec<String>, prefix: String },
}

/// How to reach an etcd that asks for more than an address.
#[derive(Args, Clone, Default)]
pub struct EtcdOptions {
    /// The CA of etcd's certificates; with it, etcd is spoken to by TLS
    #[arg(long, value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// The certificate to show to etcd
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile", requires = "etcd_cafile")]
    etcd_certfile: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
    /// A file with etcd's user as USER:PASSWORD; without it, the variable WHARF_ETCD_USER is read
    #[arg(long, value_name = "FILE")]
    etcd_userfile: Option<PathBuf>,
}

/// An engine that was opened.
pub enum Opened {
    Redb(Redb),
    Etcd(Etcd),
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("redb:") {
            return if path.is_empty() {
                Err("redb: needs the path of a file after it".to_owned())
            } else {
                Ok(Self::Redb(Some(path.into())))
            };
        }
        if text == "redb" {
            return Ok(Self::Redb(None));
        }
        let Some(rest) = text.strip_prefix("etcd://") else {
            return Err("a store is redb, redb:FILE or etcd://HOST:PORT[,HOST:PORT...][/PREFIX]".to_owned());
        };
        let (members, prefix) = rest.split_once('/').unwrap_or((rest, PREFIX));
        if members.contains('@') {
            return Err(format!(
                "a password does not belong in a URL; put it into --etcd-userfile or {USER}"
            ));
        }
        let members: Vec<String> = members.split(',').map(str::to_owned).collect();
        for member in &members {
            let port = member.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                return Err(format!("{member:?} is not HOST:PORT"));
            }
        }
        let prefix = if prefix.trim_matches('/').is_empty() { PREFIX } else { prefix };
        Ok(Self::Etcd { members, prefix: prefix.to_owned() })
    }
}

impl fmt::Display for Location {
    /// As it is read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redb(None) => f.write_str("redb"),
            Self::Redb(Some(path)) => write!(f, "redb:{}", path.display()),
            Self::Etcd { members, prefix } => write!(f, "etcd://{}/{prefix}", members.join(",")),
        }
    }
}

impl Location {
    /// Opens the store. `own` is the file of a server that names no other.
    pub async fn open(&self, own: &Path, etcd: &EtcdOptions) -> anyhow::Result<Opened> {
        match self {
            Self::Redb(path) => {
                let path = path.as_deref().unwrap_or(own);
                let opened = Redb::open(path).await.map_err(with_cause);
                Ok(Opened::Redb(opened.with_context(|| format!("open the store {}", path.display()))?))
            }
            Self::Etcd { members, prefix } => {
                let config = etcd.config(members.clone(), prefix.clone())?;
                let opened = Etcd::open(config).await.map_err(|error| {
                    let error = with_cause(error);
                    anyhow::anyhow!("{error}{}", etcd.advice(&error.to_string()))
                });
                Ok(Opened::Etcd(
                    opened.with_context(|| format!("open the store on etcd at {}", members.join(",")))?,
                ))
            }
        }
    }
}

impl EtcdOptions {
    /// For another program that takes them.
    pub fn arguments(&self) -> Vec<String> {
        let files = [
            ("cafile", &self.etcd_cafile),
            ("certfile", &self.etcd_certfile),
            ("keyfile", &self.etcd_keyfile),
            ("userfile", &self.etcd_userfile),
        ];
        let given = files.into_iter().filter_map(|(name, file)| Some((name, file.as_ref()?)));
        given.map(|(name, file)| format!("--etcd-{name}={}", file.display())).collect()
    }

    /// What to do about what etcd, or the way to it, `said`, in view of what was given; nothing where the words
    /// say it.
    fn advice(&self, said: &str) -> &'static str {
        let has = |text| said.contains(text);
        if has("invalid peer certificate") {
            "; --etcd-cafile has to name the authority of etcd's certificate"
        } else if has("received corrupt message") {
            "; without --etcd-cafile etcd is spoken to without TLS"
        } else if has("keys may not be consistent") {
            "; --etcd-keyfile has to name the key of --etcd-certfile"
        } else if has("user name is empty") {
            "; --etcd-userfile or WHARF_ETCD_USER names the user"
        } else if has("authentication failed") {
            "; etcd does not know the user of --etcd-userfile or WHARF_ETCD_USER by that password"
        } else if has("authentication is not enabled") {
            "; etcd asks for no user: leave out --etcd-userfile and WHARF_ETCD_USER"
        } else if has("permission denied") {
            "; the user of --etcd-userfile or WHARF_ETCD_USER needs readwrite on all keys under the prefix"
        } else if has("transport error") || has("connection closed") {
            // A connection that came about and was ended: what for, TLS tells late or not at all.
            match (&self.etcd_cafile, &self.etcd_certfile) {
                (None, _) => "; if etcd speaks TLS, --etcd-cafile names its authority",
                (Some(_), None) => {
                    "; if etcd asks for a certificate, --etcd-certfile and --etcd-keyfile name it"
                }
                (Some(_), Some(_)) => "; etcd may not take the certificate of --etcd-certfile",
            }
        } else {
            ""
        }
    }

    fn config(&self, members: Vec<String>, prefix: String) -> anyhow::Result<EtcdConfig> {
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("read {}", path.display()));
        let identity = match (&self.etcd_certfile, &self.etcd_keyfile) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        let ca = self.etcd_cafile.as_ref().map(read).transpose()?;
        let tls = ca.map(|ca| EtcdTls { ca, identity });
        let user = match &self.etcd_userfile {
            Some(path) => {
                let text = String::from_utf8(read(path)?);
                let text = text.with_context(|| format!("{} is not text", path.display()))?;
                Some(user(&text).with_context(|| format!("read the user in {}", path.display()))?)
            }
            None => match std::env::var(USER) {
                Ok(text) => Some(user(&text).with_context(|| format!("read the user in {USER}"))?),
                Err(_) => None,
            },
        };
        Ok(EtcdConfig { members, prefix, tls, user })
    }
}

/// Reads USER:PASSWORD. The text is in no error.
fn user(text: &str) -> anyhow::Result<EtcdUser> {
    match text.trim_end_matches(['\r', '\n']).split_once(':') {
        Some((name, password)) if !name.is_empty() => {
            Ok(EtcdUser { name: name.to_owned(), password: password.to_owned() })
        }
        _ => bail!("it is not USER:PASSWORD"),
    }
}

/// `anyhow` prints causes that it can own; the store shares its.
fn with_cause(error: Error) -> anyhow::Error {
    anyhow::anyhow!("{}", wharf_kit::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_read() {
        let etcd = |members: &[&str], prefix: &str| Location::Etcd {
            members: members.iter().map(|&member| member.to_owned()).collect(),
            prefix: prefix.to_owned(),
        };
        for (text, location) in [
            ("redb", Location::Redb(None)),
            ("redb:/a/b", Location::Redb(Some("/a/b".into()))),
            ("etcd://a:2379", etcd(&["a:2379"], "wharf")),
            ("etcd://a:2379,[::1]:1,10.0.0.1:2/", etcd(&["a:2379", "[::1]:1", "10.0.0.1:2"], "wharf")),
            ("etcd://a:2379/some/where", etcd(&["a:2379"], "some/where")),
        ] {
            assert_eq!(text.parse(), Ok(location), "{text}");
        }
    }

    #[test]
    fn what_is_no_location_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "a store is redb"),
            ("redb:", "needs the path"),
            ("http://a:2379", "a store is redb"),
            ("etcd://", "\"\" is not HOST:PORT"),
            ("etcd://a", "\"a\" is not HOST:PORT"),
            ("etcd://a:2379,", "\"\" is not HOST:PORT"),
            ("etcd://a:http", "\"a:http\" is not HOST:PORT"),
            ("etcd://root:secret@a:2379", "does not belong in a URL"),
        ] {
            let error = text.parse::<Location>().expect_err(text);
            assert!(error.contains(why) && !error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn a_user_is_read_and_never_printed() {
        let read = user("root:se:cret\n").expect("a user");
        assert_eq!((read.name.as_str(), read.password.as_str()), ("root", "se:cret"));
        assert!(!format!("{read:?}").contains("cret"));
        for wrong in ["", "secret", ":secret"] {
            let error = user(wrong).expect_err(wrong).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
