//! Telling the API and the node server how the pod fares.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::Value;
use tokio::time::Instant;

use super::super::ops;
use super::super::state::{PodDoing, Slot};
use super::super::status::{self, Context};
use super::super::{Brief, Snapshot};
use super::Worker;

/// Transitions that follow each other within this are told as one.
const SETTLE: Duration = Duration::from_millis(250);

impl Worker {
    /// Writes the status if it changed, at once when nothing is under way, else when it has settled.
    pub(super) fn tell(&mut self, pod: &Pod, now: Instant) -> Option<Instant> {
        let nothing_known = self.state.over && self.state.slots.iter().all(|slot| slot.current.is_none());
        let adopting = self.state.doing == Some(PodDoing::Adopting);
        if self.gone || self.deleting || nothing_known || adopting {
            self.report.dirty = None;
            return None;
        }
        if self.report.writing.is_some() {
            return None; // looked at again when it is written
        }
        let before: PodStatus = serde_json::from_slice(&self.reported).unwrap_or_default();
        let runtime = self.shared.health.borrow().name.clone();
        let context =
            Context { host_ip: &self.shared.host_ip, runtime: &runtime, now: ops::now(), instant: now };
        let after = status::compute(pod, &self.state, &before, &context);
        if after == before {
            self.report.dirty = None;
            return None;
        }
        let dirty = *self.report.dirty.get_or_insert(now);
        let settling = self.settling.filter(|until| {
            *until > now && self.state.slots.iter().any(|slot| slot.running() && !slot.ready)
        });
        let not_before = match settling {
            Some(until) => Some(until),
            None if self.state.quiet() => None,
            None => Some(dirty + SETTLE),
        };
        let not_before = not_before.into_iter().chain(self.report.tries.retry_at).max();
        if let Some(at) = not_before.filter(|at| *at > now) {
            return Some(at);
        }
        let encode = |status: &PodStatus| serde_json::to_value(status).unwrap_or(Value::Null);
        let difference = status::difference(&encode(&before), &encode(&after));
        let bytes = serde_json::to_vec(&after).unwrap_or_default();
        self.report.dirty = None;
        self.report.writing = Some(bytes);
        let write = ops::write(
            self.shared.clone(),
            self.key.clone(),
            self.uid.to_string(),
            Value::Object(difference),
        );
        self.ops.spawn(write);
        None
    }

    /// Shows the pod to the node server.
    pub(super) fn publish(&mut self) {
        let brief = |slot: &Slot| Brief {
            name: slot.name.clone(),
            attempt: slot.current.as_ref().map(|record| record.attempt),
            id: slot.current.as_ref().filter(|record| record.running()).map(|record| record.id.clone()),
            running: slot.running(),
            waiting: slot.trouble.as_ref().map(|trouble| trouble.message.clone()).unwrap_or_default(),
        };
        let now = Snapshot {
            uid: self.uid.clone(),
            raw: self.raw.clone(),
            sandbox: self
                .state
                .sandbox
                .as_ref()
                .filter(|sandbox| sandbox.ready)
                .map(|sandbox| sandbox.id.clone()),
            containers: self.state.slots.iter().map(brief).collect(),
        };
        self.snapshot.send_if_modified(|have| {
            let changed = *have != now;
            *have = now;
            changed
        });
    }
}
