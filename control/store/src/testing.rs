//! What the tests of an engine need: the suite that holds every engine to [`Store`](crate::Store)'s
//! guarantees, and a disk that fails.

mod contract;
mod disk;

pub use contract::{Place, contract};
pub use disk::{Fault, FaultyDisk};
