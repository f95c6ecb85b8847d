//! No ghosts: a node that was away says that it is ready only when it runs no pod that the API no longer has.
//!
//! Whoever keeps the Node object asks ([`Asks::ask`]) at the start and whenever the cluster gave the node up; the
//! dispatcher lists the node's pods afresh, ends those that are gone, and answers when nothing is left of them.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

/// Asks the dispatcher.
#[derive(Debug, Clone)]
pub struct Asks(mpsc::Sender<oneshot::Sender<()>>);

/// The dispatcher's end.
pub type Asked = mpsc::Receiver<oneshot::Sender<()>>;

pub fn channel() -> (Asks, Asked) {
    let (asks, asked) = mpsc::channel(4);
    (Asks(asks), asked)
}

impl Asks {
    /// What it returns is done when no ghost is left. Never, when the dispatcher has ended.
    pub async fn ask(&self) -> oneshot::Receiver<()> {
        let (answer, answered) = oneshot::channel();
        let _ = self.0.send(answer).await;
        answered
    }
}

/// The dispatcher's books: who asked, and what is still being ended.
#[derive(Debug, Default)]
pub struct Settling {
    /// These came before the list that will tell.
    unheard: Vec<oneshot::Sender<()>>,
    /// These wait for the ends of `ghosts`.
    heard: Vec<oneshot::Sender<()>>,
    ghosts: HashSet<Arc<str>>,
}

impl Settling {
    pub fn asked(&mut self, answer: oneshot::Sender<()>) {
        self.unheard.push(answer);
    }

    /// All pods were listed, and these run that are not among them.
    pub fn listed(&mut self, ghosts: impl IntoIterator<Item = Arc<str>>) {
        self.heard.append(&mut self.unheard);
        self.ghosts.extend(ghosts);
    }

    /// Nothing is left of this pod.
    pub fn ended(&mut self, uid: &str) {
        self.ghosts.remove(uid);
    }

    /// Answers if no ghost is left and `clean`: what has no worker is gone too.
    pub fn settle(&mut self, clean: bool) {
        if clean && self.ghosts.is_empty() {
            for answer in self.heard.drain(..) {
                let _ = answer.send(()); // who asked may have ended
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_waits_for_a_list_and_the_end_of_every_ghost() {
        let mut settling = Settling::default();
        let (answer, mut answered) = oneshot::channel();
        settling.asked(answer);
        settling.settle(true);
        assert!(answered.try_recv().is_err(), "nothing was listed since");
        settling.listed(["a".into(), "b".into()]);
        settling.ended("a");
        settling.settle(true);
        assert!(answered.try_recv().is_err(), "one is left");
        settling.ended("b");
        settling.settle(false);
        assert!(answered.try_recv().is_err(), "what has no worker is left");
        settling.settle(true);
        assert_eq!(answered.try_recv(), Ok(()));
    }
}
