//! A container's root file system, mounted where only its own mount namespace has it.

use crate::{spec::Rootfs, state::Dir, wire::Laid};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change,
        move_mount, open_tree,
    },
};
use std::{
    ffi::CString,
    fs, io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

/// mount(2) takes options of less than a page.
const OPTIONS: usize = 4000;

/// Leaves the host's mount namespace, mounts the root and lays out what is bind-mounted later, both in `dir`. What the
/// host mounts later still comes in; what is mounted here stays here, but for what is shared.
pub(crate) fn prepare(rootfs: &Rootfs, dir: &Dir, laid: &[Laid]) -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    // Cloned while they still are in the host's peer group.
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clones: Vec<Option<OwnedFd>> = laid
        .iter()
        .map(|one| match one {
            Laid::Shared(source) => open_tree(CWD, source, flags).map(Some),
            Laid::Layers { .. } => Ok(None),
        })
        .collect::<Result<_, _>>()?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    for (nth, (one, clone)) in laid.iter().zip(clones).enumerate() {
        let place = dir.laid(nth);
        match (one, clone) {
            (Laid::Layers { lower, sub_path }, _) => layers(lower, sub_path, &place)?,
            (Laid::Shared(source), Some(clone)) => put(&clone, &place, source.is_dir())?,
            (Laid::Shared(_), None) => unreachable!("each was cloned above"),
        }
    }
    match rootfs {
        Rootfs::Dir(root) => Ok(rustix::mount::mount_bind_recursive(root, dir.rootfs())?),
        Rootfs::Overlay { lower, upper, work } => overlay(lower, Some((upper, work)), &dir.rootfs()),
    }
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
fn layers(lower: &[PathBuf], sub_path: &Path, place: &Path) -> io::Result<()> {
    let whole =
        if sub_path.as_os_str().is_empty() { place.to_owned() } else { place.with_extension("whole") };
    fs::create_dir_all(&whole)?;
    match lower {
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
pub(crate) fn make_cwd(root: &Path, cwd: &Path) -> io::Result<()> {
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
            _ => so_far.push(name),
        }
    }
    Ok(())
}
