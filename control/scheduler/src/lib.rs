//! Chooses a node for each pod that has none, and binds it there.
//!
//! [`choose`] is pure: the cluster as it was and the seed in its log line replay any decision. Enter at
//! [`Scheduler::start`]. One task (`cycle`) runs until its token is cancelled and owns all state, so nothing
//! is locked or copied per pod:
//! - in: changed keys of pods and nodes from two narrow views ([`PodView`], [`NodeView`]), ends of bindings;
//! - `pending` holds the pods that wait: ready by priority, backing off, or waiting for a change that can help;
//! - `cluster` holds the nodes with what is promised on them; a pod counts from the moment its node is chosen,
//!   before the API server's echo comes;
//! - out: Bindings, many at once; and for pods that fit nowhere a `PodScheduled=False` condition and an Event.
//!
//! A filter is one entry in [`filter::FILTERS`], a score one in [`score::SCORES`]. Filters say with
//! [`filter::Filter::wakes_on`] which changes can turn their no into a yes: waiting pods wake on no others.

mod choose;
mod cluster;
mod cycle;
pub mod filter;
mod matching;
mod pending;
mod prepared;
mod resources;
pub mod score;
mod view;

pub use choose::{Choice, Unschedulable, choose};
pub use cluster::{Cluster, NodeState};
pub use cycle::Scheduler;
pub use pending::{Change, Changes};
pub use prepared::Prepared;
pub use resources::Resources;
pub use view::{NodeView, PodView};
