//! Nobody grants what they do not have.

use serde_json::Value;

use super::rbac::Rule;
use super::{Action, Attributes, check};
use crate::object::text;
use crate::status::{Result, Status};
use crate::user::MASTERS;
use crate::verbs::Call;

impl Call {
    /// Refuses a role with rules, or a binding to a role with rules, that the user does not have. The verbs
    /// `escalate` and `bind` allow it all the same.
    pub fn check_escalation(&self, new: &Value, old: Option<&Value>) -> Result<()> {
        if self.kind.group != "rbac.authorization.k8s.io" || self.user.in_group(MASTERS) {
            return Ok(());
        }
        let namespace = self.path.namespace.as_str();
        let name = text(new, "/metadata/name");
        let same = |field: &str| old.is_some_and(|old| old.get(field) == new.get(field));
        let may = |verb: &str, resource: &str, name: &str| {
            let action = Action::Resource {
                group: &self.kind.group,
                resource,
                subresource: "",
                namespace,
                name,
                fields: &[],
            };
            check(&self.server.authorizers, &Attributes { user: &self.user, verb, action }).is_ok()
        };
        let rules: Vec<Rule> = match &*self.kind.plural {
            "roles" | "clusterroles" => {
                if same("rules") || may("escalate", &self.kind.plural, name) {
                    return Ok(());
                }
                serde_json::from_value(new["rules"].clone()).unwrap_or_default()
            }
            _ => {
                let (kind, role) = (text(new, "/roleRef/kind"), text(new, "/roleRef/name"));
                let plural = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
                if (same("roleRef") && same("subjects")) || may("bind", plural, role) {
                    return Ok(());
                }
                match self.server.rbac.rules_of(kind, namespace, role) {
                    Some(rules) => rules.to_vec(),
                    None => {
                        return Err(Status::forbidden_kind(
                            &self.kind,
                            name,
                            &format!("{kind} {role:?} not found"),
                        ));
                    }
                }
            }
        };
        if self.server.rbac.holds(&self.user, namespace, &rules) {
            return Ok(());
        }
        let why = format!(
            "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held",
            self.user.name, self.user.groups
        );
        Err(Status::forbidden_kind(&self.kind, name, &why))
    }
}
