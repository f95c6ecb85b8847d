//! Pod networks that CNI plugins make, where the node's administrator configured them.
//!
//! The runtime's side of the CNI specification, versions 0.1.0 to 1.1.0 (<https://www.cni.dev/docs/spec/>): the first
//! configuration of a directory, its plugins one after the other, and the same backwards when the pod goes. `CHECK` and
//! `GC` are not asked for, as kubelets ask for neither.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::{Error, PortMapping};

/// What a pod's interface is called.
const INTERFACE: &str = "eth0";
/// For each call of a plugin. A kubelet waits two minutes for a whole pod.
const DEADLINE: Duration = Duration::from_secs(60);
/// The versions that are spoken here, lowest first.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// From which on a plugin is told what it made when it takes it back.
const REMEMBERS: usize = 4;
/// From which on one can be asked whether it is ready.
const HAS_STATUS: usize = 6;

/// Where configurations and plugins are.
#[derive(Clone, Debug)]
pub struct Plugins {
    /// For example `/etc/cni/net.d`.
    pub configurations: PathBuf,
    /// For example `/opt/cni/bin`; the first that has a plugin is taken.
    pub binaries: Vec<PathBuf>,
}

/// One network: plugins that each add something to a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    name: String,
    /// One of [`VERSIONS`].
    version: usize,
    plugins: Vec<Map<String, Value>>,
}

/// What plugins are told of a pod.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// The sandbox's.
    pub id: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Its mounted network namespace.
    pub netns: PathBuf,
    pub ports: Vec<PortMapping>,
    /// Its annotations, name servers and the like: what a plugin with the capability of this name is given.
    pub capabilities: Map<String, Value>,
}

/// What the plugins made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Those of the pod's interface, the main one first.
    pub addresses: Vec<IpAddr>,
    /// The last plugin's answer, which [`Plugins::del`] wants.
    pub result: String,
}

impl Plugins {
    /// The first configuration in the directory, by the names of its files.
    ///
    /// # Errors
    /// [`Error::Unconfigured`] without one; [`Error::Configuration`] if it cannot be used.
    pub fn configuration(&self) -> Result<Configuration, Error> {
        let entries = match fs::read_dir(&self.configurations) {
            Ok(entries) => entries,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Unconfigured(self.configurations.clone()));
            }
            Err(cause) => return Err(unusable(&self.configurations, cause.to_string())),
        };
        let is_one = |path: &PathBuf| {
            path.extension()
                .is_some_and(|extension| ["conflist", "conf", "json"].iter().any(|one| extension == *one))
        };
        let first = entries.flatten().map(|entry| entry.path()).filter(is_one).min();
        let path = first.ok_or_else(|| Error::Unconfigured(self.configurations.clone()))?;
        let text = fs::read_to_string(&path).map_err(|cause| unusable(&path, cause.to_string()))?;
        Configuration::parse(&text).map_err(|why| unusable(&path, why))
    }

    /// Whether the network can take pods now: what its plugins answer to `STATUS`, which they have since version 1.1.0.
    ///
    /// # Errors
    /// As [`Self::configuration`]; [`Error::Plugin`] with a plugin's reason.
    pub async fn status(&self) -> Result<(), Error> {
        let configuration = self.configuration()?;
        if configuration.version < HAS_STATUS {
            return Ok(());
        }
        for plugin in &configuration.plugins {
            self.call("STATUS", plugin, configuration.input(plugin, None, None), None).await?;
        }
        Ok(())
    }

    /// Connects a pod. After an error, [`Self::del`] takes back what was done.
    ///
    /// # Errors
    /// [`Error::Plugin`] with a plugin's reason.
    pub async fn add(&self, configuration: &Configuration, pod: &Pod) -> Result<Attached, Error> {
        let mut result = None;
        for plugin in &configuration.plugins {
            let input = configuration.input(plugin, Some(pod), result.as_ref());
            result = Some(self.call("ADD", plugin, input, Some(pod)).await?);
        }
        let result = result.unwrap_or_default();
        let addresses = addresses(&result);
        if addresses.is_empty() {
            let what = configuration.name.clone();
            return Err(Error::Plugin { what, why: "it gave the pod no address".to_owned() });
        }
        Ok(Attached { addresses, result: result.to_string() })
    }

    /// Disconnects a pod; `result` is that of [`Self::add`], empty if it did not return. A repeat is no error.
    ///
    /// # Errors
    /// [`Error::Plugin`] with a plugin's reason; then a repeat may go on from there.
    pub async fn del(&self, configuration: &Configuration, pod: &Pod, result: &str) -> Result<(), Error> {
        let result: Option<Value> = serde_json::from_str(result).ok();
        let before = result.as_ref().filter(|_| configuration.version >= REMEMBERS);
        for plugin in configuration.plugins.iter().rev() {
            let input = configuration.input(plugin, Some(pod), before);
            self.call("DEL", plugin, input, Some(pod)).await?;
        }
        Ok(())
    }

    /// Runs one plugin once and gives its answer, if it gives one.
    async fn call(
        &self,
        command: &'static str,
        plugin: &Map<String, Value>,
        input: Value,
        pod: Option<&Pod>,
    ) -> Result<Value, Error> {
        let name = plugin["type"].as_str().unwrap_or_default();
        let failed = |why: String| Error::Plugin { what: format!("{name} {command}"), why };
        let binary = self.binaries.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        let binary = binary.ok_or_else(|| {
            let places: Vec<_> = self.binaries.iter().map(|dir| dir.display().to_string()).collect();
            failed(format!("there is no such plugin in {}", places.join(", ")))
        })?;
        let path = std::env::join_paths(&self.binaries).map_err(|cause| failed(cause.to_string()))?;
        let mut process = tokio::process::Command::new(binary);
        process.env("CNI_COMMAND", command).env("CNI_PATH", path);
        if let Some(pod) = pod {
            process.envs(environment(pod));
        }
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let run = async {
            let mut process = process.spawn()?;
            let mut stdin = process.stdin.take().expect("it is piped");
            // One that does not read says why when it ends.
            let _ = stdin.write_all(input.to_string().as_bytes()).await;
            drop(stdin);
            process.wait_with_output().await
        };
        let output = tokio::time::timeout(DEADLINE, run)
            .await
            .map_err(|_| failed(format!("it did not end within {} s", DEADLINE.as_secs())))?
            .map_err(|cause| failed(cause.to_string()))?;
        let answer = serde_json::from_slice(&output.stdout).unwrap_or_default();
        match output.status.success() {
            true => Ok(answer),
            false => Err(failed(reason(&answer, &output.stderr, output.status))),
        }
    }
}

impl Configuration {
    /// Of a list's file, or of one plugin's.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn parse(text: &str) -> Result<Self, String> {
        let whole: Value = serde_json::from_str(text).map_err(|cause| cause.to_string())?;
        let said = |field: &str| whole[field].as_str().unwrap_or_default().to_owned();
        let plugins = match &whole["plugins"] {
            Value::Null => vec![whole.as_object().cloned().ok_or("it is no JSON object")?],
            Value::Array(plugins) if !plugins.is_empty() => {
                let all = plugins.iter().map(|plugin| plugin.as_object().cloned());
                all.collect::<Option<_>>().ok_or("one of its plugins is no JSON object")?
            }
            _ => return Err("it has no plugins".to_owned()),
        };
        for plugin in &plugins {
            let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
            if kind.is_empty() || kind.contains('/') {
                return Err(format!("{kind:?} is no type of a plugin"));
            }
        }
        let name = said("name");
        if name.is_empty() {
            return Err("it has no name".to_owned());
        }
        // A list may offer several (1.1.0); what names none is of the first version.
        let offered = whole["cniVersions"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut offered: Vec<String> = offered.map(str::to_owned).chain([said("cniVersion")]).collect();
        if offered.iter().all(String::is_empty) {
            offered = vec![VERSIONS[0].to_owned()];
        }
        let version = VERSIONS.iter().rposition(|version| offered.iter().any(|one| one == version));
        let version =
            version.ok_or_else(|| format!("version {} of CNI is not known here", offered.join(", ")))?;
        Ok(Self { name, version, plugins })
    }

    /// What a plugin reads.
    fn input(&self, plugin: &Map<String, Value>, pod: Option<&Pod>, before: Option<&Value>) -> Value {
        let mut input = plugin.clone();
        let wanted = input.remove("capabilities");
        input.insert("name".to_owned(), self.name.clone().into());
        input.insert("cniVersion".to_owned(), VERSIONS[self.version].into());
        if let (Some(Value::Object(wanted)), Some(pod)) = (wanted, pod) {
            let is_wanted = |name: &String| wanted.get(name) == Some(&Value::Bool(true));
            let ports = (!pod.ports.is_empty()).then(|| ("portMappings".to_owned(), ports(&pod.ports)));
            let offered = pod.capabilities.clone().into_iter().chain(ports);
            let given: Map<String, Value> = offered.filter(|(name, _)| is_wanted(name)).collect();
            if !given.is_empty() {
                input.insert("runtimeConfig".to_owned(), given.into());
            }
        }
        if let Some(before) = before {
            input.insert("prevResult".to_owned(), before.clone());
        }
        input.into()
    }
}

impl std::fmt::Display for Configuration {
    /// As [`Configuration::parse`] reads it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        json!({ "name": self.name, "cniVersion": VERSIONS[self.version], "plugins": self.plugins }).fmt(f)
    }
}

fn unusable(path: &Path, why: String) -> Error {
    Error::Configuration { path: path.to_owned(), why }
}

fn environment(pod: &Pod) -> [(&'static str, OsString); 4] {
    let Pod { id, namespace, name, uid, .. } = pod;
    let arguments = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
    );
    [
        ("CNI_CONTAINERID", id.into()),
        ("CNI_NETNS", pod.netns.clone().into()),
        ("CNI_IFNAME", INTERFACE.into()),
        ("CNI_ARGS", arguments.into()),
    ]
}

fn ports(ports: &[PortMapping]) -> Value {
    let port = |port: &PortMapping| {
        json!({
            "hostPort": port.host_port,
            "containerPort": port.port,
            "protocol": port.protocol.as_str(),
            "hostIP": port.host_ip.map(|address| address.to_string()).unwrap_or_default(),
        })
    };
    ports.iter().map(port).collect()
}

/// The addresses of the pod's interface that a result names.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let interfaces = result["interfaces"].as_array();
    let is_pods = |ip: &&Value| match (ip["interface"].as_u64(), interfaces) {
        (Some(at), Some(all)) => {
            let interface = all.get(usize::try_from(at).unwrap_or(usize::MAX));
            interface.is_some_and(|one| {
                one["name"] == INTERFACE && !one["sandbox"].as_str().unwrap_or_default().is_empty()
            })
        }
        _ => true,
    };
    let listed = result["ips"].as_array().into_iter().flatten().filter(is_pods).map(|ip| &ip["address"]);
    // Before version 0.3.0 there was one of each family.
    let early = [&result["ip4"]["ip"], &result["ip6"]["ip"]];
    let address = |text: &Value| text.as_str()?.split('/').next()?.parse().ok();
    listed.chain(early).filter_map(address).collect()
}

/// Why a plugin failed: its own words.
fn reason(answer: &Value, stderr: &[u8], status: ExitStatus) -> String {
    let said = |field: &str| answer[field].as_str().unwrap_or_default().trim().to_owned();
    let words = match said("msg") {
        words if words.is_empty() => String::from_utf8_lossy(stderr).trim().to_owned(),
        words => words,
    };
    let all: Vec<String> = [words, said("details")].into_iter().filter(|words| !words.is_empty()).collect();
    if all.is_empty() { format!("it ended without a word: {status}") } else { all.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(text: &Value) -> Configuration {
        Configuration::parse(&text.to_string()).unwrap()
    }

    #[test]
    fn a_plugin_is_told_what_it_declares_and_what_came_before() {
        let portmap = json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true, "dns": false } });
        let list = configuration(&json!({ "name": "pods", "cniVersion": "1.0.0", "plugins": [portmap] }));
        let port = PortMapping { protocol: crate::Protocol::Udp, host_ip: None, host_port: 53, port: 5353 };
        let mut pod = Pod { ports: vec![port], ..Pod::default() };
        pod.capabilities.insert("dns".to_owned(), json!({ "servers": ["10.0.0.10"] }));
        let ports = json!([{ "hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "" }]);
        let told = json!({
            "type": "portmap", "snat": true, "name": "pods", "cniVersion": "1.0.0",
            "runtimeConfig": { "portMappings": ports }, "prevResult": { "ips": [] },
        });
        assert_eq!(list.input(&list.plugins[0], Some(&pod), Some(&json!({ "ips": [] }))), told);
        let alone = json!({ "type": "portmap", "snat": true, "name": "pods", "cniVersion": "1.0.0" });
        assert_eq!(list.input(&list.plugins[0], Some(&Pod::default()), None), alone);
        assert_eq!(Configuration::parse(&list.to_string()), Ok(list.clone()));
    }

    #[test]
    fn the_highest_version_that_both_know_is_spoken() {
        let plugins = json!([{ "type": "bridge" }]);
        let version = |versions: Value, version: Value| {
            let list =
                json!({ "name": "n", "cniVersion": version, "cniVersions": versions, "plugins": plugins });
            Configuration::parse(&list.to_string()).map(|list| VERSIONS[list.version])
        };
        assert_eq!(version(json!(["0.3.1", "1.1.0", "9.0.0"]), json!("0.4.0")), Ok("1.1.0"));
        assert_eq!(version(Value::Null, json!("0.3.1")), Ok("0.3.1"));
        assert_eq!(version(Value::Null, Value::Null), Ok("0.1.0"));
        assert_eq!(
            version(Value::Null, json!("9.0.0")),
            Err("version 9.0.0 of CNI is not known here".to_owned())
        );
    }

    #[test]
    fn what_is_no_configuration_says_why() {
        let why = |text: &str| Configuration::parse(text).unwrap_err();
        assert_eq!(why("[]"), "it is no JSON object");
        assert_eq!(why(r#"{"name": "n", "plugins": []}"#), "it has no plugins");
        assert_eq!(why(r#"{"type": "bridge"}"#), "it has no name");
        assert_eq!(
            why(r#"{"name": "n", "type": "../../bin/sh"}"#),
            "\"../../bin/sh\" is no type of a plugin"
        );
        assert_eq!(why("{"), "EOF while parsing an object at line 1 column 1");
    }

    #[test]
    fn the_first_file_by_name_counts_and_others_kinds_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let plugins = Plugins { configurations: dir.path().join("net.d"), binaries: Vec::new() };
        assert!(matches!(plugins.configuration(), Err(Error::Unconfigured(_))));
        fs::create_dir(&plugins.configurations).unwrap();
        let write = |name: &str, text: &str| fs::write(plugins.configurations.join(name), text).unwrap();
        write("00-readme.txt", "no configuration");
        write("10-b.conflist", r#"{"name": "second", "plugins": [{"type": "bridge"}]}"#);
        write("05-a.conf", r#"{"name": "first", "type": "ptp"}"#);
        assert_eq!(plugins.configuration().unwrap().name, "first");
    }

    #[test]
    fn addresses_are_those_of_the_pods_end() {
        let result = json!({
            "interfaces": [{ "name": "cni0" }, { "name": "eth0", "sandbox": "/run/netns/pod" }],
            "ips": [
                { "address": "10.0.0.1/24", "interface": 0 },
                { "address": "10.0.0.7/24", "interface": 1 },
                { "address": "fd00::7/64", "interface": 1 },
            ],
        });
        let expected: Vec<IpAddr> = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        assert_eq!(addresses(&result), expected);
        assert_eq!(addresses(&json!({ "ip4": { "ip": "10.0.0.7/24" } })), expected[..1]);
        assert!(addresses(&json!({})).is_empty());
    }

    #[tokio::test]
    async fn a_plugin_that_is_missing_or_fails_is_named_with_its_reason() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let plugins =
            Plugins { configurations: dir.path().to_owned(), binaries: vec![dir.path().join("bin")] };
        let list = configuration(&json!({ "name": "n", "type": "broken" }));
        let why = |error: Error| error.to_string();
        let missing = plugins.add(&list, &Pod::default()).await.map_err(why).unwrap_err();
        assert!(
            missing.starts_with("the CNI plugin broken ADD failed: there is no such plugin in "),
            "{missing}"
        );
        fs::create_dir(&plugins.binaries[0]).unwrap();
        let broken = plugins.binaries[0].join("broken");
        fs::write(&broken, "#!/bin/sh\necho '{\"code\": 11, \"msg\": \"no more addresses\"}'; exit 1\n")
            .unwrap();
        fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
        let failed = plugins.del(&list, &Pod::default(), "").await.map_err(why).unwrap_err();
        assert_eq!(failed, "the CNI plugin broken DEL failed: no more addresses");

        // Asked whether it is ready, which plugins can be since 1.1.0.
        for (version, ready) in [("1.0.0", true), ("1.1.0", false)] {
            let list = json!({ "name": "n", "cniVersion": version, "type": "broken" });
            fs::write(plugins.configurations.join("10-n.conf"), list.to_string()).unwrap();
            assert_eq!(plugins.status().await.is_ok(), ready, "{version}");
        }
    }
}
