//! The stream of CRI container events.

use std::collections::VecDeque;
use std::sync::Mutex;

use futures::{Stream, StreamExt as _};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use wharf_cri::v1;

/// Events kept for the first listener, and for each listener that is slow (containerd's figure).
const BACKLOG: usize = 1000;

/// Publishes container events. What happens while nobody listens is kept for who comes first, up to a bound;
/// a caller that reconnects lists anyway.
pub struct Events {
    state: Mutex<State>,
    sender: broadcast::Sender<v1::ContainerEventResponse>,
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    unheard: VecDeque<v1::ContainerEventResponse>,
}

impl Events {
    /// `stop` ends every listener: a server that is asked to stop waits for its streams.
    pub fn new(stop: CancellationToken) -> Self {
        Self { state: Mutex::default(), sender: broadcast::channel(BACKLOG).0, stop }
    }

    /// Tells every listener. Never waits.
    pub fn publish(&self, event: v1::ContainerEventResponse) {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        if let Err(broadcast::error::SendError(event)) = self.sender.send(event) {
            if state.unheard.len() == BACKLOG {
                state.unheard.pop_front();
            }
            state.unheard.push_back(event);
        }
    }

    /// What was not heard so far, then everything to come. A listener that falls [`BACKLOG`] events behind is
    /// ended, so that it lists anew instead of missing some.
    pub fn listen(&self) -> impl Stream<Item = v1::ContainerEventResponse> + use<> {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        let receiver = self.sender.subscribe();
        let unheard = std::mem::take(&mut state.unheard);
        let live = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.ok().map(|event| (event, receiver))
        });
        futures::stream::iter(unheard).chain(live.take_until(self.stop.clone().cancelled_owned()))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn event(n: i64) -> v1::ContainerEventResponse {
        v1::ContainerEventResponse { created_at: n, ..Default::default() }
    }

    #[tokio::test]
    async fn the_first_listener_hears_what_happened_before_it_came() {
        let events = Events::new(CancellationToken::new());
        events.publish(event(1));
        let mut first = Box::pin(events.listen());
        events.publish(event(2));
        assert_eq!(first.next().await.unwrap().created_at, 1);
        assert_eq!(first.next().await.unwrap().created_at, 2);
        assert!(first.next().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_listener_too_slow_is_ended_rather_than_left_with_a_gap() {
        let events = Events::new(CancellationToken::new());
        let mut slow = Box::pin(events.listen());
        for n in 0..=BACKLOG as i64 + 100 {
            events.publish(event(n));
        }
        assert!(slow.next().await.is_none());
    }

    #[tokio::test]
    async fn listeners_end_when_the_shim_is_asked_to_stop() {
        let stop = CancellationToken::new();
        let events = Events::new(stop.clone());
        let mut listener = Box::pin(events.listen());
        assert!(listener.next().now_or_never().is_none());
        stop.cancel();
        assert!(listener.next().await.is_none());
    }
}
