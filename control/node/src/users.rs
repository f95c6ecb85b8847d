//! The users of a pod whose `hostUsers` is false (KEP-127): a range of the node's that no other pod has, where root of the
//! pod is nobody.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use k8s_openapi::api::core::v1::Pod;
use wharf_cri::v1;

use crate::volumes::pod_directory;

/// Users, and groups, of each pod: all that a container without a user namespace has names for in practice.
const COUNT: u32 = 1 << 16;
/// Which range it is, in the pod's directory.
const FILE: &str = "users";

/// The pod's user namespace; none for one with the node's. Once chosen, it stays until the pod's directory goes.
///
/// # Errors
/// That of its directory, or that every range is taken.
pub async fn namespace(root: &Path, pod: &Pod) -> io::Result<Option<v1::UserNamespace>> {
    if pod.spec.as_ref().and_then(|spec| spec.host_users) != Some(false) {
        return Ok(None);
    }
    let (root, uid) = (root.to_owned(), pod.metadata.uid.clone().unwrap_or_default());
    let range = tokio::task::spawn_blocking(move || range(&root, &uid)).await??;
    let mapping = v1::IdMapping { host_id: range * COUNT, container_id: 0, length: COUNT };
    let mode = v1::NamespaceMode::Pod.into();
    Ok(Some(v1::UserNamespace { mode, uids: vec![mapping], gids: vec![mapping] }))
}

/// Reads the directories of all pods if it has to choose.
fn range(root: &Path, uid: &str) -> io::Result<u32> {
    static CHOOSING: Mutex<()> = Mutex::new(());
    let _one = CHOOSING.lock().unwrap_or_else(PoisonError::into_inner);
    let read = |dir: &Path| fs::read_to_string(dir.join(FILE)).ok()?.parse::<u32>().ok();
    let own = pod_directory(root, uid);
    if let Some(own) = read(&own) {
        return Ok(own);
    }
    let others = fs::read_dir(root.join("pods"))?.flatten();
    let taken: HashSet<u32> = others.filter_map(|entry| read(&entry.path())).collect();
    // The first is the node's own.
    let free = (1..u32::MAX / COUNT).find(|range| !taken.contains(range));
    let free = free.ok_or_else(|| io::Error::other("every range of users is another pod's"))?;
    fs::create_dir_all(&own)?;
    fs::write(own.join(FILE), free.to_string())?;
    Ok(free)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn pod(uid: &str, host_users: Option<bool>) -> Pod {
        let metadata = ObjectMeta { uid: Some(uid.to_owned()), ..ObjectMeta::default() };
        Pod { metadata, spec: Some(PodSpec { host_users, ..PodSpec::default() }), ..Pod::default() }
    }

    #[tokio::test]
    async fn each_pod_keeps_a_range_of_its_own_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pods")).unwrap();
        let first = async |uid: &str| {
            let users = namespace(dir.path(), &pod(uid, Some(false))).await.unwrap();
            users.unwrap().uids[0].host_id
        };
        assert_eq!([first("a").await, first("b").await, first("a").await], [COUNT, 2 * COUNT, COUNT]);
        fs::remove_dir_all(pod_directory(dir.path(), "a")).unwrap();
        assert_eq!([first("c").await, first("d").await], [COUNT, 3 * COUNT]);
        for host_users in [None, Some(true)] {
            assert_eq!(namespace(dir.path(), &pod("e", host_users)).await.unwrap(), None);
        }
    }
}
