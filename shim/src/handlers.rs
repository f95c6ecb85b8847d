//! Runtime handlers, by which a pod's RuntimeClass picks what its containers run in.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use wharf_cri::handler::{OCI, WASM};
use wharf_cri::v1::{RuntimeHandler, RuntimeHandlerFeatures};

use crate::error::Error;

/// Those that are always there; the empty one is the default. `wasmtime` is the name that other shims use.
const BUILT_IN: [&str; 4] = ["", OCI, WASM, "wasmtime"];

/// Whether a sandbox with this handler has its containers in the wasm host.
pub fn is_wasm(handler: &str) -> bool {
    matches!(handler, WASM | "wasmtime")
}

/// Every handler of a node.
pub struct Handlers(BTreeMap<String, Binary>);

struct Binary {
    program: PathBuf,
    features: RuntimeHandlerFeatures,
}

impl Handlers {
    /// With those that other OCI runtimes' binaries are named for, which are asked what they can do.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is taken, [`Error::Start`] for a program that cannot be run.
    pub fn new(binaries: &BTreeMap<String, PathBuf>) -> Result<Self, Error> {
        let mut all = BTreeMap::new();
        for (name, program) in binaries {
            if BUILT_IN.contains(&name.as_str()) {
                return Err(Error::Invalid(format!(
                    "the runtime handler {name:?} is built in; take another name"
                )));
            }
            let features = features(program)
                .map_err(|cause| Error::Start { what: format!("run {}", program.display()), cause })?;
            all.insert(name.clone(), Binary { program: program.clone(), features });
        }
        Ok(Self(all))
    }

    /// The binary that is to make a handler's OCI containers, if it is not libcontainer.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a handler that is not there.
    pub fn program(&self, handler: &str) -> Result<Option<&Path>, Error> {
        match self.0.get(handler) {
            Some(binary) => Ok(Some(&binary.program)),
            None if BUILT_IN.contains(&handler) => Ok(None),
            None => Err(Error::Invalid(format!(
                "no runtime handler {handler:?}; there are {:?}",
                self.list().into_iter().map(|handler| handler.name).collect::<Vec<_>>()
            ))),
        }
    }

    /// All of them, and what each can do.
    pub fn list(&self) -> Vec<RuntimeHandler> {
        let built_in = BUILT_IN.into_iter().map(|name| {
            let features =
                RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: !is_wasm(name) };
            (name, features)
        });
        let binaries = self.0.iter().map(|(name, binary)| (name.as_str(), binary.features));
        let handler =
            |(name, features): (&str, _)| RuntimeHandler { name: name.to_owned(), features: Some(features) };
        built_in.chain(binaries).map(handler).collect()
    }
}

/// What a binary says of itself (OCI runtime specification, `features.md`); one that says nothing can little.
fn features(program: &Path) -> io::Result<RuntimeHandlerFeatures> {
    let output = Command::new(program).arg("features").output()?;
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let has =
        |list: &Value, word: &str| list.as_array().is_some_and(|list| list.iter().any(|one| one == word));
    Ok(RuntimeHandlerFeatures {
        recursive_read_only_mounts: has(&said["mountOptions"], "rro"),
        user_namespaces: has(&said["linux"]["namespaces"], "user"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handlers(name: &str, script: &str) -> Result<Handlers, Error> {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("runtime");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Handlers::new(&[(name.to_owned(), program)].into())
    }

    #[test]
    fn a_binary_can_what_it_says() {
        let script =
            "#!/bin/sh\necho '{\"mountOptions\": [\"ro\", \"rro\"], \"linux\": {\"namespaces\": [\"pid\"]}}'";
        let all = handlers("other", script).unwrap();
        let list = all.list();
        assert_eq!(
            list.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(),
            ["", "oci", "wasm", "wasmtime", "other"]
        );
        let features = list.last().unwrap().features.unwrap();
        assert!(features.recursive_read_only_mounts && !features.user_namespaces);
        assert!(all.program("other").unwrap().is_some() && all.program("oci").unwrap().is_none());
        let unknown = all.program("gone").unwrap_err().to_string();
        assert!(unknown.contains(r#"there are ["", "oci", "wasm", "wasmtime", "other"]"#), "{unknown}");
    }

    #[test]
    fn names_that_are_taken_and_programs_that_are_missing_are_refused() {
        assert!(handlers("wasm", "#!/bin/sh").is_err_and(|error| error.to_string().contains("is built in")));
        let missing = Handlers::new(&[("crun".to_owned(), PathBuf::from("/nowhere/crun"))].into());
        assert!(missing.is_err_and(|error| error.to_string().contains("run /nowhere/crun")));
    }
}
