//! ClusterRoles that are made of others: their rules are those of all roles that their selectors match.

use std::sync::Arc;

use serde_json::{Value, json};
use wharf_kit::api::{self, Ignored, PatchKind, Rest};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Key, Store, View};

use crate::Context;
use crate::views::ClusterRole;

pub(crate) async fn run(context: Context) {
    let roles = context.hub.view::<ClusterRole>();
    roles.ready().await;
    let pass = Roles { rest: context.rest, roles: roles.clone() };
    // Any role may be part of any aggregated one, or have been; of these there are few.
    let all = roles.clone();
    let controller = Controller::new("role", pass).watches(&roles, move |_| {
        all.all()
            .iter()
            .filter(|role| role.is_aggregated())
            .map(|role| role.metadata.key())
            .collect::<Vec<_>>()
    });
    controller.run(context.stop).await;
}

/// The rules of `role` by its selectors, each once: roles by name, their rules in order.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Vec<Value> {
    let mut parts: Vec<&Arc<ClusterRole>> = all
        .iter()
        .filter(|other| other.metadata.name != role.metadata.name)
        .filter(|other| role.selectors().any(|selector| selector.matches(&other.metadata.labels)))
        .collect();
    parts.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut rules: Vec<Value> = Vec::new();
    for rule in parts.iter().flat_map(|part| &part.rules) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    rules
}

struct Roles {
    rest: Rest,
    roles: Store<ClusterRole>,
}

impl Pass for Roles {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let Some(role) = self.roles.get(key).filter(|role| role.is_aggregated()) else {
            return Ok(Next::Done);
        };
        let rules = plan(&role, &self.roles.all());
        if rules == role.rules {
            return Ok(Next::Done);
        }
        let patch = json!({"metadata": {"uid": role.metadata.uid}, "rules": rules});
        let kind = ClusterRole::KIND;
        match self.rest.patch::<Ignored>(kind, key, "", PatchKind::Merge, &patch).await {
            // Gone, or another of that name: the view will tell.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(Next::Done),
            result => result.map(|_| Next::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, label: &str, verbs: &[&str]) -> Arc<ClusterRole> {
        let rules: Vec<Value> = verbs.iter().map(|verb| json!({"verbs": [verb]})).collect();
        let labels = json!({label: "true"});
        let value = json!({"metadata": {"name": name, "labels": labels}, "rules": rules});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn rules_are_those_of_the_selected_roles_each_once() {
        let selectors = json!([{"matchLabels": {"to-a": "true"}}, {"matchLabels": {"to-b": "true"}}]);
        let own: ClusterRole = serde_json::from_value(json!({
            "metadata": {"name": "sum", "labels": {"to-a": "true"}},
            "aggregationRule": {"clusterRoleSelectors": selectors}, "rules": [{"verbs": ["old"]}],
        }))
        .unwrap();
        let own = Arc::new(own);
        let all = [
            role("z", "to-a", &["get", "list"]),
            role("b", "to-b", &["list", "watch"]),
            role("c", "to-c", &["delete"]),
            own.clone(),
        ];
        let verbs: Vec<Value> = plan(&own, &all).iter().map(|rule| rule["verbs"][0].clone()).collect();
        assert_eq!(verbs, ["list", "watch", "get"], "neither its own rules nor those of others");
        assert!(plan(&own, &[]).is_empty());
    }
}
