//! Image references, read the way docker and containerd read them.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// A complete image reference: registry host, repository, and a tag or a digest.
///
/// Parsing fills in what people leave out: `busybox` is `docker.io/library/busybox:latest`. A digest
/// outweighs a tag written beside it, so `a:1@sha256:…` is the digest alone. Display is the complete form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: String,
    repository: String,
    target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Target {
    Tag(String),
    Digest(Digest),
}

/// Why a text is no image reference. The text itself is in each message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing at all.
    #[error("the image reference is empty")]
    Empty,
    /// The repository breaks the grammar.
    #[error("image reference {text:?}: repository {part:?} {what}")]
    Repository {
        /// The whole.
        text: String,
        /// What is wrong.
        part: String,
        /// How.
        what: &'static str,
    },
    /// The registry host breaks the grammar.
    #[error("image reference {text:?}: {part:?} is no registry host")]
    Host {
        /// The whole.
        text: String,
        /// What is wrong.
        part: String,
    },
    /// The tag breaks the grammar.
    #[error(
        "image reference {text:?}: tag {part:?} must be 1 to 128 letters, digits, '_', '.' or '-', and not begin with '.' or '-'"
    )]
    Tag {
        /// The whole.
        text: String,
        /// What is wrong.
        part: String,
    },
    /// The digest breaks the grammar.
    #[error("image reference {text:?}")]
    Digest {
        /// The whole.
        text: String,
        /// What is wrong.
        #[source]
        cause: DigestError,
    },
}

const REPOSITORY_MAX: usize = 255; // distribution specification: host and name together fit most clients' 255

impl Reference {
    /// The registry's name: `docker.io`, `localhost:5000`, `registry.wharf`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository within it: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Host and repository: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// The tag, unless it names a digest.
    pub fn tag(&self) -> Option<&str> {
        match &self.target {
            Target::Tag(tag) => Some(tag),
            Target::Digest(_) => None,
        }
    }

    /// The digest, if it names one.
    pub fn digest(&self) -> Option<&Digest> {
        match &self.target {
            Target::Tag(_) => None,
            Target::Digest(digest) => Some(digest),
        }
    }

    /// The tag or digest, as the distribution protocol wants it in a manifest's URL.
    pub(crate) fn target(&self) -> &str {
        match &self.target {
            Target::Tag(tag) => tag,
            Target::Digest(digest) => digest.as_str(),
        }
    }

    /// The same repository, at this digest.
    pub fn at(&self, digest: Digest) -> Self {
        Self { target: Target::Digest(digest), ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let whole = || text.to_owned();
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest =
                    digest.parse().map_err(|cause| ReferenceError::Digest { text: whole(), cause })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // The tag's colon is the one after the last slash; an earlier one belongs to the host's port.
        let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_end..].split_once(':') {
            Some((last, tag)) => (&rest[..name_end + last.len()], Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::Tag { text: whole(), part: tag.to_owned() });
        }
        // The first part is a host if it cannot be a part of a repository on docker.io.
        let (host, repository) = match name.split_once('/') {
            Some((first, rest))
                if first.contains(['.', ':', '['])
                    || first == "localhost"
                    || first.chars().any(char::is_uppercase) =>
            {
                (first, rest.to_owned())
            }
            Some(_) => ("docker.io", name.to_owned()),
            None => ("docker.io", format!("library/{name}")),
        };
        if !is_host(host) {
            return Err(ReferenceError::Host { text: whole(), part: host.to_owned() });
        }
        let (host, repository) = match (host, repository) {
            ("index.docker.io" | "docker.io", repository) if !repository.contains('/') => {
                ("docker.io", format!("library/{repository}"))
            }
            ("index.docker.io", repository) => ("docker.io", repository),
            other => other,
        };
        if let Err(what) = check_repository(&repository) {
            return Err(ReferenceError::Repository { text: whole(), part: repository, what });
        }
        let target = match digest {
            Some(digest) => Target::Digest(digest),
            None => Target::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { host: host.to_owned(), repository, target })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.repository),
            Target::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.repository),
        }
    }
}

/// Whether this is a tag of the distribution specification; such a text is also safe as a file name.
pub(crate) fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 128
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Whether this is a repository name of the distribution specification; each part of such a name is also safe as a file name.
pub(crate) fn check_repository(name: &str) -> Result<(), &'static str> {
    if name.len() > REPOSITORY_MAX {
        return Err("is longer than 255 bytes");
    }
    for part in name.split('/') {
        if part.is_empty() {
            return Err("has an empty part");
        }
        if part.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("must be lower case");
        }
        if !part
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
        {
            return Err("has a character other than a-z, 0-9, '.', '_', '-' and '/'");
        }
        let alphanumeric = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        if !alphanumeric(part.bytes().next()) || !alphanumeric(part.bytes().last()) {
            return Err("has a part that does not begin and end with a letter or digit");
        }
        // Between letters: one dot, one or two underscores, or any number of hyphens.
        for separator in part.split(|c: char| c.is_ascii_alphanumeric()).filter(|s| !s.is_empty()) {
            if !(matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-')) {
                return Err("has separators that may not stand together");
            }
        }
    }
    Ok(())
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((ip, "")) => (ip, None),
            Some((ip, port)) => match port.strip_prefix(':') {
                Some(port) => (ip, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    if port.is_some_and(|port| {
        port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err()
    }) {
        return false;
    }
    if text.starts_with('[') {
        return name.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";

    #[test]
    fn references_are_completed_as_docker_does() {
        let table = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("user/app", "docker.io/user/app:latest"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
            ("registry.wharf/greeter", "registry.wharf/greeter:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("host:5000/app", "host:5000/app:latest"),
            ("a/b__c/d-e--f.g", "docker.io/a/b__c/d-e--f.g:latest"),
        ];
        for (text, full) in table {
            let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(full.parse::<Reference>().unwrap(), reference, "the complete form means the same");
        }
    }

    #[test]
    fn a_digest_outweighs_a_tag() {
        let reference: Reference = format!("a.io/b:1@sha256:{HEX}").parse().unwrap();
        assert_eq!(reference.to_string(), format!("a.io/b@sha256:{HEX}"));
        assert_eq!(reference.tag(), None);
        assert_eq!(reference.digest().unwrap().hex(), HEX);
    }

    #[test]
    fn what_is_no_reference_is_refused_with_its_text() {
        for bad in [
            "",
            ":",
            "/",
            "@",
            "a:",
            "a@",
            "a@sha256:12",
            "A",
            "a/B",
            "a//b",
            "/a",
            "a/",
            "a b",
            "a:b:c",
            "a:-x",
            "../etc",
            "a.io/../b",
            "a.io/b:..",
            "-a",
            "a-",
            "a..b/c/d",
            "a.io/b..c",
            "a.io:port/b",
            "a.io:99999/b",
            "a___b",
            "[::1/b",
            "h@llo",
            "a.io/b?c",
            "a.io/é",
            &format!("a@sha512:{}", "0".repeat(128)),
            &format!("a.io/{}", "x".repeat(256)),
            &format!("a:{}", "x".repeat(129)),
        ] {
            let error = bad.parse::<Reference>().expect_err(bad).to_string();
            assert!(bad.is_empty() || error.contains(bad), "{error}");
        }
    }
}
