//! Asks nodes what they use, once for all who want to know, and keeps the last answers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use http::Request;
use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::Answers;
use super::look::Look;
use super::measure::{Measured, measure};
use crate::Body;
use crate::server::Inner;
use crate::status::{Result, Status};

/// An answer serves for so long; metrics-server asks as often.
const FRESH: Duration = Duration::from_secs(15);
/// However young what is asked about is, a node is not looked at twice in this time for it.
const LEAST: Duration = Duration::from_secs(1);
/// A node that did not answer is asked again after this.
const AGAIN: Duration = Duration::from_secs(5);
/// A look that is older says nothing of now: a node is then looked at twice.
const OLDEST: Duration = Duration::from_secs(60);
/// The time between those two. Shorter, the kernel's counters are too coarse: a hundredth of a second.
const SPAN: Duration = Duration::from_secs(1);
/// A node tells in this time, or it is left out.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nodes that are asked at once; kept busy, that is some hundred nodes a second.
const AT_ONCE: usize = 32;
/// What a node may tell: ten thousand containers are some 5 MB.
const LARGEST: usize = 64 << 20;
const QUESTION: &str = "/stats/summary?only_cpu_and_memory=true";

/// What the nodes told last.
pub struct Meter {
    nodes: Mutex<HashMap<String, Known>>,
    places: Semaphore,
}

impl Default for Meter {
    fn default() -> Self {
        Self { nodes: Mutex::default(), places: Semaphore::new(AT_ONCE) }
    }
}

/// The newest question to a node, answered or not.
struct Known {
    begun: Instant,
    answer: Shared<BoxFuture<'static, Result<Told>>>,
    /// The newest look before that.
    before: Option<Seen>,
}

/// A look and when it was taken, by this server's clock.
#[derive(Clone)]
struct Seen {
    at: Instant,
    /// The same as containers' starts are told.
    time: Timestamp,
    look: Arc<Look>,
}

#[derive(Clone)]
struct Told {
    seen: Seen,
    measured: Arc<Measured>,
}

impl Seen {
    /// Whether it tells enough of what began at this time.
    fn serves(&self, after: Option<Timestamp>) -> bool {
        let age = self.at.elapsed();
        age < LEAST || (age < FRESH && after.is_none_or(|after| after < self.time))
    }
}

impl Inner {
    /// What these nodes use, each in a look later than the time beside it. Answers that are fresh are told as they are, and who
    /// asks together waits together.
    pub(super) async fn ask_usage(self: &Arc<Self>, nodes: BTreeMap<String, Option<Timestamp>>) -> Answers {
        self.forget_absent();
        let asked: Vec<_> =
            nodes.into_iter().map(|(node, after)| (self.question(&node, after), node)).collect();
        let told =
            asked.into_iter().map(async |(answer, node)| (node, answer.await.map(|told| told.measured)));
        futures::future::join_all(told).await.into_iter().collect()
    }

    /// Nodes that are gone are forgotten, so that what is kept does not grow.
    fn forget_absent(&self) {
        let kind = self.kinds.builtin("", "nodes");
        let mut known = self.meter.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|node, _| self.storage.get(kind.key("", node).as_str()).is_some());
    }

    fn question(
        self: &Arc<Self>,
        node: &str,
        after: Option<Timestamp>,
    ) -> Shared<BoxFuture<'static, Result<Told>>> {
        let mut known = self.meter.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match known.get(node) {
            Some(known) => match known.answer.peek() {
                None => return known.answer.clone(),
                Some(Ok(told)) if told.seen.serves(after) => return known.answer.clone(),
                Some(Ok(told)) => Some(told.seen.clone()),
                Some(Err(_)) if known.begun.elapsed() < AGAIN => return known.answer.clone(),
                Some(Err(_)) => known.before.clone(),
            },
            None => None,
        };
        let work = self.clone().look_twice(node.to_owned(), before.clone());
        // A task of its own: it goes on when the one who asked first goes away.
        let task = tokio::spawn(work).map(|ended| ended.unwrap_or_else(|error| Err(Status::internal(error))));
        let answer = task.boxed().shared();
        let begun = Instant::now();
        known.insert(node.to_owned(), Known { begun, answer: answer.clone(), before });
        answer
    }

    async fn look_twice(self: Arc<Self>, node: String, before: Option<Seen>) -> Result<Told> {
        let before = match before.filter(|seen| seen.at.elapsed() < OLDEST) {
            Some(seen) => seen,
            None => {
                let first = self.look(&node).await?;
                tokio::time::sleep(SPAN).await;
                first
            }
        };
        let seen = self.look(&node).await?;
        let measured = Arc::new(measure(&before.look, &seen.look));
        Ok(Told { seen, measured })
    }

    async fn look(&self, node: &str) -> Result<Seen> {
        // The semaphore is never closed.
        let _place = self.meter.places.acquire().await.map_err(Status::internal)?;
        let request = Request::get(QUESTION).body(Body::empty()).map_err(Status::internal)?;
        let unclear = |why: &dyn std::fmt::Display| {
            Status::unavailable(format!("node {node} does not tell what it uses: {why}"))
        };
        let ask = async {
            let response = self.ask_node(node, request).await?;
            let code = response.status();
            let body = Limited::new(response.into_body(), LARGEST).collect().await;
            let body = body.map_err(|error| unclear(&error))?.to_bytes();
            if !code.is_success() {
                return Err(unclear(&format!("{code}: {}", String::from_utf8_lossy(&body).trim())));
            }
            Look::parse(&body).map_err(|error| unclear(&error))
        };
        let asked = tokio::time::timeout(PATIENCE, ask).await;
        let look = asked.unwrap_or_else(|_| Err(unclear(&"it does not answer in time")))?;
        Ok(Seen { at: Instant::now(), time: Timestamp::now(), look: Arc::new(look) })
    }
}
