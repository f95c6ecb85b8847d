//! What nodes need: their pod ranges, an eye on their heartbeat, and the end of the pods they leave.

pub mod eviction;
pub mod ipam;
pub mod lifecycle;
pub mod pods;
