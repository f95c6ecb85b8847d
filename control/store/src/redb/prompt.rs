//! The writer thread gets the processor soon after each of its syncs.

use nix::libc;
use tracing::debug;

/// How long the thread asks to run at a time: the least that Linux takes. A commit sleeps in its sync anyway.
const SLICE_NS: u64 = 100_000;

/// Asks Linux to run this thread soon when it wakes.
///
/// A sync takes about 0.2 ms on a good disk. If all processors are busy when it is done, the thread waits
/// for the next tick to be run again, which is up to 4 ms at 250 Hz, often more than once. From Linux 6.12
/// on a thread with a short slice goes before those with longer ones. Its share stays the same, it needs no
/// privilege for that, and older kernels take no notice. With two busy threads for each processor this
/// halved the median of a write; with a processor free it changes nothing. (`tests/store/latency.rs`)
#[expect(unsafe_code, reason = "sched_getattr and sched_setattr have no safe wrapper")]
pub(super) fn request() {
    let size = u32::try_from(size_of::<libc::sched_attr>()).expect("a small struct");
    let mut now = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: thread 0 is the caller; the kernel writes at most `size` bytes to `now`, which outlives the call.
    let mut done = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut now, size, 0) };
    if done == 0 && now.sched_policy == 0 {
        // An ordinary thread (SCHED_OTHER is 0); others were given what they have on purpose.
        let wanted = libc::sched_attr { size, sched_runtime: SLICE_NS, ..now };
        // SAFETY: thread 0 is the caller; the kernel reads `size` bytes of `wanted`, which outlives the call.
        done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
    }
    if done != 0 {
        let error = std::io::Error::last_os_error();
        debug!(%error, "the store's writer runs with the usual slice");
    }
}
