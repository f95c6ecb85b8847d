//! What to do next for a pod. Pure: the same state gives the same plan, and carrying it out leaves less to plan.

use std::time::Duration;

use k8s_openapi::api::core::v1::PodSpec;
use tokio::time::Instant;
use wharf_cri::handler;

use super::backoff::Tries;
use super::state::{Doing, Handler, ImageState, PodDoing, Role, Slot, State, VolumeState};
use crate::images::Kind;

/// One thing to do now. Slots are indices into [`State::slots`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the volumes.
    Volumes,
    /// See that the image is here, as the pull policy says.
    Image(usize),
    /// Make the sandbox (and remove the one before it) with this runtime handler.
    Sandbox(String),
    /// Create and start the container.
    Start(usize),
    /// Stop the container within `grace`.
    Stop { slot: usize, grace: Duration },
    /// The pod has finished: stop its sandbox, keep its records.
    Release,
    /// Remove the sandbox, the containers, the volumes, the logs.
    TearDown,
}

/// What to do now, and when to look again if nothing happens before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub wake: Option<Instant>,
}

impl Plan {
    /// Adds the step if its time has come, else remembers when it will.
    fn when(&mut self, at: Option<Instant>, now: Instant, step: Step) {
        match at {
            Some(at) if at > now => self.wake_at(at),
            _ => self.steps.push(step),
        }
    }

    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |have| have.min(at)));
    }
}

/// `restartPolicy` of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub fn of(spec: &PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// Whether the container shall run (again), its pod being neither ended nor finished.
    pub fn wants(self, slot: &Slot) -> bool {
        let Some(exit) = slot.exit() else { return !slot.running() };
        match (slot.role, self) {
            (Role::Sidecar, _) | (Role::Main, Self::Always) => true,
            (Role::Ephemeral, _) | (Role::Init | Role::Main, Self::Never) => false,
            (Role::Init, Self::Always | Self::OnFailure) | (Role::Main, Self::OnFailure) => exit.code != 0,
        }
    }
}

/// Whether the pod came to its end by itself, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Not,
    Succeeded,
    Failed,
}

pub fn finish(policy: RestartPolicy, state: &State) -> Finish {
    let failed_init = |slot: &Slot| {
        slot.role == Role::Init
            && policy == RestartPolicy::Never
            && slot.exit().is_some_and(|exit| exit.code != 0)
    };
    if state.slots.iter().any(failed_init) {
        return Finish::Failed;
    }
    let mut mains = state.slots.iter().filter(|slot| slot.role == Role::Main);
    if mains.clone().any(|slot| slot.exit().is_none() || policy.wants(slot)) {
        return Finish::Not;
    }
    let good = mains.all(|slot| slot.exit().is_some_and(|exit| exit.code == 0));
    if good { Finish::Succeeded } else { Finish::Failed }
}

/// Init containers run one by one before the others: which slots may start now. Ephemeral ones wait for nobody.
pub fn admitted(state: &State) -> Vec<bool> {
    let mut open = true;
    let main_runs = state.slots.iter().any(|slot| slot.role == Role::Main && slot.current.is_some());
    let admit = |slot: &Slot| {
        let admitted = open || slot.role == Role::Ephemeral;
        // Once the main containers have been started, a sidecar that restarts holds nobody up.
        open &= main_runs
            || match slot.role {
                Role::Init => slot.exit().is_some_and(|exit| exit.code == 0),
                Role::Sidecar => slot.started,
                Role::Main | Role::Ephemeral => true,
            };
        admitted
    };
    state.slots.iter().map(admit).collect()
}

/// Decides. `spec` is the pod's, `now` the moment.
pub fn plan(spec: &PodSpec, state: &State, now: Instant) -> Plan {
    let mut plan = Plan::default();
    if state.removed || state.doing == Some(PodDoing::Adopting) {
        return plan;
    }
    if let Some(ending) = state.ending {
        end(&mut plan, state, ending.kill_at, now);
        return plan;
    }
    let policy = RestartPolicy::of(spec);
    if state.over || state.expired || finish(policy, state) != Finish::Not {
        let grace = Duration::from_secs(
            spec.termination_grace_period_seconds.map_or(30, |seconds| seconds.max(0).unsigned_abs()),
        );
        let running = stop_running(&mut plan, state, now + grace, now);
        let sandbox = state.sandbox.as_ref().is_some_and(|sandbox| sandbox.ready);
        if !running && state.doing.is_none() && sandbox && !state.released {
            plan.when(state.tries.retry_at, now, Step::Release);
        }
        return plan;
    }
    if let Some(at) = state.deadline {
        plan.wake_at(at);
    }

    let wanted: Vec<bool> = state.slots.iter().map(|slot| policy.wants(slot)).collect();
    for (index, slot) in state.slots.iter().enumerate() {
        if let (Some(grace), None, true) = (slot.doomed, slot.doing, slot.running()) {
            plan.steps.push(Step::Stop { slot: index, grace });
        }
        if wanted[index] && slot.doing.is_none() {
            match &slot.image {
                ImageState::Wanted => plan.when(slot.restart_at, now, Step::Image(index)),
                ImageState::Failed { tries, .. } => plan.when(tries.retry_at, now, Step::Image(index)),
                ImageState::Here(_) => {}
            }
        }
    }
    if state.doing.is_none() {
        match &state.volumes {
            VolumeState::Ready => {}
            VolumeState::Wanted => plan.steps.push(Step::Volumes),
            VolumeState::Failed { waiting: true, .. } => {}
            VolumeState::Failed { tries, waiting: false, .. } => {
                plan.when(tries.retry_at, now, Step::Volumes)
            }
        }
    }
    if state.volumes != VolumeState::Ready
        || matches!(state.doing, Some(PodDoing::Sandbox | PodDoing::TearingDown | PodDoing::Releasing))
    {
        return plan;
    }
    if !state.sandbox.as_ref().is_some_and(|sandbox| sandbox.ready) {
        let starting = state.slots.iter().any(|slot| slot.doing == Some(Doing::Starting));
        if state.doing.is_none()
            && !starting
            && let Some(handler) = handler_of(state)
        {
            // A pod that merely waits for a crashed container's time needs no sandbox yet.
            let due = state.slots.iter().zip(&wanted).filter(|(slot, wanted)| **wanted || slot.running());
            let due =
                due.map(|(slot, _)| if slot.running() { now } else { slot.restart_at.unwrap_or(now) }).min();
            plan.when(due.into_iter().chain(state.tries.retry_at).max(), now, Step::Sandbox(handler));
        }
        return plan;
    }
    for (index, (slot, admitted)) in state.slots.iter().zip(admitted(state)).enumerate() {
        if !admitted || !wanted[index] || slot.doing.is_some() || !matches!(slot.image, ImageState::Here(_)) {
            continue;
        }
        let retry = slot.trouble.as_ref().and_then(|trouble| trouble.tries.retry_at);
        plan.when(slot.restart_at.into_iter().chain(retry).max(), now, Step::Start(index));
    }
    plan
}

/// A pod that shall go: first its containers, the sidecars last, then all of it.
fn end(plan: &mut Plan, state: &State, kill_at: Instant, now: Instant) {
    let starting = state.slots.iter().any(|slot| slot.doing == Some(Doing::Starting));
    let running = stop_running(plan, state, kill_at, now);
    if !running && !starting && state.doing.is_none() {
        plan.when(state.tries.retry_at, now, Step::TearDown);
    }
}

/// Stops what runs; true as long as something does.
fn stop_running(plan: &mut Plan, state: &State, kill_at: Instant, now: Instant) -> bool {
    /// Two requests with nearly the same deadline are one.
    const CLOSE: Duration = Duration::from_secs(1);
    let others = state.slots.iter().any(|slot| slot.role != Role::Sidecar && slot.running());
    for (index, slot) in state.slots.iter().enumerate().filter(|(_, slot)| slot.running()) {
        // Sidecars end last, and the later ones before those that they were started after.
        let later = state.slots[index + 1..].iter().any(Slot::running);
        let turn = slot.role != Role::Sidecar || !(others || later);
        let sooner = match slot.doing {
            Some(Doing::Stopping { kill_at: have }) => kill_at + CLOSE < have,
            _ => turn,
        };
        if sooner {
            plan.steps.push(Step::Stop { slot: index, grace: kill_at.saturating_duration_since(now) });
        }
    }
    state.slots.iter().any(Slot::running)
}

/// The runtime handler, once it can be told: the RuntimeClass's, else `wasm` if every image is WebAssembly.
pub fn handler_of(state: &State) -> Option<String> {
    if let Some(chosen) = &state.chosen {
        return Some(chosen.clone());
    }
    match &state.handler {
        Handler::Named(name) => Some(name.clone()),
        Handler::Unknown => None,
        Handler::Auto => {
            let kind = |slot: &Slot| match &slot.image {
                ImageState::Here(image) => Some(image.kind),
                ImageState::Wanted | ImageState::Failed { .. } => None,
            };
            let kinds: Vec<_> = state.slots.iter().filter(|slot| slot.role.counts()).map(kind).collect();
            if kinds.contains(&Some(Kind::Oci)) {
                Some(String::new())
            } else if kinds.iter().all(|kind| *kind == Some(Kind::Wasm)) {
                Some(handler::WASM.to_owned())
            } else {
                None
            }
        }
    }
}

/// The wait after a failed sandbox, teardown or container: quick at first, since most such troubles pass quickly.
pub fn retry(tries: &mut Tries, now: Instant) -> Duration {
    tries.failed(now, Duration::from_millis(500), Duration::from_secs(30))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::images::Image;
    use crate::pod::state::{Ending, Exit, Record, Run, Sandbox};

    fn spec(policy: &str, init: &[&str], main: &[&str]) -> PodSpec {
        let containers = |names: &[&str]| {
            names.iter().map(|name| json!({"name": name, "restartPolicy": if *name == "side" { Some("Always") } else { None }})).collect::<Vec<_>>()
        };
        serde_json::from_value(json!({"restartPolicy": policy, "initContainers": containers(init), "containers": containers(main)})).unwrap()
    }

    fn image(kind: Kind) -> ImageState {
        ImageState::Here(Arc::new(Image { id: "sha256:1".into(), kind, uid: None, username: String::new() }))
    }

    fn run(slot: &mut Slot) {
        slot.current = Some(Record {
            id: "c".into(),
            attempt: 0,
            hash: String::new(),
            image_id: String::new(),
            run: Run::Running { since: Timestamp::UNIX_EPOCH },
        });
        slot.started = true;
    }

    fn exit(slot: &mut Slot, code: i32, now: Instant) {
        let at = Timestamp::UNIX_EPOCH;
        slot.ended(
            Exit { started: at, finished: at, code, reason: String::new(), message: String::new() },
            now,
        );
    }

    fn sandbox() -> Option<Sandbox> {
        Some(Sandbox { id: "s".into(), attempt: 0, ready: true, ips: vec!["10.0.0.9".into()] })
    }

    fn ready(spec: &PodSpec) -> State {
        let mut state = State::new(spec);
        state.volumes = VolumeState::Ready;
        state.sandbox = sandbox();
        state.slots.iter_mut().for_each(|slot| slot.image = image(Kind::Oci));
        state
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_pod_gets_images_and_volumes_then_sandbox_then_containers() {
        let now = Instant::now();
        let spec = spec("Always", &[], &["a", "b"]);
        let mut state = State::new(&spec);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Image(0), Step::Image(1), Step::Volumes]);
        state.volumes = VolumeState::Ready;
        state.slots[0].image = image(Kind::Wasm);
        state.slots[1].doing = Some(Doing::Pulling);
        assert_eq!(plan(&spec, &state, now).steps, [], "whether all are wasm is not known yet");
        state.slots[1].doing = None;
        state.slots[1].image = image(Kind::Wasm);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Sandbox("wasm".into())]);
        state.slots[1].image = image(Kind::Oci);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Sandbox(String::new())]);
        state.sandbox = sandbox();
        assert_eq!(plan(&spec, &state, now).steps, [Step::Start(0), Step::Start(1)]);
        state.slots.iter_mut().for_each(run);
        assert_eq!(plan(&spec, &state, now), Plan::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_named_runtime_class_needs_no_image_to_begin() {
        let now = Instant::now();
        let spec = spec("Always", &[], &["a"]);
        let mut state = State::new(&spec);
        state.volumes = VolumeState::Ready;
        state.handler = Handler::Named("oci".into());
        assert_eq!(plan(&spec, &state, now).steps, [Step::Image(0), Step::Sandbox("oci".into())]);
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_follow_the_policy() {
        let now = Instant::now();
        for (policy, code, again, end) in [
            ("Always", 0, true, Finish::Not),
            ("Always", 1, true, Finish::Not),
            ("OnFailure", 0, false, Finish::Succeeded),
            ("OnFailure", 1, true, Finish::Not),
            ("Never", 0, false, Finish::Succeeded),
            ("Never", 1, false, Finish::Failed),
        ] {
            let spec = spec(policy, &[], &["a"]);
            let mut state = ready(&spec);
            run(&mut state.slots[0]);
            exit(&mut state.slots[0], code, now);
            assert_eq!(finish(RestartPolicy::of(&spec), &state), end, "{policy} {code}");
            let steps = plan(&spec, &state, now).steps;
            assert_eq!(
                steps,
                if again { vec![Step::Image(0)] } else { vec![Step::Release] },
                "{policy} {code}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_loop_waits_its_time_and_not_longer() {
        let now = Instant::now();
        let spec = spec("Always", &[], &["a"]);
        let mut state = ready(&spec);
        for wait in [0, 10, 20] {
            run(&mut state.slots[0]);
            exit(&mut state.slots[0], 1, now);
            state.slots[0].image = image(Kind::Oci);
            let at = now + Duration::from_secs(wait);
            if wait > 0 {
                assert_eq!(plan(&spec, &state, now), Plan { steps: vec![], wake: Some(at) });
            }
            assert_eq!(plan(&spec, &state, at).steps, [Step::Start(0)]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn init_containers_go_one_by_one_and_sidecars_stay() {
        let now = Instant::now();
        let spec = spec("Never", &["one", "side", "two"], &["a"]);
        let mut state = ready(&spec);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Start(0)]);
        run(&mut state.slots[0]);
        assert_eq!(plan(&spec, &state, now).steps, []);
        exit(&mut state.slots[0], 0, now);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Start(1)]);
        run(&mut state.slots[1]);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Start(2)]);
        run(&mut state.slots[2]);
        exit(&mut state.slots[2], 0, now);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Start(3)]);
        run(&mut state.slots[3]);
        exit(&mut state.slots[3], 0, now);
        assert_eq!(finish(RestartPolicy::Never, &state), Finish::Succeeded);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Stop { slot: 1, grace: Duration::from_secs(30) }]);

        let mut state = ready(&spec);
        run(&mut state.slots[0]);
        exit(&mut state.slots[0], 3, now);
        assert_eq!(finish(RestartPolicy::Never, &state), Finish::Failed);
    }

    #[tokio::test(start_paused = true)]
    async fn an_ephemeral_container_runs_once_and_holds_nothing_up() {
        let now = Instant::now();
        let mut spec = spec("Always", &["one"], &["a"]);
        let mut state = ready(&spec);
        run(&mut state.slots[0]);
        spec.ephemeral_containers = serde_json::from_value(json!([{"name": "look"}])).unwrap();
        state.add_ephemeral(&spec);
        state.add_ephemeral(&spec);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Image(2)], "it is there once");
        state.slots[2].image = image(Kind::Oci);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Start(2)], "though the pod is not initialized");
        run(&mut state.slots[2]);
        exit(&mut state.slots[0], 0, now);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Start(1)]);
        run(&mut state.slots[1]);
        exit(&mut state.slots[2], 1, now);
        assert_eq!(plan(&spec, &state, now), Plan::default(), "whatever the policy, it does not run again");
        exit(&mut state.slots[1], 0, now);
        run(&mut state.slots[2]);
        assert_eq!(finish(RestartPolicy::Never, &state), Finish::Succeeded, "and the pod is over without it");
        state.slots[..2].iter_mut().for_each(|slot| slot.image = image(Kind::Wasm));
        state.slots[2].image = image(Kind::Oci);
        assert_eq!(handler_of(&state), Some("wasm".into()), "its image is not asked");
    }

    #[tokio::test(start_paused = true)]
    async fn sidecars_end_last_and_in_reverse() {
        let now = Instant::now();
        let mut spec = spec("Always", &["side", "side2"], &["a"]);
        spec.init_containers.as_mut().unwrap()[1].restart_policy = Some("Always".into());
        let mut state = ready(&spec);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Start(0)]);
        state.slots.iter_mut().for_each(run);
        state.slots[0].started = false;
        assert_eq!(plan(&spec, &state, now), Plan::default());
        let kill_at = now + Duration::from_secs(9);
        state.ending = Some(Ending { kill_at });
        for slot in [2, 1, 0] {
            let grace = Duration::from_secs(9);
            assert_eq!(plan(&spec, &state, now).steps, [Step::Stop { slot, grace }]);
            state.slots[slot].doing = Some(Doing::Stopping { kill_at });
            assert_eq!(plan(&spec, &state, now).steps, []);
            exit(&mut state.slots[slot], 0, now);
        }
        assert_eq!(plan(&spec, &state, now).steps, [Step::TearDown]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_past_its_deadline_is_stopped_and_not_started_again() {
        let now = Instant::now();
        let spec = spec("Always", &[], &["a"]);
        let mut state = ready(&spec);
        run(&mut state.slots[0]);
        state.deadline = Some(now + Duration::from_secs(7));
        assert_eq!(plan(&spec, &state, now), Plan { steps: vec![], wake: state.deadline });
        state.expired = true;
        let grace = Duration::from_secs(30);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Stop { slot: 0, grace }]);
        exit(&mut state.slots[0], 137, now);
        assert_eq!(plan(&spec, &state, now).steps, [Step::Release]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_ending_pod_stops_its_containers_once_and_is_then_torn_down() {
        let now = Instant::now();
        let spec = spec("Always", &[], &["a", "b"]);
        let mut state = ready(&spec);
        run(&mut state.slots[0]);
        state.slots[1].doing = Some(Doing::Pulling);
        let kill_at = now + Duration::from_secs(30);
        state.ending = Some(Ending { kill_at });
        assert_eq!(plan(&spec, &state, now).steps, [Step::Stop { slot: 0, grace: Duration::from_secs(30) }]);
        state.slots[0].doing = Some(Doing::Stopping { kill_at });
        assert_eq!(plan(&spec, &state, now).steps, []);
        state.ending = Some(Ending { kill_at: now + Duration::from_secs(2) });
        assert_eq!(
            plan(&spec, &state, now).steps,
            [Step::Stop { slot: 0, grace: Duration::from_secs(2) }],
            "a shorter grace is passed on"
        );
        exit(&mut state.slots[0], 137, now);
        assert_eq!(plan(&spec, &state, now).steps, [Step::TearDown]);
        state.removed = true;
        assert_eq!(plan(&spec, &state, now).steps, []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_sandbox_is_replaced_and_a_doomed_container_stopped() {
        let now = Instant::now();
        let spec = spec("Always", &[], &["a"]);
        let mut state = ready(&spec);
        run(&mut state.slots[0]);
        state.slots[0].doomed = Some(Duration::from_secs(5));
        assert_eq!(plan(&spec, &state, now).steps, [Step::Stop { slot: 0, grace: Duration::from_secs(5) }]);
        state.slots[0].doomed = None;
        state.sandbox.as_mut().unwrap().ready = false;
        assert_eq!(plan(&spec, &state, now).steps, [Step::Sandbox(String::new())]);
    }
}
