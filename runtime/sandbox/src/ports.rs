//! Ports of the node that lead to ports of its pods: one nftables table, changed by `nft` (Debian: nftables).
//!
//! Pods without host ports need neither. What the node itself sends to one of its addresses, 127.0.0.1 among them, is led
//! to the pod as what comes from elsewhere is.

use std::fmt;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::network::{BRIDGE, WASM_LINK, sysctl};
use crate::{Error, Network, Range};

const TABLE: &str = "wharf-ports";
/// Ports on every address of the node, and those on one alone.
const EVERYWHERE: &str = "everywhere";
const SOMEWHERE: &str = "somewhere";

/// A port of the node that leads to one of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMapping {
    pub protocol: Protocol,
    /// The address of the node whose port it is; `None` for all of them.
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl fmt::Display for PortMapping {
    /// `tcp 127.0.0.1:8080`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.protocol.as_str())?;
        if let Some(address) = self.host_ip {
            write!(f, "{address}:")?;
        }
        write!(f, "{}", self.host_port)
    }
}

impl Protocol {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl PortMapping {
    /// The map that it belongs into, and its key there.
    fn key(&self) -> (&'static str, String) {
        let key = format!("{} . {}", self.protocol.as_str(), self.host_port);
        match self.host_ip {
            Some(address) => (SOMEWHERE, format!("{address} . {key}")),
            None => (EVERYWHERE, key),
        }
    }
}

impl Network {
    /// Leads these ports of the node to the pod at `address`: all of them, or on an error none. Blocks for some
    /// milliseconds on a thread of its own.
    ///
    /// # Errors
    /// [`Error::PortTaken`] if another pod has one of them, [`Error::NoRange`], or what nft says.
    pub async fn publish(&self, address: Ipv4Addr, mappings: &[PortMapping]) -> Result<(), Error> {
        if mappings.is_empty() {
            return Ok(());
        }
        for link in [BRIDGE, WASM_LINK] {
            // What the node sends from 127.0.0.1 may leave by this link; the table refuses what would come in so.
            sysctl(&format!("net/ipv4/conf/{link}/route_localnet"), "1")?;
        }
        let mut script = table(self.range().ok_or(Error::NoRange)?);
        for mapping in mappings {
            let (map, key) = mapping.key();
            script +=
                &format!("create element ip {TABLE} {map} {{ {key} : {address} . {} }}\n", mapping.port);
        }
        run(script).await.map_err(|said| match said.contains("File exists") {
            true => {
                let all: Vec<String> = mappings.iter().map(ToString::to_string).collect();
                Error::PortTaken(all.join(", "))
            }
            false => Error::Nft(said),
        })
    }

    /// Takes back the ports that lead to an address that `gone` names, whoever published them. A repeat changes nothing.
    ///
    /// # Errors
    /// What nft says.
    pub async fn unpublish(&self, gone: impl Fn(Ipv4Addr) -> bool) -> Result<(), Error> {
        let listed = match nft(&["-j", "list", "table", "ip", TABLE], String::new()).await {
            Ok(listed) => listed,
            // Nothing was ever published.
            Err(said) if said.contains("No such file or directory") => return Ok(()),
            Err(said) => return Err(Error::Nft(said)),
        };
        let script: String = published(&listed)
            .into_iter()
            .filter(|(.., address)| gone(*address))
            .map(|(map, key, _)| format!("delete element ip {TABLE} {map} {{ {key} }}\n"))
            .collect();
        match script.is_empty() {
            true => Ok(()),
            false => run(script).await.map_err(Error::Nft),
        }
    }
}

/// What the table's maps hold, of `nft -j list table`: the map, the key in it and the pod's address.
fn published(listed: &str) -> Vec<(String, String, Ipv4Addr)> {
    let listed: Value = serde_json::from_str(listed).unwrap_or_default();
    let parts = |side: &Value| -> Option<Vec<String>> {
        let parts = side["concat"].as_array()?.iter();
        Some(parts.map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned)).collect())
    };
    let mut all = Vec::new();
    for map in listed["nftables"].as_array().into_iter().flatten().map(|entry| &entry["map"]) {
        for element in map["elem"].as_array().into_iter().flatten() {
            let name = map["name"].as_str().map(str::to_owned);
            let to = parts(&element[1]).and_then(|to| to.first()?.parse().ok());
            if let (Some(name), Some(key), Some(to)) = (name, parts(&element[0]), to) {
                all.push((name, key.join(" . "), to));
            }
        }
    }
    all
}

/// Makes the table, or makes it anew; what is in its maps stays.
fn table(pods: Range) -> String {
    let port = "inet_proto . inet_service";
    let mut script = format!(
        "add table ip {TABLE}\n\
         add map ip {TABLE} {EVERYWHERE} {{ type {port} : ipv4_addr . inet_service; }}\n\
         add map ip {TABLE} {SOMEWHERE} {{ type ipv4_addr . {port} : ipv4_addr . inet_service; }}\n"
    );
    // A pod that asks its neighbour by the node gets an answer by the node: it would not know the neighbour's.
    let leaving = format!("ct status dnat ip saddr {{ 127.0.0.0/8, {pods} }} masquerade");
    for (chain, hook, rules) in [
        (
            "to-pods",
            "",
            vec![
                format!("dnat ip to ip daddr . meta l4proto . th dport map @{SOMEWHERE}"),
                format!("dnat ip to meta l4proto . th dport map @{EVERYWHERE}"),
            ],
        ),
        (
            "guard",
            "{ type filter hook prerouting priority raw; }",
            vec!["iifname != \"lo\" ip daddr 127.0.0.0/8 drop".to_owned()],
        ),
        (
            "arriving",
            "{ type nat hook prerouting priority dstnat; }",
            vec!["fib daddr type local jump to-pods".to_owned()],
        ),
        (
            "sent",
            "{ type nat hook output priority -100; }",
            vec!["fib daddr type local jump to-pods".to_owned()],
        ),
        ("leaving", "{ type nat hook postrouting priority srcnat; }", vec![leaving]),
    ] {
        script += &format!("add chain ip {TABLE} {chain} {hook}\nflush chain ip {TABLE} {chain}\n");
        for rule in rules {
            script += &format!("add rule ip {TABLE} {chain} {rule}\n");
        }
    }
    script
}

/// Applies a script, whole or not at all; the error is nft's own words.
async fn run(script: String) -> Result<(), String> {
    nft(&["-f", "-"], script).await.map(drop)
}

/// What nft prints, asked with these arguments and this input.
async fn nft(arguments: &'static [&str], input: String) -> Result<String, String> {
    let run = move || {
        let mut nft = Command::new("nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|cause| format!("nft cannot be run, host ports need it (Debian: nftables): {cause}"))?;
        let mut stdin = nft.stdin.take().expect("it is piped");
        let written = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = nft.wait_with_output().map_err(|cause| cause.to_string())?;
        match (output.status.success(), written) {
            (true, Ok(())) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            _ => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    };
    tokio::task::spawn_blocking(run).await.expect("running a program does not panic")
}
