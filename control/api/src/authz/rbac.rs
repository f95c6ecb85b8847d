//! Role-based access control: the rules of all roles and bindings, indexed by who they are for.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Deserialize;

use super::{Action, Attributes, Authorizer, Decision};
use crate::storage::Storage;

/// What the keys of the four kinds start with.
pub const PREFIX: &str = "rbac.authorization.k8s.io/";

/// A role's rule, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == wanted)
}

impl Rule {
    fn allows(&self, verb: &str, action: &Action<'_>) -> bool {
        if !has(&self.verbs, verb) {
            return false;
        }
        match *action {
            Action::Path(path) => self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => path == url,
            }),
            Action::Resource { group, resource, subresource, name, .. } => {
                has(&self.api_groups, group)
                    && self.resources.iter().any(|entry| covers(entry, resource, subresource))
                    && (self.resource_names.is_empty()
                        || self.resource_names.iter().any(|allowed| allowed == name))
            }
        }
    }

    /// Whether whoever has this rule has all of `other`.
    fn contains(&self, other: &Rule) -> bool {
        let all = |mine: &[String], theirs: &[String]| theirs.iter().all(|entry| has(mine, entry));
        if !all(&self.verbs, &other.verbs) {
            return false;
        }
        if !other.non_resource_urls.is_empty() {
            return other.non_resource_urls.iter().all(|url| {
                self.non_resource_urls.iter().any(|mine| match mine.strip_suffix('*') {
                    Some(prefix) => url.starts_with(prefix),
                    None => url == mine,
                })
            });
        }
        all(&self.api_groups, &other.api_groups)
            && other.resources.iter().all(|entry| {
                let (resource, subresource) = entry.split_once('/').unwrap_or((entry, ""));
                self.resources.iter().any(|mine| mine == entry || covers(mine, resource, subresource))
            })
            && (self.resource_names.is_empty()
                || (!other.resource_names.is_empty()
                    && other.resource_names.iter().all(|name| self.resource_names.contains(name))))
    }
}

/// Whether a rule's `pods`, `pods/log`, `*/scale` or `*` means this.
fn covers(entry: &str, resource: &str, subresource: &str) -> bool {
    match entry.split_once('/') {
        _ if entry == "*" => true,
        None => subresource.is_empty() && entry == resource,
        Some(("*", sub)) => sub == subresource,
        Some((of, sub)) => of == resource && sub == subresource,
    }
}

#[derive(Deserialize)]
struct RoleView {
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BindingView {
    role_ref: RoleRef,
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
}

#[derive(Deserialize)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Deserialize)]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

/// Rules granted by one binding; `namespace` is empty if they hold everywhere.
#[derive(Clone)]
struct Grant {
    namespace: Arc<str>,
    rules: Arc<[Rule]>,
}

/// Grants by user name and by group.
#[derive(Default)]
struct Index {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
    /// Rules by the key of their role.
    roles: HashMap<String, Arc<[Rule]>>,
}

impl Index {
    fn build<'a>(entries: impl Iterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut index = Self::default();
        let mut bindings = Vec::new();
        for (key, value) in entries {
            let mut parts = key.strip_prefix(PREFIX).unwrap_or(key).splitn(3, '/');
            match (parts.next(), parts.next(), parts.next()) {
                (Some("roles" | "clusterroles"), ..) => {
                    let rules = serde_json::from_slice::<RoleView>(value).ok().and_then(|role| role.rules);
                    index.roles.insert(key.to_owned(), rules.unwrap_or_default().into());
                }
                (Some("clusterrolebindings"), ..) => bindings.push(("", value)),
                (Some("rolebindings"), Some(namespace), _) => bindings.push((namespace, value)),
                _ => {}
            }
        }
        for (namespace, value) in bindings {
            let Ok(binding) = serde_json::from_slice::<BindingView>(value) else { continue };
            let role = role_key(&binding.role_ref.kind, namespace, &binding.role_ref.name);
            let Some(rules) = index.roles.get(&role) else { continue };
            let grant = Grant { namespace: namespace.into(), rules: rules.clone() };
            for subject in binding.subjects.unwrap_or_default() {
                match subject.kind.as_str() {
                    "Group" => index.groups.entry(subject.name).or_default().push(grant.clone()),
                    "User" => index.users.entry(subject.name).or_default().push(grant.clone()),
                    "ServiceAccount" => {
                        let place = if subject.namespace.is_empty() { namespace } else { &subject.namespace };
                        let user = format!("system:serviceaccount:{place}:{}", subject.name);
                        index.users.entry(user).or_default().push(grant.clone());
                    }
                    _ => {}
                }
            }
        }
        index
    }

    fn grants<'a>(&'a self, user: &'a crate::UserInfo) -> impl Iterator<Item = &'a Grant> {
        let own = self.users.get(&user.name).into_iter().flatten();
        own.chain(user.groups.iter().filter_map(|group| self.groups.get(group)).flatten())
    }
}

/// The key of the role that a binding in `namespace` means.
fn role_key(kind: &str, namespace: &str, name: &str) -> String {
    match kind {
        "ClusterRole" => format!("{PREFIX}clusterroles/{name}"),
        _ => format!("{PREFIX}roles/{namespace}/{name}"),
    }
}

/// Decides by roles and bindings. It is told of changes with [`Rbac::refresh`].
#[derive(Default)]
pub struct Rbac {
    index: RwLock<Arc<Index>>,
}

impl Rbac {
    /// Reads all roles and bindings anew.
    pub async fn refresh(&self, storage: &dyn Storage) -> Result<wharf_store::Revision, wharf_store::Error> {
        let snapshot = storage.snapshot(PREFIX, None).await?;
        let index = Index::build(snapshot.iter().map(|object| (object.key.as_str(), &*object.value)));
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(index);
        Ok(snapshot.revision())
    }

    fn index(&self) -> Arc<Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether `user` has, in `namespace` (empty: everywhere), every one of `rules`: nobody may grant more than
    /// they have.
    pub fn holds(&self, user: &crate::UserInfo, namespace: &str, rules: &[Rule]) -> bool {
        let index = self.index();
        let mine: Vec<&Rule> = index
            .grants(user)
            .filter(|grant| grant.namespace.is_empty() || *grant.namespace == *namespace)
            .flat_map(|grant| grant.rules.iter())
            .collect();
        // Split up, so that two of the user's rules together may cover one that is asked for.
        rules.iter().flat_map(split).all(|rule| mine.iter().any(|have| have.contains(&rule)))
    }

    /// Every rule that `user` has in `namespace`, each once.
    pub fn rules_for(&self, user: &crate::UserInfo, namespace: &str) -> Vec<Rule> {
        let index = self.index();
        let mut rules: Vec<Rule> = Vec::new();
        for grant in index.grants(user) {
            if grant.namespace.is_empty() || *grant.namespace == *namespace {
                for rule in grant.rules.iter() {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
        }
        rules
    }

    /// The rules of the role that a binding in `namespace` refers to.
    pub fn rules_of(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<[Rule]>> {
        self.index().roles.get(&role_key(kind, namespace, name)).cloned()
    }
}

/// One rule for each verb, group and resource of `rule`.
fn split(rule: &Rule) -> Vec<Rule> {
    let one = |text: &String| vec![text.clone()];
    let mut parts = Vec::new();
    for verb in &rule.verbs {
        for url in &rule.non_resource_urls {
            parts.push(Rule { verbs: one(verb), non_resource_urls: one(url), ..Rule::default() });
        }
        for group in &rule.api_groups {
            for resource in &rule.resources {
                parts.push(Rule {
                    verbs: one(verb),
                    api_groups: one(group),
                    resources: one(resource),
                    resource_names: rule.resource_names.clone(),
                    non_resource_urls: Vec::new(),
                });
            }
        }
    }
    parts
}

impl Authorizer for Rbac {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let namespace = match attributes.action {
            Action::Resource { namespace, .. } => namespace,
            Action::Path(_) => "",
        };
        let index = self.index();
        let allowed = index
            .grants(attributes.user)
            .filter(|grant| grant.namespace.is_empty() || *grant.namespace == *namespace)
            .flat_map(|grant| grant.rules.iter())
            .any(|rule| rule.allows(attributes.verb, &attributes.action));
        if allowed { Decision::Allow } else { Decision::NoOpinion(String::new()) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::UserInfo;

    fn rbac() -> Rbac {
        let entries = [
            (
                "rbac.authorization.k8s.io/clusterroles/reader",
                json!({"rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/status"]},
                                 {"verbs": ["get"], "nonResourceURLs": ["/v2/*", "/version"]}]}),
            ),
            (
                "rbac.authorization.k8s.io/roles/a/named",
                json!({"rules": [{"verbs": ["*"], "apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["web"]}]}),
            ),
            (
                "rbac.authorization.k8s.io/clusterrolebindings/readers",
                json!({"roleRef": {"kind": "ClusterRole", "name": "reader"}, "subjects": [{"kind": "Group", "name": "readers"}]}),
            ),
            (
                "rbac.authorization.k8s.io/rolebindings/a/named",
                json!({"roleRef": {"kind": "Role", "name": "named"}, "subjects": [{"kind": "User", "name": "u"}]}),
            ),
        ];
        let bytes: Vec<_> = entries.iter().map(|(key, value)| (*key, value.to_string())).collect();
        let index = Index::build(bytes.iter().map(|(key, value)| (*key, value.as_bytes())));
        Rbac { index: RwLock::new(Arc::new(index)) }
    }

    #[test]
    fn rules_allow_what_they_name_and_nothing_else() {
        let rbac = rbac();
        let (reader, user) = (UserInfo::new("r", ["readers"]), UserInfo::new("u", ["g"]));
        let resource = |group, resource, subresource, namespace, name| Action::Resource {
            group,
            resource,
            subresource,
            namespace,
            name,
            fields: &[],
        };
        let cases = [
            (&reader, "get", resource("", "pods", "", "x", "p"), true),
            (&reader, "get", resource("", "pods", "log", "x", "p"), false),
            (&reader, "get", resource("", "nodes", "status", "", "n"), true),
            (&reader, "delete", resource("", "pods", "", "x", "p"), false),
            (&reader, "get", resource("apps", "pods", "", "x", "p"), false),
            (&reader, "get", Action::Path("/v2/app/manifests/x"), true),
            (&reader, "put", Action::Path("/v2/app/manifests/x"), false),
            (&reader, "get", Action::Path("/versions"), false),
            (&user, "patch", resource("apps", "deployments", "", "a", "web"), true),
            (&user, "patch", resource("apps", "deployments", "", "a", "other"), false),
            (&user, "patch", resource("apps", "deployments", "", "b", "web"), false),
            (&user, "list", resource("apps", "deployments", "", "a", ""), false),
        ];
        for (user, verb, action, want) in cases {
            let decision = rbac.authorize(&Attributes { user, verb, action });
            assert_eq!(decision == Decision::Allow, want, "{} {verb} {action:?}", user.name);
        }
    }

    #[test]
    fn nobody_holds_more_than_they_were_granted() {
        let rbac = rbac();
        let reader = UserInfo::new("r", ["readers"]);
        let rule = |verbs: &[&str], resources: &[&str]| Rule {
            verbs: verbs.iter().map(|v| (*v).to_owned()).collect(),
            api_groups: vec![String::new()],
            resources: resources.iter().map(|r| (*r).to_owned()).collect(),
            ..Rule::default()
        };
        assert!(rbac.holds(&reader, "", &[rule(&["get", "list"], &["pods", "pods/status"])]));
        assert!(!rbac.holds(&reader, "", &[rule(&["get", "watch"], &["pods"])]));
        assert!(!rbac.holds(&reader, "", &[rule(&["get"], &["*"])]));
    }
}
