//! Taking over what the runtime has of the pod: after a start of the agent, or of the runtime.

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use tokio::time::Instant;
use wharf_cri::v1;

use super::super::Inventory;
use super::super::backoff::{Restarts, Tries};
use super::super::ops::{self, Adopted};
use super::super::state::{Exit, ImageState, PodDoing, Record, Run, container, hash};
use super::{Worker, grace_of, unknown_exit};

impl Worker {
    pub(super) fn begin_adoption(&mut self, inventory: Option<Inventory>) {
        self.adopt = false;
        self.state.doing = Some(PodDoing::Adopting);
        let adopt = ops::adopt(self.shared.clone(), self.uid.to_string(), inventory);
        self.ops.spawn(adopt);
    }

    pub(super) fn adopted(&mut self, adopted: Adopted, now: Instant) {
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
                    let changed = container(&pod, &name).is_some_and(|spec| hash(&spec) != record.hash);
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

    /// What was told before the restart had them; else they are read from files.
    fn read_last_words(&mut self, index: usize, status: v1::ContainerStatus) {
        let told: PodStatus = serde_json::from_slice(&self.reported).unwrap_or_default();
        let statuses =
            [told.container_statuses, told.init_container_statuses, told.ephemeral_container_statuses];
        let statuses = statuses.into_iter().flatten().flatten();
        let states = statuses.flat_map(|told| [told.state, told.last_state]).flatten();
        let mut ends = states.filter_map(|state| state.terminated);
        let known = ends.find(|end| end.container_id.as_ref().is_some_and(|id| id.ends_with(&status.id)));
        match (known, self.state.slots[index].current.as_mut().map(|record| &mut record.run)) {
            (Some(end), Some(Run::Exited(exit))) => exit.message = end.message.unwrap_or_default(),
            _ => {
                let words = ops::words(self.shared.clone(), self.pod(), index, status);
                self.ops.spawn(words);
            }
        }
    }
}

/// A run as the API was told of it; none if it had not begun.
pub(super) fn told(status: &ContainerStatus) -> Option<Record> {
    let (_, id) = status.container_id.as_ref()?.split_once("://")?;
    let state = status.state.as_ref()?;
    let run = if let Some(running) = &state.running {
        Run::Running { since: running.started_at.as_ref()?.0 }
    } else {
        let end = state.terminated.as_ref()?;
        Run::Exited(Exit {
            started: end.started_at.as_ref()?.0,
            finished: end.finished_at.as_ref()?.0,
            code: end.exit_code,
            reason: end.reason.clone().unwrap_or_default(),
            message: end.message.clone().unwrap_or_default(),
        })
    };
    let hash = String::new(); // its image does not change
    Some(Record { id: id.to_owned(), attempt: 0, hash, image_id: status.image_id.clone(), run })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_told_of_a_run_is_understood_again() {
        let told = |status: serde_json::Value| told(&serde_json::from_value(status).unwrap());
        let begun = "2026-01-02T03:04:05Z";
        let of = |state: serde_json::Value| {
            json!({"name": "look", "image": "i", "imageID": "sha256:1", "ready": false, "restartCount": 0,
                   "containerID": "wharf://c-1", "state": state})
        };
        let running = told(of(json!({"running": {"startedAt": begun}}))).unwrap();
        assert_eq!((running.id.as_str(), running.running()), ("c-1", true));
        let end = json!({"exitCode": 3, "startedAt": begun, "finishedAt": begun, "reason": "Error"});
        assert_eq!(told(of(json!({"terminated": end}))).unwrap().exit().unwrap().code, 3);
        assert_eq!(told(of(json!({"waiting": {"reason": "ContainerCreating"}}))), None);
        assert_eq!(
            told(json!({"name": "look", "image": "i", "imageID": "", "ready": false, "restartCount": 0})),
            None
        );
    }
}
