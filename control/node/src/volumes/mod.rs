//! A pod's volumes on this node: directories, tmpfs mounts and files written from ConfigMaps and Secrets.
//!
//! Laid out as a kubelet does: `ROOT/pods/UID/volumes/kubernetes.io~KIND/NAME`. [`prepare`] can be repeated: it makes what
//! is missing and rewrites what changed, all at once ([`atomic`]); that is also how a live update happens.

mod atomic;
mod files;
mod mounts;
mod subpath;

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, EmptyDirVolumeSource, HostPathVolumeSource, Pod, SecretVolumeSource, Volume,
};
use nix::mount::MntFlags;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::env::{self, Facts};
use crate::objects::{ObjectKind, ObjectName, Objects, Seen, Shared};
use crate::resources;
use crate::tokens::{self, Tokens};
use atomic::Payload;
use files::Files;
use mounts::{mount_tmpfs, mounts_below};

/// Why a pod's volumes are not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {kind} \"{name}\" not found", kind = object.kind.lower(), name = object.name)]
    MissingObject { volume: String, object: Box<ObjectName> },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : failed to sync {kind} \"{name}\": timed out waiting for the API", kind = object.kind.lower(), name = object.name)]
    NoAnswer { volume: String, object: Box<ObjectName> },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : references non-existent config key: {key}")]
    MissingKey { volume: String, key: String, object: Box<ObjectName> },
    #[error("volume \"{volume}\" needs {what}, which this version of Wharf's node agent does not offer")]
    Unsupported { volume: String, what: &'static str },
    #[error(
        "MountVolume.SetUp failed for volume \"{volume}\" : hostPath type check failed: {path} is not {wanted}"
    )]
    HostPath { volume: String, path: String, wanted: &'static str },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {cause}")]
    Field { volume: String, cause: Box<env::Error> },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {cause}")]
    Io { volume: String, cause: io::Error },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : failed to fetch token: {cause}")]
    Token { volume: String, cause: tokens::Error },
    #[error("subPath \"{path}\" of volume \"{volume}\" is not usable: {cause}")]
    SubPath { volume: String, path: String, cause: io::Error },
}

impl Error {
    /// The object whose change can cure this, and the key that it lacks.
    pub fn waits_for(&self) -> Option<(&ObjectName, Option<&str>)> {
        match self {
            Self::MissingObject { object, .. } => Some((object, None)),
            Self::MissingKey { object, key, .. } => Some((object, Some(key))),
            Self::NoAnswer { .. }
            | Self::Unsupported { .. }
            | Self::HostPath { .. }
            | Self::Field { .. }
            | Self::Io { .. }
            | Self::Token { .. }
            | Self::SubPath { .. } => None,
        }
    }
}

/// Volumes that can be mounted into containers.
pub struct Ready {
    paths: HashMap<String, Place>,
    /// Where mounts of parts of volumes are made: `ROOT/pods/UID/volume-subpaths`.
    sub_paths: PathBuf,
    /// What the content of these volumes comes from; empty where there is nothing to follow.
    pub sources: Sources,
}

struct Place {
    path: PathBuf,
    /// Containers may not write, whatever their mount says.
    readonly: bool,
    /// A missing `subPath` may be made.
    own: bool,
}

/// What the volumes' content comes from: the objects, watched, and when a token in them is to be renewed.
#[derive(Default)]
pub struct Sources {
    objects: Vec<(Arc<Shared>, watch::Receiver<Seen>)>,
    due: Option<Instant>,
}

impl Sources {
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.due.is_none()
    }

    /// Returns when one of them changed after [`prepare`] read it, or a token's time has come.
    pub async fn changed(mut self) {
        let due = async {
            match self.due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // An error means that the watch is being closed: prepare anew.
        let all = self.objects.iter_mut().map(|(_, receiver)| receiver.changed().map(drop).boxed());
        futures::future::select_all(all.chain([due.boxed()])).await;
    }
}

/// Where a pod's own things are: `ROOT/pods/UID`.
pub fn pod_directory(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

/// Makes all volumes of the pod, or brings them up to date.
///
/// # Errors
/// The first volume that cannot be made. What was made stays for the next try.
pub async fn prepare(
    root: &Path,
    facts: &Facts<'_>,
    objects: &Objects,
    tokens: &Tokens,
) -> Result<Ready, Error> {
    let pod = facts.pod;
    let directory = pod_directory(root, pod.metadata.uid.as_deref().unwrap_or_default());
    let sub_paths = directory.join("volume-subpaths");
    let mut ready = Ready { paths: HashMap::new(), sub_paths, sources: Sources::default() };
    let Some(spec) = &pod.spec else { return Ok(ready) };
    let base = directory.join("volumes");
    let group = spec
        .security_context
        .as_ref()
        .and_then(|context| context.fs_group)
        .and_then(|group| u32::try_from(group).ok());
    for volume in spec.volumes.iter().flatten() {
        let name = &volume.name;
        let (kind, work) = plan(volume, facts, objects, tokens, &mut ready.sources).await?;
        let path = match &work {
            Work::Host(path) => path.clone(),
            _ => base.join(format!("kubernetes.io~{kind}")).join(name),
        };
        let readonly = matches!(work, Work::Files { .. });
        let own = matches!(work, Work::Empty { .. });
        let target = path.clone();
        // Mounting and writing block.
        let done = tokio::task::spawn_blocking(move || make(&target, work, group)).await;
        done.map_err(io::Error::other)
            .flatten()
            .map_err(|cause| Error::Io { volume: name.clone(), cause })?;
        ready.paths.insert(name.clone(), Place { path, readonly, own });
    }
    Ok(ready)
}

enum Work {
    /// A directory, in memory (with an optional limit in bytes) or on disk.
    Empty {
        memory: bool,
        limit: Option<i64>,
    },
    Files {
        memory: bool,
        payload: Payload,
    },
    Host(PathBuf),
}

async fn plan(
    volume: &Volume,
    facts: &Facts<'_>,
    objects: &Objects,
    tokens: &Tokens,
    sources: &mut Sources,
) -> Result<(&'static str, Work), Error> {
    let namespace = facts.pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut files =
        Files { volume: &volume.name, namespace, objects, tokens, sources, facts, payload: Payload::new() };
    if let Some(EmptyDirVolumeSource { medium, size_limit }) = &volume.empty_dir {
        let memory = medium.as_deref() == Some("Memory");
        return Ok((
            "empty-dir",
            Work::Empty { memory, limit: size_limit.as_ref().and_then(resources::units) },
        ));
    }
    if let Some(host) = &volume.host_path {
        return Ok(("host-path", Work::Host(host_path(&volume.name, host)?)));
    }
    if let Some(ConfigMapVolumeSource { name, items, default_mode, optional }) = &volume.config_map {
        files.add(ObjectKind::ConfigMap, name, items.as_deref(), *default_mode, *optional).await?;
        return Ok(("configmap", Work::Files { memory: false, payload: files.payload }));
    }
    if let Some(SecretVolumeSource { secret_name, items, default_mode, optional }) = &volume.secret {
        let name = secret_name.as_deref().unwrap_or_default();
        files.add(ObjectKind::Secret, name, items.as_deref(), *default_mode, *optional).await?;
        return Ok(("secret", Work::Files { memory: true, payload: files.payload }));
    }
    if let Some(downward) = &volume.downward_api {
        files.fields(downward.items.as_deref(), downward.default_mode)?;
        return Ok(("downward-api", Work::Files { memory: true, payload: files.payload }));
    }
    if let Some(projected) = &volume.projected {
        for source in projected.sources.iter().flatten() {
            files.project(source, projected.default_mode).await?;
        }
        return Ok(("projected", Work::Files { memory: true, payload: files.payload }));
    }
    let what = if volume.persistent_volume_claim.is_some() {
        "a PersistentVolumeClaim"
    } else if volume.image.is_some() {
        "an image volume"
    } else if volume.csi.is_some() || volume.ephemeral.is_some() {
        "a CSI driver"
    } else {
        "a kind of volume"
    };
    Err(Error::Unsupported { volume: volume.name.clone(), what })
}

fn make(path: &Path, work: Work, group: Option<u32>) -> io::Result<()> {
    match work {
        Work::Host(_) => Ok(()),
        Work::Empty { memory, limit } => {
            let fresh = !path.exists();
            std::fs::create_dir_all(path)?;
            if memory {
                mount_tmpfs(path, limit)?;
            }
            if fresh || memory {
                // Everybody in the pod may write; a group's files stay the group's.
                let bits = if group.is_some() { 0o2777 } else { 0o777 };
                if group.is_some() {
                    std::os::unix::fs::chown(path, None, group)?;
                }
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(bits))?;
            }
            Ok(())
        }
        Work::Files { memory, payload } => {
            std::fs::create_dir_all(path)?;
            if memory {
                mount_tmpfs(path, None)?;
            }
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
            atomic::write(path, &payload, group).map(drop)
        }
    }
}

/// Unmounts and removes everything of a pod. Nothing there is no error.
///
/// # Errors
/// Something is still in use; then nothing below a mount was deleted.
pub fn remove(root: &Path, uid: &str) -> io::Result<()> {
    let directory = pod_directory(root, uid);
    if !directory.exists() {
        return Ok(());
    }
    let mut mounts = mounts_below(&directory)?;
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.as_os_str().len())); // the inner ones first
    for mount in mounts {
        nix::mount::umount2(&mount, MntFlags::UMOUNT_NOFOLLOW)?;
    }
    std::fs::remove_dir_all(&directory)
}

fn host_path(volume: &str, source: &HostPathVolumeSource) -> Result<PathBuf, Error> {
    let path = PathBuf::from(&source.path);
    let failed = |cause| Error::Io { volume: volume.to_owned(), cause };
    let kind = std::fs::metadata(&path).ok().map(|meta| meta.file_type());
    let is = |test: fn(&std::fs::FileType) -> bool| kind.as_ref().is_some_and(test);
    let (fine, wanted) = match source.type_.as_deref().unwrap_or_default() {
        "" => (true, ""),
        "DirectoryOrCreate" if kind.is_none() => {
            std::fs::create_dir_all(&path).map_err(failed)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
            (true, "")
        }
        "FileOrCreate" if kind.is_none() => {
            std::fs::File::create(&path).map_err(failed)?;
            (true, "")
        }
        "Directory" | "DirectoryOrCreate" => (is(std::fs::FileType::is_dir), "a directory"),
        "File" | "FileOrCreate" => (is(std::fs::FileType::is_file), "a file"),
        "Socket" => (is(std::fs::FileType::is_socket), "a socket file"),
        "CharDevice" => (is(std::fs::FileType::is_char_device), "a character device"),
        "BlockDevice" => (is(std::fs::FileType::is_block_device), "a block device"),
        _ => (false, "of a known hostPath type"),
    };
    if fine {
        Ok(path)
    } else {
        Err(Error::HostPath { volume: volume.to_owned(), path: source.path.clone(), wanted })
    }
}

/// Which volumes of a pod change when the pod's own labels and annotations do.
pub fn tell_fields(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.into_iter().any(|volume| {
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        volume.downward_api.is_some() || projected.into_iter().any(|source| source.downward_api.is_some())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_and_removed_with_the_pod() {
        let dir = tempfile::tempdir().unwrap();
        let path = pod_directory(dir.path(), "u-1").join("volumes/kubernetes.io~empty-dir/with blank");
        make(&path, Work::Empty { memory: true, limit: Some(1 << 20) }, None).unwrap();
        make(&path, Work::Empty { memory: true, limit: Some(1 << 20) }, None).unwrap();
        assert_eq!(mounts_below(dir.path()).unwrap().len(), 1, "the second time mounts nothing");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
        std::fs::write(path.join("x"), "y").unwrap();
        remove(dir.path(), "u-1").unwrap();
        assert!(mounts_below(dir.path()).unwrap().is_empty());
        assert!(!path.exists());
        remove(dir.path(), "u-1").unwrap();
    }
}
