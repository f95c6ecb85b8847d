//! Runs the WebAssembly of one trust domain in one process: the *wasm host*.
//!
//! Three processes meet in this crate:
//!
//! - the shim, which calls [`Host::start`] and then creates, starts and stops containers through the [`Host`] handle
//!   and takes their ends from [`Events`];
//! - the wasm host ([`host::main`]), its own process, which outlives a restart of the shim. One engine runs every
//!   component: an I/O runtime accepts, parses HTTP and keeps time; executor threads below it in priority run the
//!   guests with a fair queue per container;
//! - the compiler ([`compile::main`]), a limited process per module, which sees the module and nothing else.
//!
//! What a container is follows from what its component exports: `wasi:http/incoming-handler` makes a service that
//! listens at the pod's address and gets a new instance per request; `wasi:cli/run` makes a command that runs once, and
//! so does `_start` of a core module (WASI 0.1). [`Host::exec`] runs a command once more in a container that runs.
//!
//! # Files
//! `state_dir` holds the host's socket (`host.sock`) and what it logs (`host.log`). `cache_dir` holds compiled code,
//! one file a module with its MAC beside it, and the key of the MACs; both directories are root's alone.

mod cache;
mod client;
pub mod compile;
mod engine;
pub mod host;
mod launch;
mod model;
mod protocol;

pub use client::{Error, Events, Host};
pub use launch::{Config, Limits};
pub use model::{
    ContainerSpec, CpuQuota, Event, Exec, Exit, Kind, Mount, Reason, State, Stats, Status, Stdio,
};
pub use protocol::Failure;
