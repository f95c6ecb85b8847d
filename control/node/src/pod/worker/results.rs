//! What becomes of the state when an operation ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};
use wharf_kit::chain;
use wharf_kit::event::Severity;

use super::super::backoff::{self, Tries};
use super::super::ops::{self, Done, StartError};
use super::super::plan::{self, RestartPolicy};
use super::super::state::{Doing, Exit, Handler, ImageState, Record, Run, Sandbox, Trouble, VolumeState};
use super::{Worker, unknown_exit};
use crate::volumes::{self, Ready};

impl Worker {
    pub(super) fn finish(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Class(handler) => self.state.handler = Handler::Named(handler),
            Done::Volumes(result) => self.volumes_made(result, now),
            Done::SourcesChanged => {
                if self.state.volumes == VolumeState::Ready {
                    self.state.volumes = VolumeState::Wanted;
                }
            }
            Done::Image { slot, result } => self.image_found(slot, result, now),
            Done::Sandbox(result) => self.sandbox_made(result, now),
            Done::Started { slot, attempt, result } => self.started(slot, attempt, result, now),
            Done::Stopped { id, exit } | Done::Looked { id, exit } => {
                let Some(slot) = self.running(&id) else { return };
                let stopping = matches!(self.state.slots[slot].doing, Some(Doing::Stopping { .. }));
                match exit {
                    Some(exit) => self.ended(slot, exit),
                    None if stopping => self.ended(slot, unknown_exit(&self.state.slots[slot])),
                    None => self.adopt = true,
                }
            }
            Done::Hooked { slot, id, result } => self.hooked(slot, &id, result),
            Done::Words { slot, id, exit } => {
                let current = self.state.slots[slot].current.as_mut().filter(|record| record.id == id);
                if let Some(record) = current {
                    record.run = Run::Exited(exit);
                }
            }
            Done::Appeared { slot: Some(slot) } => {
                let slot = &mut self.state.slots[slot];
                if slot.doing == Some(Doing::Waiting) {
                    slot.doing = None;
                    slot.trouble = None;
                }
            }
            Done::Appeared { slot: None } => self.state.volumes = VolumeState::Wanted,
            Done::Adopted(result) => match result {
                Ok(adopted) => self.adopted(adopted, now),
                Err(words) => {
                    warn!(error = words, "could not find out what runs of the pod");
                    self.state.doing = None;
                    // The next connection brings a new inventory; if the connection stands, ask again.
                    self.adopt = self.shared.health.borrow().connected;
                    plan::retry(&mut self.state.tries, now);
                }
            },
            Done::Released(result) => {
                self.state.doing = None;
                match result {
                    Ok(()) => {
                        self.state.released = true;
                        if let Some(sandbox) = &mut self.state.sandbox {
                            sandbox.ready = false;
                        }
                    }
                    Err(words) => {
                        warn!(error = words, "could not stop the sandbox of a finished pod");
                        plan::retry(&mut self.state.tries, now);
                    }
                }
            }
            Done::TornDown(result) => {
                self.state.doing = None;
                match result {
                    Ok(()) => {
                        self.state.removed = true;
                        self.state.sandbox = None;
                    }
                    Err(words) => {
                        warn!(error = words, "could not remove the pod");
                        plan::retry(&mut self.state.tries, now);
                    }
                }
            }
            Done::Written(result) => {
                let bytes = self.report.writing.take();
                match result {
                    Ok(()) => {
                        self.reported = bytes.unwrap_or_default();
                        self.report.tries = Tries::none();
                    }
                    Err(error) if error.is_not_found() || error.is_conflict() => {
                        debug!(error = %chain(&error), "the pod's object went away before its status was told");
                        self.report.tries.failed(now, Duration::from_secs(1), Duration::from_secs(60));
                    }
                    Err(error) => {
                        warn!(error = %chain(&error), "could not tell the pod's status");
                        self.report.tries.failed(now, Duration::from_millis(100), Duration::from_secs(10));
                    }
                }
            }
            // Gone, or held by finalizers: either way the watch will tell.
            Done::Deleted => {}
        }
    }

    pub(super) fn volumes_made(&mut self, result: Result<Ready, volumes::Error>, now: Instant) {
        self.state.doing = None;
        let error = match result {
            Ok(mut ready) => {
                let sources = std::mem::take(&mut ready.sources);
                if let Some(before) = self.sources.take() {
                    before.abort();
                }
                if !sources.is_empty() {
                    self.sources = Some(self.ops.spawn(async move {
                        sources.changed().await;
                        Done::SourcesChanged
                    }));
                }
                self.volumes = Some(Arc::new(ready));
                let stale = std::mem::take(&mut self.stale);
                self.state.volumes = if stale { VolumeState::Wanted } else { VolumeState::Ready };
                return;
            }
            Err(error) => error,
        };
        let message = error.to_string();
        let mut tries = match &self.state.volumes {
            VolumeState::Failed { tries, .. } => *tries,
            VolumeState::Wanted | VolumeState::Ready => Tries::none(),
        };
        let waiting = error.waits_for().is_some();
        if let Some((object, key)) = error.waits_for() {
            let wait = ops::appears(self.shared.clone(), object.clone(), key.map(str::to_owned), None);
            self.ops.spawn(wait);
        } else {
            tries.failed(now, Duration::from_secs(1), Duration::from_secs(120));
        }
        self.event(None, Severity::Warning, "FailedMount", message.clone());
        // Containers that already run keep the content that they have; a live update that failed is tried again.
        self.state.volumes = VolumeState::Failed { message, tries, waiting };
    }

    pub(super) fn image_found(
        &mut self,
        index: usize,
        result: Result<Arc<crate::images::Image>, crate::images::Error>,
        now: Instant,
    ) {
        let slot = &mut self.state.slots[index];
        slot.doing = None;
        slot.image = match result {
            Ok(image) => ImageState::Here(image),
            Err(error) => {
                let mut tries = match &slot.image {
                    ImageState::Failed { tries, .. } => *tries,
                    ImageState::Wanted | ImageState::Here(_) => Tries::none(),
                };
                tries.failed(now, backoff::FIRST, backoff::LONGEST);
                ImageState::Failed { error, tries, shown: false }
            }
        };
    }

    pub(super) fn sandbox_made(&mut self, result: Result<Sandbox, String>, now: Instant) {
        self.state.doing = None;
        match result {
            Ok(sandbox) => {
                self.state.sandbox = Some(sandbox);
                self.state.tries = Tries::none();
                self.state.sandbox_error = None;
            }
            Err(words) => {
                self.state.sandbox_error = Some(words);
                plan::retry(&mut self.state.tries, now);
            }
        }
    }

    pub(super) fn started(
        &mut self,
        index: usize,
        attempt: u32,
        result: Result<Record, StartError>,
        now: Instant,
    ) {
        let pod = self.pod();
        let slot = &mut self.state.slots[index];
        slot.doing = None;
        let error = match result {
            Ok(record) => {
                if slot.current.as_ref().is_some_and(|old| old.exit().is_some()) {
                    slot.last = slot.current.take();
                }
                slot.restarts = attempt;
                slot.restart_at = None;
                slot.trouble = None;
                let early = self
                    .early
                    .iter()
                    .position(|status| status.id == record.id)
                    .map(|at| self.early.swap_remove(at));
                let over = match &record.run {
                    Run::Exited(exit) => Some(exit.clone()),
                    Run::Created | Run::Running { .. } => None,
                };
                let since = match &record.run {
                    Run::Running { since } => *since,
                    _ => ops::now(),
                };
                let id = record.id.clone();
                slot.current = Some(Record { run: Run::Running { since }, ..record });
                if let Some(exit) = over {
                    self.ended(index, exit);
                } else {
                    if early.is_some() {
                        self.ops.spawn(ops::look(self.shared.clone(), pod, id.clone()));
                    }
                    self.begin_hook(index, id);
                }
                if !self.state.slots.iter().any(|slot| slot.doing == Some(Doing::Starting)) {
                    self.early.clear();
                }
                return;
            }
            Err(error) => error,
        };
        let mut tries = slot.trouble.as_ref().map_or(Tries::none(), |trouble| trouble.tries);
        let (reason, message) = match &error {
            StartError::Config(error) => ("CreateContainerConfigError", error.to_string()),
            StartError::Create(words) => ("CreateContainerError", words.clone()),
        };
        let waits = match &error {
            StartError::Config(super::super::config::Error::Env(error)) => {
                error.waits_for().cloned().map(|object| {
                    let key = match error {
                        crate::env::Error::MissingKey { key, .. } => Some(key.clone()),
                        _ => None,
                    };
                    (object, key)
                })
            }
            _ => None,
        };
        if let Some((object, key)) = waits {
            slot.doing = Some(Doing::Waiting);
            let wait = ops::appears(self.shared.clone(), object, key, Some(index));
            self.ops.spawn(wait);
        } else {
            tries.failed(now, Duration::from_secs(1), Duration::from_secs(120));
        }
        slot.trouble = Some(Trouble { reason, message, tries });
    }

    /// The current run of a slot ended.
    pub(super) fn ended(&mut self, index: usize, exit: Exit) {
        self.stop_probes(Some(index));
        self.hooks.retain(|(slot, task)| {
            if *slot == index {
                task.abort();
            }
            *slot != index
        });
        let pod = self.pod();
        let slot = &mut self.state.slots[index];
        let (code, reason) = (exit.code, exit.reason.clone());
        slot.ended(exit, Instant::now());
        debug!(container = slot.name, code, reason, "container ended");
        let policy = pod.spec.as_ref().map_or(RestartPolicy::Always, RestartPolicy::of);
        let waits = slot.restart_at.is_some_and(|at| at > Instant::now()) && policy.wants(slot);
        if waits && self.state.ending.is_none() {
            let name = slot.name.clone();
            let message = format!(
                "Back-off restarting failed container {name} in pod {}_{}({})",
                self.key.name, self.key.namespace, self.uid
            );
            self.event(Some(&name), Severity::Warning, "BackOff", message);
        }
    }
}
