//! The wasm host as the shim sees it: a real process, real sockets, real components.

mod cache;
mod command;
mod core;
mod exec;
mod http;
mod isolation;
mod recovery;
mod support;
