//! Compiled code on disk: compiled once, checked each time before it is mapped, shared by every host of the machine.
//!
//! A file's name is a digest of all that its content depends on: the module, Wasmtime's version, the engine's settings
//! and the processor's features. Beside `NAME.cwasm` lies `NAME.mac`, an HMAC over name and content under a key that
//! only root reads. A file without its MAC, or with another, is compiled anew and never mapped.

use crate::{
    compile::{Orders, REFUSED},
    engine,
    launch::Limits,
    protocol::Failure,
};
use hmac::{Hmac, KeyInit, Mac};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};
use wasmtime::{Engine, Module, Precompiled, component::Component};

/// What a compiler may say about a module.
const LONGEST_COMPLAINT: usize = 4096;
/// The first bytes of every module and component.
const MAGIC: &[u8] = b"\0asm";

/// Compiled code, mapped.
pub(crate) enum Code {
    Component(Component),
    /// A core module.
    Module(Module),
}

/// The compiled code in one directory.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    key: [u8; 32],
    /// Digest of what all names of this process have in common.
    common: [u8; 32],
    compile_args: Vec<String>,
    orders: Orders,
}

fn io_failure(what: &str, path: &Path, cause: io::Error) -> Failure {
    Failure::Internal { why: format!("could not {what} {}: {cause}", path.display()) }
}

impl Cache {
    /// Opens the cache in `dir`, making its key at the first time.
    pub fn open(dir: PathBuf, compile_args: Vec<String>, limits: &Limits) -> io::Result<Self> {
        let key = key(&dir)?;
        let mut common = Sha256::new();
        for part in [engine::SETTINGS, engine::WASMTIME, std::env::consts::ARCH, &processor()?] {
            common.update((part.len() as u64).to_le_bytes());
            common.update(part);
        }
        let orders =
            Orders { memory_bytes: limits.compile_memory_bytes, cpu_seconds: limits.compile_cpu_seconds };
        Ok(Self { dir, key, common: common.finalize().into(), compile_args, orders })
    }

    /// The code of this module, from the cache or compiled now. Blocks: disk, and the compiler for seconds.
    ///
    /// Of several that ask for the same module at once, in this process or another, one compiles.
    pub fn load(self: &Arc<Self>, engine: &Engine, module: &Path, digest: &str) -> Result<Code, Failure> {
        let name = self.name(digest)?;
        if let Some(code) = self.stored(engine, &name) {
            return Ok(code);
        }
        let lock_path = self.dir.join(format!("{name}.lock"));
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(|cause| io_failure("open", &lock_path, cause))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, cause)| io_failure("lock", &lock_path, cause.into()))?;
        // Another may have compiled it while this one waited.
        let found = match self.stored(engine, &name) {
            Some(code) => Ok(code),
            None => self.compile(module, digest, &name).and_then(|()| {
                self.stored(engine, &name).ok_or_else(|| Failure::Internal {
                    why: format!("code compiled for {digest} cannot be loaded"),
                })
            }),
        };
        let _ = fs::remove_file(&lock_path); // who waits for it has it open, and compiles nothing twice
        drop(lock);
        found
    }

    /// The name in the cache, without its ending.
    fn name(&self, digest: &str) -> Result<String, Failure> {
        let hex = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
        let hex = hex.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let hex = hex.ok_or_else(|| Failure::Spec { why: format!("not a digest: {digest:?}") })?;
        let mut name = Sha256::new();
        name.update(self.common);
        name.update(hex.to_ascii_lowercase());
        Ok(to_hex(&name.finalize()))
    }

    fn mac(&self, name: &str, mut content: impl Read) -> io::Result<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(name.as_bytes());
        let mut chunk = vec![0; 256 << 10];
        loop {
            match content.read(&mut chunk)? {
                0 => return Ok(mac),
                len => mac.update(&chunk[..len]),
            }
        }
    }

    /// The code under this name, if it is there, ours, and fits this engine.
    #[expect(unsafe_code, reason = "mapping compiled code is unsafe by nature")]
    fn stored(&self, engine: &Engine, name: &str) -> Option<Code> {
        let path = self.dir.join(format!("{name}.cwasm"));
        let file = File::open(&path).ok()?;
        let expected = fs::read(path.with_extension("mac")).unwrap_or_default();
        let mac = self.mac(name, &file).ok()?;
        if mac.verify_slice(&expected).is_err() {
            tracing::warn!(path = %path.display(), "compiled code without a valid MAC is not used");
            return None;
        }
        // The very file that was checked, whatever has the path by now.
        let checked = format!("/proc/self/fd/{}", file.as_raw_fd());
        // SAFETY: deserialize_file asks that the file was made by Wasmtime and does not change while it is mapped.
        // The MAC shows that its content is what our compiler process wrote for this module, settings and version:
        // the key is readable by root alone. The path leads to the file that was read for the MAC, since `file` is
        // open. Files of the cache are never written in place (see `write`), and the directory and its files are
        // root's alone, so nobody else can change or truncate it.
        let code = unsafe {
            match Engine::detect_precompiled_file(&checked) {
                Ok(Some(Precompiled::Module)) => Module::deserialize_file(engine, checked).map(Code::Module),
                _ => Component::deserialize_file(engine, checked).map(Code::Component),
            }
        };
        match code {
            Ok(code) => Some(code),
            Err(error) => {
                tracing::warn!(path = %path.display(), error = format!("{error:#}"), "compiled code does not fit");
                None
            }
        }
    }

    /// Compiles a module into the cache, in a process of its own.
    fn compile(&self, module: &Path, digest: &str, name: &str) -> Result<(), Failure> {
        let mut input = File::open(module).map_err(|cause| io_failure("open", module, cause))?;
        self.check(&mut input, module, digest)?;
        let started = std::time::Instant::now();
        let orders = serde_json::to_string(&self.orders).expect("two numbers are JSON");
        let mut command = std::process::Command::new("/proc/self/exe");
        command.args(&self.compile_args).arg(orders).env_clear().current_dir("/");
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawned = command.spawn().map_err(|cause| io_failure("start the compiler for", module, cause))?;
        // It writes its code as a whole when it is done, and a complaint only instead of it.
        let output = spawned.wait_with_output().map_err(|cause| io_failure("compile", module, cause))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said: String = said.trim().chars().take(LONGEST_COMPLAINT).collect();
            return Err(match output.status.code() {
                Some(REFUSED) => Failure::Module { why: format!("not valid WebAssembly: {said}") },
                Some(_) => Failure::Module { why: format!("compiling failed: {said}") },
                None => Failure::Module {
                    why: format!(
                        "compiling was ended by its limits of {} MiB and {} s ({}) {said}",
                        self.orders.memory_bytes >> 20,
                        self.orders.cpu_seconds,
                        output.status,
                    ),
                },
            });
        }
        let code = output.stdout;
        let mac = self.mac(name, &code[..]).map_err(|cause| io_failure("read", module, cause))?;
        self.write(&format!("{name}.cwasm"), &code)?;
        self.write(&format!("{name}.mac"), &mac.finalize().into_bytes())?;
        tracing::info!(digest, bytes = code.len(), millis = started.elapsed().as_millis() as u64, "compiled");
        Ok(())
    }

    /// That the file is what the digest says, and something this host runs.
    fn check(&self, file: &mut File, path: &Path, digest: &str) -> Result<(), Failure> {
        use std::io::Seek;
        let failed = |cause| io_failure("read", path, cause);
        let mut hash = Sha256::new();
        let mut head = Vec::new();
        let mut chunk = vec![0; 256 << 10];
        loop {
            let len = file.read(&mut chunk).map_err(failed)?;
            if len == 0 {
                break;
            }
            hash.update(&chunk[..len]);
            head.extend(chunk[..len].iter().take(MAGIC.len() - head.len().min(MAGIC.len())));
        }
        file.rewind().map_err(failed)?;
        let found = format!("sha256:{}", to_hex(&hash.finalize()));
        if !found.eq_ignore_ascii_case(digest) {
            return Err(Failure::Spec { why: format!("{} is {found}, not {digest}", path.display()) });
        }
        if !head.starts_with(MAGIC) {
            let why = "this is not WebAssembly: it does not begin with \\0asm".to_owned();
            return Err(Failure::Module { why });
        }
        Ok(())
    }

    /// Puts a file under its name as a whole: who has an earlier one mapped keeps that.
    fn write(&self, name: &str, content: &[u8]) -> Result<(), Failure> {
        let path = self.dir.join(name);
        let temporary = self.dir.join(format!("{name}.{}.new", std::process::id()));
        let written = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary);
        let written =
            written.and_then(|mut file| file.write_all(content)).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|cause| {
            let _ = fs::remove_file(&temporary);
            io_failure("write", &path, cause)
        })
    }
}

/// The key of the MACs, made by whoever comes first.
fn key(dir: &Path) -> io::Result<[u8; 32]> {
    let path = dir.join("mac.key");
    loop {
        match fs::read(&path) {
            Ok(key) => {
                if let Ok(key) = key.try_into() {
                    return Ok(key);
                }
                fs::remove_file(&path)?; // not one that this made: what it signed is compiled anew
            }
            Err(cause) if cause.kind() == ErrorKind::NotFound => {}
            Err(cause) => return Err(cause),
        }
        let key: [u8; 32] = rand::random();
        let temporary = dir.join(format!("mac.key.{}.new", std::process::id()));
        let _ = fs::remove_file(&temporary);
        OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?.write_all(&key)?;
        let linked = fs::hard_link(&temporary, &path); // unlike a rename, never over another's
        fs::remove_file(&temporary)?;
        match linked {
            Err(cause) if cause.kind() != ErrorKind::AlreadyExists => return Err(cause),
            _ => {}
        }
    }
}

/// What the processor can do, as the kernel lists it.
fn processor() -> io::Result<String> {
    let all = fs::read_to_string("/proc/cpuinfo")?;
    let line = all.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    Ok(line.unwrap_or_default().to_owned())
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // writing to a string does not fail
        hex
    })
}
