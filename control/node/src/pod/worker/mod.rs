//! The actor itself: takes messages and results in, keeps the state, starts what the plan says, reports.

mod adoption;
mod probing;
mod results;
mod telling;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info_span, warn};
use wharf_cri::v1;
use wharf_kit::chain;
use wharf_kit::event::{Severity, Subject};
use wharf_kit::view::Key;

use super::backoff::{self, Tries};
use super::ops::{self, Done};
use super::plan::{Finish, RestartPolicy, Step, finish, plan};
use super::state::{
    Doing, Ending, Exit, Handler, ImageState, PodDoing, Role, Run, Slot, State, VolumeState, container, hash,
    target,
};
use super::status;
use super::{Message, Shared, Snapshot};
use crate::volumes::{self, Ready};

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
    /// postStart hooks that are on their way.
    hooks: Vec<(usize, AbortHandle)>,
    /// Waits for what the volumes' content comes from to change.
    sources: Option<AbortHandle>,
    /// The pod's fields changed while volumes that tell them were being made.
    stale: bool,
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
        let statuses = [
            &before.init_container_statuses,
            &before.container_statuses,
            &before.ephemeral_container_statuses,
        ];
        for told in statuses.into_iter().flatten().flatten() {
            let Some(slot) = state.slots.iter_mut().find(|slot| slot.name == told.name) else { continue };
            if slot.role == Role::Ephemeral {
                // It runs once: if the runtime has lost it, that was it. A pod that is over is told no more.
                slot.current = adoption::told(told).filter(|_| !state.over);
                continue;
            }
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
            hooks: Vec::new(),
            sources: None,
            stale: false,
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
                    Err(error) if error.is_cancelled() => {}
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
        if told {
            if volumes::tell_fields(&pod) {
                match self.state.volumes {
                    _ if self.state.doing == Some(PodDoing::Volumes) => self.stale = true,
                    VolumeState::Ready => self.state.volumes = VolumeState::Wanted,
                    VolumeState::Wanted | VolumeState::Failed { .. } => {}
                }
            }
            // What failed because of them (a subPathExpr, say) may succeed now.
            for trouble in self.state.slots.iter_mut().filter_map(|slot| slot.trouble.as_mut()) {
                trouble.tries.retry_at = None;
            }
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

    /// `activeDeadlineSeconds` counts from when the pod was first told of as started.
    fn note_deadline(&mut self, spec: &PodSpec, now: Instant) {
        let Some(seconds) = spec.active_deadline_seconds else { return };
        let own: PodStatus = serde_json::from_slice(&self.reported).unwrap_or_default();
        let started = own.start_time.map_or_else(ops::now, |time| time.0);
        let ran = Duration::try_from(ops::now().duration_since(started)).unwrap_or_default();
        let left = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).saturating_sub(ran);
        if !left.is_zero() {
            self.state.deadline = Some(now + left);
        } else if !self.state.expired
            && !self.state.over
            && self.state.ending.is_none()
            && finish(RestartPolicy::of(spec), &self.state) == Finish::Not
        {
            self.state.expired = true;
            self.state.deadline = None;
            self.stop_probes(None);
            self.event(None, Severity::Normal, "DeadlineExceeded", status::DEADLINE_EXCEEDED.to_owned());
        }
    }

    fn end_within(&mut self, seconds: i64) {
        let kill_at = Instant::now() + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        if self.state.ending.is_none_or(|ending| kill_at < ending.kill_at) {
            self.state.ending = Some(Ending { kill_at });
        }
        self.stop_probes(None);
    }

    /// Images are what can change in a pod's spec: whoever runs another one must go. And ephemeral containers come.
    fn spec_changed(&mut self, pod: &Pod) {
        let grace = grace_of(pod, None);
        if let Some(spec) = &pod.spec {
            self.state.add_ephemeral(spec);
        }
        for slot in &mut self.state.slots {
            let Some(spec) = container(pod, &slot.name) else { continue };
            match &slot.current {
                Some(record)
                    if record.running()
                        && record.hash != hash(&spec)
                        && matches!(slot.role, Role::Main | Role::Sidecar) =>
                {
                    slot.doomed.get_or_insert(grace);
                }
                Some(record) if record.running() => {}
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
        self.note_deadline(spec, now);
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

    /// Whose processes the container of a slot shall see, if anybody's.
    fn target(&self, pod: &Pod, index: usize) -> Option<ops::Target> {
        let name = target(pod, &self.state.slots[index].name);
        let slot = self.state.slots.iter().find(|slot| slot.name == name)?;
        let id = slot.current.as_ref().map(|record| record.id.clone());
        Some(ops::Target { name: name.to_owned(), id })
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
                let Some(container) = container(&pod, &slot.name).map(Cow::into_owned) else { return };
                slot.doing = Some(Doing::Pulling);
                let config = super::config::sandbox(
                    &pod,
                    self.state.sandbox_attempts,
                    &shared.logs,
                    &shared.name,
                    &shared.resolver,
                    None,
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
                let target = self.target(&pod, index);
                let slot = &mut self.state.slots[index];
                let (Some(container), Some(sandbox), Some(volumes)) =
                    (container(&pod, &slot.name), &self.state.sandbox, &self.volumes)
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
                    container: container.into_owned(),
                    target,
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
                let Some(id) = self.state.slots[slot].current.as_ref().map(|record| record.id.clone()) else {
                    return;
                };
                let asked = self.asked(&pod, &id);
                let slot = &mut self.state.slots[slot];
                // A stop that is hurried up has its hook on its way already.
                let first = !matches!(slot.doing, Some(Doing::Stopping { .. }));
                let hook = container(&pod, &slot.name).map(Cow::into_owned).filter(|_| first);
                slot.doing = Some(Doing::Stopping { kill_at: now + grace });
                let stop = ops::Stop { asked, name: slot.name.clone(), grace, container: hook };
                self.ops.spawn(ops::stop(shared, pod, stop));
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
