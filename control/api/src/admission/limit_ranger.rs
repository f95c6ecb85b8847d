//! LimitRanges: what containers get that ask for nothing, and how much or little a container or pod may ask for.

use serde::Deserialize;
use serde_json::{Value, json};
use wharf_kit::quantity::Quantity;
use wharf_kit::resources::{Amounts, Needs, PodNeeds};

use super::{Request, World};
use crate::kinds::pod::qos_class;
use crate::object::{child, map, metadata, text};
use crate::status::{Result, Status};

/// The annotation that tells what was set.
const SET: &str = "kubernetes.io/limit-ranger";

/// An entry of `spec.limits`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Limit {
    r#type: String,
    min: Amounts,
    max: Amounts,
    default: Amounts,
    default_request: Amounts,
    max_limit_request_ratio: Amounts,
}

/// What a pod asks can not be changed later, so a new one alone is looked at.
pub fn admit(request: &mut Request<'_>, world: &World<'_>) -> Result<()> {
    if !request.is_new_pod() {
        return Ok(());
    }
    let mut ranges: Vec<Vec<Limit>> = Vec::new();
    for mut range in world.all_in("", "limitranges", request.namespace) {
        let limits: Option<_> =
            serde_json::from_value(range["spec"]["limits"].take()).map_err(Status::internal)?;
        ranges.extend(limits);
    }
    if ranges.is_empty() {
        return Ok(());
    }
    for range in &ranges {
        set_defaults(request.object, range);
    }
    let class = qos_class(request.object);
    child(request.object, "status").insert("qosClass".to_owned(), class.into());
    // An amount that is none is validation's to refuse.
    let Ok(pod) = PodNeeds::deserialize(&request.object["spec"]) else { return Ok(()) };
    for range in &ranges {
        let broken = broken(range, &pod);
        let why = match broken.as_slice() {
            [] => continue,
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        return Err(Status::forbidden_kind(request.kind, request.name, &why));
    }
    Ok(())
}

/// Fills in requests and limits that no container asked for, and says so in the annotation.
fn set_defaults(pod: &mut Value, range: &[Limit]) {
    let mut said = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = child(pod, "spec").get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = text(container, "/name").to_owned();
            let defaults = || range.iter().filter(|limit| limit.r#type == "Container");
            let requests = defaults().flat_map(|limit| &limit.default_request);
            let limits = defaults().flat_map(|limit| &limit.default);
            for (kind, set) in [
                ("request", fill(container, "requests", requests)),
                ("limit", fill(container, "limits", limits)),
            ] {
                if !set.is_empty() {
                    said.push(format!("{} {kind} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !said.is_empty() {
        let annotations = map(metadata(pod).entry("annotations").or_insert_with(|| json!({})));
        annotations.insert(SET.to_owned(), format!("LimitRanger plugin set: {}", said.join("; ")).into());
    }
}

/// Sets those of `defaults` that the container says nothing of, and names them.
fn fill<'a>(
    container: &mut Value,
    field: &str,
    defaults: impl Iterator<Item = (&'a String, &'a Quantity)>,
) -> Vec<&'a str> {
    let mut set = Vec::new();
    for (name, amount) in defaults {
        let resources = map(child(container, "resources").entry(field).or_insert_with(|| json!({})));
        if !resources.contains_key(name) {
            resources.insert(name.clone(), amount.to_string().into());
            set.push(name.as_str());
        }
    }
    set
}

/// What of a range the pod does not keep to, each said once.
fn broken(range: &[Limit], pod: &PodNeeds) -> Vec<String> {
    let mut broken = Vec::new();
    for limit in range {
        match limit.r#type.as_str() {
            "Container" => {
                pod.all_containers().for_each(|one| broken.extend(limit.broken_by(&one.resources)));
            }
            "Pod" => {
                broken.extend(limit.broken_by(&Needs { requests: pod.requests(), limits: pod.limits() }));
            }
            _ => {}
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    broken.retain(|words| seen.insert(words.clone()));
    broken
}

impl Limit {
    fn broken_by(&self, needs: &Needs) -> Vec<String> {
        let each = |bounds: &Amounts, check: fn(&Self, &str, Quantity, &Needs) -> Option<String>| {
            let broken = bounds.iter().filter_map(|(name, bound)| check(self, name, *bound, needs));
            broken.collect::<Vec<_>>()
        };
        [
            each(&self.min, Self::too_little),
            each(&self.max, Self::too_much),
            each(&self.max_limit_request_ratio, Self::too_far_apart),
        ]
        .concat()
    }

    fn too_little(&self, name: &str, least: Quantity, needs: &Needs) -> Option<String> {
        let why = match (needs.requests.get(name), needs.limits.get(name)) {
            (None, _) => ".  No request is specified".to_owned(),
            (Some(request), _) if *request < least => format!(", but request is {request}"),
            (_, Some(limit)) if *limit < least => format!(", but limit is {limit}"),
            _ => return None,
        };
        Some(format!("minimum {name} usage per {} is {least}{why}", self.r#type))
    }

    fn too_much(&self, name: &str, most: Quantity, needs: &Needs) -> Option<String> {
        let why = match (needs.limits.get(name), needs.requests.get(name)) {
            (None, _) => ".  No limit is specified".to_owned(),
            (Some(limit), _) if *limit > most => format!(", but limit is {limit}"),
            (_, Some(request)) if *request > most => format!(", but request is {request}"),
            _ => return None,
        };
        Some(format!("maximum {name} usage per {} is {most}{why}", self.r#type))
    }

    fn too_far_apart(&self, name: &str, most: Quantity, needs: &Needs) -> Option<String> {
        let given = |list: &Amounts| list.get(name).copied().filter(|amount| !amount.is_zero());
        let why = match (given(&needs.requests), given(&needs.limits)) {
            (None, _) => "no request is specified or request is 0".to_owned(),
            (_, None) => "no limit is specified or limit is 0".to_owned(),
            (Some(request), Some(limit)) => {
                let ratio = limit.ratio_to(request);
                if ratio <= most.ratio_to(Quantity::new(1)) {
                    return None;
                }
                format!("provided ratio is {ratio:.6}")
            }
        };
        Some(format!("{name} max limit to request ratio per {} is {most}, but {why}", self.r#type))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_broken_in_kubernetes_words() {
        let needs = |requests: Value, limits: Value| -> Needs {
            serde_json::from_value(json!({"requests": requests, "limits": limits})).unwrap()
        };
        for (range, needs, words) in [
            (
                json!({"min": {"cpu": "0.1"}}),
                needs(json!({}), json!({})),
                "minimum cpu usage per Container is 100m.  No request is specified",
            ),
            (
                json!({"min": {"cpu": "100m"}}),
                needs(json!({"cpu": "50m"}), json!({})),
                "minimum cpu usage per Container is 100m, but request is 50m",
            ),
            (
                json!({"min": {"cpu": "100m"}}),
                needs(json!({"cpu": "100m"}), json!({"cpu": "50m"})),
                "minimum cpu usage per Container is 100m, but limit is 50m",
            ),
            (json!({"min": {"cpu": "100m"}}), needs(json!({"cpu": "100m"}), json!({})), ""),
            (
                json!({"max": {"memory": "1Gi"}}),
                needs(json!({"memory": "1Mi"}), json!({})),
                "maximum memory usage per Container is 1Gi.  No limit is specified",
            ),
            (
                json!({"max": {"memory": "1Gi"}}),
                needs(json!({}), json!({"memory": "1025Mi"})),
                "maximum memory usage per Container is 1Gi, but limit is 1025Mi",
            ),
            (
                json!({"max": {"memory": "1Gi"}}),
                needs(json!({"memory": "2Gi"}), json!({"memory": "1Gi"})),
                "maximum memory usage per Container is 1Gi, but request is 2Gi",
            ),
            (json!({"max": {"memory": "1Gi"}}), needs(json!({}), json!({"memory": "1024Mi"})), ""),
            (
                json!({"maxLimitRequestRatio": {"cpu": "1500m"}}),
                needs(json!({}), json!({"cpu": "1"})),
                "cpu max limit to request ratio per Container is 1500m, but no request is specified or request is 0",
            ),
            (
                json!({"maxLimitRequestRatio": {"cpu": "2"}}),
                needs(json!({"cpu": "1"}), json!({"cpu": "0"})),
                "cpu max limit to request ratio per Container is 2, but no limit is specified or limit is 0",
            ),
            (
                json!({"maxLimitRequestRatio": {"cpu": "2"}}),
                needs(json!({"cpu": "300m"}), json!({"cpu": "1"})),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.333333",
            ),
            (
                json!({"maxLimitRequestRatio": {"cpu": "2.5"}}),
                needs(json!({"cpu": "400m"}), json!({"cpu": "1"})),
                "",
            ),
        ] {
            let mut limit: Limit = serde_json::from_value(range.clone()).unwrap();
            limit.r#type = "Container".to_owned();
            assert_eq!(limit.broken_by(&needs).join("|"), words, "{range} {needs:?}");
        }
    }
}
