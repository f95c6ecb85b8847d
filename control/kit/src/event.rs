//! The recorder of core/v1 Events: what happened to an object, for people to read.
//!
//! Recording never waits and never fails its caller. One task sends; what repeats is counted on the Event
//! that is there; each object may cause 25 Events at once and then one in five minutes, as in client-go.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::api::{Kind, Object, PatchKind, Rest};
use crate::chain;
use crate::view::{Key, Meta, View};

const EVENTS: Kind = Kind::core("Event", "events");
/// client-go's spam filter: so many at once for one object, then one each period.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// As many Events (and objects) are remembered for counting, as in client-go's cache.
const REMEMBERED: usize = 4096;
/// Waiting to be sent; beyond this Events are dropped rather than memory filled.
const WAITING: usize = 1000;
/// An Event that was last seen longer ago than this starts a new count.
const COUNT_FOR: Duration = Duration::from_secs(600);

/// What an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    pub api_version: String,
    pub kind: String,
    pub key: Key,
    pub uid: String,
    /// A part of the object, such as `spec.containers{web}`; or empty.
    pub field: String,
}

impl Subject {
    pub fn new(kind: Kind, meta: &Meta) -> Self {
        Self {
            api_version: kind.api_version(),
            kind: kind.kind.to_owned(),
            key: meta.key(),
            uid: meta.uid.to_string(),
            field: String::new(),
        }
    }

    pub fn of<T: View>(object: &T) -> Self {
        Self::new(T::KIND, object.meta())
    }

    /// About a part of the object.
    pub fn field(self, field: impl Into<String>) -> Self {
        Self { field: field.into(), ..self }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Record {
    subject: Subject,
    severity: Severity,
    reason: String,
    message: String,
}

/// Where to tell what happened. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Record>,
}

impl Recorder {
    /// Starts the sending task, which ends when `stop` is cancelled or the last recorder is dropped.
    /// `component` is who speaks (`default-scheduler`); `host` the node it runs on, or empty.
    pub fn start(client: kube::Client, component: &str, host: &str, stop: CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        let sink = Sink {
            rest: Rest::new(client),
            component: component.to_owned(),
            host: host.to_owned(),
            sent: Remembered::default(),
            budgets: Remembered::default(),
        };
        tokio::spawn(async move { stop.run_until_cancelled(sink.run(receiver)).await });
        Self { sender }
    }

    /// A recorder that tells no one: for tests of what records.
    pub fn silent() -> Self {
        Self { sender: mpsc::channel(1).0 }
    }

    pub fn normal(&self, subject: &Subject, reason: &str, message: impl Into<String>) {
        self.record(subject, Severity::Normal, reason, message);
    }

    pub fn warning(&self, subject: &Subject, reason: &str, message: impl Into<String>) {
        self.record(subject, Severity::Warning, reason, message);
    }

    pub fn record(&self, subject: &Subject, severity: Severity, reason: &str, message: impl Into<String>) {
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(1000) {
            message.truncate(end); // the API refuses more than 1024 bytes' worth in events.k8s.io
        }
        let record = Record { subject: subject.clone(), severity, reason: reason.to_owned(), message };
        if self.sender.try_send(record).is_err() {
            debug!(kind = subject.kind, key = %subject.key, reason, "event dropped");
        }
    }
}

/// A map that forgets what was put in first.
struct Remembered<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self { map: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Clone + Eq + std::hash::Hash, V> Remembered<K, V> {
    fn entry(&mut self, key: &K, new: impl FnOnce() -> V) -> &mut V {
        if !self.map.contains_key(key) {
            if self.order.len() >= REMEMBERED
                && let Some(old) = self.order.pop_front()
            {
                self.map.remove(&old);
            }
            self.order.push_back(key.clone());
            self.map.insert(key.clone(), new());
        }
        self.map.get_mut(key).expect("the key was just put in")
    }
}

/// Tokens left, and when that was counted.
#[derive(Clone, Copy)]
struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    fn spend(&mut self, now: Instant) -> bool {
        let earned = now.duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64();
        self.left = (self.left + earned).min(BURST);
        self.at = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

#[derive(Clone, Default)]
struct Sent {
    name: String,
    count: u32,
    last: Option<Instant>,
}

struct Sink {
    rest: Rest,
    component: String,
    host: String,
    sent: Remembered<Record, Sent>,
    budgets: Remembered<String, Budget>,
}

impl Sink {
    async fn run(mut self, mut receiver: mpsc::Receiver<Record>) {
        while let Some(record) = receiver.recv().await {
            let now = Instant::now();
            let budget = self.budgets.entry(&record.subject.uid, || Budget { left: BURST, at: now });
            if !budget.spend(now) {
                debug!(key = %record.subject.key, reason = record.reason, "event over its budget");
                continue;
            }
            if let Err(error) = self.send(&record, now).await {
                // An Event of an object whose namespace ends is refused: nobody needs to know.
                if error.code() == 403 || error.code() == 404 {
                    debug!(error = chain(&error), "event not recorded");
                } else {
                    warn!(error = chain(&error), "event not recorded");
                }
            }
        }
    }

    async fn send(&mut self, record: &Record, now: Instant) -> Result<(), crate::api::Error> {
        let subject = &record.subject;
        // Events about objects of the cluster live in `default`, as in Kubernetes.
        let namespace = if subject.key.namespace.is_empty() { "default" } else { &subject.key.namespace };
        let time = Timestamp::from_second(Timestamp::now().as_second()).expect("now is a valid time");
        let sent = self.sent.entry(record, Sent::default);
        if sent.last.is_some_and(|last| now.duration_since(last) < COUNT_FOR) {
            let patch = json!({"count": sent.count + 1, "lastTimestamp": time});
            let key = Key::new(namespace, sent.name.as_str());
            match self.rest.patch::<Object>(EVENTS, &key, "", PatchKind::Merge, &patch).await {
                Ok(_) => {
                    sent.count += 1;
                    sent.last = Some(now);
                    return Ok(());
                }
                Err(error) if error.is_not_found() => {} // it has expired: begin anew
                Err(error) => return Err(error),
            }
        }
        let name = format!("{}.{:016x}", subject.key.name, rand::random::<u64>());
        let mut event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": subject.api_version,
                "kind": subject.kind,
                "name": subject.key.name,
                "namespace": subject.key.namespace,
                "uid": subject.uid,
                "fieldPath": subject.field,
            },
            "reason": record.reason,
            "message": record.message,
            "type": format!("{:?}", record.severity),
            "count": 1,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "source": {"component": self.component, "host": self.host},
            "reportingComponent": self.component,
            "reportingInstance": self.host,
        });
        drop_empty(&mut event["involvedObject"]);
        drop_empty(&mut event["source"]);
        self.rest.create::<Object>(EVENTS, namespace, &event).await?;
        *sent = Sent { name, count: 1, last: Some(now) };
        Ok(())
    }
}

fn drop_empty(object: &mut serde_json::Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|_, value| value != "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_objects_budget_is_a_burst_and_then_one_a_period() {
        let mut budget = Budget { left: BURST, at: Instant::now() };
        let spent = (0..100).filter(|_| budget.spend(Instant::now())).count();
        assert_eq!(spent, 25);
        tokio::time::advance(REFILL + Duration::from_millis(1)).await;
        assert!(budget.spend(Instant::now()));
        assert!(!budget.spend(Instant::now()));
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut remembered = Remembered::default();
        for number in 0..REMEMBERED + 10 {
            remembered.entry(&number, || number);
        }
        assert_eq!(remembered.map.len(), REMEMBERED);
        assert!(!remembered.map.contains_key(&9) && remembered.map.contains_key(&10));
    }
}
