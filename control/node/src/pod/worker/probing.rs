//! What a container's probes say, and which of them run.

use std::borrow::Cow;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;
use tracing::debug;
use wharf_kit::event::Severity;

use super::super::Message;
use super::super::ops::Done;
use super::super::state::container;
use super::{Worker, grace_of};
use crate::ask::Asked;
use crate::hook;
use crate::probe::{self, Purpose};

/// How long a container that was just started may take to become ready before it is told as not ready.
const FIRST_PROBE: Duration = Duration::from_millis(100);

impl Worker {
    pub(super) fn verdict(&mut self, index: usize, id: &str, purpose: Purpose, good: bool) {
        let pod = self.pod();
        let Some(slot) = self.state.slots.get_mut(index) else { return };
        let Some(spec) = container(&pod, &slot.name) else { return };
        if slot.current.as_ref().is_none_or(|record| record.id != id || !record.running()) {
            return; // about a run that is over
        }
        let name = slot.name.clone();
        match (purpose, good) {
            (Purpose::Readiness, _) => slot.ready = good,
            (Purpose::Startup, true) => {
                slot.started = true;
                slot.ready = spec.readiness_probe.is_none();
                self.begin_probes(index);
            }
            (Purpose::Liveness, true) => {}
            (Purpose::Startup | Purpose::Liveness, false) => {
                let own = purpose.of(&spec).and_then(|probe| probe.termination_grace_period_seconds);
                slot.doomed = Some(grace_of(&pod, own));
                let message = format!(
                    "Container {name} failed {} probe, will be restarted",
                    purpose.word().to_lowercase()
                );
                self.event(Some(&name), Severity::Normal, "Killing", message);
            }
        }
    }

    /// A container runs: what its probes say is asked from now on. `told`: what the API knew of it, for one adopted.
    pub(super) fn runs(&mut self, index: usize, told: Option<(bool, bool)>) {
        let pod = self.pod();
        let slot = &mut self.state.slots[index];
        let Some(spec) = container(&pod, &slot.name) else { return };
        let (was_started, was_ready) = told.unwrap_or_default();
        slot.started = was_started || spec.startup_probe.is_none();
        slot.ready = slot.started && (was_ready || spec.readiness_probe.is_none());
        if !slot.ready && told.is_none() {
            self.settling = Some(Instant::now() + FIRST_PROBE);
        }
        self.begin_probes(index);
    }

    pub(super) fn begin_probes(&mut self, index: usize) {
        self.stop_probes(Some(index));
        if self.state.ending.is_some() {
            return;
        }
        let pod = self.pod();
        let slot = &self.state.slots[index];
        let (Some(spec), Some(record)) = (container(&pod, &slot.name).map(Cow::into_owned), &slot.current)
        else {
            return;
        };
        let (name, id) = (slot.name.clone(), record.id.clone());
        let purposes: &[Purpose] =
            if slot.started { &[Purpose::Readiness, Purpose::Liveness] } else { &[Purpose::Startup] };
        let asked = self.asked(&pod, &id);
        let subject = self.subject(Some(&name));
        for purpose in purposes {
            let Some(probe) = purpose.of(&spec) else { continue };
            let settings = match probe::settings(probe, &spec) {
                Ok(settings) => settings,
                Err(error) => {
                    let words =
                        format!("{} probe errored and resulted in unknown state: {error}", purpose.word());
                    self.shared.recorder.warning(&subject, "Unhealthy", words);
                    continue;
                }
            };
            let (own, id, purpose) = (self.own.clone(), id.clone(), *purpose);
            let (recorder, subject) = (self.shared.recorder.clone(), subject.clone());
            let turned = move |good: bool| {
                let (own, verdict) =
                    (own.clone(), Message::Verdict { slot: index, id: id.clone(), purpose, good });
                async move { drop(own.send(verdict).await) } // an error: the worker is gone, and so is the pod
            };
            let failed = move |words: &str| {
                recorder.warning(&subject, "Unhealthy", format!("{} probe {words}", purpose.word()))
            };
            let task = tokio::spawn(probe::run(settings, purpose, asked.clone(), turned, failed));
            self.probes.push((index, task.abort_handle()));
        }
    }

    /// Where the run of a container is asked.
    pub(super) fn asked(&self, pod: &Pod, id: &str) -> Asked {
        let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
        let own = self.state.sandbox.as_ref().and_then(|sandbox| sandbox.ips.first());
        let address = if host_network { Some(self.shared.host) } else { own.and_then(|ip| ip.parse().ok()) };
        Asked { address, container: id.to_owned(), runtime: self.shared.runtime.clone() }
    }

    /// A container was started: it runs for the rest of us when its postStart hook, if it has one, is done.
    pub(super) fn begin_hook(&mut self, index: usize, id: String) {
        let pod = self.pod();
        let spec = container(&pod, &self.state.slots[index].name).map(Cow::into_owned);
        let hook = spec.as_ref().and_then(|spec| spec.lifecycle.as_ref()?.post_start.clone());
        let (Some(spec), Some(hook)) = (spec, hook) else { return self.runs(index, None) };
        let asked = self.asked(&pod, &id);
        let task = self.ops.spawn(async move {
            let result = hook::run(&hook, &spec, &asked).await;
            Done::Hooked { slot: index, id, result }
        });
        self.hooks.push((index, task));
    }

    pub(super) fn hooked(&mut self, index: usize, id: &str, result: Result<(), String>) {
        let pod = self.pod();
        let slot = &mut self.state.slots[index];
        if slot.current.as_ref().is_none_or(|record| record.id != id || !record.running()) {
            return; // about a run that is over
        }
        let Err(words) = result else { return self.runs(index, None) };
        let name = slot.name.clone();
        slot.doomed = Some(grace_of(&pod, None));
        // The words may hold secrets of the container's: they are for the node's log alone, as the kubelet has it.
        debug!(container = name, error = words, "postStart hook failed");
        self.event(Some(&name), Severity::Warning, "FailedPostStartHook", "PostStartHook failed".to_owned());
    }

    pub(super) fn stop_probes(&mut self, of: Option<usize>) {
        self.probes.retain(|(slot, task)| {
            let stop = of.is_none_or(|of| of == *slot);
            if stop {
                task.abort();
            }
            !stop
        });
    }
}
