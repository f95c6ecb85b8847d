//! Jobs and CronJobs.

use serde_json::{Value, json};

use super::{Strategy, pod_spec};
use crate::object::{child, entries, flag, list, map, name, number, restore, text, uid};
use crate::status::FieldError;
use crate::validate::{at_least, dns_subdomain, immutable, one_of};

/// The labels that tie pods to their Job; the old names are kept beside them, as Kubernetes does.
const UID: &str = "batch.kubernetes.io/controller-uid";
const NAME: &str = "batch.kubernetes.io/job-name";
const OLD_UID: &str = "controller-uid";
const OLD_NAME: &str = "job-name";

/// An indexed Job's indexes are kept as text in its status; Kubernetes bounds how many.
const PARALLELISM_MAX: i64 = 100_000;
/// A CronJob's Jobs are called after it and eleven characters more, and are to fit a label.
const CRON_NAME_MAX: usize = 52;

pub struct Job;

impl Strategy for Job {
    fn prepare_create(&self, new: &mut Value) {
        if flag(new, "/spec/manualSelector") {
            return;
        }
        let (uid, name) = (uid(new).to_owned(), name(new).to_owned());
        let spec = child(new, "spec");
        let template = map(spec.entry("template").or_insert_with(|| json!({})));
        let meta = map(template.entry("metadata").or_insert_with(|| json!({})));
        let labels = map(meta.entry("labels").or_insert_with(|| json!({})));
        for (key, value) in [(UID, &uid), (OLD_UID, &uid), (NAME, &name), (OLD_NAME, &name)] {
            labels.insert(key.to_owned(), value.as_str().into());
        }
        // One that names another Job's pods is left, for validation to refuse.
        if spec.get("selector").is_none_or(Value::is_null) {
            spec.insert("selector".to_owned(), json!({"matchLabels": {UID: uid}}));
        }
    }

    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        spec(&new["spec"], "spec", errors);
        if flag(new, "/spec/manualSelector") {
            super::replicaset::selector(new, "job", errors);
        } else if new.pointer("/spec/selector") != Some(&json!({"matchLabels": {UID: uid(new)}})) {
            errors.push(FieldError::invalid(
                "spec.selector",
                new["spec"]["selector"].clone(),
                "`selector` not auto-generated",
            ));
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        // An Indexed Job can be made larger and smaller, if as many pods as indexes may run.
        let elastic = text(new, "/spec/completionMode") == "Indexed"
            && number(new, "/spec/completions") == number(new, "/spec/parallelism");
        if !elastic {
            immutable(new, old, "/spec/completions", "spec.completions", errors);
        }
        for field in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy"] {
            immutable(new, old, &format!("/spec/{field}"), &format!("spec.{field}"), errors);
        }
        let mut ours = new.clone();
        // Of a Job that was suspended and has no pods, a queue may still say where they are to run.
        if flag(old, "/spec/suspend") && text(old, "/status/startTime").is_empty() {
            let theirs = &old["spec"]["template"];
            for (at, fields) in [
                ("/spec/template/metadata", &["annotations", "labels"][..]),
                ("/spec/template/spec", &["affinity", "nodeSelector", "tolerations", "schedulingGates"]),
            ] {
                let Some(part) = ours.pointer_mut(at) else { continue };
                let from = theirs.pointer(at.trim_start_matches("/spec/template")).unwrap_or(&Value::Null);
                fields.iter().for_each(|field| restore(part, from, field));
            }
        }
        immutable(&ours, old, "/spec/template", "spec.template", errors);
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        for field in ["active", "succeeded", "failed", "ready", "terminating"] {
            at_least(new, &format!("/status/{field}"), &format!("status.{field}"), 0, errors);
        }
        let holds = |job: &Value, type_: &str| {
            let all = list(job, "/status/conditions");
            all.iter().any(|one| text(one, "/type") == type_ && text(one, "/status") == "True")
        };
        if holds(new, "Complete") && holds(new, "Failed") {
            errors.push(FieldError::invalid(
                "status.conditions",
                new["status"]["conditions"].clone(),
                "cannot set Complete=True and Failed=true conditions",
            ));
        }
        for ended in ["Complete", "Failed"] {
            if holds(old, ended) && !holds(new, ended) {
                errors.push(FieldError::invalid(
                    "status.conditions",
                    new["status"]["conditions"].clone(),
                    format!("cannot disable {ended}=True condition"),
                ));
            }
        }
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn spec(spec: &Value, at: &str, errors: &mut Vec<FieldError>) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        at_least(spec, &format!("/{field}"), &format!("{at}.{field}"), 0, errors);
    }
    let indexed = text(spec, "/completionMode") == "Indexed";
    one_of(spec, "/completionMode", &format!("{at}.completionMode"), &["Indexed", "NonIndexed"], errors);
    let replacements = ["Failed", "TerminatingOrFailed"];
    let field = format!("{at}.podReplacementPolicy");
    one_of(spec, "/podReplacementPolicy", &field, &replacements, errors);
    if indexed {
        if spec.get("completions").is_none_or(Value::is_null) {
            errors.push(FieldError::required(format!("{at}.completions"), "when completion mode is Indexed"));
        }
        if number(spec, "/parallelism").is_some_and(|parallelism| parallelism > PARALLELISM_MAX) {
            errors.push(FieldError::invalid(
                format!("{at}.parallelism"),
                spec["parallelism"].clone(),
                format!("must be less than or equal to {PARALLELISM_MAX} when completion mode is Indexed"),
            ));
        }
    }
    for field in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
        if !indexed && spec.get(field).is_some_and(|value| !value.is_null()) {
            errors.push(FieldError::invalid(
                format!("{at}.{field}"),
                spec[field].clone(),
                "requires indexed completion mode",
            ));
        }
    }
    pod_spec::template(&spec["template"], &format!("{at}.template"), None, errors);
    let policy = text(spec, "/template/spec/restartPolicy");
    let field = format!("{at}.template.spec.restartPolicy");
    if policy == "Always" || policy.is_empty() {
        errors.push(FieldError::required(field.clone(), "valid values: \"OnFailure\", \"Never\""));
    }
    if spec.get("podFailurePolicy").is_some_and(|value| !value.is_null()) && policy != "Never" {
        errors.push(FieldError::invalid(
            field,
            policy,
            "only \"Never\" is supported when podFailurePolicy is specified",
        ));
    }
    // Taken and not followed, these would end Jobs otherwise than their authors think.
    for field in ["backoffLimitPerIndex", "maxFailedIndexes", "podFailurePolicy", "successPolicy"] {
        if spec.get(field).is_some_and(|value| !value.is_null()) {
            errors.push(FieldError::forbidden(format!("{at}.{field}"), "is not supported by this server"));
        }
    }
}

pub struct CronJob;

impl Strategy for CronJob {
    fn check_name(&self, name: &str, prefix: bool) -> Result<(), String> {
        if name.len() > CRON_NAME_MAX {
            return Err(format!("must be no more than {CRON_NAME_MAX} characters"));
        }
        dns_subdomain(name, prefix)
    }

    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let schedule = text(new, "/spec/schedule");
        if schedule.is_empty() {
            errors.push(FieldError::required("spec.schedule", ""));
        } else if schedule.contains("TZ") {
            errors.push(FieldError::invalid(
                "spec.schedule",
                schedule,
                "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ));
        } else if let Err(error) = wharf_kit::cron::Schedule::parse(schedule, None) {
            errors.push(FieldError::invalid("spec.schedule", schedule, error.to_string()));
        }
        if let Some(zone) = new.pointer("/spec/timeZone").and_then(Value::as_str) {
            // "Local" is whatever the server's machine has, which no object can mean.
            if zone.is_empty() || zone == "Local" || wharf_kit::cron::zone(zone).is_err() {
                let why = format!("unknown time zone {zone}");
                errors.push(FieldError::invalid("spec.timeZone", zone, why));
            }
        }
        at_least(new, "/spec/startingDeadlineSeconds", "spec.startingDeadlineSeconds", 0, errors);
        let policies = ["Allow", "Forbid", "Replace"];
        one_of(new, "/spec/concurrencyPolicy", "spec.concurrencyPolicy", &policies, errors);
        for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            at_least(new, &format!("/spec/{field}"), &format!("spec.{field}"), 0, errors);
        }
        let template = &new["spec"]["jobTemplate"]["spec"];
        if flag(template, "/manualSelector") || entries(template, "/selector").next().is_some() {
            let why = "`selector` will be auto-generated";
            errors.push(FieldError::invalid(
                "spec.jobTemplate.spec.selector",
                template["selector"].clone(),
                why,
            ));
        }
        spec(template, "spec.jobTemplate.spec", errors);
    }

    fn has_generation(&self) -> bool {
        true
    }
}
