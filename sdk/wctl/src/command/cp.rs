//! `wctl cp`: a tar archive through a command in the container, which has to have `tar`.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::AttachedProcess;
use tar::EntryType;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::SyncIoBridge;

use crate::api::Api;
use crate::{Global, remote};

/// Of what `tar` complains about only so much is told.
const COMPLAINTS: u64 = 16 << 10;

#[derive(clap::Args)]
pub struct Options {
    /// FILE or FOLDER here, or POD:PATH there
    #[arg(value_name = "FROM")]
    from: String,
    /// POD:PATH there, or PATH here; what exists as a folder takes the thing into it
    #[arg(value_name = "TO")]
    to: String,
    /// Container, if the pod has several
    #[arg(short, long)]
    container: Option<String>,
}

/// A place that a word of the command line means.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Here(&'a Path),
    There { namespace: Option<&'a str>, pod: &'a str, path: &'a str },
}

impl<'a> Place<'a> {
    /// `POD:PATH` or `NAMESPACE/POD:PATH`, unless a slash says before the colon that it is a path here.
    fn parse(word: &'a str) -> anyhow::Result<Self> {
        let Some((pod, path)) = word.split_once(':').filter(|(pod, _)| !pod.starts_with(['.', '/'])) else {
            return Ok(Self::Here(Path::new(word)));
        };
        let (namespace, pod) = match pod.split_once('/') {
            Some((namespace, pod)) => (Some(namespace), pod),
            None => (None, pod),
        };
        if pod.is_empty() || pod.contains('/') || path.is_empty() {
            bail!("{word:?} is no place; write POD:PATH, NAMESPACE/POD:PATH or ./PATH");
        }
        Ok(Self::There { namespace, pod, path })
    }
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let (from, to) = (Place::parse(&options.from)?, Place::parse(&options.to)?);
    let (namespace, pod) = match (&from, &to) {
        (Place::There { namespace, pod, .. }, Place::Here(_))
        | (Place::Here(_), Place::There { namespace, pod, .. }) => (namespace, pod),
        _ => bail!("one of the two must be in a pod (POD:PATH), and the other here"),
    };
    let api = Api::connect(global).await?;
    let namespace = namespace.unwrap_or(&api.namespace);
    let container = Container {
        pods: kube::Api::namespaced(api.client.clone(), namespace),
        pod: (*pod).to_owned(),
        container: options.container,
    };
    match (from, to) {
        (Place::Here(here), Place::There { path, .. }) => container.put(here, path).await,
        (Place::There { path, .. }, Place::Here(here)) => container.get(path, here).await,
        _ => bail!("one of the two must be in a pod (POD:PATH), and the other here"),
    }
}

struct Container {
    pods: kube::Api<Pod>,
    pod: String,
    container: Option<String>,
}

impl Container {
    async fn exec(&self, stdin: bool, command: &[&str]) -> anyhow::Result<AttachedProcess> {
        let params = remote::params(self.container.clone(), stdin, false);
        self.pods.exec(&self.pod, command.iter().copied(), &params).await.map_err(remote::refused)
    }

    async fn put(&self, here: &Path, there: &str) -> anyhow::Result<()> {
        fs::symlink_metadata(here).with_context(|| format!("cannot read {}", here.display()))?;
        let own = here.canonicalize().with_context(|| format!("cannot read {}", here.display()))?;
        let own = own.file_name().and_then(|name| name.to_str()).context("it has no name to copy it by")?;
        let path = there.trim_end_matches('/');
        // A folder takes the thing into it, and anything else becomes it.
        let folder = there.ends_with('/') || self.is_folder(there).await?;
        let (folder, name) = match path.rsplit_once('/') {
            _ if folder => (if path.is_empty() { "/" } else { path }, own),
            Some(("", name)) => ("/", name),
            Some((folder, name)) => (folder, name),
            None => (".", path),
        };
        let mut process = self.exec(true, &["tar", "-xmf", "-", "-C", folder]).await?;
        let mut to = SyncIoBridge::new(process.stdin().context("no stream for the archive")?);
        let (here, name) = (here.to_owned(), name.to_owned());
        let packing = tokio::task::spawn_blocking(move || {
            let packed = pack(&here, Path::new(&name), &mut to);
            // Packed or not: tar waits for the end.
            let ended = to.shutdown().context("the connection broke");
            packed.and(ended)
        });
        let ended = finish(process).await;
        // Why tar ended says more than that its input broke.
        ended?;
        packing.await?
    }

    async fn get(&self, there: &str, here: &Path) -> anyhow::Result<()> {
        let path = there.trim_end_matches('/');
        let (folder, name) = match path.rsplit_once('/') {
            _ if path.is_empty() => ("/", "."),
            Some(("", name)) => ("/", name),
            Some((folder, name)) => (folder, name),
            None => (".", path),
        };
        let to = match (here.is_dir(), name) {
            (true, "." | "..") | (false, _) => here.to_owned(),
            (true, name) => here.join(name),
        };
        let mut process = self.exec(false, &["tar", "-cf", "-", "-C", folder, "--", name]).await?;
        let from = SyncIoBridge::new(process.stdout().context("no stream for the archive")?);
        let name = name.to_owned();
        let unpacking = tokio::task::spawn_blocking(move || unpack(from, Path::new(&name), &to));
        let ended = finish(process).await;
        let unpacked = unpacking.await?;
        ended?;
        unpacked
    }

    async fn is_folder(&self, path: &str) -> anyhow::Result<bool> {
        let mut process = self.exec(false, &["test", "-d", path]).await?;
        let status = process.take_status().context("the connection has no status")?.await;
        Ok(remote::judge(status).is_ok())
    }
}

/// Waits for tar's end, and tells what it complained about.
async fn finish(mut process: AttachedProcess) -> anyhow::Result<()> {
    let status = process.take_status().context("the connection has no status")?;
    let stderr = process.stderr();
    // When it is to say what it read, its output is taken elsewhere; else there is none.
    let complaints = async {
        let mut text = String::new();
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(COMPLAINTS).read_to_string(&mut text).await;
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        }
        text
    };
    let (complaints, status) = tokio::join!(complaints, status);
    match remote::judge(status) {
        Ok(()) => Ok(()),
        Err(error) if error.is::<crate::Exited>() => bail!("tar in the container: {}", complaints.trim()),
        Err(error) => Err(error),
    }
}

fn pack(here: &Path, name: &Path, to: impl Write) -> anyhow::Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(32 << 10, to));
    archive.follow_symlinks(false);
    let reading = || format!("cannot read {}", here.display());
    match here.is_dir() {
        true => archive.append_dir_all(name, here).with_context(reading)?,
        false => archive
            .append_file(name, &mut fs::File::open(here).with_context(reading)?)
            .with_context(reading)?,
    }
    archive.into_inner().and_then(|mut to| to.flush()).context("the connection broke")?;
    Ok(())
}

/// Unpacks what lies below `name` in the archive as `to`. The archive is another's: nothing of it goes anywhere else.
/// Links could lead there, so they are left out.
fn unpack(from: impl Read, name: &Path, to: &Path) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(from);
    let mut found = false;
    for entry in archive.entries()? {
        let mut entry = entry.context("the archive broke off")?;
        let path = entry.path().context("the archive has a name that cannot be read")?.into_owned();
        let Some(target) = place(&path, name, to) else {
            bail!("the archive has {}, which is not below {}", path.display(), name.display());
        };
        let writing = || format!("cannot write {}", target.display());
        match entry.header().entry_type() {
            EntryType::Directory => fs::create_dir_all(&target).with_context(writing)?,
            EntryType::Regular | EntryType::Continuous => {
                if let Some(parent) = target.parent() {
                    fs::create_dir_all(parent).with_context(writing)?;
                }
                // A link that was here before would lead elsewhere as well.
                if fs::symlink_metadata(&target).is_ok_and(|meta| meta.is_symlink()) {
                    fs::remove_file(&target).with_context(writing)?;
                }
                let mut file = fs::File::create(&target).with_context(writing)?;
                io::copy(&mut entry, &mut file).with_context(writing)?;
                if let Ok(mode) = entry.header().mode() {
                    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode & 0o777);
                    let _ = fs::set_permissions(&target, mode);
                }
            }
            other => eprintln!("warning: {} is left out: it is of type {other:?}", path.display()),
        }
        found = true;
    }
    // To the end, so that tar may end too.
    io::copy(&mut archive.into_inner(), &mut io::sink()).context("the archive broke off")?;
    if !found {
        bail!("the archive is empty");
    }
    Ok(())
}

/// Where an entry goes; `None` if it is not below `name`, or leads out of it again.
fn place(path: &Path, name: &Path, to: &Path) -> Option<PathBuf> {
    let plain = |path: &Path| -> Option<PathBuf> {
        path.components()
            .filter(|part| !matches!(part, Component::CurDir))
            .map(|part| matches!(part, Component::Normal(_)).then_some(part))
            .collect()
    };
    let below = plain(path)?.strip_prefix(plain(name)?).ok()?.to_owned();
    Some(if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_kubectl_reads_them() {
        let there = |namespace, pod, path| Place::There { namespace, pod, path };
        assert_eq!(Place::parse("web:/etc/x").unwrap(), there(None, "web", "/etc/x"));
        assert_eq!(Place::parse("a/web:x:y").unwrap(), there(Some("a"), "web", "x:y"));
        for here in ["file", "./a:b", "/a:b", "../x:y"] {
            assert_eq!(Place::parse(here).unwrap(), Place::Here(Path::new(here)), "{here}");
        }
        for bad in ["web:", ":/x", "a/b/c:x"] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_packed_is_unpacked_and_nothing_leaves_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::write(tree.join("sub/file"), "text").unwrap();
        std::os::unix::fs::symlink("/etc", tree.join("link")).unwrap();
        let mut bytes = Vec::new();
        pack(&tree, Path::new("renamed"), &mut bytes).unwrap();
        let to = dir.path().join("out");
        unpack(bytes.as_slice(), Path::new("renamed"), &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("sub/file")).unwrap(), "text");
        assert!(!to.join("link").exists(), "a link could lead anywhere");

        for hostile in ["x/../../evil", "../evil", "other/evil"] {
            let mut archive = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..hostile.len()].copy_from_slice(hostile.as_bytes());
            header.set_size(4);
            header.set_entry_type(EntryType::Regular);
            header.set_cksum();
            archive.append(&header, &b"evil"[..]).unwrap();
            let bytes = archive.into_inner().unwrap();
            let error = unpack(bytes.as_slice(), Path::new("x"), &to).unwrap_err();
            assert!(error.to_string().contains("is not below x"), "{hostile}: {error}");
        }
        assert!(!dir.path().join("evil").exists());
    }
}
