//! Amounts of what pods ask and nodes have.

use std::collections::BTreeMap;
use std::sync::Arc;

use wharf_kit::quantity::Quantity;

/// Amounts of each resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral: i64,
    /// Number of pods.
    pub pods: i64,
    /// Any other resource by its name, in whole units; almost always empty.
    pub extended: BTreeMap<Arc<str>, i64>,
}

impl Resources {
    /// From a resource list as in `resources.requests` or `status.allocatable`.
    pub fn from_list(list: &BTreeMap<String, Quantity>) -> Self {
        let mut all = Self::default();
        for (name, quantity) in list {
            match name.as_str() {
                "cpu" => all.cpu = quantity.millis(),
                "memory" => all.memory = quantity.value(),
                "ephemeral-storage" => all.ephemeral = quantity.value(),
                "pods" => all.pods = quantity.value(),
                name => drop(all.extended.insert(name.into(), quantity.value())),
            }
        }
        all
    }

    pub fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.memory += other.memory;
        self.ephemeral += other.ephemeral;
        self.pods += other.pods;
        for (name, amount) in &other.extended {
            *self.extended.entry(name.clone()).or_default() += amount;
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        self.cpu -= other.cpu;
        self.memory -= other.memory;
        self.ephemeral -= other.ephemeral;
        self.pods -= other.pods;
        for (name, amount) in &other.extended {
            *self.extended.entry(name.clone()).or_default() -= amount;
        }
        self.extended.retain(|_, amount| *amount != 0);
    }

    /// The larger of both, resource by resource.
    pub fn raise_to(&mut self, other: &Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral = self.ephemeral.max(other.ephemeral);
        self.pods = self.pods.max(other.pods);
        for (name, amount) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
    }

    /// Whether some resource is more here than in `other`.
    pub fn exceeds_any(&self, other: &Self) -> bool {
        self.cpu > other.cpu
            || self.memory > other.memory
            || self.ephemeral > other.ephemeral
            || self.pods > other.pods
            || self
                .extended
                .iter()
                .any(|(name, amount)| *amount > other.extended.get(name).copied().unwrap_or(0))
    }
}
