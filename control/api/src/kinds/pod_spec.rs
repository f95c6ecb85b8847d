//! What a pod may ask for, in a Pod and in a template.

use std::collections::BTreeSet;

use serde_json::Value;

use super::pod_volumes::{self, field_ref, relative, resource_field_ref};
use crate::object::{entries, list, number, text};
use crate::status::FieldError;
use crate::validate::{
    annotations, at_least, config_key, dns_label, dns_subdomain, labels, one_of, port_name, quantity,
};

type Errors = Vec<FieldError>;

/// A template's metadata and spec, under `field`; `restart`: the only policy its controller can keep up.
pub fn template(template: &Value, field: &str, restart: Option<&str>, errors: &mut Errors) {
    labels(template, "/metadata/labels", &format!("{field}.metadata.labels"), errors);
    annotations(template, "/metadata/annotations", &format!("{field}.metadata.annotations"), errors);
    validate(&template["spec"], &format!("{field}.spec"), errors);
    if !list(template, "/spec/ephemeralContainers").is_empty() {
        let field = format!("{field}.spec.ephemeralContainers");
        errors.push(FieldError::forbidden(field, "ephemeral containers not allowed in pod template"));
    }
    if let Some(wanted) = restart {
        let policy = text(template, "/spec/restartPolicy");
        if !policy.is_empty() && policy != wanted {
            errors.push(FieldError::not_supported(format!("{field}.spec.restartPolicy"), policy, &[wanted]));
        }
        if number(template, "/spec/activeDeadlineSeconds").is_some() {
            errors.push(FieldError::forbidden(
                format!("{field}.spec.activeDeadlineSeconds"),
                "activeDeadlineSeconds in ReplicaSet is not Supported",
            ));
        }
    }
}

/// Checks all but ephemeral containers; gives the names of the volumes.
pub fn validate(spec: &Value, field: &str, errors: &mut Errors) -> BTreeSet<String> {
    let volumes = pod_volumes::volumes(spec, field, errors);
    if list(spec, "/containers").is_empty() {
        errors.push(FieldError::required(format!("{field}.containers"), ""));
    }
    let mut names = BTreeSet::new();
    for kind in ["containers", "initContainers"] {
        for (n, container) in list(spec, &format!("/{kind}")).iter().enumerate() {
            let at = format!("{field}.{kind}[{n}]");
            let name = text(container, "/name");
            name_of(name, &format!("{at}.name"), errors);
            if !name.is_empty() && !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), name));
            }
            self::container(container, &at, &volumes, kind == "initContainers", errors);
            hooks_and_probes(container, &at, kind == "initContainers", errors);
        }
    }
    one_of(
        spec,
        "/restartPolicy",
        &format!("{field}.restartPolicy"),
        &["Always", "OnFailure", "Never"],
        errors,
    );
    one_of(
        spec,
        "/dnsPolicy",
        &format!("{field}.dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        errors,
    );
    at_least(
        spec,
        "/terminationGracePeriodSeconds",
        &format!("{field}.terminationGracePeriodSeconds"),
        0,
        errors,
    );
    if let Some(seconds) = number(spec, "/activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        errors.push(FieldError::invalid(
            format!("{field}.activeDeadlineSeconds"),
            seconds,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    labels(spec, "/nodeSelector", &format!("{field}.nodeSelector"), errors);
    for (pointer, name) in [("/serviceAccountName", "serviceAccountName"), ("/nodeName", "nodeName")] {
        let value = text(spec, pointer);
        if !value.is_empty()
            && let Err(problem) = dns_subdomain(value, false)
        {
            errors.push(FieldError::invalid(format!("{field}.{name}"), value, problem));
        }
    }
    for (pointer, name) in [("/hostname", "hostname"), ("/subdomain", "subdomain")] {
        let value = text(spec, pointer);
        if !value.is_empty()
            && let Err(problem) = dns_label(value, false)
        {
            errors.push(FieldError::invalid(format!("{field}.{name}"), value, problem));
        }
    }
    tolerations(spec, field, errors);
    for (resource, value) in entries(spec, "/overhead") {
        quantity(value, &format!("{field}.overhead[{resource}]"), errors);
    }
    volumes
}

pub(super) fn name_of(name: &str, field: &str, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(FieldError::required(field, ""));
    } else if let Err(problem) = dns_label(name, false) {
        errors.push(FieldError::invalid(field, name, problem));
    }
}

/// Checks what containers of all sorts have.
pub(super) fn container(
    container: &Value,
    at: &str,
    volumes: &BTreeSet<String>,
    init: bool,
    errors: &mut Errors,
) {
    let image = text(container, "/image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{at}.image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(
            format!("{at}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    one_of(
        container,
        "/terminationMessagePolicy",
        &format!("{at}.terminationMessagePolicy"),
        &["FallbackToLogsOnError", "File"],
        errors,
    );
    if init {
        one_of(
            container,
            "/restartPolicy",
            &format!("{at}.restartPolicy"),
            &["Always", "OnFailure", "Never"],
            errors,
        );
    }
    ports(container, at, errors);
    environment(container, at, errors);
    let mut mounts = BTreeSet::new();
    for (n, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let at = format!("{at}.volumeMounts[{n}]");
        let (name, path) = (text(mount, "/name"), text(mount, "/mountPath"));
        match name {
            "" => errors.push(FieldError::required(format!("{at}.name"), "")),
            name if !volumes.contains(name) => errors.push(FieldError::not_found(format!("{at}.name"), name)),
            _ => {}
        }
        if path.is_empty() {
            errors.push(FieldError::required(format!("{at}.mountPath"), ""));
        } else if !mounts.insert(path) {
            errors.push(FieldError::invalid(format!("{at}.mountPath"), path, "must be unique"));
        }
        for (pointer, name) in [("/subPath", "subPath"), ("/subPathExpr", "subPathExpr")] {
            relative(text(mount, pointer), &format!("{at}.{name}"), errors);
        }
        if !text(mount, "/subPath").is_empty() && !text(mount, "/subPathExpr").is_empty() {
            errors.push(FieldError::invalid(
                format!("{at}.subPathExpr"),
                text(mount, "/subPathExpr"),
                "subPathExpr and subPath are mutually exclusive",
            ));
        }
    }
    one_of(
        container,
        "/imagePullPolicy",
        &format!("{at}.imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
        errors,
    );
    resources(container, at, errors);
}

/// Checks what ephemeral containers have none of.
fn hooks_and_probes(container: &Value, at: &str, init: bool, errors: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        if let Some(value) = container.pointer(&format!("/lifecycle/{hook}")) {
            handler(
                value,
                &format!("{at}.lifecycle.{hook}"),
                &["exec", "httpGet", "tcpSocket", "sleep"],
                errors,
            );
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(value) = container.get(probe) else { continue };
        if init && text(container, "/restartPolicy") != "Always" {
            errors.push(FieldError::forbidden(
                format!("{at}.{probe}"),
                "may not be set for init containers without restartPolicy=Always",
            ));
        }
        self::probe(value, &format!("{at}.{probe}"), probe, errors);
    }
}

fn port_number(value: i64, field: String, errors: &mut Errors) {
    if !(1..=65535).contains(&value) {
        errors.push(FieldError::invalid(field, value, "must be between 1 and 65535, inclusive"));
    }
}

fn ports(container: &Value, at: &str, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (n, port) in list(container, "/ports").iter().enumerate() {
        let at = format!("{at}.ports[{n}]");
        let name = text(port, "/name");
        if !name.is_empty() {
            if let Err(problem) = port_name(name) {
                errors.push(FieldError::invalid(format!("{at}.name"), name, problem));
            } else if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), name));
            }
        }
        match number(port, "/containerPort") {
            None | Some(0) => errors.push(FieldError::required(format!("{at}.containerPort"), "")),
            Some(value) => port_number(value, format!("{at}.containerPort"), errors),
        }
        if let Some(value) = number(port, "/hostPort").filter(|value| *value != 0) {
            port_number(value, format!("{at}.hostPort"), errors);
        }
        one_of(port, "/protocol", &format!("{at}.protocol"), &["SCTP", "TCP", "UDP"], errors);
    }
}

/// Fields of a pod that an environment variable may tell, beside single labels and annotations.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn environment(container: &Value, at: &str, errors: &mut Errors) {
    for (n, env) in list(container, "/env").iter().enumerate() {
        let at = format!("{at}.env[{n}]");
        let name = text(env, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else if !name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=') {
            errors.push(FieldError::invalid(
                format!("{at}.name"),
                name,
                "a valid environment variable name must consist only of printable ASCII characters other than '='",
            ));
        }
        let Some(from) = env.get("valueFrom").filter(|from| !from.is_null()) else { continue };
        let at = format!("{at}.valueFrom");
        if !text(env, "/value").is_empty() {
            errors.push(FieldError::invalid(
                at.as_str(),
                "",
                "may not be specified when `value` is not empty",
            ));
        }
        let sources: Vec<(&str, &Value)> = entries(from, "").filter(|(_, value)| !value.is_null()).collect();
        match sources.as_slice() {
            [] => errors.push(FieldError::invalid(
                at,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            )),
            [(source @ ("configMapKeyRef" | "secretKeyRef"), value)] => {
                let key = text(value, "/key");
                if key.is_empty() {
                    errors.push(FieldError::required(format!("{at}.{source}.key"), ""));
                } else if let Err(problem) = config_key(key) {
                    errors.push(FieldError::invalid(format!("{at}.{source}.key"), key, problem));
                }
            }
            [("fieldRef", value)] => field_ref(value, &format!("{at}.fieldRef"), ENV_FIELDS, errors),
            [(source, value)] => resource_field_ref(value, &format!("{at}.{source}"), false, errors),
            _ => errors.push(FieldError::invalid(
                at,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
    for (n, from) in list(container, "/envFrom").iter().enumerate() {
        let at = format!("{at}.envFrom[{n}]");
        match (from.get("configMapRef"), from.get("secretRef")) {
            (None, None) => {
                errors.push(FieldError::invalid(
                    at,
                    "",
                    "must specify one of: `configMapRef` or `secretRef`",
                ));
            }
            (Some(_), Some(_)) => {
                errors.push(FieldError::invalid(
                    at,
                    "",
                    "may not have more than one field specified at a time",
                ));
            }
            _ => {}
        }
    }
}

fn resources(container: &Value, at: &str, errors: &mut Errors) {
    for (name, value) in entries(container, "/resources/limits") {
        quantity(value, &format!("{at}.resources.limits[{name}]"), errors);
    }
    for (name, value) in entries(container, "/resources/requests") {
        let field = format!("{at}.resources.requests[{name}]");
        let Some(request) = quantity(value, &field, errors) else { continue };
        let limit = container.pointer("/resources/limits").and_then(|limits| limits.get(name));
        let Some(limit_text) = limit.and_then(Value::as_str) else { continue };
        if limit_text.parse().is_ok_and(|limit| request > limit) {
            errors.push(FieldError::invalid(
                format!("{at}.resources.requests"),
                value.clone(),
                format!("must be less than or equal to {name} limit of {limit_text}"),
            ));
        }
    }
}

fn probe(probe: &Value, at: &str, which: &str, errors: &mut Errors) {
    handler(probe, at, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for (field, least) in [
        ("initialDelaySeconds", 0),
        ("timeoutSeconds", 0),
        ("periodSeconds", 0),
        ("successThreshold", 0),
        ("failureThreshold", 0),
    ] {
        at_least(probe, &format!("/{field}"), &format!("{at}.{field}"), least, errors);
    }
    if which != "readinessProbe"
        && let Some(threshold) = number(probe, "/successThreshold").filter(|threshold| *threshold != 1)
    {
        errors.push(FieldError::invalid(format!("{at}.successThreshold"), threshold, "must be 1"));
    }
}

fn handler(value: &Value, at: &str, known: &[&str], errors: &mut Errors) {
    let given: Vec<&str> =
        known.iter().filter(|handler| value.get(**handler).is_some_and(|h| !h.is_null())).copied().collect();
    match given.as_slice() {
        [] => errors.push(FieldError::required(at, "must specify a handler type")),
        [one] => {
            let pointer = format!("/{one}/port");
            if matches!(*one, "httpGet" | "tcpSocket" | "grpc") {
                match value.pointer(&pointer) {
                    Some(Value::Number(port)) => {
                        port_number(port.as_i64().unwrap_or(0), format!("{at}.{one}.port"), errors);
                    }
                    Some(Value::String(name)) => {
                        if let Err(problem) = port_name(name) {
                            errors.push(FieldError::invalid(
                                format!("{at}.{one}.port"),
                                name.as_str(),
                                problem,
                            ));
                        }
                    }
                    _ => errors.push(FieldError::required(format!("{at}.{one}.port"), "")),
                }
            }
            if *one == "exec" && list(value, "/exec/command").is_empty() {
                errors.push(FieldError::required(format!("{at}.exec.command"), ""));
            }
        }
        [_, second, ..] => {
            errors.push(FieldError::forbidden(
                format!("{at}.{second}"),
                "may not specify more than 1 handler type",
            ));
        }
    }
}

fn tolerations(spec: &Value, field: &str, errors: &mut Errors) {
    for (n, toleration) in list(spec, "/tolerations").iter().enumerate() {
        let at = format!("{field}.tolerations[{n}]");
        let (key, operator, effect) =
            (text(toleration, "/key"), text(toleration, "/operator"), text(toleration, "/effect"));
        one_of(toleration, "/operator", &format!("{at}.operator"), &["Equal", "Exists", "Gt", "Lt"], errors);
        one_of(
            toleration,
            "/effect",
            &format!("{at}.effect"),
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            errors,
        );
        if key.is_empty() && operator != "Exists" {
            errors.push(FieldError::invalid(
                format!("{at}.operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if operator == "Exists" && !text(toleration, "/value").is_empty() {
            errors.push(FieldError::invalid(
                format!("{at}.operator"),
                text(toleration, "/value"),
                "value must be empty when `operator` is 'Exists'",
            ));
        }
        if number(toleration, "/tolerationSeconds").is_some() && effect != "NoExecute" {
            errors.push(FieldError::invalid(
                format!("{at}.effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
    }
}
