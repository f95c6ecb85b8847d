//! Unpacks one archive into one directory, in the form that overlayfs wants of a lower layer.
//!
//! The archive is not trusted. Every path is resolved by the kernel inside the layer's root (`openat2` with `RESOLVE_IN_ROOT`)
//! and the last part is never followed, so no order of links and entries leads out of it. A parent that is a link to nowhere
//! in the layer is refused, as are `..` parts. Later entries replace earlier ones of the same name, as tar does it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::EntryType;

use super::meta::{self, Attributes};
use super::read::{Gauge, Tee, decompress};
use super::{Bounds, Cancel, Fault, Unpacked};

const BLOCK: u64 = 4096; // what nearly every file system of a node gives out at a time

/// Unpacks `archive` into the existing, empty directory `into`. Blocks. On an error the directory holds whatever it holds: the caller removes it.
pub(crate) fn unpack(archive: File, into: &Path, bounds: Bounds, cancel: &Cancel) -> Result<Unpacked, Fault> {
    let gauge = Rc::new(Gauge::default());
    let inner = decompress(archive).map_err(|e| Fault::Bad(format!("the archive is damaged ({e})")))?;
    let mut tee = Tee::new(inner, bounds.bytes, cancel.clone(), gauge.clone());
    let root =
        File::open(into).map_err(|cause| Fault::Disk { what: format!("open {}", into.display()), cause })?;
    // Whatever the process's umask: the root is a directory like any other, with the mode that an image expects.
    rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(disk("set the layer's mode"))?;
    let mut layer = Layer {
        root: root.into(),
        implicit: BTreeSet::from([PathBuf::new()]),
        dir_times: BTreeMap::new(),
        bytes: 0,
        inodes: 1,
        limit: bounds.bytes,
    };
    let mut tar = tar::Archive::new(&mut tee);
    let mut entries = tar.entries().map_err(|e| gauge.fault("at its beginning", &e))?;
    let mut count = 0;
    loop {
        gauge.expect_headers();
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|e| gauge.fault(&format!("after {count} entries"), &e))?;
        count += 1;
        if count > bounds.entries {
            return Err(Fault::Bad(format!("has more than {} entries", bounds.entries)));
        }
        gauge.expect_content();
        layer.add(&mut entry, &gauge)?;
        // What an entry of another type carries is no header of the next one.
        io::copy(&mut entry, &mut io::sink()).map_err(|e| gauge.fault("between entries", &e))?;
    }
    let diff_id = tee.finish()?;
    layer.finish()?;
    Ok(Unpacked {
        diff_id,
        bytes: layer.bytes,
        inodes: layer.inodes,
        implicit: layer.implicit.into_iter().collect(),
    })
}

struct Layer {
    root: OwnedFd,
    implicit: BTreeSet<PathBuf>,
    /// Set last: making an entry changes its directory's time.
    dir_times: BTreeMap<PathBuf, Timestamps>,
    bytes: u64,
    inodes: u64,
    limit: u64,
}

impl Layer {
    fn add<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, gauge: &Gauge) -> Result<(), Fault> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(()); // git archive's commit id and the like; nothing in it concerns a file
        }
        let path = inside(&entry.path_bytes(), "entry")?;
        let Some(name) = path.file_name().map(ToOwned::to_owned) else {
            return self.describe_root(entry, kind);
        };
        let parent_path = path.parent().unwrap_or(Path::new(""));
        let parent = self.parent(parent_path, &path)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&parent, hidden, &path);
        }
        let attributes = attributes(entry, &path)?;
        let at = |what: &str| format!("{what} {}", path.display());
        match kind {
            EntryType::Directory => return self.directory(&parent, &name, &path, attributes),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.clear(&parent, &name, &path)?;
                self.regular(entry, &parent, &name, &path, &attributes, gauge)?;
            }
            EntryType::Link => {
                let target = link_name(entry, &path)?;
                let target = inside(target.as_bytes(), "hard link to")?;
                if target == path {
                    return Err(Fault::Bad(format!("entry {} is a hard link to itself", path.display())));
                }
                self.hard_link(&target, &parent, &name, &path)?;
                return Ok(()); // the attributes are those of the file, which has them
            }
            EntryType::Symlink => {
                let target = link_name(entry, &path)?;
                self.clear(&parent, &name, &path)?;
                rustix::fs::symlinkat(&target, &parent, &name).map_err(blame(at("make the link")))?;
                meta::apply_at(&parent, &name, &attributes, false).map_err(blame(at("describe the link")))?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let device = match kind {
                    EntryType::Fifo => 0,
                    _ => {
                        let number = |n: io::Result<Option<u32>>| {
                            n.ok()
                                .flatten()
                                .ok_or_else(|| Fault::Bad(format!("device {} has no number", path.display())))
                        };
                        rustix::fs::makedev(
                            number(entry.header().device_major())?,
                            number(entry.header().device_minor())?,
                        )
                    }
                };
                let file_type = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                self.clear(&parent, &name, &path)?;
                rustix::fs::mknodat(&parent, &name, file_type, attributes.mode, device)
                    .map_err(blame(at("make the node")))?;
                meta::apply_at(&parent, &name, &attributes, true).map_err(blame(at("describe the node")))?;
            }
            other => {
                return Err(Fault::Bad(format!(
                    "entry {} is of type {:?}, which no layer has",
                    path.display(),
                    char::from(other.as_byte())
                )));
            }
        }
        self.inodes += 1;
        Ok(())
    }

    fn describe_root<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        kind: EntryType,
    ) -> Result<(), Fault> {
        if kind != EntryType::Directory {
            return Err(Fault::Bad(format!(
                "the entry of the root is of type {:?}, not a directory",
                char::from(kind.as_byte())
            )));
        }
        let attributes = attributes(entry, Path::new("/"))?;
        let dir = self.open(Path::new("."), OFlags::RDONLY).map_err(disk("open the layer's root"))?;
        meta::apply(&dir, &attributes).map_err(blame("describe the root".into()))?;
        self.dir_times.insert(PathBuf::from("."), attributes.times);
        self.implicit.remove(Path::new(""));
        Ok(())
    }

    fn directory(
        &mut self,
        parent: &OwnedFd,
        name: &OsString,
        path: &Path,
        attributes: Attributes,
    ) -> Result<(), Fault> {
        let before = self.kind_at(parent, name);
        if before != Some(FileType::Directory) {
            let hides = self.is_whiteout(parent, name);
            self.clear(parent, name, path)?;
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))
                .map_err(blame(format!("make the directory {}", path.display())))?;
            self.inodes += 1;
            self.bytes += BLOCK;
            if hides {
                self.make_opaque(parent, name, path)?;
            }
        }
        let dir = rustix::fs::openat(
            parent,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(blame(format!("open the directory {}", path.display())))?;
        meta::apply(&dir, &attributes)
            .map_err(blame(format!("describe the directory {}", path.display())))?;
        self.dir_times.insert(path.to_owned(), attributes.times);
        self.implicit.remove(path);
        Ok(())
    }

    fn regular<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsString,
        path: &Path,
        attributes: &Attributes,
        gauge: &Gauge,
    ) -> Result<(), Fault> {
        let size = entry.size();
        self.bytes = self.bytes.saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
        if self.bytes > self.limit.saturating_add(self.inodes.saturating_mul(BLOCK)) {
            return Err(Fault::Bad(format!("unpacks to more than {} bytes", self.limit)));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(blame(format!("make the file {}", path.display())))?;
        let mut file = File::from(fd);
        let sparse = entry.header().entry_type() == EntryType::GNUSparse;
        let mut buffer = vec![0_u8; usize::try_from(size.clamp(1, 128 << 10)).unwrap_or(128 << 10)];
        let mut written = 0;
        let write = |cause: io::Error| Fault::Disk { what: format!("write {}", path.display()), cause };
        loop {
            let n = match entry.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(gauge.fault(&format!("in {}", path.display()), &error)),
            };
            let piece = &buffer[..n];
            if sparse && piece.iter().all(|b| *b == 0) {
                file.seek(SeekFrom::Current(i64::try_from(n).unwrap_or(i64::MAX))).map_err(write)?;
            } else {
                file.write_all(piece).map_err(write)?;
            }
            written += n as u64;
        }
        if written != size {
            return Err(Fault::Bad(format!(
                "the archive ends early (in {}, after {written} of {size} bytes)",
                path.display()
            )));
        }
        if sparse {
            file.set_len(size).map_err(write)?;
        }
        let describe = || blame(format!("describe the file {}", path.display()));
        meta::apply(&file, attributes).map_err(describe())?;
        rustix::fs::futimens(&file, &attributes.times).map_err(describe())
    }

    fn hard_link(
        &mut self,
        target: &Path,
        parent: &OwnedFd,
        name: &OsString,
        path: &Path,
    ) -> Result<(), Fault> {
        let missing = || {
            Fault::Bad(format!(
                "entry {} is a hard link to {}, which this layer does not have",
                path.display(),
                target.display()
            ))
        };
        let Some(target_name) = target.file_name() else { return Err(missing()) };
        let dir = match target.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let dir = self.open(dir, OFlags::PATH).map_err(|_| missing())?;
        match self.kind_at(&dir, target_name) {
            None => return Err(missing()),
            Some(FileType::Directory) => {
                return Err(Fault::Bad(format!(
                    "entry {} is a hard link to the directory {}",
                    path.display(),
                    target.display()
                )));
            }
            Some(_) => {}
        }
        self.clear(parent, name, path)?;
        rustix::fs::linkat(&dir, target_name, parent, name, AtFlags::empty()).map_err(blame(format!(
            "link {} to {}",
            path.display(),
            target.display()
        )))
    }

    /// `.wh.NAME` hides NAME of the layers below; it does not concern what this layer has itself.
    fn whiteout(&mut self, parent: &OwnedFd, hidden: &[u8], path: &Path) -> Result<(), Fault> {
        let what = || blame(format!("make the whiteout {}", path.display()));
        if hidden == b".wh..opq" {
            let dir = path.parent().unwrap_or(Path::new(""));
            let at = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
            let dir = self.open(at, OFlags::RDONLY).map_err(what())?;
            return rustix::fs::fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                .map_err(what());
        }
        if hidden.starts_with(b".wh.") {
            return Ok(()); // aufs' own bookkeeping
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Fault::Bad(format!("entry {} hides no name", path.display())));
        }
        let name = OsStr::from_bytes(hidden).to_owned();
        match self.kind_at(parent, &name) {
            None => {
                rustix::fs::mknodat(parent, &name, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(what())?;
                self.inodes += 1;
                Ok(())
            }
            Some(FileType::Directory) => self.make_opaque(parent, &name, path),
            Some(_) => Ok(()), // a file here hides the one below anyway
        }
    }

    fn make_opaque(&self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), Fault> {
        let what = || blame(format!("hide what is below {}", path.display()));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(what())?;
        rustix::fs::fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(what())
    }

    /// The directory that an entry belongs into, made if the archive did not mention it.
    fn parent(&mut self, parent: &Path, entry: &Path) -> Result<OwnedFd, Fault> {
        let whole = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        match self.open(whole, OFlags::PATH) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(blame(format!("open the directory of {}", entry.display()))(error)),
        }
        let mut dir = self.open(Path::new("."), OFlags::PATH).map_err(disk("open the layer's root"))?;
        let mut so_far = PathBuf::new();
        for part in parent.iter() {
            so_far.push(part);
            dir = match self.open(&so_far, OFlags::PATH) {
                Ok(next) => next,
                Err(Errno::NOENT | Errno::NOTDIR) => self.make_parent(&dir, part, &so_far, entry)?,
                Err(error) => return Err(blame(format!("open the directory {}", so_far.display()))(error)),
            };
        }
        Ok(dir)
    }

    fn make_parent(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        entry: &Path,
    ) -> Result<OwnedFd, Fault> {
        let hides = self.is_whiteout(dir, name);
        match self.kind_at(dir, name) {
            None => {}
            Some(_) if hides => {
                rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(disk("replace a whiteout"))?
            }
            Some(FileType::Symlink) => {
                return Err(Fault::Bad(format!(
                    "entry {} goes through the symbolic link {}, which leads to no directory of this layer",
                    entry.display(),
                    path.display()
                )));
            }
            Some(_) => {
                return Err(Fault::Bad(format!(
                    "entry {} is inside {}, which is no directory",
                    entry.display(),
                    path.display()
                )));
            }
        }
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755))
            .map_err(blame(format!("make the directory {}", path.display())))?;
        self.inodes += 1;
        self.bytes += BLOCK;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made =
            rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(disk("open a new directory"))?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755)).map_err(disk("set a directory's mode"))?; // whatever the umask
        if hides {
            self.make_opaque(dir, name, path)?;
        } else {
            self.implicit.insert(path.to_owned());
        }
        Ok(made)
    }

    /// Removes what an earlier entry put under this name.
    fn clear(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), Fault> {
        match self.kind_at(parent, name) {
            None => Ok(()),
            Some(FileType::Directory) => {
                self.implicit.retain(|dir| !dir.starts_with(path));
                self.dir_times.retain(|dir, _| !dir.starts_with(path));
                remove_tree(parent.as_fd(), name)
                    .map_err(blame(format!("replace the directory {}", path.display())))
            }
            Some(_) => rustix::fs::unlinkat(parent, name, AtFlags::empty())
                .map_err(blame(format!("replace {}", path.display()))),
        }
    }

    fn open(&self, path: &Path, access: OFlags) -> Result<OwnedFd, Errno> {
        let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(
            &self.root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }

    fn kind_at(&self, dir: &OwnedFd, name: &OsStr) -> Option<FileType> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(FileType::from_raw_mode(stat.st_mode))
    }

    fn is_whiteout(&self, dir: &OwnedFd, name: &OsStr) -> bool {
        rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
        })
    }

    fn finish(&mut self) -> Result<(), Fault> {
        // Deepest first is not needed: setting a time changes no other directory.
        for (path, times) in std::mem::take(&mut self.dir_times) {
            match self.open(&path, OFlags::RDONLY) {
                Ok(dir) => rustix::fs::futimens(&dir, &times).map_err(disk("set a directory's time"))?,
                Err(Errno::NOENT | Errno::NOTDIR) => {} // replaced by a later entry
                Err(error) => return Err(disk("open a directory to set its time")(error)),
            }
        }
        Ok(())
    }
}

fn remove_tree(parent: std::os::fd::BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let mut listing = rustix::fs::Dir::read_from(&fd)?;
    while let Some(item) = listing.read() {
        let item = item?;
        let child = OsStr::from_bytes(item.file_name().to_bytes()).to_owned();
        if child == "." || child == ".." {
            continue;
        }
        match rustix::fs::unlinkat(&fd, &child, AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_tree(fd.as_fd(), &child)?,
            other => other?,
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// The path of an entry below the layer's root: no `..`, no empty or `.` parts. Empty means the root.
fn inside(bytes: &[u8], what: &str) -> Result<PathBuf, Fault> {
    let mut path = PathBuf::new();
    for part in bytes.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                return Err(Fault::Bad(format!(
                    "{what} {:?} leaves the layer by \"..\"",
                    String::from_utf8_lossy(bytes)
                )));
            }
            part => path.push(OsStr::from_bytes(part)),
        }
    }
    Ok(path)
}

fn link_name<R: Read>(entry: &tar::Entry<'_, R>, path: &Path) -> Result<OsString, Fault> {
    match entry.link_name_bytes() {
        Some(target) if !target.is_empty() => Ok(OsStr::from_bytes(&target).to_owned()),
        _ => Err(Fault::Bad(format!("link {} has no target", path.display()))),
    }
}

fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>, path: &Path) -> Result<Attributes, Fault> {
    let bad = |what: &str| Fault::Bad(format!("entry {} has {what}", path.display()));
    let mut seconds = entry.header().mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0);
    let mut nanoseconds = 0;
    let mut xattrs = Vec::new();
    if let Some(extensions) =
        entry.pax_extensions().map_err(|e| bad(&format!("malformed extensions ({e})")))?
    {
        for extension in extensions {
            let extension = extension.map_err(|e| bad(&format!("malformed extensions ({e})")))?;
            let Ok(key) = extension.key() else { continue };
            if key == "mtime" {
                if let Some((s, n)) = extension.value().ok().and_then(decimal_time) {
                    (seconds, nanoseconds) = (s, n);
                }
            } else if key.starts_with("GNU.sparse.") {
                return Err(bad("the PAX form of sparse files, which is not supported"));
            } else if let Some(name) = key.strip_prefix("SCHILY.xattr.")
                && meta::is_allowed_xattr(name)
            {
                xattrs.push((name.to_owned(), extension.value_bytes().to_owned()));
            }
        }
    }
    let header = entry.header();
    let fields = header.as_old();
    let mode = number(&fields.mode, header.mode().map(u64::from)).and_then(|mode| u32::try_from(mode).ok());
    let owner = |field: &[u8], id: io::Result<u64>| {
        number(field, id).and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX)
    };
    let mode = mode.ok_or_else(|| bad("a malformed mode"))? & 0o7777;
    let uid = owner(&fields.uid, header.uid()).ok_or_else(|| bad("a malformed user id"))?;
    let gid = owner(&fields.gid, header.gid()).ok_or_else(|| bad("a malformed group id"))?;
    Ok(Attributes {
        mode: Mode::from_raw_mode(mode),
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        times: meta::times(seconds, nanoseconds),
        xattrs,
    })
}

/// A field of a header, in which nothing is 0, as other readers have it.
fn number(field: &[u8], parsed: io::Result<u64>) -> Option<u64> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Some(0) } else { parsed.ok() }
}

/// `1700000000.25` to seconds and nanoseconds, rounding down.
fn decimal_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

fn disk(what: &str) -> impl FnOnce(Errno) -> Fault {
    let what = what.to_owned();
    move |errno| Fault::Disk { what, cause: errno.into() }
}

/// Tells an archive that asks for the impossible from a disk that cannot.
fn blame(what: String) -> impl FnOnce(Errno) -> Fault {
    move |errno| match errno {
        Errno::NAMETOOLONG
        | Errno::INVAL
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::LOOP
        | Errno::NOENT
        | Errno::EXIST
        | Errno::MLINK
        | Errno::ILSEQ
        | Errno::RANGE
        | Errno::TOOBIG => Fault::Bad(format!("could not {what}: {}", io::Error::from(errno))),
        errno => Fault::Disk { what, cause: errno.into() },
    }
}
