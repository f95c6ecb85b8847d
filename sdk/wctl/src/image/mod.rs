//! Images made from files, and their way into the cluster's registry.

mod push;
mod read;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::bail;
use sha2::{Digest as _, Sha256};

pub use push::push;
pub use read::read;

/// What a root file system's image says about its program.
#[derive(Debug, Default)]
pub struct Settings {
    pub entrypoint: Vec<String>,
    pub env: Vec<String>,
    pub workdir: String,
}

/// `NAME:TAG` in the built-in registry.
#[derive(Debug, PartialEq, Eq)]
pub struct Name {
    repository: String,
    tag: String,
}

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let bare = text.strip_prefix("registry.wharf/").unwrap_or(text);
        let (repository, tag) = bare.rsplit_once(':').unwrap_or((bare, "latest"));
        let word = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
        };
        let tagged = !tag.is_empty()
            && tag.len() <= 128
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if !repository.split('/').all(word) || !tagged {
            bail!("{text:?} is no image name; write NAME:TAG in lower case, for example greeter:1");
        }
        Ok(Self { repository: repository.to_owned(), tag: tag.to_owned() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

/// The bytes of a blob.
#[derive(Clone, Debug)]
pub enum Content {
    Memory(Vec<u8>),
    File(PathBuf),
}

/// A blob with its digest.
#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: String,
    pub size: u64,
    pub content: Content,
}

impl Blob {
    fn of(bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), size: bytes.len() as u64, content: Content::Memory(bytes) }
    }
}

/// A manifest or index, with what it is.
#[derive(Clone, Debug)]
pub struct Document {
    pub digest: String,
    pub media_type: String,
    pub bytes: Vec<u8>,
}

/// An image ready to be pushed.
#[derive(Debug)]
pub struct Image {
    pub blobs: Vec<Blob>,
    /// Manifests before the indexes that name them; the last one gets the tag.
    pub documents: Vec<Document>,
    /// Keeps files that were made for the push until it is done.
    pub _scratch: Option<Scratch>,
}

/// A temporary file, deleted with it.
#[derive(Debug)]
pub struct Scratch(pub PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        let _ = std::fs::remove_file(&self.0);
    }
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(hash: &[u8]) -> String {
    hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_are_checked() {
        assert_eq!("a/b:1".parse::<Name>().unwrap().to_string(), "a/b:1");
        assert_eq!("registry.wharf/a".parse::<Name>().unwrap().to_string(), "a:latest");
        for bad in ["", ":1", "A:1", "a:", "a//b:1", "../a:1", "a:b/c", "a b:1"] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} was taken");
        }
    }
}
