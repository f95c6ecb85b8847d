//! Builds the programs, the guests and the static example, and knows where they are.

mod claim;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::{Result, command, nothing_more, phase::Phases, prepare};

/// Where things are.
pub struct Places {
    /// The clone.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    /// The triple that this machine's programs are built for.
    host: String,
    /// The target directory is this clone's until it is dropped.
    _claim: claim::Claim,
}

impl Places {
    pub fn find() -> Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let manifest = manifest.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = manifest.ancestors().nth(2).ok_or("tests/xtask is two folders deep")?.to_owned();
        // This program is DIR/debug/xtask, however cargo was told of DIR.
        let own = std::env::current_exe()?;
        let target = own.ancestors().nth(2).ok_or("cargo puts programs into DIR/PROFILE")?.to_owned();
        let version = command::output(Command::new(rustc_name()).arg("-vV"))?;
        let host =
            version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc names no host")?;
        let claim = claim::Claim::on(&target, &root)?;
        Ok(Self { root, target, host: host.to_owned(), _claim: claim })
    }

    /// Cargo, in the clone, with this target directory.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        // What cargo told this program about itself is not about what it builds next.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST") {
                cargo.env_remove(&name);
            }
        }
        cargo
    }

    pub fn rustc(&self) -> Command {
        let mut rustc = Command::new(rustc_name());
        rustc.current_dir(&self.root);
        rustc
    }

    fn program(&self, name: &str) -> PathBuf {
        self.target.join("debug").join(name)
    }

    pub fn wharf(&self) -> PathBuf {
        self.program("wharf")
    }

    pub fn wctl(&self) -> PathBuf {
        self.program("wctl")
    }

    /// Guests have a target directory of their own: their flags and features touch nothing of the programs'.
    pub fn guest_target(&self) -> PathBuf {
        self.target.join("guests")
    }

    /// The folder of the components.
    pub fn guests(&self) -> PathBuf {
        self.guest_target().join("wasm32-wasip2/guest")
    }

    /// The static HTTP server.
    pub fn clock(&self) -> PathBuf {
        self.guest_target().join(&self.host).join("guest/clock")
    }

    /// Tells a test or bench where everything is.
    pub fn tell(&self, command: &mut Command) {
        command
            .env("WHARF_BIN", self.wharf())
            .env("WCTL_BIN", self.wctl())
            .env("WHARF_GUESTS", self.guests())
            .env("WHARF_CLOCK", self.clock());
    }
}

fn rustc_name() -> std::ffi::OsString {
    std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

/// `cargo xtask build`
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    nothing_more(arguments)?;
    let (mut phases, places) = (Phases::new(), Places::find()?);
    phases.run("prepare", || prepare::run(&places, false))?;
    all(&mut phases, &places)?;
    phases.summary();
    Ok(ExitCode::SUCCESS)
}

/// Everything that the demo, the tests and the benches run.
pub fn all(phases: &mut Phases, places: &Places) -> Result<()> {
    phases.run("build the programs", || programs(places))?;
    phases.run("build the guests", || guests(places))?;
    phases.run("build the clock, static", || clock(places))
}

/// wharf, wctl and the benches. All default members are asked for, as the tests do: with fewer, cargo would choose fewer
/// features of shared dependencies, and compile those twice.
fn programs(places: &Places) -> Result<()> {
    command::shown(places.cargo().args(["build", "--locked"]))
}

/// The components, and the command once more as a core module, which lies beside them under its own target.
fn guests(places: &Places) -> Result<()> {
    let builds: [&[&str]; 2] = [
        &["-p", "greeter", "-p", "wharf-guests", "--target", "wasm32-wasip2"],
        &["-p", "wharf-guests", "--bin", "guest-command", "--target", "wasm32-wasip1"],
    ];
    for build in builds {
        let mut cargo = places.cargo();
        cargo.args(["build", "--locked"]).args(build);
        command::shown(cargo.args(["--profile", "guest", "--target-dir"]).arg(places.guest_target()))?;
    }
    Ok(())
}

fn clock(places: &Places) -> Result<()> {
    let mut cargo = places.cargo();
    // With the target named, cargo keeps these flags from build scripts and from everything built without them.
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.args(["build", "--locked", "-p", "clock", "--target", &places.host]);
    command::shown(cargo.args(["--profile", "guest", "--target-dir"]).arg(places.guest_target()))
}
