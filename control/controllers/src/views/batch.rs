//! Jobs and CronJobs.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use wharf_kit::api::Kind;
use wharf_kit::selector::LabelSelector;
use wharf_kit::view::{Meta, View, or_default};

use super::Condition;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Job {
    pub metadata: Meta,
    pub spec: JobSpec,
    pub status: JobStatus,
}

view!(Job, Kind::new("batch", "v1", "Job", "jobs"));

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobSpec {
    pub parallelism: Option<i32>,
    pub completions: Option<i32>,
    pub active_deadline_seconds: Option<i64>,
    pub backoff_limit: Option<i32>,
    pub selector: LabelSelector,
    #[serde(deserialize_with = "or_default")]
    pub suspend: bool,
    pub completion_mode: Option<String>,
    pub pod_replacement_policy: Option<String>,
    pub ttl_seconds_after_finished: Option<i64>,
    pub managed_by: Option<String>,
    /// As it was written: it is read only to make pods.
    pub template: Option<Box<RawValue>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    pub active: i32,
    #[serde(deserialize_with = "or_default")]
    pub ready: i32,
    #[serde(deserialize_with = "or_default")]
    pub terminating: i32,
    pub succeeded: i32,
    pub failed: i32,
    #[serde(deserialize_with = "or_default")]
    pub completed_indexes: String,
    pub start_time: Option<Timestamp>,
    pub completion_time: Option<Timestamp>,
    pub uncounted_terminated_pods: Option<Uncounted>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

/// Uids of pods that ended and are not yet in the numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Uncounted {
    #[serde(deserialize_with = "or_default")]
    pub succeeded: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub failed: Vec<String>,
}

impl Uncounted {
    pub const NONE: &'static Self = &Self { succeeded: Vec::new(), failed: Vec::new() };

    pub fn has(&self, uid: &str) -> bool {
        self.succeeded.iter().chain(&self.failed).any(|one| one == uid)
    }

    pub fn len(&self) -> usize {
        self.succeeded.len() + self.failed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl JobStatus {
    pub fn uncounted(&self) -> &Uncounted {
        self.uncounted_terminated_pods.as_ref().unwrap_or(Uncounted::NONE)
    }
}

impl Job {
    /// Whether no other controller was asked to run it.
    pub fn is_ours(&self) -> bool {
        self.spec.managed_by.as_deref().is_none_or(|name| name == "kubernetes.io/job-controller")
    }

    pub fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    /// Whether a pod is replaced only when it has ended, not when its deletion began.
    pub fn replaces_failed_only(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    /// Whether containers that fail are started again in their pod.
    pub fn restarts_in_place(&self) -> bool {
        let template: Option<Value> =
            self.spec.template.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok());
        template.is_some_and(|template| template["spec"]["restartPolicy"] == "OnFailure")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CronJob {
    pub metadata: Meta,
    pub spec: CronJobSpec,
    pub status: CronJobStatus,
}

view!(CronJob, Kind::new("batch", "v1", "CronJob", "cronjobs"));

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CronJobSpec {
    pub schedule: String,
    pub time_zone: Option<String>,
    pub starting_deadline_seconds: Option<i64>,
    pub concurrency_policy: String,
    #[serde(deserialize_with = "or_default")]
    pub suspend: bool,
    pub successful_jobs_history_limit: Option<i32>,
    pub failed_jobs_history_limit: Option<i32>,
    /// As it was written: it is read only to make Jobs.
    pub job_template: Option<Box<RawValue>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CronJobStatus {
    #[serde(deserialize_with = "or_default")]
    pub active: Vec<ObjectRef>,
    pub last_schedule_time: Option<Timestamp>,
    pub last_successful_time: Option<Timestamp>,
}

/// A reference to an object of a status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    pub api_version: String,
    pub kind: String,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: Arc<str>,
}

impl ObjectRef {
    pub fn new(kind: Kind, meta: &Meta) -> Self {
        Self {
            api_version: kind.api_version(),
            kind: kind.kind.to_owned(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
        }
    }
}
