//! Eviction: whether PodDisruptionBudgets let a pod go, as KEP-85 and KEP-3017 have it. The disruption controller says in a
//! budget's status how many pods may go; an eviction takes one of them, by compare-and-swap, and notes the pod.

use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};
use wharf_store::{Error as StoreError, Write};

use crate::Body;
use crate::encode;
use crate::object::{self, child, entries, list, name, number, terminating, text};
use crate::represent;
use crate::status::{Result, Status};
use crate::validate;
use crate::verbs::{Call, delete, dry_run, store_failed};

/// More pods than this whose eviction no controller has seen yet are a fault; Kubernetes' number.
const MOST_DISRUPTED: usize = 2000;
/// Other writers of a pod or a budget may be in the way this often.
const ATTEMPTS: usize = 20;
/// When to ask again while a budget's status is not of its newest spec.
const AGAIN_SECONDS: u32 = 10;

/// Why a pod may be evicted.
enum Leave {
    /// Whatever becomes of it: no budget is for it, or its budget was charged.
    Given,
    /// As it is now it disturbs nobody.
    AsItIs,
}

impl Call {
    /// A graceful delete, if the pod's disruption budget lets it go.
    pub async fn evict(&mut self, body: Bytes) -> Result<Response<Body>> {
        let write = self.write_options("CreateOptions")?;
        let form = self.answer_form()?;
        let eviction = self.body_value(&body, "policy/v1", "Eviction")?;
        let named = text(&eviction, "/metadata/name");
        if !named.is_empty() && named != self.path.name {
            return Err(Status::bad_request("name in URL does not match name in Eviction object"));
        }
        let given = eviction.get("deleteOptions").cloned().unwrap_or_else(|| json!({}));
        let mut options: delete::Options = serde_json::from_value(given)
            .map_err(|error| Status::bad_request(format!("deleteOptions: {error}")))?;
        options.dry_run.extend(write.dry_run.then(|| "All".to_owned()));
        let options = options.check()?;
        let dry_run = dry_run("DeleteOptions", options.dry_run.iter().map(String::as_str))?;
        let name = self.path.name.clone();
        for _ in 0..ATTEMPTS {
            let stored = self.storage().get(self.key().as_str()).ok_or_else(|| self.not_found())?;
            let pod = encode::decoded(&stored.value, stored.revision).map_err(Status::internal)?;
            self.check_preconditions(&name, &pod, &options)?;
            let at_version = match self.take_disruption(&pod, dry_run).await? {
                Leave::Given => None,
                // A pod that meanwhile became one that counts is looked at again.
                Leave::AsItIs => options.at_version(&stored.revision.to_string()),
            };
            match self.delete_one(&name, at_version.as_ref().unwrap_or(&options), disrupted).await {
                Ok(_) => return represent::value(form, 201, &Status::success(201).to_json()),
                Err(status) if at_version.is_some() && status.reason() == "Conflict" => {
                    self.storage().sync().await.map_err(store_failed)?;
                }
                Err(status) => return Err(status),
            }
        }
        Err(Status::modified(&self.kind, &name))
    }

    /// Takes leave for this pod to go from the budget that selects it, if one does.
    ///
    /// # Errors
    /// 429 while the budget allows none, in Kubernetes' words; 500 if there is more than one budget.
    async fn take_disruption(&self, pod: &Value, dry_run: bool) -> Result<Leave> {
        // What does not run, or goes anyway.
        if matches!(text(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending") || terminating(pod) {
            return Ok(Leave::AsItIs);
        }
        for _ in 0..ATTEMPTS {
            let mut found = self.budgets_of(pod).await?;
            let Some((revision, mut budget)) = found.pop() else { return Ok(Leave::Given) };
            if !found.is_empty() {
                return Err(Status::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
            if !is_ready(pod) && may_go_unready(&budget) {
                return Ok(Leave::AsItIs);
            }
            take(&mut budget, name(pod))?;
            if dry_run {
                return Ok(Leave::Given);
            }
            let kind = self.server.kinds.builtin("policy", "poddisruptionbudgets");
            let key = kind.key(&self.path.namespace, name(&budget));
            match self.storage().write(Write::update(key, revision, encode::stored(&budget))).await {
                Ok(_) => return Ok(Leave::Given),
                Err(StoreError::Conflict { .. }) => {
                    // Its controller, or another eviction.
                    self.storage().sync().await.map_err(store_failed)?;
                }
                Err(error) => return Err(store_failed(error)),
            }
        }
        Err(refused("The disruption budget is being written by others.", Some(AGAIN_SECONDS)))
    }

    async fn budgets_of(&self, pod: &Value) -> Result<Vec<(wharf_store::Revision, Value)>> {
        let kind = self.server.kinds.builtin("policy", "poddisruptionbudgets");
        let prefix = kind.prefix_in(&self.path.namespace);
        let labels = object::labels(pod, "/metadata/labels");
        let snapshot = self.storage().snapshot(&prefix, None).await.map_err(store_failed)?;
        let mut found = Vec::new();
        for stored in snapshot.iter() {
            let budget = encode::decoded(&stored.value, stored.revision).map_err(Status::internal)?;
            // What was stored was valid; a budget without a selector is for nobody.
            let selector = validate::selector(&budget["spec"]["selector"]).map_err(Status::internal)?;
            if selector.is_some_and(|selector| selector.matches(&labels)) {
                found.push((stored.revision, budget));
            }
        }
        Ok(found)
    }
}

/// Tells in the pod why it goes.
fn disrupted(pod: &mut Value) {
    const TYPE: &str = "DisruptionTarget";
    if terminating(pod) {
        return;
    }
    let condition = json!({
        "type": TYPE, "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": object::now(),
    });
    let conditions = child(pod, "status").entry("conditions").or_insert_with(|| json!([]));
    if let Value::Array(conditions) = conditions {
        conditions.retain(|one| text(one, "/type") != TYPE);
        conditions.push(condition);
    }
}

fn is_ready(pod: &Value) -> bool {
    let mut conditions = list(pod, "/status/conditions").iter();
    conditions.any(|one| text(one, "/type") == "Ready" && text(one, "/status") == "True")
}

/// A pod that is not ready is in nobody's count; it may go if enough others are healthy, or if its owner says so.
fn may_go_unready(budget: &Value) -> bool {
    let desired = number(budget, "/status/desiredHealthy").unwrap_or(0);
    let healthy = number(budget, "/status/currentHealthy").unwrap_or(0);
    text(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow" || (desired > 0 && healthy >= desired)
}

/// Notes in a budget's status that this pod goes.
fn take(budget: &mut Value, pod: &str) -> Result<()> {
    let of = |field: &str| number(budget, &format!("/status/{field}")).unwrap_or(0);
    let called = name(budget).to_owned();
    if of("observedGeneration") < number(budget, "/metadata/generation").unwrap_or(0) {
        let why = format!("The disruption budget {called} is still being processed by the server.");
        return Err(refused(&why, Some(AGAIN_SECONDS)));
    }
    if entries(budget, "/status/disruptedPods").count() > MOST_DISRUPTED {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::forbidden("policy", "poddisruptionbudgets", &called, why));
    }
    let allowed = of("disruptionsAllowed");
    if allowed <= 0 {
        let why = format!(
            "The disruption budget {called} needs {} healthy pods and has {} currently",
            of("desiredHealthy"),
            of("currentHealthy")
        );
        return Err(refused(&why, None));
    }
    let time = object::now();
    let status = child(budget, "status");
    status.insert("disruptionsAllowed".to_owned(), json!(allowed - 1));
    if !status.get("disruptedPods").is_some_and(Value::is_object) {
        status.insert("disruptedPods".to_owned(), json!({}));
    }
    status["disruptedPods"][pod] = json!(time);
    if allowed == 1
        && let Some(Value::Array(conditions)) = status.get_mut("conditions")
        && let Some(one) = conditions.iter_mut().find(|one| text(one, "/type") == "DisruptionAllowed")
    {
        one["status"] = json!("False");
        one["reason"] = json!("InsufficientPods");
        one["lastTransitionTime"] = json!(time);
    }
    Ok(())
}

fn refused(why: &str, again: Option<u32>) -> Status {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    Status::try_again(message, again).with_cause("DisruptionBudget", why, "")
}
