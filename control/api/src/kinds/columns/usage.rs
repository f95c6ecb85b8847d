//! What nodes and pods use.

use serde_json::{Value, json};
use wharf_kit::quantity::Quantity;

use super::{Column, NAME, text_column};
use crate::object::{list, text};

const WINDOW: Column = text_column("Window", |o, _| json!(text(o, "/window")));

pub const NODE_METRICS: &[Column] = &[
    NAME,
    text_column("CPU", |o, _| json!(text(o, "/usage/cpu"))),
    text_column("Memory", |o, _| json!(text(o, "/usage/memory"))),
    WINDOW,
];

pub const POD_METRICS: &[Column] = &[
    NAME,
    text_column("CPU", |o, _| json!(sum(o, "/usage/cpu"))),
    text_column("Memory", |o, _| json!(sum(o, "/usage/memory"))),
    WINDOW,
];

/// Of all containers.
fn sum(pod: &Value, pointer: &str) -> String {
    let parsed =
        list(pod, "/containers").iter().filter_map(|one| text(one, pointer).parse::<Quantity>().ok());
    parsed.reduce(|a, b| a + b).map_or_else(String::new, |sum| sum.to_string())
}
