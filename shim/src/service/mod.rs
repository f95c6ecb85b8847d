//! CRI's two services, as thin as they can be.

mod image;
mod runtime;

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
