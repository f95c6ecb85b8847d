//! The controller manager's loops: each brings one kind of thing to what its objects ask for.
//!
//! Enter at [`start`]. Every loop is one entry in [`LOOPS`] and one module with two halves: a pure `plan` of
//! what to do from what the narrow views show, and a pass that carries it out. Loops share nothing but the
//! process's [`Hub`] of views and talk to each other through the API alone:
//!
//! | module | wakes on | does |
//! |---|---|---|
//! | [`deployment`] | Deployments, their ReplicaSets and Pods | ReplicaSets per template, rollouts, history, status |
//! | [`replicaset`] | ReplicaSets, their Pods | Pods to the wanted number, adoption, status |
//! | [`daemonset`] | DaemonSets, their Pods, Nodes | a Pod on each node that is meant, rollouts, history, status |
//! | [`job`] | Jobs, their Pods | Pods until enough succeeded, each counted once, and the Job's end |
//! | [`statefulset`] | StatefulSets, their Pods | numbered Pods in their order, rollouts in reverse, history, status |
//! | [`cronjob`] | CronJobs, their Jobs, the time | a Job at each time of the schedule, and how many ended ones stay |
//! | [`disruption`] | PodDisruptionBudgets, their Pods | how many pods may be evicted now |
//! | [`quota`] | ResourceQuotas, what goes of what they count | how much of each quota is used |
//! | [`garbage`] | every kind that can be owned | deletes what its owners left, foreground and orphan deletion |
//! | [`namespace`] | Namespaces, what goes in them | empties and finalizes those being deleted |
//! | [`account`] | Namespaces, default ServiceAccounts | a `default` account in each namespace |
//! | [`root_ca`] | Namespaces, ConfigMaps of that name | `kube-root-ca.crt` in each namespace |
//! | [`role`] | ClusterRoles | the rules of those that are made of others |
//! | [`certificates`] | CertificateSigningRequests | approves and signs those of nodes |
//! | [`node::lifecycle`] | Nodes, node Leases | Ready=Unknown and taints when a node falls silent |
//! | [`node::eviction`] | Pods, Nodes' taints | deletes pods that do not, or no longer, tolerate a NoExecute taint |
//! | [`node::ipam`] | Nodes | a pod range for each node |
//! | [`node::pods`] | Pods, Nodes | deletes pods of vanished nodes, and the oldest of too many ended ones |
//!
//! Nothing polls: a loop without a change to look at and without a timer that an object asked for sleeps.

pub mod account;
mod backoff;
pub mod certificates;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
pub mod garbage;
pub mod job;
pub mod namespace;
pub mod node;
mod objects;
mod pods;
pub mod quota;
pub mod replicaset;
pub mod revisions;
pub mod role;
pub mod root_ca;
pub mod statefulset;
mod status;
mod template;
pub mod views;

use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span};
use wharf_kit::api::Rest;
use wharf_kit::event::Recorder;
use wharf_kit::identity::Ca;
use wharf_kit::view::Hub;

/// What the loops need to know of their cluster.
#[derive(Debug, Clone)]
pub struct Config {
    /// All pod addresses: network and prefix length. Each node gets a part of it.
    pub cluster_cidr: (Ipv4Addr, u8),
    /// The prefix length of a node's part.
    pub node_prefix: u8,
    /// What pods trust the API server by, PEM: goes into each namespace's `kube-root-ca.crt`.
    pub root_ca_pem: String,
    /// A node whose Lease was not renewed for this long is taken for unreachable: Kubernetes'
    /// node-monitor-grace-period, 40 s.
    pub node_grace: Duration,
    /// More ended pods than this are deleted, oldest first. Kubernetes' default is 12,500.
    pub ended_pods_kept: usize,
    /// What signs certificates of nodes; none are signed without.
    pub signer: Option<Arc<Ca>>,
    /// What a certificate lives at most, and whenever its request does not say: Kubernetes' cluster-signing-duration, a
    /// year.
    pub signing_duration: Duration,
}

impl Config {
    /// The address plan of every Wharf cluster: 10.128.0.0/9, a /17 for each node.
    pub fn new(root_ca_pem: impl Into<String>) -> Self {
        Self {
            cluster_cidr: (Ipv4Addr::new(10, 128, 0, 0), 9),
            node_prefix: 17,
            root_ca_pem: root_ca_pem.into(),
            node_grace: Duration::from_secs(40),
            ended_pods_kept: 12_500,
            signer: None,
            signing_duration: Duration::from_secs(365 * 24 * 3600),
        }
    }
}

/// What a loop is given to run with.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub hub: Hub,
    pub rest: Rest,
    pub recorder: Recorder,
    pub config: Config,
    pub objects: objects::Objects,
    pub stop: CancellationToken,
}

type Run = fn(Context) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// Every loop by its name.
const LOOPS: &[(&str, Run)] = &[
    ("deployment", |context| Box::pin(deployment::run(context))),
    ("replicaset", |context| Box::pin(replicaset::run(context))),
    ("daemonset", |context| Box::pin(daemonset::run(context))),
    ("job", |context| Box::pin(job::run(context))),
    ("statefulset", |context| Box::pin(statefulset::run(context))),
    ("cronjob", |context| Box::pin(cronjob::run(context))),
    ("disruption", |context| Box::pin(disruption::run(context))),
    ("quota", |context| Box::pin(quota::run(context))),
    ("garbage", |context| Box::pin(garbage::run(context))),
    ("namespace", |context| Box::pin(namespace::run(context))),
    ("account", |context| Box::pin(account::run(context))),
    ("root-ca", |context| Box::pin(root_ca::run(context))),
    ("role", |context| Box::pin(role::run(context))),
    ("certificates", |context| Box::pin(certificates::run(context))),
    ("node-lifecycle", |context| Box::pin(node::lifecycle::run(context))),
    ("taint-eviction", |context| Box::pin(node::eviction::run(context))),
    ("node-ipam", |context| Box::pin(node::ipam::run(context))),
    ("node-pods", |context| Box::pin(node::pods::run(context))),
];

/// Starts every loop as the user of `client`. The task ends, with the passes in hand finished, when `stop` is
/// cancelled.
pub fn start(client: kube::Client, config: Config, stop: CancellationToken) -> JoinHandle<()> {
    let context = Context {
        hub: Hub::new(client.clone(), stop.clone()),
        rest: Rest::new(client.clone()),
        recorder: Recorder::start(client, "wharf-controllers", "", stop.clone()),
        config,
        objects: objects::Objects::default(),
        stop,
    };
    let mut running = JoinSet::new();
    for (name, run) in LOOPS {
        running.spawn(run(context.clone()).instrument(info_span!("loop", name)));
    }
    tokio::spawn(async move {
        while running.join_next().await.is_some() {}
        info!("controllers ended");
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn controllers_that_have_seen_nothing_yet_end_when_they_are_asked_to() {
        type Answer = Result<http::Response<kube::client::Body>, tower::BoxError>;
        let silent =
            tower::service_fn(|_: http::Request<kube::client::Body>| std::future::pending::<Answer>());
        let stop = CancellationToken::new();
        let mut config = Config::new("");
        config.signer = Some(Arc::new(Ca::generate("test").expect("a CA")));
        let running = start(kube::Client::new(silent, "default"), config, stop.clone());
        tokio::task::yield_now().await;
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), running).await.expect("they end").expect("none panics");
    }
}
