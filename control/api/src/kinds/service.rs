//! Services: stored; addresses and routing come with the network.

use serde_json::Value;
use std::collections::BTreeSet;

use super::{Strategy, Subresource};
use crate::object::{list, map, number, text};
use crate::status::FieldError;
use crate::validate::{dns_label, labels, one_of, port_name};

pub struct Service;

/// A port without a target is its own target.
fn default_targets(service: &mut Value) {
    let ports = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        let number = port.get("port").cloned();
        if let (None, Some(number)) = (port.get("targetPort"), number) {
            map(port).insert("targetPort".to_owned(), number);
        }
    }
}

impl Strategy for Service {
    fn prepare_create(&self, new: &mut Value) {
        default_targets(new);
        map(new).insert("status".to_owned(), serde_json::json!({"loadBalancer": {}}));
    }

    fn prepare_update(&self, new: &mut Value, _old: &Value, _subresource: Option<Subresource>) {
        default_targets(new);
    }

    fn check_name(&self, name: &str, prefix: bool) -> Result<(), String> {
        dns_label(name, prefix)
    }

    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        one_of(new, "/spec/sessionAffinity", "spec.sessionAffinity", &["ClientIP", "None"], errors);
        labels(new, "/spec/selector", "spec.selector", errors);
        let (type_, address) = (text(new, "/spec/type"), text(new, "/spec/clusterIP"));
        let ports = list(new, "/spec/ports");
        if ports.is_empty() && type_ != "ExternalName" && address != "None" {
            errors.push(FieldError::required("spec.ports", ""));
        }
        if type_ == "ExternalName" && text(new, "/spec/externalName").is_empty() {
            errors.push(FieldError::required("spec.externalName", ""));
        }
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for (n, port) in ports.iter().enumerate() {
            let at = format!("spec.ports[{n}]");
            let (name, protocol) = (text(port, "/name"), text(port, "/protocol"));
            if name.is_empty() && ports.len() > 1 {
                errors.push(FieldError::required(format!("{at}.name"), ""));
            } else if !name.is_empty() {
                if let Err(problem) = dns_label(name, false) {
                    errors.push(FieldError::invalid(format!("{at}.name"), name, problem));
                }
                if !names.insert(name) {
                    errors.push(FieldError::duplicate(format!("{at}.name"), name));
                }
            }
            let value = number(port, "/port").unwrap_or(0);
            if !(1..=65535).contains(&value) {
                errors.push(FieldError::invalid(
                    format!("{at}.port"),
                    value,
                    "must be between 1 and 65535, inclusive",
                ));
            } else if !numbers.insert((protocol, value)) {
                errors.push(FieldError::duplicate(at.clone(), port.clone()));
            }
            one_of(port, "/protocol", &format!("{at}.protocol"), &["SCTP", "TCP", "UDP"], errors);
            match port.get("targetPort") {
                Some(Value::Number(target)) if !target.as_i64().is_some_and(|t| (1..=65535).contains(&t)) => {
                    errors.push(FieldError::invalid(
                        format!("{at}.targetPort"),
                        target.as_i64().unwrap_or(0),
                        "must be between 1 and 65535, inclusive",
                    ));
                }
                Some(Value::String(target)) => {
                    if let Err(problem) = port_name(target) {
                        errors.push(FieldError::invalid(
                            format!("{at}.targetPort"),
                            target.as_str(),
                            problem,
                        ));
                    }
                }
                _ => {}
            }
        }
        let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
        one_of(new, "/spec/type", "spec.type", &types, errors);
    }
}
