//! What the end-to-end tests and the benches stand on: whole clusters, driven as users drive them.
//!
//! A [`Cluster`] is the built `wharf`, brought up by the built `wctl` in a directory and network namespaces of its own
//! and purged when it is dropped. Tests that can share one take a [`Space`], a namespace in it. Both speak through `wctl`
//! ([`Said`] is what it said) or as any Kubernetes client would ([`Cluster::client`]).
//!
//! A [`Server`] is the control plane alone, in a process of its own; a [`CriServer`] is a runtime alone, which pulls from a
//! [`LocalRegistry`].
//!
//! The node is in its own network namespace, so pods are reached through a [`Forward`], or by sockets made in that
//! namespace ([`Node`]). [`processes`] tells what runs, [`Census`] what the machine holds.
//!
//! `cargo xtask test` builds what is needed and names it in the environment ([`assets`]).

pub mod assets;
mod census;
mod cluster;
pub mod history;
mod http;
pub mod manifest;
mod optional;
mod presence;
mod process;
mod registry;
mod runtime;
mod server;
mod shim;
mod space;
mod wait;
mod wctl;

pub use census::Census;
pub use cluster::Cluster;
pub use http::{Forward, Node, Stream, get};
pub use optional::{only_test, take_tour};
pub use process::{Kind, Process, descendants, processes, pss, words};
pub use registry::LocalRegistry;
pub use runtime::{Pod, Runtime};
pub use server::{Server, wharf};
pub use shim::{CriServer, hide_second_cgroups, isolate};
pub use space::Space;
pub use wait::{PATIENCE, eventually, eventually_async};
pub use wctl::Said;
