//! What the loops read of the kinds they watch.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use wharf_kit::view::or_default;

pub use wharf_kit::placement::{NO_EXECUTE, Taint};

macro_rules! view {
    ($type:ty, $kind:expr) => {
        impl View for $type {
            const KIND: Kind = $kind;

            fn meta(&self) -> &Meta {
                &self.metadata
            }
        }
    };
}

/// A condition of any kind's status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    pub r#type: String,
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_time: Option<Timestamp>,
    pub last_transition_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub message: String,
}

/// The condition of a type, if it is there.
pub fn condition<'a>(all: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    all.iter().find(|one| one.r#type == kind)
}

mod apps;
mod batch;
mod cluster;
mod pod;
mod policy;

pub use apps::*;
pub use batch::*;
pub use cluster::*;
pub use pod::*;
pub use policy::*;
