//! The user's kubeconfig: a context per cluster, merged in and taken out, the rest left as it is.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};
use serde_yaml::{Mapping, Value};

use crate::error::{Error, at};
use crate::layout::Cluster;

/// The three lists of a kubeconfig whose entries have names.
const LISTS: [&str; 3] = ["clusters", "users", "contexts"];

/// Puts the cluster's context into the user's kubeconfig, as its current one, and tells that file.
///
/// # Errors
/// [`Error::Kubeconfig`] if the file there is none; it is left as it is then.
pub fn merge(cluster: &Cluster) -> Result<PathBuf, Error> {
    let admin_path = cluster.admin_kubeconfig();
    let admin = read(&admin_path)?.unwrap_or_default();
    let path = user_path();
    let mut config = read(&path)?.unwrap_or_else(|| {
        Mapping::from_iter([("apiVersion".into(), "v1".into()), ("kind".into(), "Config".into())])
    });
    remove_named(&mut config, &cluster.context());
    for list in LISTS {
        let Some(entry) = admin.get(list).and_then(Value::as_sequence).and_then(|l| l.first()).cloned()
        else {
            let why = format!("it has no {list}");
            return Err(Error::Kubeconfig { path: admin_path, why });
        };
        let mut entry = entry;
        entry["name"] = cluster.context().into();
        if list == "contexts" {
            entry["context"]["cluster"] = cluster.context().into();
            entry["context"]["user"] = cluster.context().into();
        }
        let slot = config.entry(list.into()).or_insert(Value::Null);
        if slot.is_null() {
            *slot = Value::Sequence(Vec::new());
        }
        slot.as_sequence_mut().ok_or_else(|| not_a_list(&path, list))?.push(entry);
    }
    config.insert("current-context".into(), cluster.context().into());
    write(&path, &config)?;
    Ok(path)
}

/// Takes the cluster's context out of the user's kubeconfig. One that is not there is no error.
///
/// # Errors
/// [`Error::Kubeconfig`] if the file there is none.
pub fn forget(cluster: &Cluster) -> Result<(), Error> {
    let path = user_path();
    let Some(mut config) = read(&path)? else { return Ok(()) };
    if !remove_named(&mut config, &cluster.context()) {
        return Ok(());
    }
    if config.get("current-context").and_then(Value::as_str) == Some(&cluster.context()) {
        config.insert("current-context".into(), "".into());
    }
    write(&path, &config)
}

/// Removes the entries of this name from every list; tells whether there were any.
fn remove_named(config: &mut Mapping, name: &str) -> bool {
    let mut found = false;
    for list in LISTS {
        if let Some(entries) = config.get_mut(list).and_then(Value::as_sequence_mut) {
            let before = entries.len();
            entries.retain(|entry| entry.get("name").and_then(Value::as_str) != Some(name));
            found |= entries.len() != before;
        }
    }
    found
}

fn not_a_list(path: &Path, list: &str) -> Error {
    Error::Kubeconfig { path: path.to_owned(), why: format!("its {list} are no list") }
}

fn read(path: &Path) -> Result<Option<Mapping>, Error> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(at("read", path))?,
    };
    if text.trim().is_empty() {
        return Ok(None);
    }
    let parsed = serde_yaml::from_str(&text);
    parsed.map(Some).map_err(|error| Error::Kubeconfig { path: path.to_owned(), why: error.to_string() })
}

/// Replaces the file whole, readable by its owner alone, and gives it to the user behind sudo.
fn write(path: &Path, config: &Mapping) -> Result<(), Error> {
    let owner = invoker();
    if let Some(dir) = path.parent() {
        let made = !dir.exists();
        fs::create_dir_all(dir).map_err(at("make", dir))?;
        if let (true, Some(user)) = (made, &owner) {
            chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(at("give away", dir))?;
        }
    }
    let text = serde_yaml::to_string(config).expect("a mapping can be written");
    let next = path.with_extension(format!("wharf-{}", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&next)
        .map_err(at("write", &next))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(at("write", &next))?;
    if let Some(user) = owner {
        chown(&next, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(at("give away", &next))?;
    }
    fs::rename(&next, path).map_err(at("replace", path))
}

/// The user who typed sudo.
fn invoker() -> Option<User> {
    let uid = std::env::var("SUDO_UID").ok()?.parse().ok()?;
    User::from_uid(Uid::from_raw(uid)).ok()?
}

/// The first file of KUBECONFIG, else `.kube/config` in the home of the user who typed the command.
fn user_path() -> PathBuf {
    if let Some(paths) = std::env::var_os("KUBECONFIG")
        && let Some(first) = std::env::split_paths(&paths).find(|path| !path.as_os_str().is_empty())
    {
        return first;
    }
    let home = invoker().map(|user| user.dir).or_else(|| std::env::var_os("HOME").map(PathBuf::from));
    home.unwrap_or_else(|| "/root".into()).join(".kube/config")
}
