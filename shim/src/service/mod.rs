//! CRI's two services, as thin as they can be.

mod image;
mod runtime;

use std::collections::HashMap;
use std::sync::Arc;

use crate::shim::Shim;

/// Both services over one shim.
#[derive(Clone)]
pub struct Service {
    shim: Arc<Shim>,
}

impl Service {
    pub fn new(shim: Arc<Shim>) -> Self {
        Self { shim }
    }
}

/// Whether `labels` has everything that a selector asks for.
fn matches(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
