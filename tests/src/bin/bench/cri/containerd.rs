//! Debian's containerd with Debian's crun, runc and CNI plugins, configured as is usual, its files in a folder.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use serde_json::json;
use wharf_tests::{CriServer, hide_second_cgroups};

use super::images::PAUSE;

/// Covers what containerd writes to outside of its folders, in this mount namespace; crun does not understand a machine that
/// has both versions of cgroups, so it is shown the first alone.
pub fn make_room() -> anyhow::Result<()> {
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).context("cover /run")?;
    hide_second_cgroups()
}

pub fn start(dir: &Path, registry: &str) -> anyhow::Result<CriServer> {
    let (cni, hosts) = (dir.join("cni"), dir.join("hosts/_default"));
    fs::create_dir_all(&cni)?;
    fs::create_dir_all(&hosts)?;
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.89.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}], "dataDir": dir.join("ipam")});
    let network = json!({"cniVersion": "0.4.0", "name": "bench", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    fs::write(cni.join("10-bench.conflist"), network.to_string())?;
    fs::write(
        hosts.join("hosts.toml"),
        format!("server = \"{registry}\"\n[host.\"{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"),
    )?;
    let socket = dir.join("containerd.sock");
    let runtime = |name: &str| {
        format!(
            r#"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
        BinaryName = "{name}"
"#
        )
    };
    let config = format!(
        r#"
version = 2
root = "{dir}/root"
state = "{dir}/state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{hosts}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
{crun}{runc}"#,
        dir = dir.display(),
        socket = socket.display(),
        cni = cni.display(),
        hosts = dir.join("hosts").display(),
        crun = runtime("crun"),
        runc = runtime("runc"),
    );
    let file = dir.join("config.toml");
    fs::write(&file, config)?;
    let mut command = Command::new("containerd");
    command.arg("--config").arg(&file);
    CriServer::start(command, socket, &dir.join("containerd.log"))
}
