//! A container's environment: literals, ConfigMaps, Secrets and fields of the pod, put together purely.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};

use crate::objects::{Data, ObjectKind, ObjectName};
use crate::resources;

/// Why a container's environment (or command) cannot be made. The text is what `kubectl describe` shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{kind} \"{name}\" not found", kind = object.kind.lower(), name = object.name)]
    MissingObject { object: Box<ObjectName> },
    #[error("couldn't find key {key} in {kind} {object}", kind = object.kind.name())]
    MissingKey { key: String, object: Box<ObjectName> },
    #[error("unsupported fieldPath \"{0}\"")]
    Field(String),
    #[error("unsupported source of environment variable \"{0}\"")]
    Source(String),
    #[error(transparent)]
    Resource(#[from] resources::FieldError),
}

impl Error {
    /// The object whose change can cure this.
    pub fn waits_for(&self) -> Option<&ObjectName> {
        match self {
            Self::MissingObject { object, .. } | Self::MissingKey { object, .. } => Some(object),
            Self::Field(_) | Self::Source(_) | Self::Resource(_) => None,
        }
    }
}

/// The ConfigMaps and Secrets that a container's environment reads, as found just now.
pub type Found = HashMap<ObjectName, Option<Arc<Data>>>;

/// What the fields of a pod are read from when they are not in the object itself yet.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    pub node: &'a str,
    pub host_ip: &'a str,
    pub pod_ips: &'a [String],
    /// Host and port.
    pub api_server: (&'a str, u16),
    pub allocatable: &'a resources::Machine,
}

/// Names of all objects that the environment of `container` refers to.
pub fn objects(namespace: &str, container: &Container) -> Vec<ObjectName> {
    let mut names = Vec::new();
    let mut add = |kind, name: &str| {
        let object = ObjectName { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        if !names.contains(&object) {
            names.push(object);
        }
    };
    for source in container.env_from.iter().flatten() {
        if let Some(map) = &source.config_map_ref {
            add(ObjectKind::ConfigMap, &map.name);
        }
        if let Some(secret) = &source.secret_ref {
            add(ObjectKind::Secret, &secret.name);
        }
    }
    for from in container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
        if let Some(map) = &from.config_map_key_ref {
            add(ObjectKind::ConfigMap, &map.name);
        }
        if let Some(secret) = &from.secret_key_ref {
            add(ObjectKind::Secret, &secret.name);
        }
    }
    names
}

/// The environment in its final order: where the API server is, `envFrom`, then `env`; a later entry of the same name
/// replaces the value of an earlier one.
///
/// # Errors
/// A required object or key is not there, or a source is one that this version does not know.
pub fn build(
    container: &Container,
    facts: &Facts<'_>,
    found: &Found,
) -> Result<Vec<(String, String)>, Error> {
    let namespace = facts.pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut env = Env::default();
    let (host, port) = facts.api_server;
    for (name, value) in
        [("HOST", host.to_owned()), ("PORT", port.to_string()), ("PORT_HTTPS", port.to_string())]
    {
        env.set(format!("KUBERNETES_SERVICE_{name}"), value);
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional) = if let Some(map) = &source.config_map_ref {
            (ObjectKind::ConfigMap, &map.name, map.optional)
        } else if let Some(secret) = &source.secret_ref {
            (ObjectKind::Secret, &secret.name, secret.optional)
        } else {
            continue;
        };
        if let Some(data) = object(found, namespace, kind, name, optional)? {
            for (key, value) in &data.text {
                env.set(format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (_, Some(from)) => match from_source(&var.name, from, container, facts, found, namespace)? {
                Some(value) => value,
                None => continue, // optional, and absent
            },
            (Some(literal), None) => expand(literal, |name| env.get(name)),
            (None, None) => String::new(),
        };
        env.set(var.name.clone(), value);
    }
    Ok(env
        .order
        .into_iter()
        .map(|name| {
            let value = env.values.remove(&name).unwrap_or_default();
            (name, value)
        })
        .collect())
}

/// Replaces `$(NAME)` by `lookup(NAME)`; `$$` is a dollar; a name that is not known stays as it is written.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// A field of the pod by its downward-API path.
pub fn field(path: &str, facts: &Facts<'_>) -> Result<String, Error> {
    let meta = &facts.pod.metadata;
    let spec = facts.pod.spec.as_ref();
    let owned = |value: Option<&String>| value.cloned().unwrap_or_default();
    Ok(match path {
        "metadata.name" => owned(meta.name.as_ref()),
        "metadata.namespace" => owned(meta.namespace.as_ref()),
        "metadata.uid" => owned(meta.uid.as_ref()),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node.to_owned(),
        "spec.serviceAccountName" => owned(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.to_owned(),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => match subscript(path) {
            Some(("metadata.labels", key)) => owned(meta.labels.as_ref().and_then(|map| map.get(key))),
            Some(("metadata.annotations", key)) => {
                owned(meta.annotations.as_ref().and_then(|map| map.get(key)))
            }
            _ => return Err(Error::Field(path.to_owned())),
        },
    })
}

/// `metadata.labels['key']` in its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.strip_suffix("']")?.split_once("['")?;
    Some((map, key))
}

/// A map as the downward API writes it in a file: `key="value"` a line, with the value escaped.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let rows: Vec<_> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    rows.join("\n")
}

/// As Go's `%q` writes it.
fn quoted(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::from("\"");
    for letter in text.chars() {
        let _ = match letter {
            '"' | '\\' => write!(out, "\\{letter}"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\u{7}' => write!(out, "\\a"),
            '\u{8}' => write!(out, "\\b"),
            '\u{b}' => write!(out, "\\v"),
            '\u{c}' => write!(out, "\\f"),
            _ if letter.is_ascii_control() => write!(out, "\\x{:02x}", u32::from(letter)),
            _ if letter.is_control() => write!(out, "\\u{:04x}", u32::from(letter)),
            _ => write!(out, "{letter}"),
        }; // writing to a string cannot fail
    }
    out.push('"');
    out
}

fn from_source(
    name: &str,
    from: &EnvVarSource,
    container: &Container,
    facts: &Facts<'_>,
    found: &Found,
    namespace: &str,
) -> Result<Option<String>, Error> {
    if let Some(reference) = &from.config_map_key_ref {
        return key(
            found,
            namespace,
            ObjectKind::ConfigMap,
            &reference.name,
            &reference.key,
            reference.optional,
        );
    }
    if let Some(reference) = &from.secret_key_ref {
        return key(
            found,
            namespace,
            ObjectKind::Secret,
            &reference.name,
            &reference.key,
            reference.optional,
        );
    }
    if let Some(reference) = &from.field_ref {
        return field(&reference.field_path, facts).map(Some);
    }
    if let Some(reference) = &from.resource_field_ref {
        let named = reference.container_name.as_deref().filter(|name| !name.is_empty());
        let of = named.map_or(Some(container), |named| self::container(facts.pod, named));
        let of = of.ok_or_else(|| Error::Source(name.to_owned()))?;
        return Ok(Some(resources::field(
            &reference.resource,
            reference.divisor.as_ref(),
            of,
            facts.allocatable,
        )?));
    }
    Err(Error::Source(name.to_owned()))
}

/// The container of this name, of whatever kind.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|one| one.name == name)
}

fn object<'a>(
    found: &'a Found,
    namespace: &str,
    kind: ObjectKind,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a Arc<Data>>, Error> {
    let object = ObjectName { kind, namespace: namespace.to_owned(), name: name.to_owned() };
    match found.get(&object).and_then(Option::as_ref) {
        Some(data) => Ok(Some(data)),
        None if optional == Some(true) => Ok(None),
        None => Err(Error::MissingObject { object: Box::new(object) }),
    }
}

fn key(
    found: &Found,
    namespace: &str,
    kind: ObjectKind,
    name: &str,
    key: &str,
    optional: Option<bool>,
) -> Result<Option<String>, Error> {
    let Some(data) = object(found, namespace, kind, name, optional)? else { return Ok(None) };
    match data.text.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => {
            let object = ObjectName { kind, namespace: namespace.to_owned(), name: name.to_owned() };
            Err(Error::MissingKey { key: key.to_owned(), object: Box::new(object) })
        }
    }
}

#[derive(Default)]
struct Env {
    order: Vec<String>,
    values: HashMap<String, String>,
}

impl Env {
    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }
    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_expand_as_kubernetes_says() {
        let lookup = |name: &str| match name {
            "A" => Some("1"),
            "B_C" => Some("two"),
            _ => None,
        };
        for (text, want) in [
            ("plain", "plain"),
            ("$(A)-$(B_C)", "1-two"),
            ("$(MISSING)", "$(MISSING)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A ${A} $", "$A ${A} $"),
            ("$(A", "$(A"),
            ("äö$(A)ü", "äö1ü"),
        ] {
            assert_eq!(expand(text, lookup), want, "{text}");
        }
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u-1", "labels": {"app": "x", "b": "y"}},
            "spec": {"serviceAccountName": "sa", "containers": []}})).unwrap()
    }

    fn data(pairs: &[(&str, &str)]) -> Option<Arc<Data>> {
        Some(Arc::new(Data {
            text: pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec().into())).collect(),
        }))
    }

    fn run(container: serde_json::Value, found: &Found) -> Result<Vec<(String, String)>, Error> {
        let container: Container = serde_json::from_value(container).unwrap();
        let pod = pod();
        let machine = resources::Machine { cpu_millis: 2000, memory: 1 << 30, storage: 1 << 34 };
        let facts = Facts {
            pod: &pod,
            node: "n1",
            host_ip: "10.0.0.1",
            pod_ips: &["10.1.0.2".to_owned()],
            api_server: ("10.0.0.9", 6443),
            allocatable: &machine,
        };
        build(&container, &facts, found)
    }

    #[test]
    fn sources_come_in_order_and_later_ones_win() {
        let found = Found::from([
            (
                ObjectName { kind: ObjectKind::ConfigMap, namespace: "ns".into(), name: "cm".into() },
                data(&[("a", "from-cm"), ("b", "b-cm")]),
            ),
            (
                ObjectName { kind: ObjectKind::Secret, namespace: "ns".into(), name: "s".into() },
                data(&[("key", "hush")]),
            ),
        ]);
        let env = run(json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "P_a", "value": "over"},
                {"name": "X", "value": "$(P_a)/$(P_b)/$(Y)"},
                {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
                {"name": "O", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": true}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "KUBERNETES_SERVICE_PORT", "value": "mine"},
            ]}), &found).unwrap();
        let want = [
            ("KUBERNETES_SERVICE_HOST", "10.0.0.9"),
            ("KUBERNETES_SERVICE_PORT", "mine"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "6443"),
            ("P_a", "over"),
            ("P_b", "b-cm"),
            ("X", "over/b-cm/$(Y)"),
            ("S", "hush"),
            ("IP", "10.1.0.2"),
            ("L", "x"),
            ("N", "n1"),
        ];
        assert_eq!(env, want.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn maps_are_written_as_go_quotes_them() {
        let map = BTreeMap::from([
            ("a".to_owned(), "it's \"äö\"".to_owned()),
            ("b".to_owned(), "x\n\u{1b}\\".to_owned()),
        ]);
        assert_eq!(lines(Some(&map)), "a=\"it's \\\"äö\\\"\"\nb=\"x\\n\\x1b\\\\\"");
    }

    #[test]
    fn a_missing_object_or_key_is_named_and_waited_for() {
        let reference = json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]});
        let missing = run(reference.clone(), &Found::new()).unwrap_err();
        assert_eq!(missing.to_string(), "configmap \"cm\" not found");
        assert_eq!(missing.waits_for().map(|object| object.name.as_str()), Some("cm"));
        let found = Found::from([(
            ObjectName { kind: ObjectKind::ConfigMap, namespace: "ns".into(), name: "cm".into() },
            data(&[]),
        )]);
        assert_eq!(run(reference, &found).unwrap_err().to_string(), "couldn't find key k in ConfigMap ns/cm");
    }
}
