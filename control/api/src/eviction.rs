//! Whether PodDisruptionBudgets let a pod be evicted, as KEP-85 and KEP-3017 have it. The disruption controller says in a
//! budget's status how many pods may go; an eviction takes one of them, by compare-and-swap, and notes the pod.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Selector;
use serde_json::{Value, json};
use wharf_kit::selector::LabelSelector;
use wharf_store::{Error as StoreError, Write};

use crate::encode;
use crate::object::{self, child, entries, list, name, number, terminating, text};
use crate::status::{Result, Status};
use crate::verbs::{Call, store_failed};

/// More pods than this whose eviction no controller has seen yet are a fault; Kubernetes' number.
const MOST_DISRUPTED: usize = 2000;
/// Other writers of a budget may be in the way this often.
const ATTEMPTS: usize = 20;
/// When to ask again while a budget's status is not of its newest spec.
const AGAIN_SECONDS: u32 = 10;

impl Call {
    /// Takes leave for this pod to go from the budget that selects it, if one does.
    ///
    /// # Errors
    /// 429 while the budget allows none, 500 if there is more than one budget: both in Kubernetes' words.
    pub async fn take_disruption(&self, pod: &Value, dry_run: bool) -> Result<()> {
        // What does not run, or goes anyway, disturbs nobody.
        if matches!(text(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending") || terminating(pod) {
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            let mut found = self.budgets_of(pod).await?;
            let Some((revision, mut budget)) = found.pop() else { return Ok(()) };
            if !found.is_empty() {
                return Err(Status::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
            if !is_ready(pod) && may_go_unready(&budget) {
                return Ok(());
            }
            take(&mut budget, name(pod))?;
            if dry_run {
                return Ok(());
            }
            let kind = self.server.kinds.builtin("policy", "poddisruptionbudgets");
            let key = kind.key(&self.path.namespace, name(&budget));
            match self.storage().write(Write::update(key, revision, encode::stored(&budget))).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {} // its controller, or another eviction
                Err(error) => return Err(store_failed(error)),
            }
        }
        Err(refused("The disruption budget is being written by others.", Some(AGAIN_SECONDS)))
    }

    async fn budgets_of(&self, pod: &Value) -> Result<Vec<(wharf_store::Revision, Value)>> {
        let kind = self.server.kinds.builtin("policy", "poddisruptionbudgets");
        let prefix = kind.prefix_in(&self.path.namespace);
        let labels =
            entries(pod, "/metadata/labels").map(|(key, value)| (key, value.as_str().unwrap_or_default()));
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let snapshot = self.storage().snapshot(&prefix, None).await.map_err(store_failed)?;
        let mut found = Vec::new();
        for stored in snapshot.iter() {
            let budget = encode::decoded(&stored.value, stored.revision).map_err(Status::internal)?;
            let selector: Option<Selector> =
                serde_json::from_value(budget["spec"]["selector"].clone()).map_err(Status::internal)?;
            let selector = selector.as_ref().map(LabelSelector::try_from).transpose();
            if selector.map_err(Status::internal)?.is_some_and(|selector| selector.matches(&labels)) {
                found.push((stored.revision, budget));
            }
        }
        Ok(found)
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
