//! A disk in memory that fails as disks do.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use ::redb::StorageBackend;

/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;

/// When a [`FaultyDisk`] fails. Calls are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Never,
    /// That call fails, and all after it work.
    Call(u64),
    /// The power goes at that call: it and all after it fail.
    PowerCut(u64),
}

/// A disk with a write cache. What was written since the last sync is lost, sector by sector as chance has
/// it, when a sync fails or the power goes; a write that fails is half done. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct FaultyDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// What is there after a power cut.
    platter: Vec<u8>,
    /// What a read gives.
    cache: Vec<u8>,
    /// Sectors of the cache that differ from the platter.
    dirty: Vec<usize>,
    fault: Fault,
    calls: u64,
    fired: bool,
    chance: u64,
}

impl FaultyDisk {
    /// An empty disk that never fails.
    pub fn sound() -> Self {
        Self::with(Vec::new(), Fault::Never)
    }

    /// Another disk with what this one has now, that will fail so; its calls are counted from its own first.
    pub fn failing(&self, fault: Fault) -> Self {
        Self::with(self.state(|state| state.cache.clone()), fault)
    }

    /// Whether the failure has happened.
    pub fn fired(&self) -> bool {
        self.state(|state| state.fired)
    }

    /// How often it was called.
    pub fn calls(&self) -> u64 {
        self.state(|state| state.calls)
    }

    /// A sound disk with what this one would have after a power cut now.
    pub fn after_power_cut(&self) -> Self {
        let platter = self.state(|state| {
            state.lose();
            state.platter.clone()
        });
        Self::with(platter, Fault::Never)
    }

    fn with(platter: Vec<u8>, fault: Fault) -> Self {
        let chance = match fault {
            Fault::Never => 0,
            Fault::Call(nth) | Fault::PowerCut(nth) => nth,
        };
        let cache = platter.clone();
        let state = State { platter, cache, dirty: Vec::new(), fault, calls: 0, fired: false, chance };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    /// Counts a call, and tells whether it fails.
    fn fails(&mut self) -> bool {
        let nth = self.calls;
        self.calls += 1;
        let fails = match self.fault {
            Fault::Never => false,
            Fault::Call(call) => nth == call,
            Fault::PowerCut(call) => nth >= call,
        };
        self.fired |= fails;
        fails
    }

    /// Half of the sectors, as chance has it, did not reach the platter and never will.
    fn lose(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        for sector in dirty {
            self.chance = self.chance.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if self.chance >> 63 == 0 {
                self.settle(sector);
            }
        }
        self.cache = self.platter.clone();
    }

    fn settle(&mut self, sector: usize) {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(self.cache.len());
        if start < end {
            if self.platter.len() < end {
                self.platter.resize(end, 0);
            }
            self.platter[start..end].copy_from_slice(&self.cache[start..end]);
        }
    }

    fn put(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start + data.len();
        if self.cache.len() < end {
            self.cache.resize(end, 0);
        }
        self.cache[start..end].copy_from_slice(data);
        self.dirty.extend(start / SECTOR..end.div_ceil(SECTOR));
        Ok(())
    }
}

fn failed() -> io::Error {
    io::Error::other("the disk failed, as the test asked")
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> io::Result<u64> {
        self.state(|state| if state.fails() { Err(failed()) } else { Ok(state.cache.len() as u64) })
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.state(|state| {
            if state.fails() {
                return Err(failed());
            }
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let found = state.cache.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(found);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state(|state| {
            if state.fails() {
                return Err(failed());
            }
            let len = usize::try_from(len).map_err(io::Error::other)?;
            state.cache.resize(len, 0);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.state(|state| {
            if state.fails() {
                state.lose();
                return Err(failed());
            }
            for sector in std::mem::take(&mut state.dirty) {
                state.settle(sector);
            }
            state.platter.resize(state.cache.len(), 0);
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.state(|state| {
            if state.fails() {
                state.put(offset, &data[..data.len() / 2])?;
                return Err(failed());
            }
            state.put(offset, data)
        })
    }
}
