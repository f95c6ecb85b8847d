//! Tests on another kernel: the runtime's, with cgroup v2 alone, in a virtual machine.
//!
//! Debian's cloud kernel boots under QEMU without hardware's help, with the host's root as its own (virtiofs below an
//! overlay in memory), so that the test programs that were just built run as they are. Where the machine cannot do
//! that, the tests are skipped with the reason.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::build::Places;
use crate::{Result, command, prepare};

/// Test programs that are about cgroups, mounts and namespaces: file of the source below a crate's folder.
const PROGRAMS: [&str; 8] = [
    "tests/containers.rs",
    "tests/deaths.rs",
    "tests/execs.rs",
    "tests/users.rs",
    "tests/network.rs",
    "tests/kills.rs",
    "tests/handlers.rs",
    "tests/cni.rs",
];
/// Of the kernel package; what they depend on comes with them.
const MODULES: [&str; 22] = [
    "virtio_pci",
    "virtiofs",
    "virtio_blk",
    "ext4",
    "overlay",
    "bridge",
    "veth",
    "dummy",
    // nft, and iptables over it.
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_ct",
    "nft_fib_ipv4",
    "nft_fib_inet",
    "nft_compat",
    "xt_comment",
    "xt_addrtype",
    "xt_mark",
    "xt_MASQUERADE",
    "xt_nat",
    "xt_multiport",
];
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
const MEMORY: &str = "3G";
/// The size of its own disk, of which the host's file system gives what is used.
const DISK: u64 = 8 << 30;
/// Seconds until QEMU is ended: some ten times what the tests take.
const DEADLINE: u64 = 1800;

/// Runs the tests in the machine and hands on each line that they say. `Some` is why there is none.
pub fn tests(places: &Places, mut heard: impl FnMut(&str)) -> Result<Option<String>> {
    let programs = programs(places)?;
    let mut results = 0;
    let skipped = run(places, &script_for(&programs), |line| {
        results += usize::from(line.starts_with("test result: "));
        heard(line);
    })?;
    // It ends in the same way when it could not begin, or panicked.
    match skipped.is_some() || results == programs.len() {
        true => Ok(skipped),
        false => Err(format!("{results} of {} test programs told a result", programs.len()).into()),
    }
}

/// Runs a script in the machine, which knows what [`Places::tell`] tells, and hands on each line that it says. `Some` is why
/// there is no machine.
pub fn run(places: &Places, script: &str, heard: impl FnMut(&str)) -> Result<Option<String>> {
    if std::env::consts::ARCH != "x86_64" {
        return Ok(Some(format!("no kernel is chosen for {}", std::env::consts::ARCH)));
    }
    if let Err(error) = prepare::for_vm() {
        return Ok(Some(error.to_string()));
    }
    if !Path::new(VIRTIOFSD).exists() {
        return Ok(Some(format!("{VIRTIOFSD} is not there; Debian 12 has it in qemu-system-common")));
    }
    let dir = places.target.join("vm");
    fs::create_dir_all(&dir)?;
    let kernel = match Kernel::fetch(&dir) {
        Ok(kernel) => kernel,
        Err(error) => return Ok(Some(format!("no kernel: {error}"))),
    };
    let file = dir.join("script.sh");
    let mut told = Command::new("true");
    places.tell(&mut told);
    let told = told.get_envs().map(|(name, value)| {
        format!("export {}='{}'\n", name.to_string_lossy(), value.unwrap_or_default().to_string_lossy())
    });
    let paths = "export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n";
    fs::write(&file, format!("{paths}{}{script}", told.collect::<String>()))?;
    let initrd = kernel.initrd(&dir, &[&places.root, &places.target], &file)?;
    boot(&kernel, &initrd, &disk(&dir)?, heard)?;
    Ok(None)
}

/// A test program and the folder of its crate.
struct Program {
    source: String,
    path: PathBuf,
    folder: PathBuf,
}

/// Where cargo put the programs: it says `Executable tests/deaths.rs (DIR/deaths-0123)`.
fn programs(places: &Places) -> Result<Vec<Program>> {
    let mut cargo = places.cargo();
    let said = command::quiet(cargo.args(["test", "--locked", "--no-run", "--color", "never"]))?;
    let mut found = Vec::new();
    for line in said.lines().filter_map(|line| line.trim().strip_prefix("Executable ")) {
        let Some((source, path)) = line.strip_suffix(')').and_then(|line| line.split_once(" (")) else {
            continue;
        };
        if !PROGRAMS.contains(&source) {
            continue;
        }
        // Names of sources are relative to their crate; these are one of a kind.
        let crates = fs::read_dir(places.root.join("runtime"))?.flatten().map(|entry| entry.path());
        let mut crates = crates.chain([places.root.join("tests")]);
        let folder = crates.find(|folder| folder.join(source).exists());
        let folder = folder.ok_or_else(|| format!("no crate of runtime/ or tests/ has {source}"))?;
        let path = if Path::new(path).is_absolute() { path.into() } else { places.root.join(path) };
        found.push(Program { source: source.to_owned(), path, folder });
    }
    match found.len() == PROGRAMS.len() {
        true => Ok(found),
        false => Err(format!("cargo named {} of {} test programs", found.len(), PROGRAMS.len()).into()),
    }
}

/// Says before each program what cargo would, so that its results are counted as the others are.
fn script_for(programs: &[Program]) -> String {
    let mut script = String::new();
    for Program { source, path, folder } in programs {
        let (path, folder) = (path.display(), folder.display());
        script.push_str(&format!(
            "echo '     Running {source} ({path})'\ncd '{folder}' && '{path}' --color never 2>&1\n"
        ));
    }
    script
}

/// An unpacked kernel package.
struct Kernel {
    dir: PathBuf,
    version: String,
}

impl Kernel {
    /// Debian's cloud kernel, downloaded once; nothing is installed.
    fn fetch(dir: &Path) -> Result<Self> {
        let depends =
            command::output(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
        let version = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        let version = version.ok_or("apt knows no linux-image-cloud-amd64; `apt-get update` may help")?;
        let kernel = Self { dir: dir.join(version), version: version.to_owned() };
        if kernel.image().exists() && kernel.modules().join("modules.dep").exists() {
            return Ok(kernel);
        }
        let fresh = dir.join("unpacked");
        let _ = fs::remove_dir_all(&fresh);
        let _ = fs::remove_dir_all(&kernel.dir);
        fs::create_dir_all(&fresh)?;
        // `_apt` cannot write here, and says so, but root downloads then.
        command::quiet(
            Command::new("apt-get").args(["download", &format!("linux-image-{version}")]).current_dir(&fresh),
        )?;
        let archive = fs::read_dir(&fresh)?.flatten().map(|entry| entry.path()).next();
        let archive = archive.ok_or("apt-get downloaded nothing")?;
        command::quiet(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(fresh.join("files")))?;
        let files = fresh.join("files");
        command::quiet(Command::new("busybox").args(["depmod", "-b"]).arg(&files).arg(&kernel.version))?;
        fs::rename(files, &kernel.dir)?;
        fs::remove_dir_all(fresh)?;
        Ok(kernel)
    }

    fn image(&self) -> PathBuf {
        self.dir.join(format!("boot/vmlinuz-{}", self.version))
    }

    fn modules(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.version)
    }

    /// The files of [`MODULES`] and of what they depend on, relative to [`Self::modules`].
    fn needed(&self) -> Result<BTreeSet<String>> {
        let table = fs::read_to_string(self.modules().join("modules.dep"))?;
        let mut needed = BTreeSet::new();
        for module in MODULES {
            let file = format!("/{module}.ko:");
            // One that the kernel has built in is in no line.
            if let Some(line) = table.lines().find(|line| line.contains(&file)) {
                needed.extend(line.replace(':', " ").split_whitespace().map(str::to_owned));
            }
        }
        Ok(needed)
    }

    /// The root that the kernel starts with: busybox, modules and `init.sh`.
    fn initrd(&self, dir: &Path, needs: &[&PathBuf], script: &Path) -> Result<PathBuf> {
        let root = dir.join("initrd");
        let _ = fs::remove_dir_all(&root);
        for name in ["bin", "dev", "host", "memory", "new", "proc", "sys"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        let modules = root.join("lib/modules").join(&self.version);
        for file in self.needed()? {
            let to = modules.join(&file);
            fs::create_dir_all(to.parent().unwrap_or(&modules))?;
            fs::copy(self.modules().join(&file), to)?;
        }
        fs::copy(self.modules().join("modules.dep"), modules.join("modules.dep"))?;
        let needs: Vec<String> = needs.iter().map(|path| path.display().to_string()).collect();
        let settings = format!(
            "modules='{}'\nneeds='{}'\nscript='sh {}'\n",
            MODULES.join(" "),
            needs.join(" "),
            script.display()
        );
        let init = include_str!("vm/init.sh").replacen('\n', &format!("\n{settings}"), 1);
        fs::write(root.join("init.sh"), init)?;
        let _ = fs::remove_file(root.join("init"));
        command::quiet(Command::new("chmod").arg("755").arg(root.join("init.sh")))?;
        symlink("/init.sh", root.join("init"))?;
        let initrd = dir.join("initrd.cpio");
        let pack =
            format!("cd '{}' && find . | busybox cpio -o -H newc >'{}'", root.display(), initrd.display());
        command::quiet(Command::new("sh").args(["-c", &pack]))?;
        Ok(initrd)
    }
}

/// An empty disk: unlike memory, its file system can be mapped to other users before Linux 6.3.
fn disk(dir: &Path) -> Result<PathBuf> {
    let disk = dir.join("disk");
    let _ = fs::remove_file(&disk);
    fs::File::create(&disk)?.set_len(DISK)?;
    command::quiet(Command::new("/sbin/mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&disk))?;
    Ok(disk)
}

/// Runs the machine to its end.
fn boot(kernel: &Kernel, initrd: &Path, disk: &Path, mut heard: impl FnMut(&str)) -> Result<()> {
    let socket = std::env::temp_dir().join(format!("wharf-vm-{}.sock", std::process::id()));
    let _files = Files::serve(&socket)?;
    let mut qemu = Command::new("timeout");
    qemu.args([
        &DEADLINE.to_string(),
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
    ]);
    qemu.args(["-m", MEMORY, "-object", &format!("memory-backend-memfd,id=memory,size={MEMORY},share=on")]);
    qemu.args(["-numa", "node,memdev=memory"]);
    qemu.arg("-chardev").arg(format!("socket,id=files,path={}", socket.display()));
    qemu.args(["-device", "vhost-user-fs-pci,chardev=files,tag=host"]);
    qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()));
    qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(initrd);
    // Without its own messages, which would come between those of the tests.
    qemu.args(["-append", "console=ttyS0 panic=-1 loglevel=0"]);
    qemu.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    let said = command::follow(&mut qemu, |line| heard(line.trim_end_matches('\r')))?;
    let _ = fs::remove_file(disk);
    match said.success {
        true => Ok(()),
        false => Err(format!("the virtual machine did not end well within {DEADLINE} s").into()),
    }
}

/// The server of the host's files.
struct Files {
    server: Child,
    socket: PathBuf,
}

impl Files {
    fn serve(socket: &Path) -> Result<Self> {
        let mut server = Command::new(VIRTIOFSD);
        server.arg(format!("--socket-path={}", socket.display()));
        // 0: the limit of open files stays; it may not be raised everywhere.
        server.args(["-o", "source=/", "-o", "sandbox=chroot", "--rlimit-nofile=0"]);
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut files = Self { server: server.spawn()?, socket: socket.to_owned() };
        while !socket.exists() {
            if let Some(status) = files.server.try_wait()? {
                return Err(format!("{VIRTIOFSD} ended at once: {status}").into());
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(files)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = fs::remove_file(&self.socket);
    }
}
