//! Leader election through a real API server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wharf_kit::api::{Kind, Rest};
use wharf_kit::leader::{Candidate, Timing};
use wharf_kit::view::Key;

use crate::harness::World;

const DEADLINE: Duration = Duration::from_secs(20);
const TIMING: Timing = Timing {
    lease: Duration::from_secs(2),
    renew: Duration::from_secs(1),
    retry: Duration::from_millis(100),
};

/// Candidates of one election, and what they do.
struct Election {
    rest: Rest,
    leading: Arc<AtomicUsize>,
    told: mpsc::UnboundedSender<String>,
    news: mpsc::UnboundedReceiver<String>,
}

/// Counts a leader from its first to its last moment, however that comes.
struct Leading(Arc<AtomicUsize>);

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lease() -> Key {
    Key::new("kube-system", "test")
}

impl Election {
    fn new(world: &World) -> Self {
        let (told, news) = mpsc::unbounded_channel();
        Self { rest: world.admin.clone(), leading: Arc::default(), told, news }
    }

    fn candidate(&self, identity: &str, stop: &CancellationToken) -> JoinHandle<()> {
        let candidate = Candidate {
            rest: self.rest.clone(),
            lease: lease(),
            identity: identity.to_owned(),
            timing: TIMING,
        };
        let (leading, told, name) = (self.leading.clone(), self.told.clone(), identity.to_owned());
        let work = move |stop: CancellationToken| {
            let (leading, told, name) = (leading.clone(), told.clone(), name.clone());
            async move {
                let others = leading.fetch_add(1, Ordering::SeqCst);
                let _here = Leading(leading);
                assert_eq!(others, 0, "{name} leads beside another");
                told.send(name).expect("the test listens");
                stop.cancelled().await;
            }
        };
        tokio::spawn(candidate.run(stop.clone(), work))
    }

    async fn next(&mut self) -> String {
        tokio::time::timeout(DEADLINE, self.news.recv()).await.expect("somebody leads").expect("a name")
    }

    async fn spec(&self) -> Value {
        let kind = Kind::new("coordination.k8s.io", "v1", "Lease", "leases");
        let lease: Value = self.rest.get(kind, &lease()).await.expect("the Lease");
        lease["spec"].clone()
    }
}

#[tokio::test]
async fn one_leads_and_when_it_dies_or_goes_another_does() {
    let world = World::start(Duration::from_secs(40)).await;
    let mut election = Election::new(&world);
    let stop = CancellationToken::new();
    let first = election.candidate("a", &stop);
    assert_eq!(election.next().await, "a");
    let patient = CancellationToken::new();
    let second = election.candidate("b", &patient);
    // The same identity again, after a death: at once, before the Lease has run out.
    first.abort();
    assert!(first.await.is_err_and(|ended| ended.is_cancelled()));
    let began = std::time::Instant::now();
    let first = election.candidate("a", &stop);
    assert_eq!(election.next().await, "a");
    assert!(began.elapsed() < TIMING.lease, "it does not wait for its own Lease");
    assert_eq!(election.spec().await["leaseTransitions"], 0);
    // Another, after a death: when the Lease has run out.
    first.abort();
    assert!(first.await.is_err_and(|ended| ended.is_cancelled()));
    assert_eq!(election.next().await, "b");
    let spec = election.spec().await;
    assert_eq!((&spec["holderIdentity"], &spec["leaseTransitions"]), (&"b".into(), &1.into()));
    // Another, after an orderly end: it was released.
    let third = election.candidate("c", &stop);
    patient.cancel();
    second.await.expect("b ends");
    assert_eq!(election.next().await, "c");
    stop.cancel();
    third.await.expect("c ends");
    assert_eq!(election.spec().await["holderIdentity"], "");
}

#[tokio::test]
async fn who_loses_its_lease_stops_its_work() {
    let world = World::start(Duration::from_secs(40)).await;
    let mut election = Election::new(&world);
    let stop = CancellationToken::new();
    let running = election.candidate("a", &stop);
    assert_eq!(election.next().await, "a");
    let taken = serde_json::json!({"spec": {"holderIdentity": "b"}});
    let kind = Kind::new("coordination.k8s.io", "v1", "Lease", "leases");
    let merge = wharf_kit::api::PatchKind::Merge;
    election.rest.patch::<Value>(kind, &lease(), "", merge, &taken).await.expect("patch");
    // It stops, and leads anew when the other's Lease has run out: the work counts itself.
    assert_eq!(election.next().await, "a");
    assert_eq!(election.spec().await["leaseTransitions"], 1);
    stop.cancel();
    running.await.expect("it ends");
}
