//! The programs that cp needs in a container, where guests have none: `tar cf -`, `tar xf -`, `test -d`.
//!
//! They see what the container mounts and nothing else: each path is resolved by the kernel, beneath the mount that it
//! leads to. Files are copied on a thread of their own, since disks have no other way; a few of them at once.

use super::{
    channel::Channel,
    container::{Container, KILLED},
};
use crate::protocol::Failure;
use ::tar::{Archive, Builder, EntryType, Header};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps},
    io::Errno,
};
use std::{
    cell::Cell,
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};
use tokio::{runtime::Handle, sync::oneshot};
use tokio_util::sync::CancellationToken;

/// What is read of an archive between the contents of two members: headers, and long names, which the library keeps
/// in memory whole.
const HEADERS: u64 = 1 << 20;
/// Folders in folders, in an archive that is made.
const DEEPEST: usize = 128;
/// As tar's when something could not be done.
const FAILED: i32 = 2;

/// What one of these programs was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    IsDirectory(PathBuf),
    Pack {
        dir: PathBuf,
        paths: Vec<PathBuf>,
    },
    Unpack {
        dir: PathBuf,
        keep_times: bool,
    },
    /// It was called in a way that is not known here.
    Misused(String),
}

impl Tool {
    /// `None` if these arguments name another program.
    pub fn parse(args: &[String]) -> Option<Self> {
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["test", "-d", path] => Some(Self::IsDirectory(path.into())),
            ["tar", options @ ..] => Some(Self::tar(options).unwrap_or_else(Self::Misused)),
            _ => None,
        }
    }

    fn tar(words: &[&str]) -> Result<Self, String> {
        let (mut pack, mut keep_times, mut stdio) = (None, true, false);
        let (mut dir, mut paths) = (PathBuf::from("/"), Vec::new());
        let mut words = words.iter().enumerate();
        while let Some((nth, word)) = words.next() {
            let letters = match word.strip_prefix('-') {
                Some("") => return Err("a file name \"-\" belongs to the option f".to_owned()),
                Some(long) if long.starts_with('-') => match *word {
                    "--no-same-permissions" | "--no-same-owner" => continue,
                    "--" => {
                        paths.extend(words.by_ref().map(|(_, path)| PathBuf::from(path)));
                        continue;
                    }
                    other => return Err(format!("unrecognized option '{other}'")),
                },
                Some(letters) => letters,
                None if nth == 0 => word, // tar's oldest habit: the first word needs no dash
                None => {
                    paths.push(word.into());
                    continue;
                }
            };
            for letter in letters.chars() {
                let mut value = || words.next().map(|(_, value)| *value);
                match letter {
                    'c' => pack = Some(true),
                    'x' => pack = Some(false),
                    'f' if value() == Some("-") => stdio = true,
                    'f' => return Err("only standard input and output can be archives: f -".to_owned()),
                    'C' => dir.push(value().ok_or("option requires an argument -- 'C'")?),
                    'm' => keep_times = false,
                    'p' | 'o' => {}
                    other => return Err(format!("invalid option -- '{other}'")),
                }
            }
        }
        match (pack, stdio) {
            (_, false) => Err("only standard input and output can be archives: f -".to_owned()),
            (Some(true), _) if paths.is_empty() => {
                Err("cowardly refusing to create an empty archive".to_owned())
            }
            (Some(true), _) => Ok(Self::Pack { dir, paths }),
            (Some(false), _) if paths.is_empty() => Ok(Self::Unpack { dir, keep_times }),
            (Some(false), _) => Err("single members cannot be extracted".to_owned()),
            (None, _) => Err("one of the options c and x is needed".to_owned()),
        }
    }
}

/// To its exit code. Ended by `cancel`, and by the container's end.
pub(crate) async fn run(
    container: &Arc<Container>,
    tool: Tool,
    [stdin, stdout, stderr]: [Option<Arc<Channel>>; 3],
    cancel: CancellationToken,
) -> Result<i32, Failure> {
    let _one = tokio::select! {
        biased;
        () = container.cancel.cancelled() => return Ok(KILLED),
        one = container.copies.acquire() => one, // never closed
    };
    let stop = cancel.child_token();
    let _stop = stop.clone().drop_guard();
    let stream = |channel| Stream { channel, runtime: Handle::current(), stop: stop.clone() };
    let (stdin, stdout, mut stderr) = (stream(stdin), stream(stdout), stream(stderr));
    let (ended, end) = oneshot::channel();
    let own = container.clone();
    let work = move || {
        let mut complain = |words: String| {
            let _ = stderr.write_all(format!("tar: {words}\n").as_bytes()); // who does not listen does not hear it
        };
        let done = Tree::open(&own).and_then(|tree| match tool {
            Tool::IsDirectory(path) => Ok(i32::from(!tree.is_directory(&path))),
            Tool::Pack { dir, paths } => tree.pack(&dir, &paths, stdout, &mut complain),
            Tool::Unpack { dir, keep_times } => tree.unpack(&dir, keep_times, stdin, &mut complain),
            Tool::Misused(why) => Err(io::Error::other(why)),
        });
        let code = done.unwrap_or_else(|cause| {
            complain(cause.to_string());
            FAILED
        });
        let _ = ended.send(code);
    };
    std::thread::Builder::new()
        .name("tar".to_owned())
        .spawn(work)
        .map_err(|cause| Failure::Internal { why: format!("could not start a thread: {cause}") })?;
    tokio::select! {
        biased;
        () = container.cancel.cancelled() => Ok(KILLED),
        code = end => Ok(code.unwrap_or(KILLED)),
    }
}

/// A channel for a thread that may wait, until it is stopped.
struct Stream {
    channel: Option<Arc<Channel>>,
    runtime: Handle,
    stop: CancellationToken,
}

impl Stream {
    fn wait<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(io::ErrorKind::ConnectionAborted.into()),
                done = work => done,
            }
        })
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.channel.as_ref().map_or(Ok(0), |channel| self.wait(channel.read(into)))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(channel) = &self.channel {
            self.wait(channel.write_all(bytes))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a container mounts.
struct Tree {
    mounts: Vec<Mounted>,
}

struct Mounted {
    root: OwnedFd,
    /// Normal components alone, from the guest's root.
    at: PathBuf,
    read_only: bool,
}

/// Something in a mount, by its path from there.
struct Place<'a> {
    mount: &'a Mounted,
    path: PathBuf,
}

/// Path components from the root, `..` taken back as far as there is something to take.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => drop(normal.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    normal
}

fn or_dot(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

impl Place<'_> {
    fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&self.mount.root, or_dot(path), flags, Mode::empty(), resolve)?)
    }

    /// The folder that it is in, made with those above it, and its name there.
    fn parent(&self) -> io::Result<(OwnedFd, &OsStr)> {
        let name = self.path.file_name().ok_or(Errno::EXIST)?;
        let parent = self.path.parent().unwrap_or(Path::new(""));
        let folder = OFlags::PATH | OFlags::DIRECTORY;
        let mut dir = self.open(Path::new("."), folder)?;
        let mut path = PathBuf::new();
        for part in parent.components() {
            path.push(part);
            dir = match self.open(&path, folder) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                    rustix::fs::mkdirat(&dir, part.as_os_str(), Mode::from_raw_mode(0o755))?;
                    self.open(&path, folder)?
                }
                other => other?,
            };
        }
        Ok((dir, name))
    }
}

impl Tree {
    fn open(container: &Container) -> io::Result<Self> {
        let mounts = container.spec.mounts.iter().map(|mount| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(&mount.host, flags, Mode::empty())?;
            Ok(Mounted { root, at: normal(Path::new(&mount.guest)), read_only: mount.read_only })
        });
        Ok(Self { mounts: mounts.collect::<io::Result<_>>()? })
    }

    /// The mount that this path of the guest's is in, the innermost if there are several.
    fn find(&self, path: &Path) -> io::Result<Place<'_>> {
        let path = normal(path);
        let within = self.mounts.iter().filter(|mount| path.starts_with(&mount.at));
        let mount = within.max_by_key(|mount| mount.at.components().count());
        let mount = mount.ok_or_else(|| {
            let at: Vec<String> =
                self.mounts.iter().map(|mount| format!("/{}", mount.at.display())).collect();
            io::Error::other(format!(
                "no such file or directory: a wasm container has what it mounts, which is [{}]",
                at.join(", ")
            ))
        })?;
        let path = path.strip_prefix(&mount.at).map(Path::to_owned).unwrap_or_default();
        Ok(Place { mount, path })
    }

    fn is_directory(&self, path: &Path) -> bool {
        let folder = OFlags::PATH | OFlags::DIRECTORY;
        self.find(path).is_ok_and(|place| place.open(&place.path, folder).is_ok())
    }

    fn pack(
        &self,
        dir: &Path,
        paths: &[PathBuf],
        to: impl Write,
        complain: &mut impl FnMut(String),
    ) -> io::Result<i32> {
        let mut archive = Builder::new(io::BufWriter::with_capacity(64 << 10, to));
        let mut code = 0;
        for path in paths {
            let whole = dir.join(path);
            // Members are named as they were asked for, without the root, as by every tar.
            let mut name = normal(path);
            if name.as_os_str().is_empty() {
                name.push(".");
            }
            let packed = self.find(&whole).and_then(|place| {
                let (dir, last) = match (place.path.parent(), place.path.file_name()) {
                    (Some(parent), Some(last)) => {
                        (place.open(parent, OFlags::PATH | OFlags::DIRECTORY)?, last.to_owned())
                    }
                    _ => (place.open(Path::new(""), OFlags::PATH | OFlags::DIRECTORY)?, ".".into()),
                };
                pack_one(&mut archive, &dir, &last, &name, 0)
            });
            if let Err(cause) = packed {
                if cause.kind() == io::ErrorKind::ConnectionAborted {
                    return Err(cause);
                }
                complain(format!("{}: {cause}", path.display()));
                code = FAILED;
            }
        }
        archive.into_inner()?.flush()?;
        Ok(code)
    }

    fn unpack(
        &self,
        dir: &Path,
        keep_times: bool,
        from: impl Read,
        complain: &mut impl FnMut(String),
    ) -> io::Result<i32> {
        let left = Cell::new(HEADERS);
        let from = io::BufReader::with_capacity(64 << 10, from);
        let mut archive = Archive::new(Metered { from, left: &left });
        let mut entries = archive.entries()?;
        let mut code = 0;
        loop {
            left.set(HEADERS);
            let Some(entry) = entries.next() else { return Ok(code) };
            let mut entry = entry?;
            left.set(u64::MAX);
            let name = entry.path()?.into_owned();
            let up = name.components().any(|component| component == Component::ParentDir);
            let unpacked = if up {
                Err(io::Error::other("a member's name leads out of the folder"))
            } else {
                self.unpack_one(dir, &name, &mut entry, keep_times)
            };
            if let Err(cause) = unpacked {
                complain(format!("{}: {cause}", name.display()));
                code = FAILED;
            }
            io::copy(&mut entry, &mut io::sink())?; // what was not taken is no header of the next
        }
    }

    fn unpack_one(
        &self,
        dir: &Path,
        name: &Path,
        entry: &mut ::tar::Entry<'_, impl Read>,
        keep_times: bool,
    ) -> io::Result<()> {
        let place = self.find(&dir.join(normal(name)))?;
        let kind = entry.header().entry_type();
        // The mount itself is there.
        if place.path.as_os_str().is_empty() && kind == EntryType::Directory {
            return Ok(());
        }
        if place.mount.read_only {
            return Err(Errno::ROFS.into());
        }
        let (parent, last) = place.parent()?;
        let mode = Mode::from_raw_mode(entry.header().mode()? & 0o777);
        match kind {
            EntryType::Directory => match rustix::fs::mkdirat(&parent, last, mode | Mode::RWXU) {
                Err(Errno::EXIST) => drop(place.open(&place.path, OFlags::PATH | OFlags::DIRECTORY)?),
                other => other?,
            },
            EntryType::Regular | EntryType::Continuous => {
                clear(&parent, last)?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(rustix::fs::openat(&parent, last, flags, mode)?);
                io::copy(entry, &mut file)?;
                if keep_times {
                    let seconds = i64::try_from(entry.header().mtime()?).unwrap_or(i64::MAX);
                    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
                    rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })?;
                }
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link to nothing"))?;
                clear(&parent, last)?;
                rustix::fs::symlinkat(target.as_os_str(), &parent, last)?;
            }
            EntryType::Link => {
                let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link to nothing"))?;
                let target = self.find(&dir.join(normal(&target)))?;
                // As between mounts of the kernel's: what is read-only there would be writable here.
                if !std::ptr::eq(target.mount, place.mount) {
                    return Err(Errno::XDEV.into());
                }
                let (from, first) = target.parent()?;
                clear(&parent, last)?;
                rustix::fs::linkat(&from, first, &parent, last, AtFlags::empty())?;
            }
            other => return Err(io::Error::other(format!("members of type {other:?} are not made"))),
        }
        Ok(())
    }
}

/// Reads no more than is left.
struct Metered<'a, R> {
    from: R,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left.get()).unwrap_or(usize::MAX).min(into.len());
        if most == 0 && !into.is_empty() {
            return Err(io::Error::other("the headers of a member are too long"));
        }
        let read = self.from.read(&mut into[..most])?;
        self.left.set(self.left.get() - read as u64);
        Ok(read)
    }
}

/// What is in the way of a file goes, unless it is a folder.
fn clear(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}

/// One file, link or folder with all in it. No link in a folder is followed.
fn pack_one(
    archive: &mut Builder<impl Write>,
    dir: &OwnedFd,
    last: &OsStr,
    name: &Path,
    depth: usize,
) -> io::Result<()> {
    let stat = rustix::fs::statat(dir, last, AtFlags::SYMLINK_NOFOLLOW)?;
    let mut header = header(&stat);
    let open = |flags| {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(dir, last, flags | OFlags::RDONLY, Mode::empty())
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            header.set_size(size);
            // One that shrinks meanwhile is filled up, so that those after it are found.
            let content = File::from(open(OFlags::empty())?).chain(io::repeat(0)).take(size);
            archive.append_data(&mut header, name, content)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(dir, last, Vec::new())?;
            header.set_entry_type(EntryType::Symlink);
            archive.append_link(&mut header, name, OsStr::from_bytes(target.as_bytes()))
        }
        FileType::Directory => {
            if depth == DEEPEST {
                return Err(io::Error::other(format!("more than {DEEPEST} folders deep")));
            }
            header.set_entry_type(EntryType::Directory);
            archive.append_data(&mut header, name, io::empty())?;
            let folder = open(OFlags::DIRECTORY)?;
            for entry in Dir::read_from(folder.as_fd())? {
                let entry = entry?;
                let inner = OsStr::from_bytes(entry.file_name().to_bytes());
                if inner != "." && inner != ".." {
                    pack_one(archive, &folder, inner, &name.join(inner), depth + 1)?;
                }
            }
            Ok(())
        }
        _ => Ok(()), // sockets and the like are no files to copy
    }
}

fn header(stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<Tool> {
        Tool::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_forms_that_cp_uses_are_understood_and_others_named() {
        let pack = |paths: &[&str]| {
            Some(Tool::Pack { dir: "/".into(), paths: paths.iter().map(PathBuf::from).collect() })
        };
        let unpack = |dir: &str, keep_times| Some(Tool::Unpack { dir: Path::new("/").join(dir), keep_times });
        for (line, tool) in [
            ("tar cf - /data/file", pack(&["/data/file"])),
            ("tar -cf - -- -odd", pack(&["-odd"])),
            ("tar -xmf - -C /data", unpack("data", false)),
            ("tar xf - -C /data", unpack("data", true)),
            ("tar --no-same-permissions --no-same-owner -xmf -", unpack("", false)),
            ("test -d /data", Some(Tool::IsDirectory("/data".into()))),
            ("test -f /data", None),
            ("guest tar", None),
        ] {
            assert_eq!(parsed(line), tool, "{line}");
        }
        for line in ["tar", "tar cf archive /data", "tar cf -", "tar tf -", "tar --delete", "tar xf - one"] {
            assert!(matches!(parsed(line), Some(Tool::Misused(_))), "{line}");
        }
    }

    #[test]
    fn paths_do_not_climb_over_the_root() {
        for (path, plain) in [("/a/../../b", "b"), ("a/./b//c/", "a/b/c"), ("/..", ""), ("/", "")] {
            assert_eq!(normal(Path::new(path)), Path::new(plain), "{path}");
        }
    }
}
