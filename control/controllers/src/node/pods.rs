//! Ends the pods of nodes that are gone, and the oldest of too many ended pods.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tracing::info;
use wharf_kit::api::{self, Absent, Delete, Ignored, Rest};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Index, Key, Store, View};

use crate::Context;
use crate::views::{Node, Pod};

/// The value under which the `ended` index has every ended pod.
const ALL: &str = "";

pub(crate) fn by_node(pods: &Store<Pod>) -> Index<Pod> {
    pods.index("node", |pod| {
        let bound = !pod.spec.node_name.is_empty();
        bound.then(|| pod.spec.node_name.to_string()).into_iter().collect()
    })
}

/// What a pass looks at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Look {
    /// The pods of this node.
    Node(Arc<str>),
    /// Whether too many pods have ended.
    Ended,
}

impl fmt::Display for Look {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(out, "nodes/{name}"),
            Self::Ended => out.write_str("ended pods"),
        }
    }
}

pub(crate) async fn run(context: Context) {
    let nodes = context.hub.view::<Node>();
    let pods = context.hub.view::<Pod>();
    let on = by_node(&pods);
    let ended = pods.index("ended", |pod| pod.has_ended().then(|| ALL.to_owned()).into_iter().collect());
    tokio::join!(nodes.ready(), pods.ready());
    // A node is given this long to come (back) before its pods are deleted: in Kubernetes the same 40 s.
    let quarantine: Duration = context.config.node_grace;
    let pass =
        Pods { rest: context.rest, nodes: nodes.clone(), on, ended, kept: context.config.ended_pods_kept };
    let controller = Controller::new("node-pods", pass).workers(2);
    let queue = controller.queue();
    let known = nodes.clone();
    pods.on_change(move |change| {
        let Some(pod) = change.new else { return };
        let node = &pod.spec.node_name;
        if !node.is_empty() && known.get(&Key::cluster(node.clone())).is_none() {
            queue.add_after(Look::Node(node.clone()), quarantine);
        }
        if pod.has_ended() && change.old.is_none_or(|old| !old.has_ended()) {
            queue.add(Look::Ended);
        }
    });
    let queue = controller.queue();
    nodes.on_change(move |change| {
        if change.new.is_none() {
            queue.add_after(Look::Node(change.key.name.clone()), quarantine);
        }
    });
    controller.run(context.stop).await;
}

struct Pods {
    rest: Rest,
    nodes: Store<Node>,
    on: Index<Pod>,
    ended: Index<Pod>,
    kept: usize,
}

impl Pass for Pods {
    type Key = Look;
    type Error = api::Error;

    async fn pass(&self, look: &Look) -> Result<Next, api::Error> {
        match look {
            Look::Node(name) => {
                let node = Key::cluster(name.clone());
                let pods = self.on.get(name);
                if pods.is_empty() || self.nodes.get(&node).is_some() {
                    return Ok(Next::Done);
                }
                // The view may be behind; what is deleted here cannot be brought back.
                if self.rest.get::<Ignored>(Node::KIND, &node).await.absent_ok()?.is_some() {
                    return Ok(Next::BackOff);
                }
                info!(node = %node, pods = pods.len(), "deleting the pods of a node that is gone");
                self.delete(&pods).await?;
            }
            Look::Ended => self.delete(&surplus(self.ended.get(ALL), self.kept)).await?,
        }
        Ok(Next::Done)
    }
}

impl Pods {
    async fn delete(&self, pods: &[Arc<Pod>]) -> Result<(), api::Error> {
        for pod in pods {
            // No node agent will confirm their end.
            let how = Delete::exactly(&pod.metadata).with_grace(0);
            match self.rest.delete::<Ignored>(Pod::KIND, &pod.metadata.key(), &how).await {
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                result => drop(result?),
            }
        }
        Ok(())
    }
}

/// The oldest beyond those that are kept.
fn surplus(mut ended: Vec<Arc<Pod>>, kept: usize) -> Vec<Arc<Pod>> {
    ended.retain(|pod| !pod.metadata.is_deleting());
    let surplus = ended.len().saturating_sub(kept);
    if surplus > 0 {
        ended.sort_by_key(|pod| (pod.metadata.creation_timestamp, pod.metadata.key()));
    }
    ended.truncate(surplus);
    ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    #[test]
    fn the_oldest_ended_pods_go_first() {
        let pod = |name: &str, made: i64| {
            let mut pod = Pod::default();
            pod.metadata.name = name.into();
            pod.metadata.creation_timestamp = Some(Timestamp::from_second(made).unwrap());
            Arc::new(pod)
        };
        let pods = || vec![pod("c", 3), pod("a", 1), pod("b", 2)];
        let names =
            |kept| surplus(pods(), kept).iter().map(|pod| pod.metadata.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(1), ["a", "b"]);
        assert!(names(3).is_empty());
        assert_eq!(names(0).len(), 3);
    }
}
