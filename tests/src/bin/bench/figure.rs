//! Figures, as people and programs read them.

use std::fs;

use serde_json::{Value, json};

/// What a figure should be.
#[derive(Clone, Copy)]
pub enum Target {
    AtMost(f64),
    /// It is only told.
    None,
}

/// All figures of a run, printed as they come.
pub struct Figures {
    machine: Vec<(&'static str, String)>,
    list: Vec<Value>,
    ok: bool,
}

impl Figures {
    /// Prints the machine and the versions.
    pub fn new() -> Self {
        let machine = machine();
        for (name, value) in &machine {
            println!("# {name}: {value}");
        }
        Self { machine, list: Vec::new(), ok: true }
    }

    /// Prints a figure. Without a value it could not be measured.
    pub fn tell(&mut self, name: &str, value: Option<f64>, unit: &str, target: Target) {
        let verdict = match (value, target) {
            (None, _) => "missing",
            (Some(value), Target::AtMost(most)) if value > most => "short",
            _ => "ok",
        };
        self.ok &= verdict == "ok";
        let wanted = match target {
            Target::AtMost(most) => format!("at most {most}"),
            Target::None => "no target".to_owned(),
        };
        let shown = value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        println!("{name} {shown} {unit} ({wanted}) {verdict}");
        self.list
            .push(json!({"name": name, "value": value, "unit": unit, "target": wanted, "verdict": verdict}));
    }

    pub fn all_ok(&self) -> bool {
        self.ok
    }

    pub fn json(&self) -> String {
        let machine: serde_json::Map<String, Value> =
            self.machine.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())).collect();
        let whole = json!({"machine": machine, "figures": self.list});
        serde_json::to_string_pretty(&whole).expect("plain data")
    }
}

fn machine() -> Vec<(&'static str, String)> {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    vec![
        ("processor", format!("{cpus} x {}", field("/proc/cpuinfo", "model name"))),
        ("memory", field("/proc/meminfo", "MemTotal")),
        ("kernel", kernel.trim().to_owned()),
        ("wharf", format!("{}, profile dev (optimised dependencies)", env!("CARGO_PKG_VERSION"))),
    ]
}

/// The value below which `share` of the sorted values lie, by nearest rank.
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=30).map(f64::from).collect();
        assert_eq!(super::percentile(&values, 0.5), Some(15.0));
        assert_eq!(super::percentile(&values, 0.99), Some(30.0));
        assert_eq!(super::percentile(&[], 0.5), None);
    }
}
