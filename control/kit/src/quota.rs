//! What ResourceQuotas count: the part of it that the API server, which charges them, and their controller, which
//! counts afresh, have to agree on. No I/O and no clock.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use crate::quantity::Quantity;
use crate::resources::{Amounts, Needs, PodNeeds, REQUESTS, is_extended, is_huge_page, is_native};
use crate::selector::{Operator, Requirement};

/// What containers ask that a quota can limit without a prefix.
const COMPUTE: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];
/// Kinds that a quota can also name without `count/`.
const PLAIN: [&str; 4] = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];
/// Of these each container has to say how much, if a quota limits them.
const TO_SPECIFY: [&str; 6] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

/// How quotas name a resource: `pods`, `deployments.apps`.
pub fn resource(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

/// Whether objects of this resource count for what a quota calls `name`. Events count for nothing.
pub fn counts(resource: &str, name: &str) -> bool {
    if matches!(resource, "events" | "events.events.k8s.io") {
        return false;
    }
    if let Some(counted) = name.strip_prefix("count/") {
        return counted == resource;
    }
    match resource {
        "pods" => {
            let requested = name.strip_prefix(REQUESTS);
            let bare = requested.or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
            name == "pods"
                || COMPUTE.contains(&bare)
                || is_huge_page(requested.unwrap_or(name))
                || requested.is_some_and(|name| !is_native(name))
        }
        "services" => matches!(name, "services" | "services.loadbalancers" | "services.nodeports"),
        plain => name == plain && PLAIN.contains(&plain),
    }
}

/// Whether more than the number of its objects matters of a resource.
pub fn has_measure(resource: &str) -> bool {
    matches!(resource, "pods" | "services")
}

/// What one object of this resource uses of everything that a quota may limit.
pub fn usage(resource: &str, object: &Value, now: Timestamp) -> Amounts {
    let one = Quantity::new(1);
    let mut used = Amounts::from([(format!("count/{resource}"), one)]);
    match resource {
        "pods" if runs(object, now) => used.extend(of_pod(object)),
        "services" => used.extend(of_service(&object["spec"])),
        plain if PLAIN.contains(&plain) => drop(used.insert(plain.to_owned(), one)),
        _ => {}
    }
    used
}

/// Until when a pod that is being deleted counts at most: a node that is lost must not hold its quota for ever.
pub fn counts_until(pod: &Value) -> Option<Timestamp> {
    let at: Timestamp = pod.pointer("/metadata/deletionTimestamp")?.as_str()?.parse().ok()?;
    let grace = pod.pointer("/metadata/deletionGracePeriodSeconds")?.as_i64()?;
    at.checked_add(SignedDuration::from_secs(grace)).ok()
}

/// Whether the pod uses resources still.
fn runs(pod: &Value, now: Timestamp) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    !matches!(phase, Some("Succeeded" | "Failed")) && counts_until(pod).is_none_or(|until| now <= until)
}

fn of_pod(pod: &Value) -> Amounts {
    // What was stored or is about to be was valid.
    let needs = PodNeeds::deserialize(&pod["spec"]).unwrap_or_default();
    measured(&Needs { requests: needs.whole_requests(), limits: needs.whole_limits() })
}

/// Requests and limits under the names that quotas have for them.
fn measured(needs: &Needs) -> Amounts {
    let mut used = Amounts::from([("pods".to_owned(), Quantity::new(1))]);
    for (name, amount) in &needs.requests {
        let plain = COMPUTE.contains(&name.as_str()) || is_huge_page(name);
        if plain {
            used.insert(name.clone(), *amount);
        }
        if plain || is_extended(name) {
            used.insert(format!("{REQUESTS}{name}"), *amount);
        }
    }
    let limits = needs.limits.iter().filter(|(name, _)| COMPUTE.contains(&name.as_str()));
    used.extend(limits.map(|(name, amount)| (format!("limits.{name}"), *amount)));
    used
}

fn of_service(spec: &Value) -> Amounts {
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let all = ports.len();
    let (balancers, node_ports) = match spec["type"].as_str() {
        Some("NodePort") => (0, all),
        Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => {
            (1, ports.iter().filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0).count())
        }
        Some("LoadBalancer") => (1, all),
        _ => (0, 0),
    };
    Amounts::from([
        ("services".to_owned(), Quantity::new(1)),
        ("services.loadbalancers".to_owned(), Quantity::new(balancers)),
        ("services.nodeports".to_owned(), Quantity::new(node_ports as i64)),
    ])
}

/// Which objects a quota is for.
#[derive(Debug, Clone, Default)]
pub struct Scopes(Vec<Requirement>);

impl Scopes {
    /// Of a quota's spec.
    pub fn of(spec: &Value) -> Self {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let named = list(&spec["scopes"]).into_iter().filter_map(|scope| {
            let key = scope.as_str()?.to_owned();
            Some(Requirement { key, operator: Operator::Exists, values: Vec::new() })
        });
        let selected =
            list(&spec["scopeSelector"]["matchExpressions"]).into_iter().filter_map(|mut expression| {
                let key = expression["scopeName"].take();
                expression["key"] = key;
                serde_json::from_value(expression).ok()
            });
        Self(named.chain(selected).collect())
    }

    /// A quota with scopes is for pods alone.
    pub fn hold(&self, resource: &str, object: &Value) -> bool {
        self.0.iter().all(|scope| resource == "pods" && holds(scope, object))
    }
}

fn holds(scope: &Requirement, pod: &Value) -> bool {
    let spec = &pod["spec"];
    let ends = || spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    let best_effort = || pod.pointer("/status/qosClass").is_some_and(|class| class == "BestEffort");
    match scope.key.as_str() {
        "Terminating" => ends(),
        "NotTerminating" => !ends(),
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => {
            scope.matches_value(spec["priorityClassName"].as_str().filter(|name| !name.is_empty()))
        }
        "CrossNamespacePodAffinity" => looks_elsewhere(&spec["affinity"]),
        _ => false,
    }
}

/// Whether its affinity to pods names other namespaces.
fn looks_elsewhere(affinity: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = |field: &str| affinity[*kind][field].as_array().cloned().unwrap_or_default();
        let required = terms("requiredDuringSchedulingIgnoredDuringExecution").into_iter();
        let preferred = terms("preferredDuringSchedulingIgnoredDuringExecution").into_iter();
        let preferred = preferred.map(|mut term| term["podAffinityTerm"].take());
        required.chain(preferred).any(|term| {
            let named = term["namespaces"].as_array().is_some_and(|names| !names.is_empty());
            named || !term["namespaceSelector"].is_null()
        })
    })
}

/// What a write asks of quotas.
#[derive(Debug)]
pub struct Demand {
    /// As [`resource`] names it.
    pub resource: String,
    pub object: Value,
    /// What it was before, whose use is charged already.
    pub old: Option<Value>,
}

/// What of a quota is used once `demand` is met; `None` if that changes nothing. The status alone says what is limited.
///
/// # Errors
/// Why it is not met, in Kubernetes' words.
pub fn charge(quota: &Value, demand: &Demand, now: Timestamp) -> Result<Option<Amounts>, String> {
    let Demand { resource, object, old } = demand;
    let name = quota["metadata"]["name"].as_str().unwrap_or_default();
    let (hard, mut used) = (amounts(&quota["status"]["hard"]), amounts(&quota["status"]["used"]));
    let limited: Vec<&str> = hard.keys().map(String::as_str).filter(|name| counts(resource, name)).collect();
    if limited.is_empty() || !Scopes::of(&quota["spec"]).hold(resource, object) {
        return Ok(None);
    }
    if resource == "pods"
        && let Some(missing) = unspecified(object, &limited)
    {
        return Err(format!("failed quota: {name}: must specify {missing}"));
    }
    let unknown: Vec<&str> = limited.into_iter().filter(|name| !used.contains_key(*name)).collect();
    if !unknown.is_empty() {
        return Err(format!("status unknown for quota: {name}, resources: {}", unknown.join(",")));
    }
    let before = old.as_ref().map(|old| usage(resource, old, now)).unwrap_or_default();
    let mut asked = usage(resource, object, now);
    for (name, amount) in &mut asked {
        *amount -= before.get(name).copied().unwrap_or_default();
    }
    asked.retain(|name, amount| hard.contains_key(name) && *amount > Quantity::ZERO);
    if asked.is_empty() {
        return Ok(None);
    }
    let sum = |name: &String, amount: &Quantity| used.get(name).copied().unwrap_or_default() + *amount;
    let exceeded: BTreeSet<&String> =
        asked.iter().filter(|(name, amount)| sum(name, amount) > hard[*name]).map(|(name, _)| name).collect();
    if !exceeded.is_empty() {
        let shown = |amounts: &Amounts| {
            let all = amounts.iter().filter(|(name, _)| exceeded.contains(name));
            all.map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
        };
        return Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            shown(&asked),
            shown(&used),
            shown(&hard)
        ));
    }
    crate::resources::add(&mut used, &asked);
    Ok(Some(used))
}

fn amounts(list: &Value) -> Amounts {
    Option::deserialize(list).ok().flatten().unwrap_or_default()
}

/// Which of the limited resources which containers say nothing of.
fn unspecified(pod: &Value, limited: &[&str]) -> Option<String> {
    let needs = PodNeeds::deserialize(&pod["spec"]).unwrap_or_default();
    let asked: Vec<(&str, Amounts)> =
        needs.all_containers().map(|one| (one.name.as_str(), measured(&one.resources))).collect();
    let missing = limited.iter().filter(|name| TO_SPECIFY.contains(name)).filter_map(|name| {
        let silent = asked.iter().filter(|(_, asked)| !asked.contains_key(*name));
        let silent: BTreeSet<&str> = silent.map(|(container, _)| *container).collect();
        let silent: Vec<&str> = silent.into_iter().collect();
        (!silent.is_empty()).then(|| format!("{name} for: {}", silent.join(",")))
    });
    let missing: Vec<String> = missing.collect();
    (!missing.is_empty()).then(|| missing.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(resources: Value) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": resources}]}, "status": {"qosClass": "Burstable"}})
    }

    fn quota(hard: Value, used: Value, spec: Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": spec, "status": {"hard": hard, "used": used}})
    }

    fn charged(quota: &Value, resource: &str, object: Value, old: Option<Value>) -> String {
        let demand = Demand { resource: resource.to_owned(), object, old };
        match charge(quota, &demand, Timestamp::UNIX_EPOCH) {
            Err(why) => why,
            Ok(None) => "nothing".to_owned(),
            Ok(Some(used)) => {
                used.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
            }
        }
    }

    #[test]
    fn a_demand_is_charged_or_refused_in_kubernetes_words() {
        let asks = || {
            pod(
                json!({"requests": {"cpu": "300m", "memory": "1Gi", "x.io/gpu": "2"}, "limits": {"cpu": "1"}}),
            )
        };
        let none = || json!({});
        for (hard, used, spec, resource, object, old, expected) in [
            (
                json!({"pods": "2"}),
                json!({"pods": "2"}),
                none(),
                "pods",
                asks(),
                None,
                "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2",
            ),
            (
                json!({"pods": "2", "requests.cpu": "1"}),
                json!({"pods": "1", "requests.cpu": "800m"}),
                none(),
                "pods",
                asks(),
                None,
                "exceeded quota: q, requested: requests.cpu=300m, used: requests.cpu=800m, limited: requests.cpu=1",
            ),
            (
                json!({"cpu": "1", "limits.cpu": "2", "requests.memory": "3Gi", "requests.x.io/gpu": "2"}),
                json!({"cpu": "0", "limits.cpu": "0", "requests.memory": "1Gi", "requests.x.io/gpu": "0"}),
                none(),
                "pods",
                asks(),
                None,
                "cpu=300m,limits.cpu=1,requests.memory=2Gi,requests.x.io/gpu=2",
            ),
            (
                json!({"limits.memory": "1Gi", "cpu": "1"}),
                json!({"limits.memory": "0", "cpu": "0"}),
                none(),
                "pods",
                asks(),
                None,
                "failed quota: q: must specify limits.memory for: c",
            ),
            (
                json!({"pods": "2"}),
                none(),
                none(),
                "pods",
                asks(),
                None,
                "status unknown for quota: q, resources: pods",
            ),
            (none(), none(), json!({"hard": {"pods": "0"}}), "pods", asks(), None, "nothing"),
            (
                json!({"pods": "0"}),
                json!({"pods": "0"}),
                json!({"scopes": ["BestEffort"]}),
                "pods",
                asks(),
                None,
                "nothing",
            ),
            (
                json!({"pods": "9"}),
                json!({"pods": "0"}),
                json!({"scopes": ["NotBestEffort", "NotTerminating"]}),
                "pods",
                asks(),
                None,
                "pods=1",
            ),
            (
                json!({"count/deployments.apps": "1"}),
                json!({"count/deployments.apps": "0"}),
                none(),
                "deployments.apps",
                none(),
                None,
                "count/deployments.apps=1",
            ),
            (
                json!({"count/secrets": "1", "secrets": "5"}),
                json!({"count/secrets": "0", "secrets": "0"}),
                none(),
                "secrets",
                none(),
                None,
                "count/secrets=1,secrets=1",
            ),
            (
                json!({"secrets": "5"}),
                json!({"secrets": "0"}),
                json!({"scopes": ["BestEffort"]}),
                "secrets",
                none(),
                None,
                "nothing",
            ),
            (
                json!({"services": "1", "services.nodeports": "2"}),
                json!({"services": "1", "services.nodeports": "1"}),
                none(),
                "services",
                json!({"spec": {"type": "NodePort", "ports": [{}, {}]}}),
                Some(json!({"spec": {"type": "ClusterIP", "ports": [{}, {}]}})),
                "exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=1, limited: services.nodeports=2",
            ),
            (
                json!({"services": "1"}),
                json!({"services": "1"}),
                none(),
                "services",
                json!({"spec": {"type": "NodePort"}}),
                Some(json!({"spec": {"type": "ClusterIP"}})),
                "nothing",
            ),
        ] {
            assert_eq!(charged(&quota(hard.clone(), used, spec), resource, object, old), expected, "{hard}");
        }
    }

    #[test]
    fn a_class_of_priority_selects_the_quota() {
        let with = |class: &str| json!({"spec": {"priorityClassName": class}});
        for (operator, values, high, low, none) in [
            ("In", json!(["high"]), true, false, false),
            ("NotIn", json!(["high"]), false, true, true),
            ("Exists", json!([]), true, true, false),
            ("DoesNotExist", json!([]), false, false, true),
        ] {
            let scopes = Scopes::of(&json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values}]}}));
            let hold = ["high", "low", ""].map(|class| scopes.hold("pods", &with(class)));
            assert_eq!(hold, [high, low, none], "{operator}");
        }
    }

    #[test]
    fn a_pod_that_ended_or_should_have_counts_as_an_object_alone() {
        let late = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30}});
        let at = |time: &str| usage("pods", &late, time.parse().unwrap()).contains_key("pods");
        assert!(at("2026-01-01T00:01:00Z") && !at("2026-01-01T00:01:01Z"));
        let ended = usage("pods", &json!({"status": {"phase": "Failed"}}), Timestamp::UNIX_EPOCH);
        assert_eq!(ended.keys().collect::<Vec<_>>(), ["count/pods"]);
    }
}
