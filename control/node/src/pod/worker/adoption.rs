//! Taking over what the runtime has of the pod: after a start of the agent, or of the runtime.

use k8s_openapi::api::core::v1::PodStatus;
use tokio::time::Instant;
use wharf_cri::v1;

use super::super::Inventory;
use super::super::backoff::{Restarts, Tries};
use super::super::ops::{self, Adopted};
use super::super::state::{ImageState, PodDoing, Run, container, hash};
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

    /// What was told before the restart had them; else they are read from files.
    fn read_last_words(&mut self, index: usize, status: v1::ContainerStatus) {
        let told: PodStatus = serde_json::from_slice(&self.reported).unwrap_or_default();
        let statuses = told.container_statuses.into_iter().chain(told.init_container_statuses).flatten();
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
