//! What the tests of an engine need: the suite that holds every engine to [`Store`](crate::Store)'s
//! guarantees, a disk that fails, and an etcd whose members die.

mod contract;
mod disk;
mod etcd;

pub use contract::{Place, contract};
pub use disk::{Fault, FaultyDisk};
pub use etcd::{Files, Members};
