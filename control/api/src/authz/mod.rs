//! Who may do what: authorizers are asked in order until one allows.

use std::sync::Arc;

use crate::status::{Result, Status};
use crate::user::{MASTERS, UserInfo};

pub mod bootstrap;
mod escalation;
pub mod node;
pub mod rbac;
mod signer;

/// What is to be allowed.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    pub verb: &'a str,
    pub action: Action<'a>,
}

#[derive(Clone, Copy, Debug)]
pub enum Action<'a> {
    Resource {
        group: &'a str,
        resource: &'a str,
        /// Empty for the object itself.
        subresource: &'a str,
        /// Empty: cluster-wide, or all namespaces.
        namespace: &'a str,
        /// Empty for collections.
        name: &'a str,
        /// The `field=value` terms of a list or watch.
        fields: &'a [(String, String)],
    },
    Path(&'a str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// The next is asked; the reason is told if nobody allows.
    NoOpinion(String),
}

/// Decides about one request, from memory.
pub trait Authorizer: Send + Sync + 'static {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;
}

/// `system:masters` may do everything.
pub struct Masters;

impl Authorizer for Masters {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        match attributes.user.in_group(MASTERS) {
            true => Decision::Allow,
            false => Decision::NoOpinion(String::new()),
        }
    }
}

/// Asks each in order. What nobody allows has the reasons of all who gave one.
pub fn decide(chain: &[Arc<dyn Authorizer>], attributes: &Attributes<'_>) -> Decision {
    let mut reasons = Vec::new();
    for authorizer in chain {
        match authorizer.authorize(attributes) {
            Decision::Allow => return Decision::Allow,
            Decision::NoOpinion(reason) if reason.is_empty() => {}
            Decision::NoOpinion(reason) => reasons.push(reason),
        }
    }
    Decision::NoOpinion(reasons.join(", "))
}

/// Asks each in order.
///
/// # Errors
/// 403 in Kubernetes' words if none allows; 401 to anonymous users of a path that names a challenge.
pub fn check(chain: &[Arc<dyn Authorizer>], attributes: &Attributes<'_>) -> Result<()> {
    let Decision::NoOpinion(reason) = decide(chain, attributes) else { return Ok(()) };
    let user = &attributes.user.name;
    let verb = attributes.verb;
    let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Err(match attributes.action {
        Action::Path(path) => {
            Status::forbidden("", "", "", &format!("User {user:?} cannot {verb} path {path:?}{because}"))
        }
        Action::Resource { group, resource, subresource, namespace, name, .. } => {
            let what = if subresource.is_empty() {
                resource.to_owned()
            } else {
                format!("{resource}/{subresource}")
            };
            let place = match namespace.is_empty() {
                true => "at the cluster scope".to_owned(),
                false => format!("in the namespace {namespace:?}"),
            };
            let text = format!(
                "User {user:?} cannot {verb} resource {what:?} in API group {group:?} {place}{because}"
            );
            Status::forbidden(group, resource, name, &text)
        }
    })
}
