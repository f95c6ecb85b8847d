use std::fs::File;

use nix::fcntl::{Flock, FlockArg};

/// A claim on the machine: clusters of several test programs share it, a census needs it alone. Let go by dropping it.
#[derive(Debug)]
pub(crate) struct Presence {
    _lock: Flock<File>,
}

impl Presence {
    /// Waits for the end of a census.
    pub fn one_of_many() -> Self {
        Self::with(FlockArg::LockShared)
    }

    /// Waits for the end of all clusters of tests.
    pub fn alone() -> Self {
        Self::with(FlockArg::LockExclusive)
    }

    fn with(how: FlockArg) -> Self {
        let path = std::env::temp_dir().join("wharf-tests.lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lock = Flock::lock(file, how).map_err(|(_, error)| error).expect("a lock");
        Self { _lock: lock }
    }
}
