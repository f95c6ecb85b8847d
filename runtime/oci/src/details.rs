//! What is told of a container beside its [`Stats`]: the numbers behind CRI's metrics, from cgroups of either version and from
//! `/proc`. What this kernel does not count is 0; what has no limit is none.

use std::fs;
use std::path::Path;

use crate::cgroup::{Hierarchies, Stats, field, hierarchies, number, oom_kills, pids, place, read, stats};

/// The kernel counts processor time for programs in hundredths of a second (`USER_HZ`).
const NANOS_A_TICK: u64 = 10_000_000;

/// Times in nanoseconds unless their name says otherwise, the rest in bytes or counts; since the container was made, or now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    pub stats: Stats,
    pub cpu_user_nanos: u64,
    pub cpu_system_nanos: u64,
    pub cpu_period_micros: u64,
    /// In the scale of version 1, 1024 a processor.
    pub cpu_shares: u64,
    /// Periods with a quota in force, those in which it was used up, and how long it then waited.
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_nanos: u64,
    pub memory_peak: u64,
    pub memory_cache: u64,
    pub memory_mapped_file: u64,
    pub memory_active_file: u64,
    pub memory_inactive_file: u64,
    pub memory_kernel: u64,
    pub memory_swap: u64,
    /// How often its limit was hit.
    pub memory_failures: u64,
    /// Of memory and swap together.
    pub swap_limit: Option<u64>,
    pub oom_kills: u64,
    pub processes: u64,
    pub threads_max: Option<u64>,
    pub open_files: u64,
    pub sockets: u64,
}

/// `None` if there is no such group.
pub(crate) fn details(group: &str) -> Option<Details> {
    let stats = stats(group)?;
    let memory = place("memory", group)?;
    let cpu = place("cpu", group)?;
    let memory_stat = read(&memory.join("memory.stat"))?;
    let cpu_stat = read(&cpu.join("cpu.stat")).unwrap_or_default();
    let of_memory = |name| field(&memory_stat, name).unwrap_or(0);
    let of_cpu = |name| field(&cpu_stat, name).unwrap_or(0);
    let counted = |path: &Path| number(path).unwrap_or(0);
    let inside = pids(group);
    let (open_files, sockets) =
        inside.iter().map(|pid| files(*pid)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let threads_max = place("pids", group).and_then(|dir| number(&dir.join("pids.max"))); // "max" is no number
    let common = Details {
        oom_kills: oom_kills(group),
        processes: inside.len() as u64,
        threads_max,
        open_files,
        sockets,
        periods: of_cpu("nr_periods"),
        throttled_periods: of_cpu("nr_throttled"),
        stats,
        ..Details::default()
    };
    Some(match hierarchies() {
        Hierarchies::V1(_) => {
            let ticks =
                place("cpuacct", group).and_then(|dir| read(&dir.join("cpuacct.stat"))).unwrap_or_default();
            let time = |name| field(&ticks, name).unwrap_or(0).saturating_mul(NANOS_A_TICK);
            let swap_limit = number(&memory.join("memory.memsw.limit_in_bytes"));
            Details {
                cpu_user_nanos: time("user"),
                cpu_system_nanos: time("system"),
                cpu_period_micros: counted(&cpu.join("cpu.cfs_period_us")),
                cpu_shares: counted(&cpu.join("cpu.shares")),
                throttled_nanos: of_cpu("throttled_time"),
                memory_peak: counted(&memory.join("memory.max_usage_in_bytes")),
                memory_cache: of_memory("total_cache"),
                memory_mapped_file: of_memory("total_mapped_file"),
                memory_active_file: of_memory("total_active_file"),
                memory_inactive_file: of_memory("total_inactive_file"),
                memory_kernel: counted(&memory.join("memory.kmem.usage_in_bytes")),
                memory_swap: of_memory("total_swap"),
                memory_failures: counted(&memory.join("memory.failcnt")),
                swap_limit: swap_limit.filter(|limit| *limit < 1 << 62), // "no limit" is the largest number of pages
                ..common
            }
        }
        Hierarchies::V2 => {
            let micros = |name| of_cpu(name).saturating_mul(1000);
            // "max 100000", or the quota and then the period.
            let period = read(&cpu.join("cpu.max"))
                .and_then(|text| text.split_whitespace().nth(1)?.parse().ok())
                .unwrap_or(0);
            let swap = number(&memory.join("memory.swap.max")); // "max" is no number
            Details {
                cpu_user_nanos: micros("user_usec"),
                cpu_system_nanos: micros("system_usec"),
                cpu_period_micros: period,
                cpu_shares: shares(counted(&cpu.join("cpu.weight"))),
                throttled_nanos: micros("throttled_usec"),
                memory_peak: counted(&memory.join("memory.peak")),
                memory_cache: of_memory("file"),
                memory_mapped_file: of_memory("file_mapped"),
                memory_active_file: of_memory("active_file"),
                memory_inactive_file: of_memory("inactive_file"),
                memory_kernel: of_memory("kernel"),
                memory_swap: counted(&memory.join("memory.swap.current")),
                memory_failures: read(&memory.join("memory.events"))
                    .and_then(|text| field(&text, "max"))
                    .unwrap_or(0),
                swap_limit: swap
                    .zip(common.stats.memory_limit)
                    .map(|(swap, memory)| swap.saturating_add(memory)),
                ..common
            }
        }
    })
}

/// The way back from a weight to shares, as `cgroup::update` goes there.
fn shares(weight: u64) -> u64 {
    let exponent = (weight.clamp(1, 10_000) as f64).log10() + 7.0 / 34.0;
    let log = ((125.0 * 125.0 + 4.0 * 612.0 * exponent).sqrt() - 125.0) / 2.0;
    log.exp2().round() as u64
}

/// The open files of a process, and how many of them are sockets; nothing of one that ended meanwhile.
fn files(pid: i32) -> (u64, u64) {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.fold((0, 0), |(files, sockets), entry| {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let socket = target.to_str().is_some_and(|target| target.starts_with("socket:"));
        (files + 1, sockets + u64::from(socket))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_lead_back_to_shares() {
        assert_eq!((shares(1), shares(100), shares(10_000)), (2, 1024, 262_144));
        assert!((512..=525).contains(&shares(59)), "{}", shares(59));
    }

    #[test]
    fn open_files_are_counted_and_sockets_among_them() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (before, _socket) = (files(own), std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let after = files(own);
        assert!(after.0 > 0 && after.1 > 0 && after.0 >= after.1, "{before:?} {after:?}");
        assert_eq!(files(-1), (0, 0));
    }
}
