//! The actor itself: takes messages and results in, keeps the state, starts what the plan says, reports.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info_span, warn};
use wharf_cri::v1;
use wharf_kit::chain;
use wharf_kit::event::{Severity, Subject};
use wharf_kit::view::Key;

use super::backoff::{self, Restarts, Tries};
use super::ops::{self, Adopted, Done, StartError};
use super::plan::{self, RestartPolicy, Step, plan};
use super::state::{
    Doing, Ending, Exit, Handler, ImageState, PodDoing, Record, Role, Run, Sandbox, Slot, State, Trouble,
    VolumeState, container, hash,
};
use super::status::{self, Context};
use super::{Brief, Message, Shared, Snapshot};
use crate::probe::{self, Purpose};
use crate::volumes::{self, Ready};

/// Transitions that follow each other within this are told as one.
const SETTLE: Duration = Duration::from_millis(250);
/// How long a container that was just started may take to become ready before it is told as not ready.
const FIRST_PROBE: Duration = Duration::from_millis(100);
/// How long the error of a failed pull is shown before the back-off is.
const SHOWN: Duration = Duration::from_secs(2);

/// See the module.
pub struct Worker {
    shared: Arc<Shared>,
    key: Key,
    uid: Arc<str>,
    raw: Bytes,
    /// Decoded from `raw` while it is needed: an idle pod keeps the bytes alone.
    decoded: Option<Arc<Pod>>,
    state: State,
    volumes: Option<Arc<Ready>>,
    inbox: mpsc::Receiver<Message>,
    own: mpsc::Sender<Message>,
    ops: JoinSet<Done>,
    probes: Vec<(usize, AbortHandle)>,
    /// Ends of runs that were told before the start itself had returned.
    early: Vec<v1::ContainerStatus>,
    /// The status as the API has it, encoded.
    reported: Vec<u8>,
    report: Report,
    snapshot: watch::Sender<Snapshot>,
    /// The API object is gone.
    gone: bool,
    /// The API was asked to drop the object.
    deleting: bool,
    /// The runtime is to be asked what it has, as soon as nothing is under way.
    adopt: bool,
    /// A container was just started and its first probe is on its way.
    settling: Option<Instant>,
}

/// Where the telling of the status stands.
struct Report {
    writing: Option<Vec<u8>>,
    dirty: Option<Instant>,
    tries: Tries,
}

impl Worker {
    /// None if the object is no pod that can be understood.
    pub(super) fn new(
        shared: Arc<Shared>,
        key: Key,
        raw: Bytes,
        inventory: Option<super::Inventory>,
        inbox: mpsc::Receiver<Message>,
        own: mpsc::Sender<Message>,
    ) -> Option<Self> {
        let pod = match serde_json::from_slice::<Pod>(&raw) {
            Ok(pod) => Arc::new(pod),
            Err(error) => {
                warn!(pod = %key, error = %chain(&error), "a pod's object is not understood");
                return None;
            }
        };
        let spec = pod.spec.as_ref()?;
        let uid: Arc<str> = pod.metadata.uid.as_deref().unwrap_or_default().into();
        let mut state = State::new(spec);
        let before = pod.status.clone().unwrap_or_default();
        state.over = matches!(before.phase.as_deref(), Some("Succeeded" | "Failed"));
        let statuses =
            before.init_container_statuses.iter().flatten().chain(before.container_statuses.iter().flatten());
        for told in statuses {
            let Some(slot) = state.slots.iter_mut().find(|slot| slot.name == told.name) else { continue };
            // If the runtime has lost it, the next run is one more.
            let begun = told.container_id.is_some();
            slot.restarts = u32::try_from(told.restart_count).unwrap_or(0)
                + u32::from(begun && told.state.as_ref().is_none_or(|state| state.waiting.is_none()));
        }
        let snapshot =
            watch::Sender::new(Snapshot { uid: uid.clone(), raw: raw.clone(), ..Default::default() });
        shared.directory.insert(key.clone(), snapshot.subscribe());
        let mut worker = Self {
            shared,
            key,
            uid,
            raw,
            decoded: Some(pod.clone()),
            state,
            volumes: None,
            inbox,
            own,
            ops: JoinSet::new(),
            probes: Vec::new(),
            early: Vec::new(),
            reported: serde_json::to_vec(&before).unwrap_or_default(),
            report: Report { writing: None, dirty: None, tries: Tries::none() },
            snapshot,
            gone: false,
            deleting: false,
            adopt: false,
            settling: None,
        };
        if let Some(inventory) = inventory {
            worker.begin_adoption(Some(inventory));
        }
        if let (Handler::Unknown, Some(class)) = (&worker.state.handler, &spec.runtime_class_name) {
            let class = ops::class(worker.shared.clone(), pod.clone(), class.clone());
            worker.ops.spawn(class);
        }
        worker.note_deletion(&pod);
        Some(worker)
    }

    /// Until the pod is gone from the API and from this node, or `stop` is cancelled. Stopping touches no container.
    pub async fn run(mut self, stop: CancellationToken) {
        let span = info_span!("pod", pod = %self.key);
        loop {
            let wake = span.in_scope(|| self.advance());
            if self.gone && self.state.removed {
                break;
            }
            if self.ops.is_empty() {
                self.decoded = None;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(message) = self.inbox.recv() => self.receive(message).instrument(span.clone()).await,
                Some(done) = self.ops.join_next(), if !self.ops.is_empty() => match done {
                    Ok(done) => span.in_scope(|| self.finish(done)),
                    Err(error) => warn!(pod = %self.key, error = %chain(&error), "an operation of the pod's worker failed"),
                },
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
        self.stop_probes(None);
        self.shared.directory.remove(&self.key, &self.uid);
        debug!(pod = %self.key, "the pod is gone");
    }

    fn pod(&mut self) -> Arc<Pod> {
        let raw = &self.raw;
        // It was decoded once already, by `new` or `receive`.
        self.decoded.get_or_insert_with(|| Arc::new(serde_json::from_slice(raw).unwrap_or_default())).clone()
    }

    fn subject(&mut self, container: Option<&str>) -> Subject {
        let subject = ops::subject(&self.pod());
        match container {
            Some(container) => subject.field(format!("spec.containers{{{container}}}")),
            None => subject,
        }
    }

    fn event(&mut self, container: Option<&str>, severity: Severity, reason: &str, message: String) {
        let subject = self.subject(container);
        self.shared.recorder.record(&subject, severity, reason, message);
    }

    // ---- what comes in ----

    async fn receive(&mut self, message: Message) {
        match message {
            Message::Pod(raw) => self.changed(raw),
            Message::Gone => {
                self.gone = true;
                let grace = self
                    .pod()
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.termination_grace_period_seconds)
                    .unwrap_or(30);
                self.end_within(grace);
            }
            Message::Inventory(inventory) => {
                self.state.tries = Tries::none();
                if self.state.quiet() { self.begin_adoption(Some(inventory)) } else { self.adopt = true }
            }
            Message::Runtime(event) => self.runtime_event(*event).await,
            Message::Verdict { slot, id, purpose, good } => self.verdict(slot, &id, purpose, good),
        }
    }

    fn changed(&mut self, raw: Bytes) {
        let pod = match serde_json::from_slice::<Pod>(&raw) {
            Ok(pod) => Arc::new(pod),
            Err(error) => {
                warn!(error = %chain(&error), "a change of the pod's object is not understood");
                return;
            }
        };
        let before = self.pod();
        self.raw = raw;
        self.decoded = Some(pod.clone());
        self.note_deletion(&pod);
        if before.metadata.generation != pod.metadata.generation {
            self.spec_changed(&pod);
        }
        let told = before.metadata.labels != pod.metadata.labels
            || before.metadata.annotations != pod.metadata.annotations;
        if told
            && volumes::tell_fields(&pod)
            && self.state.volumes == VolumeState::Ready
            && self.state.doing.is_none()
        {
            self.state.volumes = VolumeState::Wanted;
        }
        // Somebody else's conditions (readiness gates) are kept as they are now.
        let own: PodStatus = serde_json::from_slice(&self.reported).unwrap_or_default();
        let theirs = pod.status.clone().unwrap_or_default();
        let others = theirs
            .conditions
            .into_iter()
            .flatten()
            .filter(|condition| !status::own_condition(&condition.type_));
        let mine = own
            .conditions
            .iter()
            .flatten()
            .filter(|condition| status::own_condition(&condition.type_))
            .cloned();
        let merged = PodStatus { conditions: Some(mine.chain(others).collect()), ..own.clone() };
        if own.conditions.is_some() && merged.conditions != own.conditions {
            self.reported = serde_json::to_vec(&merged).unwrap_or_default();
        }
    }

    fn note_deletion(&mut self, pod: &Pod) {
        if pod.metadata.deletion_timestamp.is_some() {
            self.end_within(pod.metadata.deletion_grace_period_seconds.unwrap_or(30));
        }
    }

    fn end_within(&mut self, seconds: i64) {
        let kill_at = Instant::now() + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        if self.state.ending.is_none_or(|ending| kill_at < ending.kill_at) {
            self.state.ending = Some(Ending { kill_at });
        }
        self.stop_probes(None);
    }

    /// Images are what can change in a pod's spec: whoever runs another one must go.
    fn spec_changed(&mut self, pod: &Pod) {
        let grace = grace_of(pod, None);
        for slot in &mut self.state.slots {
            let Some(spec) = container(pod, &slot.name) else { continue };
            match &slot.current {
                Some(record) if record.running() => {
                    if record.hash != hash(spec) && slot.role != Role::Init {
                        slot.doomed.get_or_insert(grace);
                    }
                }
                _ if slot.doing.is_none() => slot.image = ImageState::Wanted,
                _ => {}
            }
        }
    }

    async fn runtime_event(&mut self, event: v1::ContainerEventResponse) {
        use v1::ContainerEventType::{ContainerDeletedEvent, ContainerStoppedEvent};
        let over = matches!(event.container_event_type(), ContainerStoppedEvent | ContainerDeletedEvent);
        if let Some(sandbox) = &mut self.state.sandbox {
            let told = event.pod_sandbox_status.as_ref().filter(|status| status.id == sandbox.id);
            let down = told.is_some_and(|status| status.state == v1::PodSandboxState::SandboxNotready as i32);
            if down || over && event.container_id == sandbox.id {
                sandbox.ready = false;
            }
        }
        let told: Vec<_> = event
            .containers_statuses
            .into_iter()
            .filter(|status| status.state() == v1::ContainerState::ContainerExited)
            .collect();
        let mut known = false;
        for status in told {
            known |= status.id == event.container_id;
            match self.running(&status.id) {
                Some(slot) => {
                    let (shared, pod) = (self.shared.clone(), self.pod());
                    let exit = ops::exit(&shared, &pod, &status).await;
                    self.ended(slot, exit);
                }
                None if self.state.slots.iter().any(|slot| slot.doing == Some(Doing::Starting)) => {
                    self.early.push(status)
                }
                None => {}
            }
        }
        if over && !known && self.running(&event.container_id).is_some() {
            let look = ops::look(self.shared.clone(), self.pod(), event.container_id);
            self.ops.spawn(look);
        }
    }

    /// The slot whose current run has this id and has not ended.
    fn running(&self, id: &str) -> Option<usize> {
        self.state.slots.iter().position(|slot| {
            slot.current.as_ref().is_some_and(|record| record.id == id && record.exit().is_none())
        })
    }

    fn verdict(&mut self, index: usize, id: &str, purpose: Purpose, good: bool) {
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

    // ---- what was done ----

    fn finish(&mut self, done: Done) {
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

    fn volumes_made(&mut self, result: Result<Ready, volumes::Error>, now: Instant) {
        self.state.doing = None;
        let error = match result {
            Ok(mut ready) => {
                let sources = std::mem::take(&mut ready.sources);
                if !sources.is_empty() {
                    self.ops.spawn(async move {
                        sources.changed().await;
                        Done::SourcesChanged
                    });
                }
                self.volumes = Some(Arc::new(ready));
                self.state.volumes = VolumeState::Ready;
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

    fn image_found(
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

    fn sandbox_made(&mut self, result: Result<Sandbox, String>, now: Instant) {
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

    fn started(&mut self, index: usize, attempt: u32, result: Result<Record, StartError>, now: Instant) {
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
                        self.ops.spawn(ops::look(self.shared.clone(), pod, id));
                    }
                    self.runs(index, None);
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
            StartError::Config(super::config::Error::Env(error)) => {
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

    /// A container runs: what its probes say is asked from now on. `told`: what the API knew of it, for one adopted.
    fn runs(&mut self, index: usize, told: Option<(bool, bool)>) {
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

    fn begin_probes(&mut self, index: usize) {
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

    fn stop_probes(&mut self, of: Option<usize>) {
        self.probes.retain(|(slot, task)| {
            let stop = of.is_none_or(|of| of == *slot);
            if stop {
                task.abort();
            }
            !stop
        });
    }

    /// The current run of a slot ended.
    fn ended(&mut self, index: usize, exit: Exit) {
        self.stop_probes(Some(index));
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

    // ---- adoption ----

    fn begin_adoption(&mut self, inventory: Option<super::Inventory>) {
        self.adopt = false;
        self.state.doing = Some(PodDoing::Adopting);
        let adopt = ops::adopt(self.shared.clone(), self.uid.to_string(), inventory);
        self.ops.spawn(adopt);
    }

    fn adopted(&mut self, adopted: Adopted, now: Instant) {
        self.state.doing = None;
        self.state.tries = Tries::none();
        let pod = self.pod();
        if let Some(sandbox) = &adopted.sandbox {
            self.state.chosen = Some(adopted.handler.clone());
            self.state.sandbox_attempts = self.state.sandbox_attempts.max(sandbox.attempt + 1);
        }
        self.state.sandbox.clone_from(&adopted.sandbox);
        let before: PodStatus = serde_json::from_slice(&self.reported).unwrap_or_default();
        for index in 0..self.state.slots.len() {
            let name = self.state.slots[index].name.clone();
            let mut runs = adopted
                .containers
                .iter()
                .filter(|status| status.metadata.as_ref().is_some_and(|metadata| metadata.name == name));
            let newest = runs.next();
            let known =
                self.state.slots[index].current.as_ref().map(|record| (record.id.clone(), record.running()));
            match (newest, known) {
                (None, Some((_, true))) => {
                    let exit = unknown_exit(&self.state.slots[index]);
                    self.ended(index, exit);
                }
                (None, _) => {}
                (Some(status), Some((id, running))) if status.id == id => {
                    if running && status.state() != v1::ContainerState::ContainerRunning {
                        self.ops.spawn(ops::look(self.shared.clone(), pod.clone(), id));
                    }
                }
                (Some(status), _) => {
                    let record = ops::record_of(status);
                    let slot = &mut self.state.slots[index];
                    slot.restarts = record.attempt;
                    slot.backoff = Restarts::after(record.attempt);
                    slot.last = runs.map(ops::record_of).find(|record| record.exit().is_some());
                    slot.image = ImageState::Wanted;
                    let changed = container(&pod, &name).is_some_and(|spec| hash(spec) != record.hash);
                    let running = record.running();
                    let over = record.exit().is_some();
                    slot.restart_at = over.then_some(now);
                    slot.current = Some(record);
                    if running {
                        let told = before
                            .container_statuses
                            .iter()
                            .flatten()
                            .chain(before.init_container_statuses.iter().flatten());
                        let told = told.into_iter().find(|told| told.name == name);
                        let same = told.filter(|told| {
                            told.container_id.as_ref().is_some_and(|told| told.ends_with(&status.id))
                        });
                        self.runs(
                            index,
                            Some(
                                same.map_or((false, false), |told| (told.started == Some(true), told.ready)),
                            ),
                        );
                        if changed {
                            self.state.slots[index].doomed = Some(grace_of(&pod, None));
                        }
                    } else if over {
                        // Once more with its last words, which are read from files.
                        self.read_last_words(index, status.clone());
                    }
                }
            }
        }
    }

    fn read_last_words(&mut self, index: usize, status: v1::ContainerStatus) {
        let told: PodStatus = serde_json::from_slice(&self.reported).unwrap_or_default();
        let told = told
            .container_statuses
            .into_iter()
            .flatten()
            .chain(told.init_container_statuses.into_iter().flatten());
        let states = told
            .flat_map(|told| [told.state, told.last_state])
            .flatten()
            .filter_map(|state| state.terminated);
        // What was told before the restart had them.
        let known = states
            .into_iter()
            .find(|end| end.container_id.as_ref().is_some_and(|id| id.ends_with(&status.id)));
        if let (Some(end), Some(Run::Exited(exit))) =
            (known, self.state.slots[index].current.as_mut().map(|record| &mut record.run))
        {
            exit.message = end.message.unwrap_or_default();
        }
    }

    // ---- what goes out ----

    /// Does what the plan says, tells what changed. When to come back if nothing happens before.
    fn advance(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if self.adopt && self.state.quiet() {
            if self.state.tries.may_try(now) {
                self.begin_adoption(None);
            } else {
                return self.state.tries.retry_at;
            }
        }
        let pod = self.pod();
        let Some(spec) = &pod.spec else { return None };
        let plan = plan(spec, &self.state, now);
        let mut wake = plan.wake;
        for step in plan.steps {
            self.begin(&pod, step, now);
        }
        let mut sooner = |at: Option<Instant>| wake = wake.into_iter().chain(at).min();
        for slot in &mut self.state.slots {
            if let ImageState::Failed { tries, shown, error } = &mut slot.image
                && !*shown
                && error.reason() == "ErrImagePull"
            {
                // The wait after the first failure is as long as any later one, so this is never in its way.
                let wait = backoff::FIRST
                    .saturating_mul(1 << (tries.failures.max(1) - 1).min(16))
                    .min(backoff::LONGEST);
                let at = tries.retry_at.map(|at| at - wait + SHOWN);
                *shown = at.is_some_and(|at| at <= now);
                if !*shown {
                    sooner(at);
                }
            }
        }
        sooner(self.tell(&pod, now));
        self.publish();
        if self.state.removed
            && !self.gone
            && !self.deleting
            && self.report.writing.is_none()
            && self.report.dirty.is_none()
        {
            self.deleting = true;
            let delete = ops::delete(self.shared.clone(), self.key.clone(), self.uid.to_string());
            self.ops.spawn(delete);
        }
        wake
    }

    fn begin(&mut self, pod: &Arc<Pod>, step: Step, now: Instant) {
        let (shared, pod) = (self.shared.clone(), pod.clone());
        match step {
            Step::Volumes => {
                self.state.doing = Some(PodDoing::Volumes);
                let ips = self.state.sandbox.as_ref().map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
                self.ops.spawn(ops::volumes(shared, pod, ips));
            }
            Step::Image(index) => {
                let slot = &mut self.state.slots[index];
                let Some(container) = container(&pod, &slot.name).cloned() else { return };
                slot.doing = Some(Doing::Pulling);
                let config = super::config::sandbox(
                    &pod,
                    self.state.sandbox_attempts,
                    &shared.logs,
                    &shared.name,
                    &shared.resolver,
                );
                self.ops.spawn(ops::image(shared, pod, container, index, Some(config)));
            }
            Step::Sandbox(handler) => {
                self.state.doing = Some(PodDoing::Sandbox);
                let clean = self.state.sandbox.is_some() || self.state.tries.failures > 0;
                // What ran in the old one has ended with it.
                for index in 0..self.state.slots.len() {
                    if self.state.slots[index].running() {
                        let exit = unknown_exit(&self.state.slots[index]);
                        self.ended(index, exit);
                    }
                    let slot = &mut self.state.slots[index];
                    // Init containers run again in a new sandbox.
                    if self.state.sandbox.is_some() && slot.role == Role::Init && slot.exit().is_some() {
                        slot.last = slot.current.take();
                        slot.restarts += 1;
                        slot.restart_at = None;
                    }
                }
                self.state.sandbox = None;
                let attempt = self.state.sandbox_attempts;
                self.state.sandbox_attempts += 1;
                self.state.chosen = Some(handler.clone());
                self.ops.spawn(ops::sandbox(shared, pod, handler, attempt, clean));
            }
            Step::Start(index) => {
                let slot = &mut self.state.slots[index];
                let (Some(container), Some(sandbox), Some(volumes)) =
                    (container(&pod, &slot.name).cloned(), &self.state.sandbox, &self.volumes)
                else {
                    return;
                };
                let ImageState::Here(image) = &slot.image else { return };
                slot.doing = Some(Doing::Starting);
                let again = slot.trouble.is_some()
                    || slot.current.as_ref().is_some_and(|record| record.run == Run::Created);
                let ended = slot.exit().is_some();
                let start = ops::Start {
                    slot: index,
                    container,
                    attempt: slot.restarts + u32::from(ended),
                    sandbox: sandbox.clone(),
                    image: image.clone(),
                    volumes: volumes.clone(),
                    stale: slot.last.iter().filter(|_| ended).map(|record| record.id.clone()).collect(),
                    again,
                };
                self.ops.spawn(ops::start(shared, pod, start));
            }
            Step::Stop { slot, grace } => {
                let slot = &mut self.state.slots[slot];
                let Some(record) = &slot.current else { return };
                slot.doing = Some(Doing::Stopping { kill_at: now + grace });
                self.ops.spawn(ops::stop(shared, pod, record.id.clone(), slot.name.clone(), grace));
            }
            Step::Release => {
                let Some(sandbox) = &self.state.sandbox else { return };
                self.state.doing = Some(PodDoing::Releasing);
                self.ops.spawn(ops::release(shared, sandbox.id.clone()));
            }
            Step::TearDown => {
                self.state.doing = Some(PodDoing::TearingDown);
                self.ops.spawn(ops::tear_down(shared, pod, self.volumes.take()));
            }
        }
    }

    /// Writes the status if it changed, at once when nothing is under way, else when it has settled.
    fn tell(&mut self, pod: &Pod, now: Instant) -> Option<Instant> {
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
    fn publish(&mut self) {
        let brief = |slot: &Slot| Brief {
            name: slot.name.clone(),
            attempt: slot.current.as_ref().map(|record| record.attempt),
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

/// The grace of a probe, else of the pod.
fn grace_of(pod: &Pod, own: Option<i64>) -> Duration {
    let seconds =
        own.or(pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds)).unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// The runtime does not know how the run ended.
fn unknown_exit(slot: &Slot) -> Exit {
    let finished = ops::now();
    let started = match slot.current.as_ref().map(|record| &record.run) {
        Some(Run::Running { since }) => *since,
        _ => finished,
    };
    let message = "The container could not be located when its end was noticed".to_owned();
    Exit { started, finished, code: 137, reason: "ContainerStatusUnknown".to_owned(), message }
}
