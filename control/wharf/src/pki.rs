//! The certificates of a cluster, made at its first start and renewed when they near their end, at a
//! start and while a server runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use wharf_kit::identity::{Ca, Pair, signing_key, write_private};
use wharf_kit::renew::{self, Current};

/// Certificates with less life left than this are made anew at a start. They are issued for a year.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 24 * 3600);

/// The files of one certificate in a directory.
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// A directory of certificates and the CA that signs them.
pub struct Pki {
    dir: PathBuf,
    pub ca: Ca,
}

impl Pki {
    /// Opens the directory; makes the CA if there is none.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let ca = Ca::load_or_generate(&dir.join("ca.crt"), &dir.join("ca.key"), "wharf-ca")?;
        Ok(Self { dir: dir.to_owned(), ca })
    }

    /// The files of the certificate `name`.
    pub fn files(&self, name: &str) -> Files {
        Files { cert: self.dir.join(format!("{name}.crt")), key: self.dir.join(format!("{name}.key")) }
    }

    /// The certificate `name`: the one on disk while it lasts and was made for the same `purpose`, else a new one.
    pub fn pair(
        &self,
        name: &str,
        purpose: &str,
        issue: impl FnOnce(&Ca) -> Result<Pair, wharf_kit::identity::Error>,
    ) -> anyhow::Result<Pair> {
        let files = self.files(name);
        let note = self.dir.join(format!("{name}.for"));
        let same = std::fs::read_to_string(&note).is_ok_and(|text| text == purpose);
        if same
            && let Ok(pair) = Pair::load(&files.cert, &files.key)
            && pair.remaining().is_some_and(|left| left > RENEW_BEFORE)
        {
            return Ok(pair);
        }
        self.issue(name, purpose, issue)
    }

    fn issue(
        &self,
        name: &str,
        purpose: &str,
        issue: impl FnOnce(&Ca) -> Result<Pair, wharf_kit::identity::Error>,
    ) -> anyhow::Result<Pair> {
        let files = self.files(name);
        let note = self.dir.join(format!("{name}.for"));
        let pair = issue(&self.ca).with_context(|| format!("issue the certificate {name}"))?;
        pair.save(&files.cert, &files.key)?;
        std::fs::write(&note, purpose).with_context(|| format!("write {}", note.display()))?;
        Ok(pair)
    }

    /// The certificate `name` as [`Pki::pair`] gives it, renewed until `stop`: files and what is shown.
    pub fn kept(
        self: &Arc<Self>,
        name: &'static str,
        purpose: &str,
        issue: impl Fn(&Ca) -> Result<Pair, wharf_kit::identity::Error> + Send + Sync + 'static,
        stop: &CancellationToken,
    ) -> anyhow::Result<Current> {
        let pair = self.pair(name, purpose, &issue)?;
        let current = Current::new(&pair)?;
        let (pki, kept, purpose, stop) = (self.clone(), current.clone(), purpose.to_owned(), stop.clone());
        tokio::spawn(async move {
            let renew = || std::future::ready(pki.issue(name, &purpose, &issue));
            stop.run_until_cancelled(renew::keep(name, &kept, Some(pair), renew)).await;
        });
        Ok(current)
    }

    /// The keys that sign service accounts' tokens: `sa.key`, made if it is not there, and whatever `sa-*.key`
    /// is beside it, by name. The first signs. A key is changed by renaming `sa.key` to `sa-OLD.key`: tokens that
    /// it signed are good until that file is removed.
    pub fn token_keys(&self) -> anyhow::Result<Vec<String>> {
        let first = self.dir.join("sa.key");
        if !first.exists() {
            write_private(&first, signing_key()?.as_bytes())?;
        }
        let mut older = Vec::new();
        for entry in std::fs::read_dir(&self.dir).with_context(|| format!("list {}", self.dir.display()))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("sa-") && name.ends_with(".key") {
                older.push(path);
            }
        }
        older.sort_unstable();
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
        };
        std::iter::once(&first).chain(&older).map(read).collect()
    }

    /// Writes a kubeconfig with which `pair` reaches the API at `url`.
    pub fn kubeconfig(&self, path: &Path, url: &str, pair: &Pair) -> anyhow::Result<()> {
        let text = KUBECONFIG
            .replace("@URL@", url)
            .replace("@CA@", &base64(self.ca.cert_pem()))
            .replace("@CERT@", &base64(&pair.cert_pem))
            .replace("@KEY@", &base64(&pair.key_pem));
        write_private(path, text.as_bytes())?;
        Ok(())
    }
}

const KUBECONFIG: &str = r#"apiVersion: v1
kind: Config
clusters:
- name: wharf
  cluster:
    server: @URL@
    certificate-authority-data: @CA@
users:
- name: wharf
  user:
    client-certificate-data: @CERT@
    client-key-data: @KEY@
contexts:
- name: wharf
  context:
    cluster: wharf
    user: wharf
current-context: wharf
"#;

/// A kubeconfig without a user: where the API is, and whom to trust.
pub fn cluster_info(url: &str, ca_pem: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: \"\"\n  cluster:\n    server: {url}\n    \
         certificate-authority-data: {}\n",
        base64(ca_pem)
    )
}

fn base64(text: &str) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    BASE64_STANDARD.encode(text)
}
