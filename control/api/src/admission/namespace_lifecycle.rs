//! Nothing is made in a namespace that is missing or going, and the system's namespaces stay.

use super::{Operation, Request, World};
use crate::object::terminating;
use crate::status::{Result, Status};

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub fn admit(request: &mut Request<'_>, world: &World<'_>) -> Result<()> {
    let kind = request.kind;
    if kind.group.is_empty() && kind.plural == "namespaces" {
        return match request.operation {
            Operation::Delete if IMMORTAL.contains(&request.name) => {
                Err(Status::forbidden_kind(kind, request.name, "this namespace may not be deleted"))
            }
            _ => Ok(()),
        };
    }
    if request.operation != Operation::Create || !kind.namespaced {
        return Ok(());
    }
    let name = request.namespace;
    let Some(namespace) = world.object("", "namespaces", "", name) else {
        return Err(Status::not_found(world.kinds.builtin("", "namespaces"), name));
    };
    if terminating(&namespace) {
        let why = format!("unable to create new content in namespace {name} because it is being terminated");
        return Err(Status::forbidden_kind(kind, request.name, &why).with_cause(
            "NamespaceTerminating",
            format!("namespace {name} is being terminated"),
            "metadata.namespace",
        ));
    }
    Ok(())
}
