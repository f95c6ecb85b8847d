//! One leader among several candidates, by a Lease as client-go's leader election keeps it.
//!
//! The holder renews its Lease every [`Timing::retry`]; who could not for [`Timing::renew`] stops its work,
//! before others may take the Lease at [`Timing::lease`]. Others count that time from when they saw the last
//! renewal, by their own clock, so clocks need not agree.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::api::{Absent, Error, Kind, Rest};
use crate::chain;
use crate::view::{Key, Meta, or_default};

const LEASES: Kind = Kind::new("coordination.k8s.io", "v1", "Lease", "leases");

/// Who wants to lead, and by which Lease.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub rest: Rest,
    pub lease: Key,
    /// Differs between candidates that live at the same time. One that starts again with the identity of
    /// before takes its own Lease at once.
    pub identity: String,
    pub timing: Timing,
}

/// The times of an election; `renew` lies between `retry` and `lease`.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a Lease lasts that is not renewed, in whole seconds.
    pub lease: Duration,
    /// How long a holder that cannot renew goes on.
    pub renew: Duration,
    /// The pause between two attempts, to renew or to take.
    pub retry: Duration,
}

impl Default for Timing {
    /// The values of kube-scheduler and kube-controller-manager.
    fn default() -> Self {
        let [lease, renew, retry] = [15, 10, 2].map(Duration::from_secs);
        Self { lease, renew, retry }
    }
}

#[derive(Clone, Deserialize)]
struct Lease {
    metadata: Meta,
    #[serde(default, deserialize_with = "or_default")]
    spec: Spec,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    #[serde(deserialize_with = "or_default")]
    holder_identity: String,
    #[serde(deserialize_with = "or_default")]
    lease_duration_seconds: u64,
    acquire_time: Option<String>,
    #[serde(deserialize_with = "or_default")]
    lease_transitions: u64,
}

/// A Lease that is ours.
struct Held {
    lease: Lease,
    /// When the last successful renewal was sent.
    renewed: Instant,
}

/// What a candidate may do with a Lease that is there.
#[derive(Debug, PartialEq, Eq)]
enum May {
    Take,
    Wait,
}

impl Candidate {
    /// Waits until this candidate leads, and runs `work` while it does. When the Lease is lost, `work`'s
    /// token is cancelled, its end awaited, and the candidate waits again. Ends, with the Lease released,
    /// when `stop` is cancelled and `work` has ended. Dropped, it leaves the Lease to run out.
    pub async fn run<F: Future<Output = ()>>(
        self,
        stop: CancellationToken,
        work: impl Fn(CancellationToken) -> F,
    ) {
        while let Some(mut held) = stop.run_until_cancelled(self.acquire()).await {
            info!(lease = %self.lease, identity = self.identity, "leading");
            let leading = stop.child_token();
            let mut working = Box::pin(work(leading.clone()));
            // Renewed until the work has ended, so that nobody else begins before.
            let lost = tokio::select! {
                () = &mut working => false,
                () = self.keep(&mut held) => true,
            };
            if lost {
                warn!(lease = %self.lease, "no longer leading");
                leading.cancel();
                working.await;
            } else {
                self.release(&held).await;
                return;
            }
        }
    }

    /// Takes the Lease as soon as that is allowed.
    async fn acquire(&self) -> Held {
        // The version of the Lease that was seen last, and when it was first.
        let mut seen: Option<(Arc<str>, Instant)> = None;
        loop {
            match self.try_acquire(&mut seen).await {
                Ok(Some(held)) => return held,
                Ok(None) => {}
                Err(error) => debug!(error = %chain(&error), lease = %self.lease, "not leading"),
            }
            // Candidates that began together do not stay so.
            sleep(self.timing.retry.mul_f64(1.0 + 0.2 * rand::random::<f64>())).await;
        }
    }

    async fn try_acquire(&self, seen: &mut Option<(Arc<str>, Instant)>) -> Result<Option<Held>, Error> {
        let renewed = Instant::now();
        let Some(found) = self.rest.get::<Lease>(LEASES, &self.lease).await.absent_ok()? else {
            let mut lease = self.body("", &Spec::default());
            lease["metadata"]["resourceVersion"].take();
            let lease = self.rest.create(LEASES, &self.lease.namespace, &lease).await?;
            return Ok(Some(Held { lease, renewed }));
        };
        let version = &found.metadata.resource_version;
        let since = match seen {
            Some((last, since)) if last == version => *since,
            _ => seen.insert((version.clone(), renewed)).1,
        };
        match may(&self.identity, &found.spec, renewed.duration_since(since)) {
            May::Wait => Ok(None),
            May::Take => Ok(Some(Held { lease: self.put(&found).await?, renewed })),
        }
    }

    /// Renews the Lease until it is lost.
    async fn keep(&self, held: &mut Held) {
        loop {
            let until = held.renewed + self.timing.renew;
            let renewal = async {
                sleep(self.timing.retry).await;
                loop {
                    let now = Instant::now();
                    match self.renew(&held.lease).await {
                        Ok(Some(lease)) => return Some(Held { lease, renewed: now }),
                        Ok(None) => return None,
                        Err(error) => debug!(error = %chain(&error), lease = %self.lease, "not renewed"),
                    }
                    sleep(self.timing.retry).await;
                }
            };
            match timeout_at(until, renewal).await {
                Ok(Some(renewed)) => *held = renewed,
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// `None`: somebody else has it.
    async fn renew(&self, held: &Lease) -> Result<Option<Lease>, Error> {
        match self.put(held).await {
            Ok(lease) => Ok(Some(lease)),
            // Somebody else's, or ours still: labelled by a user, or renewed by an attempt without an answer.
            Err(error) if error.is_conflict() => {
                let now = self.rest.get::<Lease>(LEASES, &self.lease).await?;
                if now.spec.holder_identity == self.identity {
                    self.put(&now).await.map(Some)
                } else {
                    Ok(None)
                }
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn release(&self, held: &Held) {
        let mut body = self.body(&held.lease.metadata.resource_version, &held.lease.spec);
        body["spec"]["holderIdentity"] = json!("");
        body["spec"]["leaseDurationSeconds"] = json!(1);
        let released = timeout_at(
            Instant::now() + self.timing.retry,
            self.rest.replace::<Lease>(LEASES, &self.lease, "", &body),
        );
        match released.await {
            Ok(Ok(_)) => info!(lease = %self.lease, "released"),
            Ok(Err(error)) => debug!(error = %chain(&error), lease = %self.lease, "not released"),
            Err(_) => debug!(lease = %self.lease, "not released in time"),
        }
    }

    /// Writes us into the Lease, if it is still as `found`.
    async fn put(&self, found: &Lease) -> Result<Lease, Error> {
        let body = self.body(&found.metadata.resource_version, &found.spec);
        self.rest.replace(LEASES, &self.lease, "", &body).await
    }

    fn body(&self, version: &str, before: &Spec) -> Value {
        let now = format!("{:.6}", Timestamp::now());
        let ours = before.holder_identity == self.identity;
        let acquired = before.acquire_time.clone().filter(|_| ours).unwrap_or_else(|| now.clone());
        // The first holder is no transition.
        let changed = !ours && before.acquire_time.is_some();
        json!({
            "apiVersion": LEASES.api_version(),
            "kind": LEASES.kind,
            "metadata": {
                "name": &*self.lease.name,
                "namespace": &*self.lease.namespace,
                "resourceVersion": version,
            },
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": self.timing.lease.as_secs(),
                "acquireTime": acquired,
                "renewTime": now,
                "leaseTransitions": before.lease_transitions + u64::from(changed),
            },
        })
    }
}

/// Whether a candidate may take a Lease that it has seen unchanged for `unchanged`.
fn may(identity: &str, found: &Spec, unchanged: Duration) -> May {
    let free = found.holder_identity.is_empty() || found.holder_identity == identity;
    let over = unchanged >= Duration::from_secs(found.lease_duration_seconds);
    if free || over { May::Take } else { May::Wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_free_ones_own_or_unchanged_for_its_time() {
        let lease = |holder: &str| Spec {
            holder_identity: holder.to_owned(),
            lease_duration_seconds: 15,
            ..Spec::default()
        };
        let seconds = Duration::from_secs;
        for (holder, unchanged, expected) in [
            ("", 0, May::Take),
            ("a", 0, May::Take),
            ("b", 0, May::Wait),
            ("b", 14, May::Wait),
            ("b", 15, May::Take),
        ] {
            assert_eq!(may("a", &lease(holder), seconds(unchanged)), expected, "{holder} {unchanged}");
        }
    }
}
