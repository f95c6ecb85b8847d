//! What the shim is still to be told.

use crate::{model::Exit, protocol::Notice};
use jiff::Timestamp;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc;

/// Exits are kept until they are acknowledged; warnings are told to who listens, or to nobody.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    exits: BTreeMap<String, Exit>,
    /// Not bounded, but holds one exit a container and a warning a minute.
    subscriber: Option<mpsc::UnboundedSender<Notice>>,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on notices go here and nowhere else, beginning with the exits that nobody acknowledged.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Notice> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.lock();
        for (id, exit) in &state.exits {
            let _ = sender.send(Notice::Exited { id: id.clone(), exit: exit.clone() }); // the receiver is right here
        }
        state.subscriber = Some(sender);
        receiver
    }

    pub fn exited(&self, id: &str, exit: Exit) {
        let mut state = self.lock();
        state.exits.insert(id.to_owned(), exit.clone());
        state.tell(Notice::Exited { id: id.to_owned(), exit });
    }

    pub fn warning(&self, id: &str, message: String, traps: u64) {
        self.lock().tell(Notice::Warning { id: id.to_owned(), message, traps, at: Timestamp::now() });
    }

    /// Told and understood, or of no interest any more.
    pub fn forget(&self, id: &str) {
        self.lock().exits.remove(id);
    }

    /// Whether somebody is still to be told.
    pub fn holds(&self, id: &str) -> bool {
        self.lock().exits.contains_key(id)
    }
}

impl State {
    fn tell(&mut self, notice: Notice) {
        if self.subscriber.as_ref().is_some_and(|subscriber| subscriber.send(notice).is_err()) {
            self.subscriber = None;
        }
    }
}
