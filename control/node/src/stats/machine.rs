//! What the whole machine uses, as the kernel tells it. The Node's capacity is the machine's too, also where several nodes
//! of a development cluster share one.

use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;

use super::summary::Fs;

/// The kernel counts processor time for programs in hundredths of a second, on every architecture (`USER_HZ`).
const NANOS_A_TICK: u64 = 10_000_000;

/// The machine now. What the kernel does not tell is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub booted: Option<Timestamp>,
    /// Processor time that was used since then, in nanoseconds.
    pub cpu_nanos: Option<u64>,
    pub memory: Option<MachineMemory>,
}

/// In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineMemory {
    pub usage: u64,
    /// Usage without file pages that the kernel would drop first.
    pub working_set: u64,
    pub available: u64,
}

impl Usage {
    /// # Errors
    /// There is no `/proc`.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/stat")?, &fs::read_to_string("/proc/meminfo")?))
    }

    fn parse(stat: &str, meminfo: &str) -> Self {
        let words = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.map(|line| {
                line.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).collect::<Vec<_>>()
            })
        };
        // user nice system idle iowait irq softirq; what follows was used by others, or is counted in these.
        let cpu_nanos = words("cpu").and_then(|ticks| {
            let [user, nice, system, _, _, irq, softirq] = ticks.get(..7)?.try_into().ok()?;
            Some((user + nice + system + irq + softirq) * NANOS_A_TICK)
        });
        let booted = words("btime").and_then(|words| i64::try_from(*words.first()?).ok());
        let bytes = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
        };
        let memory = || {
            let (total, free, inactive) = (bytes("MemTotal")?, bytes("MemFree")?, bytes("Inactive(file)")?);
            let usage = total.saturating_sub(free);
            let working_set = usage.saturating_sub(inactive);
            Some(MachineMemory { usage, working_set, available: total - working_set })
        };
        Self { booted: booted.and_then(|at| Timestamp::from_second(at).ok()), cpu_nanos, memory: memory() }
    }
}

/// How full the file system of a path is; none if there is no such path.
pub fn file_system(path: &Path, time: Timestamp) -> Option<Fs> {
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    #[allow(clippy::useless_conversion, reason = "the counts are of other types on other architectures")]
    let bytes = |blocks: nix::libc::fsblkcnt_t| u64::from(blocks).saturating_mul(found.fragment_size());
    Some(Fs {
        time,
        available_bytes: bytes(found.blocks_available()),
        capacity_bytes: bytes(found.blocks()),
        used_bytes: Some(bytes(found.blocks().saturating_sub(found.blocks_free()))),
        inodes_free: found.files_free(),
        inodes: found.files(),
        inodes_used: Some(found.files().saturating_sub(found.files_free())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_is_neither_idle_nor_waiting_nor_stolen() {
        let stat =
            "cpu  100 20 30 4000 500 6 7 800 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 1 2\nbtime 1795600000\n";
        let meminfo =
            "MemTotal:   1000 kB\nMemFree:     300 kB\nInactive:  500 kB\nInactive(file):  200 kB\n";
        let usage = Usage::parse(stat, meminfo);
        assert_eq!(usage.cpu_nanos, Some(1_630_000_000));
        assert_eq!(usage.booted, Timestamp::from_second(1_795_600_000).ok());
        let memory = MachineMemory { usage: 700 << 10, working_set: 500 << 10, available: 500 << 10 };
        assert_eq!(usage.memory, Some(memory));
        assert_eq!(Usage::parse("", ""), Usage::default());
    }

    #[test]
    fn this_machine_tells_all() {
        let usage = Usage::read().unwrap();
        assert!(usage.booted.is_some() && usage.cpu_nanos.is_some() && usage.memory.is_some(), "{usage:?}");
        let fs = file_system(Path::new("/"), Timestamp::now()).unwrap();
        assert!(fs.capacity_bytes >= fs.available_bytes && fs.capacity_bytes > 0);
        assert!(file_system(Path::new("/nowhere"), Timestamp::now()).is_none());
    }
}
