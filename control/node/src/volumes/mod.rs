//! A pod's volumes on this node: directories, tmpfs mounts and files written from ConfigMaps and Secrets.
//!
//! Laid out as a kubelet does: `ROOT/pods/UID/volumes/kubernetes.io~KIND/NAME`. [`prepare`] can be repeated: it makes what
//! is missing and rewrites what changed, all at once ([`atomic`]); that is also how a live update happens.

mod atomic;

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeFile, EmptyDirVolumeSource, HostPathVolumeSource, KeyToPath, Pod,
    SecretVolumeSource, Volume, VolumeProjection,
};
use nix::mount::{MntFlags, MsFlags};
use tokio::sync::watch;

use crate::env::{self, Facts};
use crate::objects::{Data, ObjectKind, ObjectName, Objects, Seen, Shared};
use crate::resources;
use atomic::{File, Payload};

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
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {path} is not {wanted}")]
    HostPath { volume: String, path: String, wanted: &'static str },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {cause}")]
    Field { volume: String, cause: Box<env::Error> },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {cause}")]
    Io { volume: String, cause: io::Error },
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
            | Self::SubPath { .. } => None,
        }
    }
}

/// Volumes that can be mounted into containers.
pub struct Ready {
    paths: HashMap<String, Place>,
    /// Watches on the objects whose content is in these volumes; empty where there are none.
    pub sources: Sources,
}

struct Place {
    path: PathBuf,
    /// Containers may not write, whatever their mount says.
    readonly: bool,
    /// A missing `subPath` may be made.
    own: bool,
}

/// The objects behind a pod's volumes, watched.
#[derive(Default)]
pub struct Sources(Vec<(Arc<Shared>, watch::Receiver<Seen>)>);

impl Sources {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns when one of them changed after [`prepare`] read it.
    pub async fn changed(mut self) {
        let all = self.0.iter_mut().map(|(_, receiver)| receiver.changed().boxed());
        let _ = futures::future::select_all(all).await; // an error means that the watch is being closed: prepare anew
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
pub async fn prepare(root: &Path, facts: &Facts<'_>, objects: &Objects) -> Result<Ready, Error> {
    let pod = facts.pod;
    let mut ready = Ready { paths: HashMap::new(), sources: Sources::default() };
    let Some(spec) = &pod.spec else { return Ok(ready) };
    let base = pod_directory(root, pod.metadata.uid.as_deref().unwrap_or_default()).join("volumes");
    let group = spec
        .security_context
        .as_ref()
        .and_then(|context| context.fs_group)
        .and_then(|group| u32::try_from(group).ok());
    for volume in spec.volumes.iter().flatten() {
        let name = &volume.name;
        let (kind, work) = plan(volume, facts, objects, &mut ready.sources).await?;
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
    sources: &mut Sources,
) -> Result<(&'static str, Work), Error> {
    let namespace = facts.pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut files =
        Files { volume: &volume.name, namespace, objects, sources, facts, payload: Payload::new() };
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

/// Gathers the files of one volume.
struct Files<'a> {
    volume: &'a str,
    namespace: &'a str,
    objects: &'a Objects,
    sources: &'a mut Sources,
    facts: &'a Facts<'a>,
    payload: Payload,
}

/// How long the API may take to tell an object before the pod's events say so.
const SYNC: Duration = Duration::from_secs(10);

/// What Kubernetes gives files of these volumes by default.
const DEFAULT_MODE: i32 = 0o644;

impl Files<'_> {
    async fn add(
        &mut self,
        kind: ObjectKind,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: Option<i32>,
        optional: Option<bool>,
    ) -> Result<(), Error> {
        let object = ObjectName { kind, namespace: self.namespace.to_owned(), name: name.to_owned() };
        let shared = self.objects.watch(&object);
        let mut changes = shared.changes();
        let known = changes.wait_for(|seen| !matches!(seen, Seen::Unknown));
        if tokio::time::timeout(SYNC, known).await.is_err() {
            return Err(Error::NoAnswer { volume: self.volume.to_owned(), object: Box::new(object) });
        }
        let data = match &*changes.borrow_and_update() {
            Seen::Found(data) => Some(data.clone()),
            Seen::Missing | Seen::Unknown => None,
        };
        self.sources.0.push((shared, changes));
        let optional = optional == Some(true);
        let Some(data) = data else {
            return if optional {
                Ok(())
            } else {
                Err(Error::MissingObject { volume: self.volume.to_owned(), object: Box::new(object) })
            };
        };
        self.project_keys(&data, object, items, mode.unwrap_or(DEFAULT_MODE), optional)
    }

    fn project_keys(
        &mut self,
        data: &Data,
        object: ObjectName,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: bool,
    ) -> Result<(), Error> {
        let mut put = |path: &str, data: &bytes::Bytes, mode: i32| {
            self.payload.insert(
                PathBuf::from(path),
                File { data: data.clone(), mode: u32::try_from(mode).unwrap_or(0o644) },
            );
        };
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            data.text.iter().for_each(|(key, value)| put(key, value, mode));
            return Ok(());
        };
        for item in items {
            match data.text.get(&item.key) {
                Some(value) => put(&item.path, value, item.mode.unwrap_or(mode)),
                None if optional => {}
                None => {
                    return Err(Error::MissingKey {
                        volume: self.volume.to_owned(),
                        key: item.key.clone(),
                        object: Box::new(object),
                    });
                }
            }
        }
        Ok(())
    }

    fn fields(&mut self, items: Option<&[DownwardAPIVolumeFile]>, mode: Option<i32>) -> Result<(), Error> {
        for item in items.into_iter().flatten() {
            let failed = |cause| Error::Field { volume: self.volume.to_owned(), cause: Box::new(cause) };
            let text = if let Some(field) = &item.field_ref {
                env::field(&field.field_path, self.facts).map_err(failed)?
            } else if let Some(of) = &item.resource_field_ref {
                let containers = self.facts.pod.spec.iter().flat_map(|spec| &spec.containers);
                let container = containers
                    .into_iter()
                    .find(|container| Some(&container.name) == of.container_name.as_ref());
                let container = container.ok_or_else(|| failed(env::Error::Source(item.path.clone())))?;
                resources::field(&of.resource, of.divisor.as_ref(), container, self.facts.allocatable)
                    .map_err(|error| failed(error.into()))?
            } else {
                continue;
            };
            let mode = u32::try_from(item.mode.or(mode).unwrap_or(DEFAULT_MODE)).unwrap_or(0o644);
            self.payload.insert(PathBuf::from(&item.path), File { data: text.into(), mode });
        }
        Ok(())
    }

    async fn project(&mut self, source: &VolumeProjection, mode: Option<i32>) -> Result<(), Error> {
        if let Some(map) = &source.config_map {
            self.add(ObjectKind::ConfigMap, &map.name, map.items.as_deref(), mode, map.optional).await?;
        } else if let Some(secret) = &source.secret {
            self.add(ObjectKind::Secret, &secret.name, secret.items.as_deref(), mode, secret.optional)
                .await?;
        } else if let Some(downward) = &source.downward_api {
            self.fields(downward.items.as_deref(), mode)?;
        } else {
            let what = if source.service_account_token.is_some() {
                "a projected service account token"
            } else {
                "this projected source"
            };
            return Err(Error::Unsupported { volume: self.volume.to_owned(), what });
        }
        Ok(())
    }
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

/// A tmpfs on `path`, unless there is one already.
fn mount_tmpfs(path: &Path, limit: Option<i64>) -> io::Result<()> {
    if mounts_below(path)?.iter().any(|mount| mount == path) {
        return Ok(());
    }
    let options = limit.filter(|limit| *limit > 0).map(|limit| format!("size={limit}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, options.as_deref())?;
    Ok(())
}

/// Mount points at or below `path`, as the kernel lists them.
fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| PathBuf::from(unescape(point)));
    Ok(points.filter(|point| point.starts_with(&path)).collect())
}

/// Blanks and the like stand as `\040` in mount tables.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) if bytes[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
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
        "Socket" => (is(std::fs::FileType::is_socket), "a socket"),
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

/// What one volume mount of a container is bound to.
#[derive(Debug, PartialEq, Eq)]
pub struct Bound {
    pub host_path: PathBuf,
    pub readonly: bool,
}

impl Ready {
    /// Resolves a mount of volume `name`, with the (expanded) `sub_path`. `None` where the pod has no such volume.
    ///
    /// # Errors
    /// The sub-path leaves the volume, or is not there and may not be made.
    pub fn bind(&self, name: &str, sub_path: &str, readonly: bool) -> Option<Result<Bound, Error>> {
        let place = self.paths.get(name)?;
        let resolved = if sub_path.is_empty() {
            Ok(place.path.clone())
        } else {
            below(&place.path, sub_path, place.own)
        };
        Some(match resolved {
            Ok(host_path) => Ok(Bound { host_path, readonly: readonly || place.readonly }),
            Err(cause) => Err(Error::SubPath { volume: name.to_owned(), path: sub_path.to_owned(), cause }),
        })
    }
}

/// `base/sub` with all links followed; never outside `base`.
fn below(base: &Path, sub: &str, create: bool) -> io::Result<PathBuf> {
    let tame =
        Path::new(sub).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !tame {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a path below the volume"));
    }
    let base = base.canonicalize()?;
    let mut at = base.clone();
    for part in Path::new(sub).components() {
        let next = at.join(part);
        at = match next.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                std::fs::create_dir(&next)?;
                std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o777))?;
                next
            }
            Err(error) => return Err(error),
        };
        if !at.starts_with(&base) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a link in it leads out of the volume"));
        }
    }
    Ok(at)
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
    fn sub_paths_stay_below_their_volume() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("v");
        std::fs::create_dir_all(base.join("a/b")).unwrap();
        std::os::unix::fs::symlink("/etc", base.join("out")).unwrap();
        std::os::unix::fs::symlink("a", base.join("in")).unwrap();
        assert_eq!(below(&base, "in/b", false).unwrap(), base.canonicalize().unwrap().join("a/b"));
        assert_eq!(below(&base, "new/dir", true).unwrap(), base.canonicalize().unwrap().join("new/dir"));
        for (path, create) in
            [("missing", false), ("out", true), ("out/new", true), ("../x", true), ("/etc", true)]
        {
            assert!(below(&base, path, create).is_err(), "{path}");
        }
    }

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
