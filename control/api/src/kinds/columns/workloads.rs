//! The columns of workloads, their revisions and budgets, and of what limits namespaces.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, CONTAINERS, Column, IMAGES, NAME, SELECTOR, age, count, human_duration, or_none, pairs, text_column,
    wide,
};
use crate::object::{entries, flag, list, number, text};

pub const DAEMON_SET: &[Column] = &[
    NAME,
    count("Desired", |o, _| json!(number(o, "/status/desiredNumberScheduled").unwrap_or(0))),
    count("Current", |o, _| json!(number(o, "/status/currentNumberScheduled").unwrap_or(0))),
    count("Ready", |o, _| json!(number(o, "/status/numberReady").unwrap_or(0))),
    count("Up-to-date", |o, _| json!(number(o, "/status/updatedNumberScheduled").unwrap_or(0))),
    count("Available", |o, _| json!(number(o, "/status/numberAvailable").unwrap_or(0))),
    text_column("Node Selector", |o, _| {
        json!(or_none(&pairs(&o["spec"]["template"]["spec"]["nodeSelector"])))
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// Of the scale subresource.
pub const SCALE: &[Column] = &[
    NAME,
    count("Desired", |o, _| json!(number(o, "/spec/replicas").unwrap_or(0))),
    count("Available", |o, _| json!(number(o, "/status/replicas").unwrap_or(0))),
    AGE,
];

pub const STATEFUL_SET: &[Column] = &[
    NAME,
    text_column("Ready", |o, _| {
        let ready = number(o, "/status/readyReplicas").unwrap_or(0);
        json!(format!("{ready}/{}", number(o, "/spec/replicas").unwrap_or(1)))
    }),
    AGE,
    CONTAINERS,
    IMAGES,
];

pub const JOB: &[Column] = &[
    NAME,
    text_column("Status", |o, _| json!(job_status(o))),
    text_column("Completions", |o, _| {
        let succeeded = number(o, "/status/succeeded").unwrap_or(0);
        json!(match (number(o, "/spec/completions"), number(o, "/spec/parallelism").unwrap_or(0)) {
            (Some(completions), _) => format!("{succeeded}/{completions}"),
            (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
            (None, _) => format!("{succeeded}/1"),
        })
    }),
    text_column("Duration", |o, now| json!(job_duration(o, now))),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub const CRON_JOB: &[Column] = &[
    NAME,
    text_column("Schedule", |o, _| json!(text(o, "/spec/schedule"))),
    text_column("Timezone", |o, _| json!(or_none(text(o, "/spec/timeZone")))),
    text_column("Suspend", |o, _| json!(if flag(o, "/spec/suspend") { "True" } else { "False" })),
    count("Active", |o, _| json!(list(o, "/status/active").len())),
    text_column("Last Schedule", |o, now| {
        let last = text(o, "/status/lastScheduleTime");
        json!(if last.is_empty() { "<none>".to_owned() } else { age(last, now) })
    }),
    AGE,
    wide("Containers", |o, _| json!(template_containers(o, "/spec/jobTemplate/spec/template", "name"))),
    wide("Images", |o, _| json!(template_containers(o, "/spec/jobTemplate/spec/template", "image"))),
    wide("Selector", |o, _| json!(super::label_selector(&o["spec"]["jobTemplate"]["spec"]["selector"]))),
];

pub const CONTROLLER_REVISION: &[Column] = &[
    NAME,
    text_column("Controller", |o, _| {
        let owner = list(o, "/metadata/ownerReferences").iter().find(|owner| flag(owner, "/controller"));
        json!(owner.map_or("<none>".to_owned(), |owner| {
            // Kind and group as kubectl writes them: daemonset.apps/web.
            let group = text(owner, "/apiVersion").split_once('/').map_or("", |(group, _)| group);
            let kind = text(owner, "/kind").to_lowercase();
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", text(owner, "/name"))
        }))
    }),
    count("Revision", |o, _| json!(number(o, "/revision").unwrap_or(0))),
    AGE,
];

pub const POD_TEMPLATE: &[Column] = &[
    NAME,
    text_column("Containers", |o, _| json!(template_containers(o, "/template", "name"))),
    text_column("Images", |o, _| json!(template_containers(o, "/template", "image"))),
    text_column("Pod Labels", |o, _| json!(or_none(&pairs(&o["template"]["metadata"]["labels"])))),
];

pub const RESOURCE_QUOTA: &[Column] = &[
    NAME,
    text_column("Request", |o, _| json!(quota_use(o, false))),
    text_column("Limit", |o, _| json!(quota_use(o, true))),
    AGE,
];

pub const LIMIT_RANGE: &[Column] = &[
    NAME,
    Column {
        name: "Created At",
        type_: "date",
        format: "",
        priority: super::Priority::Always,
        cell: |o, _| json!(text(o, "/metadata/creationTimestamp")),
    },
];

pub const DISRUPTION_BUDGET: &[Column] = &[
    NAME,
    text_column("Min Available", |o, _| json!(int_or_text(o, "/spec/minAvailable"))),
    text_column("Max Unavailable", |o, _| json!(int_or_text(o, "/spec/maxUnavailable"))),
    count("Allowed Disruptions", |o, _| json!(number(o, "/status/disruptionsAllowed").unwrap_or(0))),
    AGE,
];

pub const ENDPOINTS: &[Column] = &[
    NAME,
    text_column("Endpoints", |o, _| {
        let all = list(o, "/subsets").iter().flat_map(|subset| {
            let ports = list(subset, "/ports");
            list(subset, "/addresses").iter().flat_map(move |address| {
                let ip = text(address, "/ip").to_owned();
                let with_port = ports.iter().map({
                    let ip = ip.clone();
                    move |port| format!("{ip}:{}", number(port, "/port").unwrap_or(0))
                });
                let bare = ports.is_empty().then_some(ip);
                with_port.chain(bare).collect::<Vec<_>>()
            })
        });
        json!(first_three(all.collect()))
    }),
    AGE,
];

pub const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    text_column("AddressType", |o, _| json!(text(o, "/addressType"))),
    text_column("Ports", |o, _| {
        let ports = list(o, "/ports").iter();
        json!(first_three(
            ports.filter_map(|port| number(port, "/port")).map(|port| port.to_string()).collect()
        ))
    }),
    text_column("Endpoints", |o, _| {
        let addresses = list(o, "/endpoints").iter().flat_map(|endpoint| list(endpoint, "/addresses"));
        json!(first_three(addresses.filter_map(Value::as_str).map(str::to_owned).collect()))
    }),
    AGE,
];

fn first_three(all: Vec<String>) -> String {
    match all.len() {
        0 => "<unset>".to_owned(),
        1..=3 => all.join(","),
        more => format!("{} + {} more...", all[..3].join(","), more - 3),
    }
}

fn template_containers(object: &Value, template: &str, field: &str) -> String {
    let all = list(object, &format!("{template}/spec/containers"));
    all.iter().map(|container| container[field].as_str().unwrap_or_default()).collect::<Vec<_>>().join(",")
}

fn int_or_text(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => text.clone(),
        _ => "N/A".to_owned(),
    }
}

fn job_status(job: &Value) -> &'static str {
    let holds = |type_: &str| super::condition(job, type_) == "True";
    if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if !text(job, "/metadata/deletionTimestamp").is_empty() {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let at = |pointer: &str| text(job, pointer).parse::<Timestamp>().ok();
    let failed = list(job, "/status/conditions")
        .iter()
        .find(|condition| text(condition, "/type") == "Failed" && text(condition, "/status") == "True")
        .and_then(|condition| text(condition, "/lastTransitionTime").parse().ok());
    match (at("/status/startTime"), at("/status/completionTime").or(failed)) {
        (None, _) => String::new(),
        (Some(start), end) => human_duration(end.unwrap_or(now).as_second() - start.as_second()),
    }
}

/// `cpu: 1/2, pods: 3/10` of what requests and counts, or of what limits.
fn quota_use(quota: &Value, limits: bool) -> String {
    let parts: Vec<String> = entries(quota, "/status/hard")
        .filter(|(name, _)| name.starts_with("limits.") == limits)
        .map(|(name, hard)| {
            let used = quota.pointer("/status/used").and_then(|used| used.get(name));
            let shown = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("0").to_owned();
            format!("{name}: {}/{}", shown(used), shown(Some(hard)))
        })
        .collect();
    parts.join(", ")
}
