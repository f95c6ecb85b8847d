//! The user namespace that CRI asks for a pod: one range of users, and one of groups.

use wharf_cri::v1::{self, NamespaceMode, PodSandboxConfig};
use wharf_oci::{IdMapping, IdMappings};

use crate::error::Error;
use crate::record::{namespaces, network_mode};

/// The mappings of a pod's own user namespace; none where it has the node's.
///
/// # Errors
/// [`Error::Invalid`] if there can be no such namespace.
pub fn mappings(config: &PodSandboxConfig) -> Result<Option<IdMappings>, Error> {
    let Some(users) = namespaces(config).and_then(|options| options.userns_options.as_ref()) else {
        return Ok(None);
    };
    let invalid = |why: String| Err(Error::Invalid(format!("user namespace: {why}")));
    match users.mode() {
        NamespaceMode::Node if users.uids.is_empty() && users.gids.is_empty() => Ok(None),
        NamespaceMode::Node => invalid("the node's has no mappings of its own".to_owned()),
        NamespaceMode::Pod if network_mode(config) == NamespaceMode::Node => {
            invalid("a pod on the node's network has the node's".to_owned())
        }
        NamespaceMode::Pod => {
            let privileged = config
                .linux
                .as_ref()
                .and_then(|linux| linux.security_context.as_ref())
                .is_some_and(|c| c.privileged);
            if privileged {
                return invalid("a privileged pod has the node's".to_owned());
            }
            Ok(Some(IdMappings { uids: range("users", &users.uids)?, gids: range("groups", &users.gids)? }))
        }
        mode => invalid(format!("mode {} is not possible; there are POD and NODE", mode.as_str_name())),
    }
}

fn range(of: &str, mappings: &[v1::IdMapping]) -> Result<Vec<IdMapping>, Error> {
    let invalid = |why: &str| Error::Invalid(format!("user namespace: {why} of {of}"));
    let [v1::IdMapping { host_id: outside, container_id: inside, length }] = *mappings else {
        return Err(invalid("it takes one mapping"));
    };
    if inside != 0 {
        return Err(invalid("number 0 must be in the mapping"));
    }
    if length == 0 || outside.checked_add(length).is_none() {
        return Err(invalid("there is no such range in the mapping"));
    }
    Ok(vec![IdMapping { inside, outside, length }])
}

/// Whether a container's config asks for the user namespace that its pod has.
///
/// # Errors
/// [`Error::Invalid`] if not.
pub fn check(pod: &PodSandboxConfig, container: Option<&v1::UserNamespace>) -> Result<(), Error> {
    let of_pod = namespaces(pod).and_then(|options| options.userns_options.as_ref());
    match container {
        Some(own) if Some(own) != of_pod => {
            Err(Error::Invalid("the container asks for another user namespace than its pod has".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Whether what is mounted is to belong, in the container, to the numbers that it belongs to here.
///
/// # Errors
/// [`Error::Invalid`] if it is to be seen through other mappings than the pod's.
pub fn mapped(mount: &v1::Mount, pod: Option<&IdMappings>) -> Result<bool, Error> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(false);
    }
    let own = IdMappings {
        uids: range("users", &mount.uid_mappings)?,
        gids: range("groups", &mount.gid_mappings)?,
    };
    match pod {
        Some(pod) if *pod == own => Ok(true),
        _ => {
            let why = format!("the mappings of the mount at {} are not the pod's", mount.container_path);
            Err(Error::Invalid(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(mode: NamespaceMode, uids: &[(u32, u32, u32)]) -> PodSandboxConfig {
        let uids: Vec<_> = uids
            .iter()
            .map(|&(container_id, host_id, length)| v1::IdMapping { host_id, container_id, length })
            .collect();
        let users = v1::UserNamespace { mode: mode.into(), gids: uids.clone(), uids };
        let options = v1::NamespaceOption { userns_options: Some(users), ..Default::default() };
        let context =
            v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        let linux = v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
        PodSandboxConfig { linux: Some(linux), ..Default::default() }
    }

    #[test]
    fn one_mapping_that_has_number_0_makes_a_namespace() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let one = [(0, 100_000, 65_536)];
        let made = mappings(&pod(Pod, &one)).unwrap().unwrap();
        assert_eq!(made.outside(1, 2), Some((100_001, 100_002)));
        assert_eq!(mappings(&pod(Node, &[])).unwrap(), None);
        assert_eq!(mappings(&PodSandboxConfig::default()).unwrap(), None);
        for (mode, uids) in [
            (Pod, &[][..]),
            (Pod, &[(0, 100_000, 1), (1, 200_000, 1)]),
            (Pod, &[(1, 100_000, 65_536)]),
            (Pod, &[(0, 100_000, 0)]),
            (Pod, &[(0, u32::MAX, 2)]),
            (Node, &one),
            (Container, &one),
            (Target, &one),
        ] {
            let said = mappings(&pod(mode, uids)).unwrap_err().to_string();
            assert!(said.starts_with("user namespace: "), "{mode:?} {uids:?}: {said}");
        }
    }

    #[test]
    fn containers_and_mounts_have_the_mappings_of_their_pod() {
        let pod = pod(NamespaceMode::Pod, &[(0, 100_000, 65_536)]);
        let own = namespaces(&pod).unwrap().userns_options.clone().unwrap();
        check(&pod, None).unwrap();
        check(&pod, Some(&own)).unwrap();
        let node = v1::UserNamespace { mode: NamespaceMode::Node.into(), ..Default::default() };
        assert!(check(&pod, Some(&node)).is_err());

        let made = mappings(&pod).unwrap();
        let mut mount = v1::Mount::default();
        assert!(!mapped(&mount, made.as_ref()).unwrap());
        (mount.uid_mappings, mount.gid_mappings) = (own.uids.clone(), own.gids.clone());
        assert!(mapped(&mount, made.as_ref()).unwrap());
        assert!(mapped(&mount, None).is_err());
        mount.gid_mappings[0].host_id = 7;
        assert!(mapped(&mount, made.as_ref()).is_err());
    }
}
