//! Which capabilities a container's processes may have.

use crate::{Error, spec};
use oci_spec::runtime::{Capability, LinuxCapabilities};
use std::collections::HashSet;

/// What Docker and containerd give without being asked: images are built with these in mind.
const DEFAULT: &[Capability] = &[
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// In the kernel's order: the place is the bit.
const BY_NUMBER: &[Capability] = &[
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// What this process may hand on: the bounding set, which can be smaller than all there are.
fn own() -> HashSet<Capability> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bits = bits.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    from_bits(bits)
}

fn from_bits(bits: u64) -> HashSet<Capability> {
    let set = BY_NUMBER.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1);
    set.map(|(_, capability)| *capability).collect()
}

fn parse(name: &str) -> Result<Capability, Error> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    bare.parse().map_err(|_| Error::Invalid(format!("unknown capability {name}")))
}

/// The set of a container whose bounding set can be no larger than `own`.
fn resolve(
    change: &spec::Capabilities,
    privileged: bool,
    own: &HashSet<Capability>,
) -> Result<HashSet<Capability>, Error> {
    let all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let mut set: HashSet<Capability> = match () {
        () if privileged || all(&change.add) => own.clone(),
        () if all(&change.drop) => HashSet::new(),
        () => DEFAULT.iter().copied().collect(),
    };
    for name in change.add.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        set.insert(parse(name)?);
    }
    for name in change.drop.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        set.remove(&parse(name)?);
    }
    set.retain(|capability| own.contains(capability));
    Ok(set)
}

/// For the runtime spec. A user other than root starts with the bounding set alone: it has no capability until it
/// executes a program that brings some.
pub(crate) fn sets(change: &spec::Capabilities, privileged: bool) -> Result<LinuxCapabilities, Error> {
    let set = resolve(change, privileged, &own())?;
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(add: &[&str], drop: &[&str]) -> spec::Capabilities {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        spec::Capabilities { add: owned(add), drop: owned(drop) }
    }

    #[test]
    fn the_kernels_numbers_and_ours_agree() {
        assert_eq!(from_bits(1), HashSet::from([Capability::Chown]));
        assert_eq!(from_bits(1 << 21), HashSet::from([Capability::SysAdmin]));
        assert_eq!(from_bits(1 << 40), HashSet::from([Capability::CheckpointRestore]));
    }

    #[test]
    fn names_are_added_and_dropped_on_top_of_the_default() {
        let own = from_bits(u64::MAX);
        let set = resolve(&change(&["NET_ADMIN", "cap_sys_time"], &["CAP_MKNOD"]), false, &own).unwrap();
        assert!(set.contains(&Capability::NetAdmin) && set.contains(&Capability::SysTime));
        assert!(!set.contains(&Capability::Mknod) && set.contains(&Capability::Chown));
        let set = resolve(&change(&["CHOWN"], &["ALL"]), false, &own).unwrap();
        assert_eq!(set, HashSet::from([Capability::Chown]));
        let set = resolve(&change(&["ALL"], &["CHOWN"]), false, &own).unwrap();
        assert_eq!(set.len(), BY_NUMBER.len() - 1);
        assert!(resolve(&change(&["NOT_ONE"], &[]), false, &own).is_err());
    }

    #[test]
    fn nobody_gets_what_this_process_has_not() {
        let own = from_bits(0b11);
        let set = resolve(&change(&["ALL"], &[]), true, &own).unwrap();
        assert_eq!(set, HashSet::from([Capability::Chown, Capability::DacOverride]));
    }
}
