//! Nodes.

use serde_json::Value;

use super::page::{Page, scalar};
use super::{age, conditions, identity, pairs};
use crate::resource::name_of;

pub fn describe(page: &mut Page, node: &Value, pods: &[Value]) {
    let (spec, status) = (&node["spec"], &node["status"]);
    identity(page, node);
    age(page, node);
    let taints = spec["taints"].as_array().into_iter().flatten().map(|taint| {
        let value = scalar(&taint["value"]);
        let value = if value.is_empty() { value } else { format!("={value}") };
        format!("{}{value}:{}", scalar(&taint["key"]), scalar(&taint["effect"]))
    });
    page.list(0, "Taints", taints);
    page.field(0, "Unschedulable", (spec["unschedulable"] == true).to_string());
    conditions(page, node);
    let addresses = status["addresses"].as_array().into_iter().flatten();
    page.heading(0, "Addresses");
    addresses.for_each(|address| page.field(1, &scalar(&address["type"]), scalar(&address["address"])));
    for (field, name) in [("capacity", "Capacity"), ("allocatable", "Allocatable")] {
        page.list(0, name, pairs(&status[field], ": "));
    }
    page.tree(0, "System Info", &status["nodeInfo"]);
    page.field_if(0, "Pod CIDR", &spec["podCIDR"]);
    let mut rows = vec![["Namespace", "Name", "Phase", "Requests", "Limits"].map(str::to_owned).to_vec()];
    rows.extend(pods.iter().map(|pod| {
        let of = |field: &str| {
            let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
            let each: Vec<_> =
                containers.flat_map(|container| pairs(&container["resources"][field], ": ")).collect();
            if each.is_empty() { "<none>".to_owned() } else { each.join(", ") }
        };
        let namespace = scalar(&pod["metadata"]["namespace"]);
        let phase = scalar(&pod["status"]["phase"]);
        vec![namespace, name_of(pod).to_owned(), phase, of("requests"), of("limits")]
    }));
    page.table(0, "Pods", &rows);
}
