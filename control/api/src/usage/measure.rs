//! Usage from two looks at counters. No clock and no I/O: the same looks give the same usage.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;

use super::look::{Look, Sample};

/// What is used at a time; of the processor, on the average of the window before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    pub at: Timestamp,
    pub window: Duration,
    /// Billionths of a core.
    pub nano_cores: u64,
    pub memory_bytes: u64,
}

/// What a node and its pods use.
#[derive(Debug, Default, PartialEq)]
pub struct Measured {
    pub node: Option<Usage>,
    /// By uid, then by container.
    pub pods: HashMap<String, BTreeMap<String, Usage>>,
}

/// Usage between two looks. A container that the first did not see, or that was started again since, is measured from its
/// start.
pub fn measure(before: &Look, after: &Look) -> Measured {
    let mut pods: HashMap<String, BTreeMap<String, Usage>> = HashMap::new();
    for (key @ (uid, name), sample) in &after.containers {
        if let Some(usage) = between(before.containers.get(key), sample) {
            pods.entry(uid.clone()).or_default().insert(name.clone(), usage);
        }
    }
    let node = after.node.as_ref().and_then(|sample| between(before.node.as_ref(), sample));
    Measured { node, pods }
}

/// None if no time has passed.
fn between(before: Option<&Sample>, after: &Sample) -> Option<Usage> {
    let same = |before: &&Sample| {
        before.cpu_nanos <= after.cpu_nanos && after.started.is_none_or(|started| started <= before.at)
    };
    let (since, used) = match before.filter(same) {
        Some(before) => (before.at, after.cpu_nanos - before.cpu_nanos),
        None => (after.started?, after.cpu_nanos),
    };
    let window =
        Duration::try_from(after.at.duration_since(since)).ok().filter(|window| !window.is_zero())?;
    let nano_cores = u128::from(used) * 1_000_000_000 / window.as_nanos();
    Some(Usage {
        at: after.at,
        window,
        nano_cores: u64::try_from(nano_cores).unwrap_or(u64::MAX),
        memory_bytes: after.memory_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: i64, cpu_millis: u64, started: Option<i64>) -> Sample {
        let time = |second| Timestamp::from_second(1_795_600_000 + second).unwrap();
        Sample {
            at: time(at),
            cpu_nanos: cpu_millis * 1_000_000,
            memory_bytes: 64,
            started: started.map(time),
        }
    }

    /// The window in seconds and thousandths of a core.
    fn rate(before: Option<Sample>, after: Sample) -> Option<(u64, u64)> {
        let usage = between(before.as_ref(), &after)?;
        assert_eq!((usage.at, usage.memory_bytes), (after.at, 64));
        Some((usage.window.as_secs(), usage.nano_cores / 1_000_000))
    }

    #[test]
    fn a_rate_is_what_was_used_over_the_time_between() {
        assert_eq!(rate(Some(sample(10, 500, Some(0))), sample(14, 2500, Some(0))), Some((4, 500)));
        assert_eq!(rate(Some(sample(10, 500, None)), sample(14, 500, None)), Some((4, 0)), "it was idle");
    }

    #[test]
    fn what_is_new_or_began_anew_is_measured_from_its_start() {
        assert_eq!(rate(None, sample(12, 1000, Some(10))), Some((2, 500)), "not seen before");
        let before = Some(sample(10, 500, Some(0)));
        assert_eq!(rate(before, sample(14, 1000, Some(12))), Some((2, 500)), "started since");
        assert_eq!(rate(before, sample(14, 400, Some(10))), Some((4, 100)), "its counter went back");
    }

    #[test]
    fn without_time_there_is_no_rate() {
        assert_eq!(rate(None, sample(10, 500, None)), None, "nobody knows since when");
        let one = sample(10, 500, Some(0));
        assert_eq!(rate(Some(one), one), None);
        assert_eq!(rate(None, sample(10, 500, Some(11))), None, "clocks went back");
    }

    #[test]
    fn only_what_the_second_look_saw_is_told() {
        let key = |name: &str| ("u".to_owned(), name.to_owned());
        let looked = |names: &[&str], at| Look {
            node: Some(sample(at, 1000, None)),
            containers: names.iter().map(|name| (key(name), sample(at, 100, Some(0)))).collect(),
        };
        let measured = measure(&looked(&["gone", "stays"], 10), &looked(&["stays", "new"], 12));
        assert_eq!(measured.pods["u"].keys().collect::<Vec<_>>(), ["new", "stays"]);
        assert_eq!(measured.node.map(|usage| usage.nano_cores), Some(0));
    }
}
