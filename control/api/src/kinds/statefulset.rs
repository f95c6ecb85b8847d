//! StatefulSets.

use serde_json::Value;

use super::{Strategy, pod_spec, replicaset};
use crate::object::{list, restore, text};
use crate::status::FieldError;
use crate::validate::{at_least, dns_label, int_or_percent, one_of};

pub struct StatefulSet;

const CHANGEABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

const UPDATE_REFUSED: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

impl Strategy for StatefulSet {
    /// The name starts its pods' host names.
    fn check_name(&self, name: &str, prefix: bool) -> Result<(), String> {
        dns_label(name, prefix)
    }

    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
            at_least(new, &format!("/spec/{field}"), &format!("spec.{field}"), 0, errors);
        }
        at_least(new, "/spec/ordinals/start", "spec.ordinals.start", 0, errors);
        replicaset::selector(new, "statefulset", errors);
        pod_spec::template(&new["spec"]["template"], "spec.template", Some("Always"), errors);
        // There is nothing yet that makes claims and volumes: pods without them would lose what they write.
        if !list(new, "/spec/volumeClaimTemplates").is_empty() {
            errors
                .push(FieldError::forbidden("spec.volumeClaimTemplates", "is not supported by this server"));
        }
        let policies = ["OrderedReady", "Parallel"];
        one_of(new, "/spec/podManagementPolicy", "spec.podManagementPolicy", &policies, errors);
        for when in ["whenDeleted", "whenScaled"] {
            let pointer = format!("/spec/persistentVolumeClaimRetentionPolicy/{when}");
            let field = format!("spec.persistentVolumeClaimRetentionPolicy.{when}");
            one_of(new, &pointer, &field, &["Delete", "Retain"], errors);
        }
        let (strategy, at) = (&new["spec"]["updateStrategy"], "spec.updateStrategy");
        one_of(strategy, "/type", &format!("{at}.type"), &["OnDelete", "RollingUpdate"], errors);
        let rolling = strategy.get("rollingUpdate").filter(|rolling| !rolling.is_null());
        if text(strategy, "/type") == "OnDelete"
            && let Some(rolling) = rolling
        {
            errors.push(FieldError::invalid(
                format!("{at}.rollingUpdate"),
                rolling.clone(),
                "only allowed for updateStrategy 'RollingUpdate'",
            ));
        }
        at_least(strategy, "/rollingUpdate/partition", &format!("{at}.rollingUpdate.partition"), 0, errors);
        let most = rolling.and_then(|rolling| rolling.get("maxUnavailable"));
        int_or_percent(most, &format!("{at}.rollingUpdate.maxUnavailable"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        let mut spec = new["spec"].clone();
        for field in CHANGEABLE {
            restore(&mut spec, &old["spec"], field);
        }
        if spec != old["spec"] {
            errors.push(FieldError::forbidden("spec", UPDATE_REFUSED));
        }
    }

    fn has_generation(&self) -> bool {
        true
    }
}
