//! What a container's probes say, and which of them run.

use std::time::Duration;

use tokio::time::Instant;
use wharf_kit::event::Severity;

use super::super::Message;
use super::super::state::container;
use super::{Worker, grace_of};
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
                let own = purpose.of(spec).and_then(|probe| probe.termination_grace_period_seconds);
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
        let supported =
            |purpose: Purpose| purpose.of(spec).is_some_and(|probe| probe::settings(probe, spec).is_ok());
        let (was_started, was_ready) = told.unwrap_or_default();
        slot.started = was_started || !supported(Purpose::Startup);
        slot.ready = slot.started && (was_ready || !supported(Purpose::Readiness));
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
        let (Some(spec), Some(record)) = (container(&pod, &slot.name).cloned(), &slot.current) else {
            return;
        };
        let (name, id) = (slot.name.clone(), record.id.clone());
        let purposes: &[Purpose] =
            if slot.started { &[Purpose::Readiness, Purpose::Liveness] } else { &[Purpose::Startup] };
        let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
        let address = self
            .state
            .sandbox
            .as_ref()
            .filter(|_| !host_network)
            .and_then(|sandbox| sandbox.ips.first())
            .and_then(|ip| ip.parse().ok());
        let Some(address) = address.or(host_network.then_some(self.shared.host)) else { return };
        let subject = self.subject(Some(&name));
        for purpose in purposes {
            let Some(probe) = purpose.of(&spec) else { continue };
            let settings = match probe::settings(probe, &spec) {
                Ok(settings) => settings,
                Err(error) => {
                    self.shared.recorder.warning(
                        &subject,
                        "ProbeNotSupported",
                        format!("{} probe of container {name}: {error}", purpose.word()),
                    );
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
                recorder.warning(&subject, "Unhealthy", format!("{} probe failed: {words}", purpose.word()))
            };
            let task = tokio::spawn(probe::run(settings, purpose, address, turned, failed));
            self.probes.push((index, task.abort_handle()));
        }
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
