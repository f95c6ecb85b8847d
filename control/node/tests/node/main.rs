//! The agent as a whole: a real API server in this process on one side, a scripted CRI server on the other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod containers;
mod cri;
mod harness;
mod lifecycle;
mod recovery;
mod server;
mod volumes;
