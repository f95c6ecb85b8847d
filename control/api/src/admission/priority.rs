//! What a pod's priority is: its class says so.

use serde_json::{Value, json};

use super::{Operation, Request, World};
use crate::kinds::priority_class::SYSTEM;
use crate::object::{child, flag, name, number, text};
use crate::status::{Result, Status};

const GROUP: &str = "scheduling.k8s.io";
const PLURAL: &str = "priorityclasses";
const POLICY: &str = "PreemptLowerPriority";

pub fn admit(request: &mut Request<'_>, world: &World<'_>) -> Result<()> {
    match (&*request.kind.group, &*request.kind.plural) {
        _ if request.is_new_pod() => pod(request, world),
        (GROUP, PLURAL) => class(request, world),
        _ => Ok(()),
    }
}

/// The class that pods without one get: the lowest, should two say they are it.
fn default_class(world: &World<'_>) -> Option<Value> {
    let classes = world.all(GROUP, PLURAL).into_iter().filter(|class| flag(class, "/globalDefault"));
    classes.min_by_key(|class| number(class, "/value"))
}

fn pod(request: &mut Request<'_>, world: &World<'_>) -> Result<()> {
    let named = text(request.object, "/spec/priorityClassName");
    let class = match named {
        "" => default_class(world),
        named => match world.object(GROUP, PLURAL, "", named) {
            Some(class) => Some(class),
            None => {
                let why = format!("no PriorityClass with name {named} was found");
                return Err(Status::forbidden_kind(request.kind, request.name, &why));
            }
        },
    };
    let value = class.as_ref().and_then(|class| number(class, "/value")).unwrap_or(0);
    let policy = class.as_ref().map_or(POLICY, |class| text(class, "/preemptionPolicy"));
    let given = number(request.object, "/spec/priority");
    if let Some(given) = given.filter(|given| *given != value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(Status::forbidden_kind(request.kind, request.name, &why));
    }
    let given = text(request.object, "/spec/preemptionPolicy");
    if class.is_some() && !given.is_empty() && given != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(Status::forbidden_kind(request.kind, request.name, &why));
    }
    let spec = child(request.object, "spec");
    if let Some(class) = &class {
        spec.insert("priorityClassName".to_owned(), json!(name(class)));
    }
    spec.insert("priority".to_owned(), value.into());
    spec.entry("preemptionPolicy").or_insert_with(|| policy.into());
    Ok(())
}

/// One default at most; and the system's classes stay.
fn class(request: &mut Request<'_>, world: &World<'_>) -> Result<()> {
    if request.operation == Operation::Delete {
        return match SYSTEM.iter().any(|(system, ..)| *system == request.name) {
            true => {
                let why = "this is a system priority class and cannot be deleted";
                Err(Status::forbidden_kind(request.kind, request.name, why))
            }
            false => Ok(()),
        };
    }
    if flag(request.object, "/globalDefault")
        && let Some(other) = default_class(world).filter(|other| name(other) != name(request.object))
    {
        let why = format!(
            "PriorityClass {} is already marked as default. Only one default can exist",
            name(&other)
        );
        return Err(Status::forbidden_kind(request.kind, request.name, &why));
    }
    Ok(())
}
