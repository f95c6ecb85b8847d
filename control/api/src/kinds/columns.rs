//! What `kubectl get` and `wctl get` show of each kind: the columns of a `Table`.

mod usage;
mod workloads;

pub use usage::*;
pub use workloads::*;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{entries, flag, list, name, number, terminating, text};

/// When a column is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    Always,
    /// With `-o wide`.
    Wide,
}

/// One column of a `Table`.
#[derive(Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer` or `date`.
    pub type_: &'static str,
    /// `name` for the column that names the object.
    pub format: &'static str,
    pub priority: Priority,
    pub cell: fn(&Value, Timestamp) -> Value,
}

const fn text_column(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Column {
    Column { name, type_: "string", format: "", priority: Priority::Always, cell }
}

const fn wide(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Column {
    Column { name, type_: "string", format: "", priority: Priority::Wide, cell }
}

const fn count(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Column {
    Column { name, type_: "integer", format: "", priority: Priority::Always, cell }
}

/// Every kind's first column.
pub const NAME: Column = Column {
    name: "Name",
    type_: "string",
    format: "name",
    priority: Priority::Always,
    cell: |o, _| json!(name(o)),
};

pub const AGE: Column = text_column("Age", |o, now| json!(age(text(o, "/metadata/creationTimestamp"), now)));

/// For kinds that name no columns.
pub const DEFAULT: &[Column] = &[NAME, AGE];

const CONTAINERS: Column = wide("Containers", |o, _| json!(containers(o, "name")));
const IMAGES: Column = wide("Images", |o, _| json!(containers(o, "image")));
const SELECTOR: Column = wide("Selector", |o, _| json!(label_selector(&o["spec"]["selector"])));

pub const CONFIG_MAP: &[Column] = &[
    NAME,
    count("Data", |o, _| json!(entries(o, "/data").count() + entries(o, "/binaryData").count())),
    AGE,
];

pub const SECRET: &[Column] = &[
    NAME,
    text_column("Type", |o, _| json!(text(o, "/type"))),
    count("Data", |o, _| json!(entries(o, "/data").count())),
    AGE,
];

pub const SERVICE_ACCOUNT: &[Column] =
    &[NAME, count("Secrets", |o, _| json!(list(o, "/secrets").len())), AGE];

pub const NAMESPACE: &[Column] = &[NAME, text_column("Status", |o, _| json!(text(o, "/status/phase"))), AGE];

pub const EVENT: &[Column] = &[
    text_column("Last Seen", |o, now| json!(age(last_seen(o), now))),
    text_column("Type", |o, _| json!(text(o, "/type"))),
    text_column("Reason", |o, _| json!(text(o, "/reason"))),
    text_column("Object", |o, _| {
        let kind = text(o, "/involvedObject/kind").to_lowercase();
        json!(format!("{kind}/{}", text(o, "/involvedObject/name")))
    }),
    wide("Subobject", |o, _| json!(text(o, "/involvedObject/fieldPath"))),
    wide("Source", |o, _| {
        let component = first_of(&[text(o, "/source/component"), text(o, "/reportingComponent")]);
        let host = first_of(&[text(o, "/source/host"), text(o, "/reportingInstance")]);
        json!(if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") })
    }),
    text_column("Message", |o, _| json!(text(o, "/message").trim())),
    wide("First Seen", |o, now| {
        let first = first_of(&[text(o, "/firstTimestamp"), text(o, "/eventTime")]);
        json!(age(first, now))
    }),
    Column {
        name: "Count",
        type_: "integer",
        format: "",
        priority: Priority::Wide,
        cell: |o, _| json!(number(o, "/count").or(number(o, "/series/count")).unwrap_or(1)),
    },
    Column { priority: Priority::Wide, ..NAME },
];

pub const LEASE: &[Column] =
    &[NAME, text_column("Holder", |o, _| json!(text(o, "/spec/holderIdentity"))), AGE];

pub const CERTIFICATE_REQUEST: &[Column] = &[
    NAME,
    AGE,
    text_column("SignerName", |o, _| json!(text(o, "/spec/signerName"))),
    text_column("Requestor", |o, _| json!(text(o, "/spec/username"))),
    text_column("RequestedDuration", |o, _| match number(o, "/spec/expirationSeconds") {
        Some(seconds) => json!(human_duration(seconds)),
        None => json!("<none>"),
    }),
    text_column("Condition", |o, _| {
        let has = |kind| list(o, "/status/conditions").iter().any(|one| text(one, "/type") == kind);
        let verdict = if has("Denied") {
            "Denied"
        } else if has("Approved") {
            "Approved"
        } else {
            "Pending"
        };
        let issued = !text(o, "/status/certificate").is_empty();
        let more = [(has("Failed"), "Failed"), (issued, "Issued")].into_iter().filter(|(holds, _)| *holds);
        let words: Vec<&str> = std::iter::once(verdict).chain(more.map(|(_, word)| word)).collect();
        json!(words.join(","))
    }),
];

pub const RUNTIME_CLASS: &[Column] = &[NAME, text_column("Handler", |o, _| json!(text(o, "/handler"))), AGE];

pub const PRIORITY_CLASS: &[Column] = &[
    NAME,
    count("Value", |o, _| json!(number(o, "/value").unwrap_or(0))),
    Column {
        name: "Global-Default",
        type_: "boolean",
        format: "",
        priority: Priority::Always,
        cell: |o, _| json!(flag(o, "/globalDefault")),
    },
    AGE,
    text_column("PreemptionPolicy", |o, _| json!(text(o, "/preemptionPolicy"))),
];

pub const ROLE: &[Column] = &[
    NAME,
    Column {
        name: "Created At",
        type_: "date",
        format: "",
        priority: Priority::Always,
        cell: |o, _| json!(text(o, "/metadata/creationTimestamp")),
    },
];

pub const ROLE_BINDING: &[Column] = &[
    NAME,
    text_column("Role", |o, _| json!(format!("{}/{}", text(o, "/roleRef/kind"), text(o, "/roleRef/name")))),
    AGE,
    wide("Users", |o, _| json!(subjects(o, "User"))),
    wide("Groups", |o, _| json!(subjects(o, "Group"))),
    wide("ServiceAccounts", |o, _| json!(subjects(o, "ServiceAccount"))),
];

pub const SERVICE: &[Column] = &[
    NAME,
    text_column("Type", |o, _| json!(text(o, "/spec/type"))),
    text_column("Cluster-IP", |o, _| json!(or_none(text(o, "/spec/clusterIP")))),
    text_column("External-IP", |o, _| json!(external_address(o))),
    text_column("Port(s)", |o, _| json!(service_ports(o))),
    AGE,
    wide("Selector", |o, _| json!(or_none(&pairs(&o["spec"]["selector"])))),
];

pub const DEPLOYMENT: &[Column] = &[
    NAME,
    text_column("Ready", |o, _| {
        let ready = number(o, "/status/readyReplicas").unwrap_or(0);
        json!(format!("{ready}/{}", number(o, "/spec/replicas").unwrap_or(1)))
    }),
    count("Up-to-date", |o, _| json!(number(o, "/status/updatedReplicas").unwrap_or(0))),
    count("Available", |o, _| json!(number(o, "/status/availableReplicas").unwrap_or(0))),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub const REPLICA_SET: &[Column] = &[
    NAME,
    count("Desired", |o, _| json!(number(o, "/spec/replicas").unwrap_or(1))),
    count("Current", |o, _| json!(number(o, "/status/replicas").unwrap_or(0))),
    count("Ready", |o, _| json!(number(o, "/status/readyReplicas").unwrap_or(0))),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub const NODE: &[Column] = &[
    NAME,
    text_column("Status", |o, _| json!(node_status(o))),
    text_column("Roles", |o, _| json!(or_none(&node_roles(o)))),
    AGE,
    text_column("Version", |o, _| json!(text(o, "/status/nodeInfo/kubeletVersion"))),
    wide("Internal-IP", |o, _| json!(node_address(o, "InternalIP"))),
    wide("External-IP", |o, _| json!(node_address(o, "ExternalIP"))),
    wide("OS-Image", |o, _| json!(or_unknown(text(o, "/status/nodeInfo/osImage")))),
    wide("Kernel-Version", |o, _| json!(or_unknown(text(o, "/status/nodeInfo/kernelVersion")))),
    wide("Container-Runtime", |o, _| json!(or_unknown(text(o, "/status/nodeInfo/containerRuntimeVersion")))),
];

pub const POD: &[Column] = &[
    NAME,
    text_column("Ready", |o, _| json!(PodSummary::of(o).ready())),
    text_column("Status", |o, _| json!(PodSummary::of(o).reason)),
    text_column("Restarts", |o, now| json!(PodSummary::of(o).restarts(now))),
    AGE,
    wide("IP", |o, _| {
        let first = list(o, "/status/podIPs").first().map_or("", |ip| text(ip, "/ip"));
        json!(or_none(first_of(&[first, text(o, "/status/podIP")])))
    }),
    wide("Node", |o, _| json!(or_none(text(o, "/spec/nodeName")))),
    wide("Nominated Node", |o, _| json!(or_none(text(o, "/status/nominatedNodeName")))),
    wide("Readiness Gates", |o, _| {
        let gates = list(o, "/spec/readinessGates");
        let held = gates.iter().filter(|gate| condition(o, text(gate, "/conditionType")) == "True").count();
        json!(if gates.is_empty() { "<none>".to_owned() } else { format!("{held}/{}", gates.len()) })
    }),
];

/// How long ago a timestamp was, as `kubectl` writes durations; `<unknown>` if there is none.
pub fn age(timestamp: &str, now: Timestamp) -> String {
    match timestamp.parse::<Timestamp>() {
        Ok(then) => human_duration(now.as_second() - then.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

fn human_duration(seconds: i64) -> String {
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, "d", hours % 24, "h"),
        _ if days < 365 * 2 => format!("{days}d"),
        _ if days < 365 * 8 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

fn first_of<'a>(texts: &[&'a str]) -> &'a str {
    texts.iter().find(|text| !text.is_empty()).copied().unwrap_or_default()
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "<unknown>" } else { text }
}

fn pairs(labels: &Value) -> String {
    let pairs: Vec<String> = entries(labels, "")
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.join(",")
}

fn label_selector(selector: &Value) -> String {
    let mut parts: Vec<String> = match pairs(&selector["matchLabels"]) {
        none if none.is_empty() => Vec::new(),
        some => vec![some],
    };
    for need in list(selector, "/matchExpressions") {
        let key = text(need, "/key");
        let values: Vec<&str> = list(need, "/values").iter().filter_map(Value::as_str).collect();
        parts.push(match text(need, "/operator") {
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            _ => format!("{key} in ({})", values.join(",")),
        });
    }
    if parts.is_empty() { "<none>".to_owned() } else { parts.join(",") }
}

fn containers(object: &Value, field: &str) -> String {
    let all = list(object, "/spec/template/spec/containers");
    all.iter().map(|container| container[field].as_str().unwrap_or_default()).collect::<Vec<_>>().join(",")
}

fn subjects(object: &Value, kind: &str) -> String {
    let of_kind = list(object, "/subjects").iter().filter(|subject| text(subject, "/kind") == kind);
    let names: Vec<String> = of_kind
        .map(|subject| match kind {
            "ServiceAccount" => format!("{}/{}", text(subject, "/namespace"), text(subject, "/name")),
            _ => text(subject, "/name").to_owned(),
        })
        .collect();
    names.join(", ")
}

fn last_seen(event: &Value) -> &str {
    first_of(&[
        text(event, "/series/lastObservedTime"),
        text(event, "/lastTimestamp"),
        text(event, "/firstTimestamp"),
        text(event, "/eventTime"),
    ])
}

fn condition<'a>(object: &'a Value, type_: &str) -> &'a str {
    list(object, "/status/conditions")
        .iter()
        .find(|condition| text(condition, "/type") == type_)
        .map_or("", |condition| text(condition, "/status"))
}

fn node_status(node: &Value) -> String {
    let ready = match condition(node, "Ready") {
        "True" => "Ready",
        "" => "Unknown",
        _ => "NotReady",
    };
    if flag(node, "/spec/unschedulable") { format!("{ready},SchedulingDisabled") } else { ready.to_owned() }
}

fn node_roles(node: &Value) -> String {
    let mut roles: Vec<&str> = entries(node, "/metadata/labels")
        .filter_map(|(key, value)| match key {
            "kubernetes.io/role" => value.as_str(),
            _ => key.strip_prefix("node-role.kubernetes.io/"),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    roles.join(",")
}

fn node_address<'a>(node: &'a Value, type_: &str) -> &'a str {
    list(node, "/status/addresses")
        .iter()
        .find(|address| text(address, "/type") == type_)
        .map_or("<none>", |address| text(address, "/address"))
}

fn external_address(service: &Value) -> String {
    let given: Vec<&str> = list(service, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    match text(service, "/spec/type") {
        "LoadBalancer" => {
            let ingress = list(service, "/status/loadBalancer/ingress");
            let balanced = ingress.iter().map(|at| first_of(&[text(at, "/ip"), text(at, "/hostname")]));
            let all: Vec<&str> = balanced.chain(given).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        _ => or_none(&given.join(",")).to_owned(),
    }
}

fn service_ports(service: &Value) -> String {
    let ports = list(service, "/spec/ports").iter().map(|port| {
        let protocol = first_of(&[text(port, "/protocol"), "TCP"]);
        let number_ = number(port, "/port").unwrap_or(0);
        match number(port, "/nodePort") {
            Some(node_port) if node_port > 0 => format!("{number_}:{node_port}/{protocol}"),
            _ => format!("{number_}/{protocol}"),
        }
    });
    or_none(&ports.collect::<Vec<_>>().join(",")).to_owned()
}

/// A pod's state in one word, its restarts and ready containers.
struct PodSummary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: String,
}

impl PodSummary {
    fn ready(&self) -> String {
        format!("{}/{}", self.ready, self.total)
    }

    fn restarts(&self, now: Timestamp) -> String {
        match self.last_restart.is_empty() {
            true => self.restarts.to_string(),
            false => format!("{} ({} ago)", self.restarts, age(&self.last_restart, now)),
        }
    }

    fn count_restarts(&mut self, status: &Value) {
        self.restarts += number(status, "/restartCount").unwrap_or(0);
        let finished = text(status, "/lastState/terminated/finishedAt");
        if finished > self.last_restart.as_str() {
            self.last_restart = finished.to_owned();
        }
    }

    fn of(pod: &Value) -> Self {
        let inits = list(pod, "/spec/initContainers");
        let sidecar = |name: &str| {
            inits.iter().any(|init| text(init, "/name") == name && text(init, "/restartPolicy") == "Always")
        };
        let sidecars = inits.iter().filter(|init| text(init, "/restartPolicy") == "Always").count();
        let mut summary = Self {
            ready: 0,
            total: list(pod, "/spec/containers").len() + sidecars,
            reason: first_of(&[text(pod, "/status/reason"), text(pod, "/status/phase")]).to_owned(),
            restarts: 0,
            last_restart: String::new(),
        };
        let gated =
            |c: &&Value| text(c, "/type") == "PodScheduled" && text(c, "/reason") == "SchedulingGated";
        if list(pod, "/status/conditions").iter().any(|c| gated(&c)) {
            summary.reason = "SchedulingGated".to_owned();
        }
        let mut initializing = false;
        for (n, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
            let is_sidecar = sidecar(text(status, "/name"));
            if status.pointer("/state/terminated").is_some_and(|t| number(t, "/exitCode") == Some(0)) {
                summary.count_restarts(status);
                continue;
            }
            summary.count_restarts(status);
            if is_sidecar && flag(status, "/started") {
                summary.ready += usize::from(flag(status, "/ready"));
                continue;
            }
            let waiting = text(status, "/state/waiting/reason");
            summary.reason = match ended_words(status) {
                Some(words) => format!("Init:{words}"),
                None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
                None => format!("Init:{n}/{}", inits.len()),
            };
            initializing = true;
            break;
        }
        if !initializing {
            summary.containers(pod);
        }
        if terminating(pod) {
            if text(pod, "/status/reason") == "NodeLost" {
                summary.reason = "Unknown".to_owned();
            } else if !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
                summary.reason = "Terminating".to_owned();
            }
        }
        summary
    }

    fn containers(&mut self, pod: &Value) {
        let mut running = false;
        for status in list(pod, "/status/containerStatuses").iter().rev() {
            self.count_restarts(status);
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(words) = ended_words(status) {
                self.reason = words;
            } else if flag(status, "/ready") && status.pointer("/state/running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            self.reason = if condition(pod, "Ready") == "True" { "Running" } else { "NotReady" }.to_owned();
        }
    }
}

/// How a container that terminated did so.
fn ended_words(status: &Value) -> Option<String> {
    let ended = status.pointer("/state/terminated")?;
    let reason = text(ended, "/reason");
    if !reason.is_empty() {
        return Some(reason.to_owned());
    }
    Some(match number(ended, "/signal") {
        Some(signal) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", number(ended, "/exitCode").unwrap_or(0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_writes_them() {
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600, "9h"),
            (49 * 3600, "2d1h"),
            (30 * 86400, "30d"),
            (800 * 86400, "2y70d"),
        ];
        for (seconds, want) in cases {
            assert_eq!(human_duration(seconds), want);
        }
    }

    #[test]
    fn a_certificate_request_tells_its_duration_and_what_became_of_it() {
        let told = |spec: Value, status: Value| {
            let object = json!({"spec": spec, "status": status});
            let cell = |name: &str| {
                let column = CERTIFICATE_REQUEST.iter().find(|column| column.name == name).unwrap();
                (column.cell)(&object, Timestamp::UNIX_EPOCH)
            };
            [cell("RequestedDuration"), cell("Condition")]
        };
        let approved = json!([{"type": "Approved"}]);
        assert_eq!(told(json!({}), json!({})), ["<none>", "Pending"]);
        assert_eq!(
            told(json!({"expirationSeconds": 3600}), json!({"conditions": approved})),
            ["60m", "Approved"]
        );
        let issued = json!({"conditions": approved, "certificate": "eA=="});
        assert_eq!(told(json!({"expirationSeconds": 31_536_000}), issued), ["365d", "Approved,Issued"]);
    }

    #[test]
    fn a_pod_is_summed_up_in_one_word() {
        let pod = |status: Value| json!({"spec": {"containers": [{"name": "a"}]}, "status": status});
        let cases = [
            (pod(json!({"phase": "Pending"})), "0/1", "Pending"),
            (
                pod(
                    json!({"phase": "Running", "containerStatuses": [{"ready": true, "state": {"running": {}}}]}),
                ),
                "1/1",
                "Running",
            ),
            (
                pod(
                    json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}),
                ),
                "0/1",
                "ErrImagePull",
            ),
            (
                pod(
                    json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
                ),
                "0/1",
                "ExitCode:3",
            ),
        ];
        for (pod, ready, reason) in cases {
            let summary = PodSummary::of(&pod);
            assert_eq!((summary.ready().as_str(), summary.reason.as_str()), (ready, reason));
        }
    }
}
