//! The agent as a whole: a real API server in this process on one side, a scripted CRI server on the other.

mod cri;
mod harness;
mod lifecycle;
mod recovery;
mod server;
