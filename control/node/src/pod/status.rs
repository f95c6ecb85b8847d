//! A pod's status as the API tells it, computed from what the worker knows. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::plan::{Finish, RestartPolicy, finish};
use super::state::{Exit, ImageState, Record, Role, Slot, State, container};
use crate::resources::Qos;

/// What is told of a pod whose `activeDeadlineSeconds` are over.
pub const DEADLINE_EXCEEDED: &str = "Pod was active on the node longer than the specified deadline";

/// What the status says beside the pod's own state.
pub struct Context<'a> {
    pub host_ip: &'a str,
    /// The runtime's name, the scheme of container ids.
    pub runtime: &'a str,
    pub now: Timestamp,
    pub instant: Instant,
}

/// The whole status. `before` is what was told last: unchanged conditions keep their times, others' conditions stay.
pub fn compute(pod: &Pod, state: &State, before: &PodStatus, context: &Context<'_>) -> PodStatus {
    let Some(spec) = &pod.spec else { return before.clone() };
    let policy = RestartPolicy::of(spec);
    let finish = finish(policy, state);
    let generation = pod.metadata.generation;
    let over = finish != Finish::Not || state.expired || state.ending.is_some();
    let initialized = initialized(state);

    let tell = |slot: &Slot| tell_container(pod, slot, policy, over, initialized, context);
    let mains: Vec<ContainerStatus> =
        state.slots.iter().filter(|slot| slot.role == Role::Main).map(tell).collect();
    let inits: Vec<ContainerStatus> =
        state.slots.iter().filter(|slot| slot.role.is_init()).map(tell).collect();
    let ephemeral: Vec<ContainerStatus> =
        state.slots.iter().filter(|slot| slot.role == Role::Ephemeral).map(tell).collect();
    let phase = phase(state, policy, finish, before);
    let expired = state.expired && phase == "Failed";

    let host_network = spec.host_network == Some(true);
    let live = state.sandbox.as_ref().filter(|sandbox| sandbox.ready);
    let ips: Vec<String> = match live {
        _ if host_network => vec![context.host_ip.to_owned()],
        Some(sandbox) => sandbox.ips.clone(),
        None if over => before.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect(),
        None => Vec::new(),
    };
    let conditions = conditions(pod, state, before, phase, live.is_some(), initialized, context, generation);
    PodStatus {
        phase: Some(phase.to_owned()),
        reason: expired.then(|| "DeadlineExceeded".to_owned()).or_else(|| before.reason.clone()),
        message: expired.then(|| DEADLINE_EXCEEDED.to_owned()).or_else(|| before.message.clone()),
        observed_generation: generation,
        conditions: Some(conditions),
        host_ip: Some(context.host_ip.to_owned()),
        host_ips: Some(vec![HostIP { ip: context.host_ip.to_owned() }]),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: before.start_time.clone().or(Some(Time(context.now))),
        qos_class: before.qos_class.clone().or_else(|| Some(Qos::of(spec).name().to_owned())),
        container_statuses: Some(mains),
        init_container_statuses: (!inits.is_empty()).then_some(inits),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        ..before.clone()
    }
}

/// The init containers are done and the sidecars started.
fn initialized(state: &State) -> bool {
    let main_runs = state.slots.iter().any(|slot| slot.role == Role::Main && slot.current.is_some());
    main_runs
        || state.slots.iter().all(|slot| match slot.role {
            Role::Init => slot.exit().is_some_and(|exit| exit.code == 0),
            Role::Sidecar => slot.started,
            Role::Main | Role::Ephemeral => true,
        })
}

fn phase(state: &State, policy: RestartPolicy, finish: Finish, before: &PodStatus) -> &'static str {
    // What has ended never comes back.
    match before.phase.as_deref() {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    // What still runs (sidecars, say) ends first: a pod that is over runs nothing.
    let still = state.slots.iter().any(Slot::running);
    match finish {
        Finish::Not if state.expired && !still => return "Failed",
        Finish::Succeeded if !still => return "Succeeded",
        Finish::Failed if !still => return "Failed",
        Finish::Succeeded | Finish::Failed | Finish::Not => {}
    }
    let mains = || state.slots.iter().filter(|slot| slot.role == Role::Main);
    let running = mains().any(Slot::running);
    let stopped =
        mains().filter(|slot| slot.exit().is_some() || (slot.last.is_some() && !slot.running())).count();
    let all = mains().count();
    if state.ending.is_some() && !running {
        // Told once all is over: a pod that was killed has failed unless every container ended well.
        let begun = mains().any(|slot| slot.current.is_some());
        if !begun {
            return if state.removed { "Failed" } else { "Pending" };
        }
        let good = mains().all(|slot| slot.exit().is_some_and(|exit| exit.code == 0));
        return if good { "Succeeded" } else { "Failed" };
    }
    let waiting = all - stopped - mains().filter(|slot| slot.running()).count();
    match (waiting, running, policy) {
        (1.., _, _) => "Pending",
        (0, true, _) => "Running",
        (0, false, _) if stopped > 0 => "Running", // to be restarted
        (0, false, _) => "Pending",
    }
}

fn tell_container(
    pod: &Pod,
    slot: &Slot,
    policy: RestartPolicy,
    over: bool,
    initialized: bool,
    context: &Context<'_>,
) -> ContainerStatus {
    let spec = container(pod, &slot.name);
    let terminated = |record: &Record| record.exit().map(|exit| terminated(record, exit, context));
    let (state, last) = match &slot.current {
        Some(record) if record.running() => (running(record), slot.last.as_ref().and_then(terminated)),
        Some(record) if record.exit().is_some() => {
            let again = !over && policy.wants(slot);
            match waiting(pod, slot, initialized, context) {
                Some(waiting) if again => (waiting, terminated(record)),
                _ => (terminated(record).unwrap_or_default(), slot.last.as_ref().and_then(terminated)),
            }
        }
        _ => {
            let default =
                if initialized || slot.role != Role::Main { "ContainerCreating" } else { "PodInitializing" };
            let state = waiting(pod, slot, initialized, context).unwrap_or_else(|| wait(default, None));
            (state, slot.last.as_ref().and_then(terminated))
        }
    };
    let record = slot.current.as_ref().or(slot.last.as_ref());
    let ready = match slot.role {
        Role::Init => slot.exit().is_some_and(|exit| exit.code == 0),
        Role::Sidecar | Role::Main => slot.ready && slot.running(),
        Role::Ephemeral => false, // nobody asks it
    };
    ContainerStatus {
        name: slot.name.clone(),
        image: spec.as_ref().and_then(|spec| spec.image.clone()).unwrap_or_default(),
        image_id: record.map(|record| record.image_id.clone()).unwrap_or_default(),
        container_id: record.map(|record| format!("{}://{}", context.runtime, record.id)),
        ready,
        started: slot.role.counts().then_some(slot.started && slot.running()),
        restart_count: i32::try_from(slot.restarts).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: Some(last.unwrap_or_default()),
        ..Default::default()
    }
}

/// Why the container does not run though it should; none while it is simply being made.
fn waiting(pod: &Pod, slot: &Slot, initialized: bool, context: &Context<'_>) -> Option<ContainerState> {
    if let ImageState::Failed { error, shown, .. } = &slot.image {
        let spec = container(pod, &slot.name);
        let image = spec.as_ref().and_then(|spec| spec.image.as_deref()).unwrap_or_default();
        return Some(if *shown && error.reason() == "ErrImagePull" {
            wait(
                "ImagePullBackOff",
                Some(format!("Back-off pulling image \"{image}\": ErrImagePull: {error}")),
            )
        } else {
            wait(error.reason(), Some(error.to_string()))
        });
    }
    if let Some(trouble) = &slot.trouble {
        return Some(wait(trouble.reason, Some(trouble.message.clone())));
    }
    let at =
        slot.restart_at.filter(|at| *at > context.instant && (initialized || slot.role != Role::Main))?;
    let meta = &pod.metadata;
    let message = format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        go_duration(slot_backoff(slot, at, context.instant)),
        slot.name,
        meta.name.as_deref().unwrap_or_default(),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default(),
    );
    Some(wait("CrashLoopBackOff", Some(message)))
}

/// The whole wait, which does not change while it passes (so that it causes no writes).
fn slot_backoff(slot: &Slot, at: Instant, now: Instant) -> std::time::Duration {
    slot.backoff.current().unwrap_or_else(|| at.saturating_duration_since(now))
}

/// `10s`, `1m20s`, `5m0s`, as Go prints durations.
fn go_duration(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

fn wait(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message });
    ContainerState { waiting, ..Default::default() }
}

fn running(record: &Record) -> ContainerState {
    let started_at = match record.run {
        super::state::Run::Running { since } => Some(Time(since)),
        _ => None,
    };
    ContainerState { running: Some(ContainerStateRunning { started_at }), ..Default::default() }
}

fn terminated(record: &Record, exit: &Exit, context: &Context<'_>) -> ContainerState {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let terminated = ContainerStateTerminated {
        container_id: Some(format!("{}://{}", context.runtime, record.id)),
        exit_code: exit.code,
        started_at: Some(Time(exit.started)),
        finished_at: Some(Time(exit.finished)),
        reason: text(&exit.reason),
        message: text(&exit.message),
        signal: None,
    };
    ContainerState { terminated: Some(terminated), ..Default::default() }
}

#[expect(clippy::too_many_arguments, reason = "they are what the conditions are made of")]
fn conditions(
    pod: &Pod,
    state: &State,
    before: &PodStatus,
    phase: &str,
    sandbox: bool,
    initialized: bool,
    context: &Context<'_>,
    generation: Option<i64>,
) -> Vec<PodCondition> {
    let old = before.conditions.as_deref().unwrap_or_default();
    let unready: Vec<&str> = state
        .slots
        .iter()
        .filter(|slot| slot.role.counts() && slot.role != Role::Init && !(slot.ready && slot.running()))
        .map(|slot| slot.name.as_str())
        .collect();
    let completed = (false, "PodCompleted".to_owned(), String::new());
    let failed = (false, "PodFailed".to_owned(), String::new());
    let containers_ready = match phase {
        "Succeeded" => completed,
        "Failed" => failed,
        _ if unready.is_empty() => (true, String::new(), String::new()),
        _ => (
            false,
            "ContainersNotReady".to_owned(),
            format!("containers with unready status: [{}]", unready.join(" ")),
        ),
    };
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let shut: Vec<String> = gates
        .into_iter()
        .filter(|gate| !old.iter().any(|have| have.type_ == gate.condition_type && have.status == "True"))
        .map(|gate| {
            format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist or is not \"True\".",
                gate.condition_type
            )
        })
        .collect();
    let ready = if containers_ready.0 && !shut.is_empty() {
        (false, "ReadinessGatesNotReady".to_owned(), shut.join(", "))
    } else {
        containers_ready.clone()
    };
    let waiting_inits: Vec<&str> = state
        .slots
        .iter()
        .filter(|slot| {
            slot.role == Role::Init && slot.exit().is_none_or(|exit| exit.code != 0)
                || slot.role == Role::Sidecar && !slot.started
        })
        .map(|slot| slot.name.as_str())
        .collect();
    let init = match (initialized, phase) {
        (_, "Succeeded") => (true, "PodCompleted".to_owned(), String::new()),
        (true, _) => (true, String::new(), String::new()),
        (false, _) => (
            false,
            "ContainersNotInitialized".to_owned(),
            format!("containers with incomplete status: [{}]", waiting_inits.join(" ")),
        ),
    };
    let own = [
        ("PodReadyToStartContainers", (sandbox, String::new(), String::new())),
        ("Initialized", init),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
    ];
    let mut conditions: Vec<PodCondition> = own
        .into_iter()
        .map(|(kind, (status, reason, message))| {
            let status = if status { "True" } else { "False" };
            let have = old.iter().find(|have| have.type_ == kind && have.status == status);
            PodCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: (!reason.is_empty()).then_some(reason),
                message: (!message.is_empty()).then_some(message),
                last_transition_time: have
                    .and_then(|have| have.last_transition_time.clone())
                    .or(Some(Time(context.now))),
                last_probe_time: None,
                observed_generation: generation,
            }
        })
        .collect();
    conditions.extend(old.iter().filter(|have| !own_condition(&have.type_)).cloned());
    if !conditions.iter().any(|condition| condition.type_ == "PodScheduled") {
        conditions.push(PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(Time(context.now)),
            observed_generation: generation,
            ..Default::default()
        });
    }
    conditions
}

/// Conditions that the node agent writes; the others are somebody else's.
pub fn own_condition(kind: &str) -> bool {
    matches!(kind, "PodReadyToStartContainers" | "Initialized" | "Ready" | "ContainersReady")
}

/// The merge patch that turns `before` into `after`: changed fields, and null for those that went.
pub fn difference(before: &Value, after: &Value) -> Map<String, Value> {
    let empty = Map::new();
    let (before, after) = (before.as_object().unwrap_or(&empty), after.as_object().unwrap_or(&empty));
    let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(value));
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    changed
        .map(|(key, value)| (key.clone(), value.clone()))
        .chain(gone.map(|key| (key.clone(), Value::Null)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;

    use super::super::state::target;
    use super::*;
    use crate::images::{self, Image, Kind};
    use crate::pod::backoff::Tries;
    use crate::pod::state::{Run, Sandbox, Trouble, VolumeState};

    fn pod(policy: &str, init: &[&str], main: &[&str]) -> Pod {
        let list = |names: &[&str]| {
            names.iter().map(|name| json!({"name": name, "image": format!("i/{name}:1")})).collect::<Vec<_>>()
        };
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 3},
            "spec": {"restartPolicy": policy, "initContainers": list(init), "containers": list(main)},
        }))
        .unwrap()
    }

    fn context() -> Context<'static> {
        Context {
            host_ip: "192.0.2.1",
            runtime: "wharf",
            now: Timestamp::from_second(1000).unwrap(),
            instant: Instant::now(),
        }
    }

    fn up(pod: &Pod) -> State {
        let mut state = State::new(pod.spec.as_ref().unwrap());
        state.volumes = VolumeState::Ready;
        state.sandbox =
            Some(Sandbox { id: "s".into(), attempt: 0, ready: true, ips: vec!["10.0.0.9".into()] });
        for slot in &mut state.slots {
            slot.image = ImageState::Here(Arc::new(Image {
                id: "sha256:1".into(),
                kind: Kind::Oci,
                uid: None,
                username: String::new(),
            }));
        }
        state
    }

    fn run(slot: &mut Slot) {
        let since = Timestamp::from_second(900).unwrap();
        slot.current = Some(Record {
            id: format!("id-{}", slot.name),
            attempt: slot.restarts,
            hash: String::new(),
            image_id: "sha256:1".into(),
            run: Run::Running { since },
        });
        slot.started = true;
        slot.ready = true;
    }

    fn end(slot: &mut Slot, code: i32) {
        let at = Timestamp::from_second(950).unwrap();
        slot.ended(
            Exit {
                started: at,
                finished: at,
                code,
                reason: if code == 0 { "Completed" } else { "Error" }.into(),
                message: String::new(),
            },
            Instant::now(),
        );
    }

    fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a PodCondition {
        status.conditions.as_ref().unwrap().iter().find(|condition| condition.type_ == kind).unwrap()
    }

    fn reason(status: &ContainerStatus) -> Option<&str> {
        status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
    }

    #[tokio::test(start_paused = true)]
    async fn a_running_pod_is_ready_in_one_status() {
        let pod = pod("Always", &[], &["a"]);
        let mut state = up(&pod);
        run(&mut state.slots[0]);
        let status = compute(&pod, &state, &PodStatus::default(), &context());
        assert_eq!(status.phase.as_deref(), Some("Running"));
        assert_eq!(
            (status.pod_ip.as_deref(), status.host_ip.as_deref()),
            (Some("10.0.0.9"), Some("192.0.2.1"))
        );
        assert_eq!((status.observed_generation, status.qos_class.as_deref()), (Some(3), Some("BestEffort")));
        for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
            assert_eq!(condition(&status, kind).status, "True", "{kind}");
        }
        let container = &status.container_statuses.as_ref().unwrap()[0];
        assert!(container.ready && container.started == Some(true));
        assert_eq!(container.container_id.as_deref(), Some("wharf://id-a"));
        let later = Context { now: Timestamp::from_second(2000).unwrap(), ..context() };
        assert_eq!(compute(&pod, &state, &status, &later), status, "telling it again changes nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_tells_why() {
        let pod = pod("Always", &[], &["a"]);
        let mut state = State::new(pod.spec.as_ref().unwrap());
        let tell = |state: &State| {
            compute(&pod, state, &PodStatus::default(), &context()).container_statuses.unwrap().remove(0)
        };
        assert_eq!(reason(&tell(&state)), Some("ContainerCreating"));
        let error = images::Error::Pull { image: "i/a:1".into(), words: "manifest unknown".into() };
        let failed = |shown| ImageState::Failed { error: error.clone(), tries: Tries::none(), shown };
        state.slots[0].image = failed(false);
        assert_eq!(reason(&tell(&state)), Some("ErrImagePull"));
        state.slots[0].image = failed(true);
        let told = tell(&state);
        assert_eq!(reason(&told), Some("ImagePullBackOff"));
        assert!(told.state.unwrap().waiting.unwrap().message.unwrap().ends_with("manifest unknown"));
        state = up(&pod);
        state.slots[0].trouble = Some(Trouble {
            reason: "CreateContainerConfigError",
            message: "configmap \"x\" not found".into(),
            tries: Tries::none(),
        });
        assert_eq!(reason(&tell(&state)), Some("CreateContainerConfigError"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_loop_shows_the_last_end() {
        let pod = pod("Always", &[], &["a"]);
        let mut state = up(&pod);
        run(&mut state.slots[0]);
        end(&mut state.slots[0], 2);
        let status = compute(&pod, &state, &PodStatus::default(), &context());
        assert!(
            status.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().terminated.is_some(),
            "restarted at once"
        );
        let first = state.slots[0].current.take();
        state.slots[0].last = first;
        state.slots[0].restarts = 1;
        run(&mut state.slots[0]);
        end(&mut state.slots[0], 2);
        let status = compute(&pod, &state, &PodStatus::default(), &context());
        let container = &status.container_statuses.as_ref().unwrap()[0];
        assert_eq!(reason(container), Some("CrashLoopBackOff"));
        let message = container.state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone().unwrap();
        assert_eq!(message, "back-off 10s restarting failed container=a pod=p_ns(u)");
        assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 2);
        assert_eq!((status.phase.as_deref(), container.restart_count), (Some("Running"), 1));
        assert_eq!(
            condition(&status, "Ready").message.as_deref(),
            Some("containers with unready status: [a]")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn phases_follow_the_containers() {
        for (policy, codes, ending, want) in [
            ("Never", vec![Some(0), Some(0)], false, "Succeeded"),
            ("Never", vec![Some(0), Some(1)], false, "Failed"),
            ("Never", vec![Some(0), None], false, "Running"),
            ("OnFailure", vec![Some(0), Some(1)], false, "Running"),
            ("Always", vec![Some(0), Some(1)], false, "Running"),
            ("Always", vec![Some(0), Some(137)], true, "Failed"),
            ("Always", vec![Some(0), Some(0)], true, "Succeeded"),
            ("Always", vec![Some(0), None], true, "Running"),
        ] {
            let pod = pod(policy, &[], &["a", "b"]);
            let mut state = up(&pod);
            for (slot, code) in state.slots.iter_mut().zip(&codes) {
                run(slot);
                if let Some(code) = code {
                    end(slot, *code);
                }
            }
            if ending {
                state.ending =
                    Some(crate::pod::state::Ending { kill_at: Instant::now() + Duration::from_secs(1) });
            }
            assert_eq!(
                compute(&pod, &state, &PodStatus::default(), &context()).phase.as_deref(),
                Some(want),
                "{policy} {codes:?} {ending}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn init_containers_hold_the_others() {
        let pod = pod("Always", &["i"], &["a"]);
        let mut state = up(&pod);
        run(&mut state.slots[0]);
        let status = compute(&pod, &state, &PodStatus::default(), &context());
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        assert_eq!(reason(&status.container_statuses.as_ref().unwrap()[0]), Some("PodInitializing"));
        assert_eq!(
            condition(&status, "Initialized").message.as_deref(),
            Some("containers with incomplete status: [i]")
        );
        end(&mut state.slots[0], 0);
        run(&mut state.slots[1]);
        let status = compute(&pod, &state, &status, &context());
        assert_eq!(status.phase.as_deref(), Some("Running"));
        assert_eq!(condition(&status, "Ready").status, "True");
        assert!(status.init_container_statuses.unwrap()[0].ready);
    }

    #[tokio::test(start_paused = true)]
    async fn an_ephemeral_container_is_told_apart_and_counts_for_nothing() {
        let mut pod = pod("Always", &[], &["a"]);
        let mut state = up(&pod);
        run(&mut state.slots[0]);
        let look = json!([{"name": "look", "image": "i/look:1", "targetContainerName": "a"}]);
        pod.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(look).unwrap();
        state.add_ephemeral(pod.spec.as_ref().unwrap());
        let status = compute(&pod, &state, &PodStatus::default(), &context());
        let told = &status.ephemeral_container_statuses.as_ref().unwrap()[0];
        assert_eq!((reason(told), told.image.as_str()), (Some("ContainerCreating"), "i/look:1"));
        assert_eq!(status.container_statuses.as_ref().unwrap().len(), 1);
        assert_eq!(status.init_container_statuses, None);
        run(&mut state.slots[1]);
        end(&mut state.slots[1], 1);
        let status = compute(&pod, &state, &status, &context());
        let told = &status.ephemeral_container_statuses.as_ref().unwrap()[0];
        assert_eq!(told.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
        assert_eq!((told.ready, told.started, told.restart_count), (false, None, 0));
        assert_eq!(status.phase.as_deref(), Some("Running"));
        assert_eq!(condition(&status, "Ready").status, "True");
        assert_eq!((target(&pod, "look"), target(&pod, "a")), ("a", ""));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_over_when_nothing_of_it_runs() {
        let mut pod = pod("Never", &["side"], &["a"]);
        pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[0].restart_policy =
            Some("Always".into());
        let phase = |state: &State| compute(&pod, state, &PodStatus::default(), &context()).phase.unwrap();
        let mut state = up(&pod);
        state.slots.iter_mut().for_each(run);
        end(&mut state.slots[1], 0);
        assert_eq!(phase(&state), "Running", "the sidecar still runs");
        end(&mut state.slots[0], 137);
        assert_eq!(phase(&state), "Succeeded", "whatever the sidecar made of it");

        let mut state = up(&pod);
        state.slots.iter_mut().for_each(run);
        state.expired = true;
        assert_eq!(phase(&state), "Running");
        state.slots.iter_mut().for_each(|slot| end(slot, 0));
        assert_eq!(phase(&state), "Succeeded", "it came to its end in time after all");
        state.slots[1].current = None;
        let status = compute(&pod, &state, &PodStatus::default(), &context());
        assert_eq!(
            (status.phase.as_deref(), status.reason.as_deref()),
            (Some("Failed"), Some("DeadlineExceeded"))
        );
        assert_eq!(status.message.as_deref(), Some(DEADLINE_EXCEEDED));
    }

    #[test]
    fn conditions_of_others_stay_and_patches_are_small() {
        let before = json!({"phase": "Pending", "podIP": "1.2.3.4", "hostIP": "h"});
        let after = json!({"phase": "Running", "hostIP": "h"});
        assert_eq!(Value::Object(difference(&before, &after)), json!({"phase": "Running", "podIP": null}));
    }
}
