//! Requests and limits: quality of service, what CRI is told, and what the downward API tells.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use wharf_cri::v1::LinuxContainerResources;

/// What this machine has to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    pub cpu_millis: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of the file system that holds the pods' directories.
    pub storage: i64,
}

/// Why a resource field cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unsupported container resource \"{0}\"")]
pub struct FieldError(String);

/// Kubernetes' classes, in the order in which they are sacrificed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// As the API server computes it too: only cpu and memory count.
    pub fn of(spec: &PodSpec) -> Self {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let (mut any, mut guaranteed) = (false, true);
        for container in containers {
            for name in ["cpu", "memory"] {
                let limit = amount(container, Side::Limits, name).filter(|value| *value > 0);
                let request = amount(container, Side::Requests, name).filter(|value| *value > 0).or(limit);
                any |= limit.is_some() || request.is_some();
                guaranteed &= limit.is_some() && request == limit;
            }
        }
        match (any, guaranteed) {
            (false, _) => Self::BestEffort,
            (true, true) => Self::Guaranteed,
            (true, false) => Self::Burstable,
        }
    }
}

#[derive(Clone, Copy)]
enum Side {
    Requests,
    Limits,
}

/// Thousandths for cpu, whole units for all else.
fn amount(container: &Container, side: Side, name: &str) -> Option<i64> {
    let resources = container.resources.as_ref()?;
    let map: &BTreeMap<String, Quantity> = match side {
        Side::Requests => resources.requests.as_ref()?,
        Side::Limits => resources.limits.as_ref()?,
    };
    scaled(map.get(name)?, name)
}

fn scaled(quantity: &Quantity, name: &str) -> Option<i64> {
    let quantity: wharf_kit::quantity::Quantity = quantity.0.parse().ok()?;
    Some(if name == "cpu" { quantity.millis() } else { quantity.value() })
}

/// A quantity in whole units, rounded up; none if it is not one.
pub fn units(quantity: &Quantity) -> Option<i64> {
    scaled(quantity, "")
}

/// What CRI is told about one container.
pub fn linux(container: &Container, spec: &PodSpec, machine: &Machine) -> LinuxContainerResources {
    let cpu_limit = amount(container, Side::Limits, "cpu").unwrap_or(0);
    let cpu_request = amount(container, Side::Requests, "cpu").unwrap_or(cpu_limit);
    let memory_limit = amount(container, Side::Limits, "memory").unwrap_or(0);
    LinuxContainerResources {
        oom_score_adj: oom_score_adj(container, spec, machine),
        ..of_amounts(cpu_request, cpu_limit, memory_limit)
    }
}

/// What CRI is told about the whole pod: the sums, where every container has a limit.
pub fn linux_pod(spec: &PodSpec) -> LinuxContainerResources {
    let (mut request, mut cpu, mut memory) = (0, Some(0), Some(0));
    for container in &spec.containers {
        let cpu_limit = amount(container, Side::Limits, "cpu");
        request += amount(container, Side::Requests, "cpu").or(cpu_limit).unwrap_or(0);
        cpu = cpu.zip(cpu_limit).map(|(sum, one)| sum + one);
        memory = memory.zip(amount(container, Side::Limits, "memory")).map(|(sum, one)| sum + one);
    }
    of_amounts(request, cpu.unwrap_or(0), memory.unwrap_or(0))
}

fn of_amounts(cpu_request: i64, cpu_limit: i64, memory_limit: i64) -> LinuxContainerResources {
    /// The kernel's default period, 100 ms; quotas below 1 ms are refused by it.
    const PERIOD: i64 = 100_000;
    LinuxContainerResources {
        cpu_period: if cpu_limit > 0 { PERIOD } else { 0 },
        cpu_quota: if cpu_limit > 0 { (cpu_limit * PERIOD / 1000).max(1000) } else { 0 },
        // 1024 shares a CPU; the kernel takes 2 to 262144.
        cpu_shares: (cpu_request * 1024 / 1000).clamp(2, 262_144),
        memory_limit_in_bytes: memory_limit,
        ..Default::default()
    }
}

/// The kubelet's scores: who asked for much memory and keeps to it is killed late.
fn oom_score_adj(container: &Container, spec: &PodSpec, machine: &Machine) -> i64 {
    /// `system-node-critical`'s value.
    const NODE_CRITICAL: i32 = 2_000_001_000;
    if spec.priority.is_some_and(|priority| priority >= NODE_CRITICAL) {
        return -997;
    }
    match Qos::of(spec) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let limit = amount(container, Side::Limits, "memory");
            let request = amount(container, Side::Requests, "memory").or(limit).unwrap_or(0);
            (1000 - i128::from(request) * 1000 / i128::from(machine.memory.max(1))).clamp(3, 999) as i64
        }
    }
}

/// A container's resource for `resourceFieldRef`, divided and rounded up. Where no limit is set the machine's is told.
pub fn field(
    resource: &str,
    divisor: Option<&Quantity>,
    container: &Container,
    machine: &Machine,
) -> Result<String, FieldError> {
    let unknown = || FieldError(resource.to_owned());
    let (side, name) = resource.split_once('.').ok_or_else(unknown)?;
    let whole = match name {
        "cpu" => machine.cpu_millis,
        "memory" => machine.memory,
        "ephemeral-storage" => machine.storage,
        _ => return Err(unknown()),
    };
    let value = match side {
        "limits" => amount(container, Side::Limits, name).unwrap_or(whole),
        "requests" => amount(container, Side::Requests, name)
            .or_else(|| amount(container, Side::Limits, name))
            .unwrap_or(0),
        _ => return Err(unknown()),
    };
    let one = if name == "cpu" { 1000 } else { 1 };
    let divisor =
        divisor.and_then(|divisor| scaled(divisor, name)).filter(|divisor| *divisor > 0).unwrap_or(one);
    Ok((value + divisor - 1).div_euclid(divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const MACHINE: Machine = Machine { cpu_millis: 4000, memory: 8 << 30, storage: 100 << 30 };

    fn spec(resources: &[Value]) -> PodSpec {
        let containers: Vec<Value> = resources
            .iter()
            .enumerate()
            .map(|(n, r)| json!({"name": format!("c{n}"), "resources": r}))
            .collect();
        serde_json::from_value(json!({"containers": containers})).unwrap()
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let same = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        let less = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}});
        for (resources, want) in [
            (vec![json!({})], Qos::BestEffort),
            (vec![json!({"limits": {"ephemeral-storage": "1Gi"}})], Qos::BestEffort),
            (vec![full.clone()], Qos::Guaranteed),
            (vec![same, full.clone()], Qos::Guaranteed),
            (vec![less], Qos::Burstable),
            (vec![full, json!({})], Qos::Burstable),
            (vec![json!({"requests": {"cpu": "1m"}})], Qos::Burstable),
        ] {
            assert_eq!(Qos::of(&spec(&resources)), want, "{resources:?}");
        }
    }

    #[test]
    fn cri_is_told_shares_quota_limit_and_score() {
        let spec = spec(&[
            json!({"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m", "memory": "32Mi"}}),
            json!({}),
        ]);
        let first = linux(&spec.containers[0], &spec, &MACHINE);
        assert_eq!((first.cpu_shares, first.cpu_quota, first.cpu_period), (256, 50_000, 100_000));
        assert_eq!((first.memory_limit_in_bytes, first.oom_score_adj), (64 << 20, 997));
        let second = linux(&spec.containers[1], &spec, &MACHINE);
        assert_eq!(
            (second.cpu_shares, second.cpu_quota, second.memory_limit_in_bytes, second.oom_score_adj),
            (2, 0, 0, 999)
        );
        let pod = linux_pod(&spec);
        assert_eq!(
            (pod.cpu_shares, pod.cpu_quota, pod.memory_limit_in_bytes),
            (256, 0, 0),
            "one container has no limit"
        );
    }

    #[test]
    fn fields_are_divided_and_rounded_up() {
        let spec = spec(&[json!({"limits": {"cpu": "1500m", "memory": "100Mi"}})]);
        let quantity = |text: &str| Some(Quantity(text.to_owned()));
        for (resource, divisor, want) in [
            ("limits.cpu", None, "2"),
            ("limits.cpu", quantity("1m"), "1500"),
            ("limits.memory", quantity("1Mi"), "100"),
            ("limits.memory", quantity("0"), "104857600"),
            ("requests.cpu", None, "2"), // what is limited and asks for nothing asks for its limit
            ("limits.ephemeral-storage", quantity("1Gi"), "100"),
        ] {
            assert_eq!(
                field(resource, divisor.as_ref(), &spec.containers[0], &MACHINE).unwrap(),
                want,
                "{resource}"
            );
        }
        assert!(field("limits.gpu", None, &spec.containers[0], &MACHINE).is_err());
    }
}
