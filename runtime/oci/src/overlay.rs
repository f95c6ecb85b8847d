//! A container's root file system, mounted where only its own mount namespace has it.

use crate::spec::Rootfs;
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

/// Leaves the host's mount namespace and mounts the root at `target`. What the host mounts later still comes in;
/// what is mounted here stays here, but for the copies of `shared`, which keep passing mounts both ways and are put
/// at `(source, place)`.
pub(crate) fn prepare(rootfs: &Rootfs, target: &Path, shared: &[(PathBuf, PathBuf)]) -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    // Cloned while they still are in the host's peer group.
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clones: Vec<OwnedFd> =
        shared.iter().map(|(source, _)| open_tree(CWD, source, flags)).collect::<Result<_, _>>()?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    for (clone, (source, place)) in clones.iter().zip(shared) {
        if source.is_dir() {
            fs::create_dir_all(place)?
        } else {
            fs::write(place, "")?
        }
        move_mount(clone, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    match rootfs {
        Rootfs::Dir(dir) => Ok(rustix::mount::mount_bind_recursive(dir, target)?),
        Rootfs::Overlay { lower, upper, work } => overlay(lower, upper, work, target),
    }
}

fn overlay(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let text = |path: &Path| -> io::Result<String> {
        let text = path.to_str().filter(|text| !text.contains([':', ',', '\\']));
        text.map(str::to_owned)
            .ok_or_else(|| io::Error::other(format!("{} cannot be a layer", path.display())))
    };
    let layers: Vec<String> = lower.iter().map(|layer| text(layer)).collect::<Result<_, _>>()?;
    let (upper, work) = (text(upper)?, text(work)?);
    let options = format!("lowerdir={},upperdir={upper},workdir={work},index=off,xino=off", layers.join(":"));
    if options.len() < OPTIONS {
        let options = CString::new(options).map_err(io::Error::other)?;
        return Ok(mount("overlay", target, "overlay", MountFlags::empty(), Some(options.as_c_str()))?);
    }
    // One layer at a time (Linux 6.5) where there are too many for one page.
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in &layers {
        fsconfig_set_string(&context, "lowerdir+", layer.as_str())?;
    }
    for (name, value) in [("upperdir", upper.as_str()), ("workdir", &work), ("index", "off"), ("xino", "off")]
    {
        fsconfig_set_string(&context, name, value)?;
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
