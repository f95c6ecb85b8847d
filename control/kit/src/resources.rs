//! Resource lists: amounts by name, which names mean what, and how the lists of containers make up a pod's.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::quantity::Quantity;
use crate::selector::qualified_name_problem;
use crate::view::or_default;

/// Amounts by the name of the resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// What a quota's names start with where they limit requests.
pub const REQUESTS: &str = "requests.";

/// A resource of Kubernetes' own, whose name needs no domain.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// `hugepages-2Mi` and the like.
pub fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// A resource of some vendor's: `example.com/gpu`. It comes in whole units.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with(REQUESTS)
        && qualified_name_problem(&format!("{REQUESTS}{name}")).is_none()
}

/// Adds `other` to `sum`, resource by resource.
pub fn add(sum: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        *sum.entry(name.clone()).or_default() += *amount;
    }
}

/// Raises `most` to `other` where that is more.
fn raise(most: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let slot = most.entry(name.clone()).or_insert(*amount);
        if *amount > *slot {
            *slot = *amount;
        }
    }
}

/// The `resources` of a container or pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Needs {
    #[serde(deserialize_with = "or_default")]
    pub requests: Amounts,
    #[serde(deserialize_with = "or_default")]
    pub limits: Amounts,
}

/// What of a container says what it needs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerNeeds {
    pub name: String,
    restart_policy: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub resources: Needs,
}

/// What of a pod's spec says what the pod needs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodNeeds {
    #[serde(deserialize_with = "or_default")]
    pub containers: Vec<ContainerNeeds>,
    #[serde(deserialize_with = "or_default")]
    pub init_containers: Vec<ContainerNeeds>,
    #[serde(deserialize_with = "or_default")]
    overhead: Amounts,
    /// Of the pod as a whole.
    #[serde(deserialize_with = "or_default")]
    resources: Needs,
}

impl PodNeeds {
    /// Containers, then init containers.
    pub fn all_containers(&self) -> impl Iterator<Item = &ContainerNeeds> {
        self.containers.iter().chain(&self.init_containers)
    }

    /// What its containers request together, without the overhead of running them.
    pub fn requests(&self) -> Amounts {
        self.total(|needs| &needs.requests)
    }

    /// What its containers are limited to together, without the overhead of running them. A resource is in it if
    /// any container limits it.
    pub fn limits(&self) -> Amounts {
        self.total(|needs| &needs.limits)
    }

    /// As [`PodNeeds::requests`], with the overhead.
    pub fn whole_requests(&self) -> Amounts {
        let mut requests = self.requests();
        add(&mut requests, &self.overhead);
        requests
    }

    /// As [`PodNeeds::limits`], with the overhead of what is limited at all.
    pub fn whole_limits(&self) -> Amounts {
        let mut limits = self.limits();
        for (name, amount) in &self.overhead {
            if let Some(limit) = limits.get_mut(name).filter(|limit| !limit.is_zero()) {
                *limit += *amount;
            }
        }
        limits
    }

    /// The containers together with the sidecars, or one init container with the sidecars started before it if that
    /// is more; and where the pod speaks for itself, its word.
    fn total(&self, of: impl Fn(&Needs) -> &Amounts) -> Amounts {
        let mut running = Amounts::new();
        let mut most = Amounts::new();
        for init in &self.init_containers {
            let mut starting = running.clone();
            add(&mut starting, of(&init.resources));
            raise(&mut most, &starting);
            if init.restart_policy.as_deref() == Some("Always") {
                running = starting;
            }
        }
        for container in &self.containers {
            add(&mut running, of(&container.resources));
        }
        raise(&mut most, &running);
        let own = of(&self.resources).iter();
        let own = own.filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory") || is_huge_page(name));
        most.extend(own.map(|(name, amount)| (name.clone(), *amount)));
        most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn needs(spec: Value) -> PodNeeds {
        serde_json::from_value(spec).unwrap()
    }

    fn shown(amounts: &Amounts) -> String {
        amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn a_pod_needs_its_containers_or_its_largest_start() {
        let ask = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu, "memory": "1Gi"}});
        let mut spec = json!({
            "overhead": {"cpu": "10m", "ephemeral-storage": "1Mi"},
            "initContainers": [
                {"resources": ask("1")},
                {"restartPolicy": "Always", "resources": ask("200m")},
                {"resources": ask("900m")},
            ],
            "containers": [{"resources": ask("300m")}, {"resources": null}],
        });
        let pod = needs(spec.clone());
        assert_eq!(shown(&pod.requests()), "cpu=1100m");
        assert_eq!(shown(&pod.whole_requests()), "cpu=1110m,ephemeral-storage=1Mi");
        assert_eq!(shown(&pod.limits()), "cpu=1100m,memory=2Gi");
        assert_eq!(shown(&pod.whole_limits()), "cpu=1110m,memory=2Gi");
        spec["resources"] = json!({"requests": {"cpu": "3", "example.com/gpu": "1"}});
        assert_eq!(shown(&needs(spec).requests()), "cpu=3");
    }

    #[test]
    fn names_tell_whose_a_resource_is() {
        for (name, native, extended) in [
            ("cpu", true, false),
            ("hugepages-2Mi", true, false),
            ("example.com/gpu", false, true),
            ("count/deployments.apps", false, true),
            ("requests.example.com/gpu", false, false),
            ("x.kubernetes.io/batch", true, false),
            ("example.com/", false, false),
        ] {
            assert_eq!((is_native(name), is_extended(name)), (native, extended), "{name}");
        }
    }
}
