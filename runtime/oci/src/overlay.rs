//! A container's root file system, mounted where only its own mount namespace has it.

use crate::{
    spec::Rootfs,
    state::{Dir, STAGE},
    users,
    wire::{Laid, Plan},
};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change,
        move_mount, open_tree,
    },
};
use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Component, Path, PathBuf},
};

/// mount(2) takes options of less than a page.
const OPTIONS: usize = 4000;

/// Where a container's root is mounted; `user`: with a user namespace.
pub(crate) fn root(dir: &Dir, user: bool) -> PathBuf {
    dir.stage(user).join("rootfs")
}

/// Where the `nth` source of a bind mount is laid out.
pub(crate) fn laid(dir: &Dir, user: bool, nth: usize) -> PathBuf {
    dir.stage(user).join(format!("laid-{nth}"))
}

/// Leaves the host's mount namespace, mounts the root and lays out what is bind-mounted later. What the host mounts later
/// still comes in; what is mounted here stays here, but for what is shared.
pub(crate) fn prepare(plan: &Plan, dir: &Dir) -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    // Cloned while they still are in the host's peer group.
    let shared = plan.laid.iter().map(|one| match one {
        Laid::Shared(source) => clone(source, true).map(Some),
        Laid::Host { .. } | Laid::Layers { .. } => Ok(None),
    });
    let shared: Vec<Option<OwnedFd>> = shared.collect::<Result<_, _>>()?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;

    // All that is the host's is taken before the stage covers some of it.
    let users = plan.user.as_ref().map(|user| fs::File::open(&user.path)).transpose()?;
    let sources = plan.laid.iter().zip(shared).map(|(one, shared)| Source::find(one, shared, users.as_ref()));
    let sources: Vec<Source<'_>> = sources.collect::<Result<_, _>>()?;
    let root = root(dir, users.is_some());
    let rootfs = match &plan.rootfs {
        Rootfs::Dir(path) => Source::host(path, users.as_ref())?,
        Rootfs::Overlay { lower, .. } => Source::Layers(Lower::find(lower, users.as_ref())?, Path::new("")),
    };
    if users.is_some() {
        raise_stage()?;
    }
    for (nth, source) in sources.into_iter().enumerate() {
        source.put(&laid(dir, users.is_some(), nth))?;
    }
    match (&plan.rootfs, rootfs) {
        (Rootfs::Overlay { upper, work, .. }, Source::Layers(lower, _)) => {
            fs::create_dir_all(&root)?;
            overlay(&lower.paths(&root)?, Some((upper, work)), &root)
        }
        (_, rootfs) => rootfs.put(&root),
    }
}

/// Leaves the host's mount namespace for one in which a container's root has a place on the stage, though it is not there.
pub(crate) fn pretend(dir: &Dir) -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    raise_stage()?;
    fs::create_dir_all(root(dir, true))
}

fn raise_stage() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount("tmpfs", STAGE, "tmpfs", flags, Some(c"mode=755"))?)
}

/// What is laid out.
enum Source<'a> {
    Tree {
        tree: OwnedFd,
        is_dir: bool,
    },
    /// Of an image, the files below a path of it.
    Layers(Lower, &'a Path),
}

impl<'a> Source<'a> {
    fn find(one: &'a Laid, shared: Option<OwnedFd>, users: Option<&fs::File>) -> io::Result<Self> {
        match one {
            Laid::Shared(source) => {
                let tree = shared.ok_or(io::ErrorKind::InvalidInput)?;
                Ok(Self::Tree { tree, is_dir: source.is_dir() })
            }
            Laid::Host { source, mapped } => Self::host(source, users.filter(|_| *mapped)),
            Laid::Layers { lower, sub_path } => Ok(Self::Layers(Lower::find(lower, users)?, sub_path)),
        }
    }

    fn host(path: &Path, users: Option<&fs::File>) -> io::Result<Self> {
        let failed = |cause: io::Error| io::Error::new(cause.kind(), format!("{}: {cause}", path.display()));
        let tree = clone(path, true).map_err(failed)?;
        if let Some(users) = users {
            users::map(tree.as_fd(), users).map_err(failed)?;
        }
        Ok(Self::Tree { tree, is_dir: path.is_dir() })
    }

    fn put(self, place: &Path) -> io::Result<()> {
        match self {
            Self::Tree { tree, is_dir } => put(&tree, place, is_dir),
            Self::Layers(lower, sub_path) => layers(lower, sub_path, place),
        }
    }
}

/// The layers of an image, from the topmost to the lowest: where they are, or as a user namespace sees them.
enum Lower {
    Paths(Vec<PathBuf>),
    Trees(Vec<OwnedFd>),
}

impl Lower {
    fn find(lower: &[PathBuf], users: Option<&fs::File>) -> io::Result<Self> {
        let Some(users) = users else { return Ok(Self::Paths(lower.to_vec())) };
        let trees = lower.iter().map(|layer| {
            let tree = clone(layer, false)?;
            users::map(tree.as_fd(), users)?;
            Ok(tree)
        });
        trees.collect::<io::Result<_>>().map(Self::Trees)
    }

    /// Paths of theirs, which are made beside `place` if there are none.
    fn paths(self, place: &Path) -> io::Result<Vec<PathBuf>> {
        match self {
            Self::Paths(paths) => Ok(paths),
            Self::Trees(trees) => {
                let put = |(nth, tree): (usize, OwnedFd)| {
                    let path = place.with_extension(format!("layer-{nth}"));
                    put(&tree, &path, true).map(|()| path)
                };
                trees.into_iter().enumerate().map(put).collect()
            }
        }
    }
}

fn clone(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(CWD, path, flags)?)
}

/// Mounts what was cloned at a path that is made for it.
fn put(clone: &OwnedFd, place: &Path, is_dir: bool) -> io::Result<()> {
    if is_dir {
        fs::create_dir_all(place)?
    } else {
        fs::write(place, "")?
    }
    Ok(move_mount(clone, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Mounts the files of an image, or those below `sub_path` of it.
fn layers(lower: Lower, sub_path: &Path, place: &Path) -> io::Result<()> {
    let whole =
        if sub_path.as_os_str().is_empty() { place.to_owned() } else { place.with_extension("whole") };
    fs::create_dir_all(&whole)?;
    match lower.paths(&whole)?.as_slice() {
        [one] => rustix::mount::mount_bind(one, &whole)?, // an overlay has an upper directory, or two lower ones
        all => overlay(all, None, &whole)?,
    }
    if whole == place {
        return Ok(());
    }
    let root = rustix::fs::open(&whole, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let part = rustix::fs::openat2(&root, sub_path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
        .map_err(|cause| io::Error::other(format!("{} of the image: {cause}", sub_path.display())))?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = open_tree(&part, "", flags)?;
    let is_dir = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&part)?.st_mode).is_dir();
    put(&clone, place, is_dir)
}

/// `writable`: the upper and the work directory; read-only without.
fn overlay(lower: &[PathBuf], writable: Option<(&Path, &Path)>, target: &Path) -> io::Result<()> {
    let text = |path: &Path| -> io::Result<String> {
        let text = path.to_str().filter(|text| !text.contains([':', ',', '\\']));
        text.map(str::to_owned)
            .ok_or_else(|| io::Error::other(format!("{} cannot be a layer", path.display())))
    };
    let layers: Vec<String> = lower.iter().map(|layer| text(layer)).collect::<Result<_, _>>()?;
    let mut settings = vec![("index", "off".to_owned()), ("xino", "off".to_owned())];
    if let Some((upper, work)) = writable {
        settings.extend([("upperdir", text(upper)?), ("workdir", text(work)?)]);
    }
    let mut options = format!("lowerdir={}", layers.join(":"));
    settings.iter().for_each(|(name, value)| options += &format!(",{name}={value}"));
    if options.len() < OPTIONS {
        let options = CString::new(options).map_err(io::Error::other)?;
        return Ok(mount("overlay", target, "overlay", MountFlags::empty(), Some(options.as_c_str()))?);
    }
    // One layer at a time (Linux 6.5) where there are too many for one page.
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in &layers {
        fsconfig_set_string(&context, "lowerdir+", layer.as_str())?;
    }
    for (name, value) in &settings {
        fsconfig_set_string(&context, *name, value.as_str())?;
    }
    fsconfig_create(&context)?;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok(move_mount(&mounted, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Makes the working directory if the image has none, without following a link out of the root.
pub(crate) fn make_cwd(plan: &Plan, dir: &Dir) -> io::Result<()> {
    let (cwd, root) = (&plan.cwd, root(dir, plan.user.is_some()));
    let owner = plan.user.as_ref().and_then(|user| user.mappings.outside(0, 0));
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    if open(cwd).is_ok() {
        return Ok(());
    }
    let mut so_far = PathBuf::from("/");
    for part in cwd.components() {
        let Component::Normal(name) = part else { continue };
        let parent = open(&so_far)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Err(cause) if cause != rustix::io::Errno::EXIST => return Err(cause.into()),
            made => {
                if let (Ok(()), Some((uid, gid))) = (made, owner) {
                    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::chownat(&parent, name, Some(uid), Some(gid), flags)?;
                }
                so_far.push(name);
            }
        }
    }
    Ok(())
}
