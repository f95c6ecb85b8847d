//! What verbose calls of CRI tell beside their messages. The fields of JSON are containerd's, which `crictl` and scripts
//! over it read; those of its own making, such as snapshot keys, are left out.

use std::collections::HashMap;

use serde_json::{Value, json};
use wharf_image::Image;
use wharf_oci::Status;

use crate::record::{Container, Sandbox};
use crate::shim::Shim;

/// JSON by name.
pub type Info = HashMap<String, String>;

fn info(name: &str, value: Value) -> Info {
    [(name.to_owned(), value.to_string())].into()
}

/// Without what a message does not say.
fn said(value: Value) -> Value {
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    };
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, said(value)));
            Value::Object(fields.filter(|(_, value)| !empty(value)).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(said).collect()),
        plain => plain,
    }
}

/// Where the shim keeps what, and what it was told.
pub fn runtime(shim: &Shim) -> Info {
    let config = json!({
        "rootDir": shim.config.root,
        "stateDir": shim.config.state,
        "socket": shim.config.socket,
        "cgroupParent": shim.config.cgroup_parent,
        "cniConfDir": shim.config.with_cni.then_some(&shim.config.cni.configurations),
        "podRange": shim.network.range().map(|range| range.to_string()),
    });
    info("config", said(config))
}

/// What a container of a pod with this handler runs in.
fn runtime_type(shim: &Shim, handler: &str, wasm: bool) -> String {
    match shim.handlers.program(handler) {
        _ if wasm => "wasmtime".to_owned(),
        Ok(Some(program)) => program.display().to_string(),
        _ => "libcontainer".to_owned(),
    }
}

pub fn container(shim: &Shim, container: &Container) -> Info {
    let process = shim.oci.status(&container.id).ok();
    let pid = process.and_then(|status| match status {
        Status::Created { pid } | Status::Running { pid, .. } => Some(pid),
        Status::Creating | Status::Exited(_) => None,
    });
    let handler = shim.sandbox(&container.sandbox).map(|pod| pod.handler.clone()).unwrap_or_default();
    let told = json!({
        "sandboxID": container.sandbox,
        "pid": pid,
        "runtimeType": runtime_type(shim, &handler, container.wasm),
        "config": container.config(),
        "runtimeSpec": shim.oci.spec(&container.id),
    });
    info("info", said(told))
}

pub fn sandbox(shim: &Shim, sandbox: &Sandbox) -> Info {
    let pause = shim.oci.pauses().into_iter().find(|pause| pause.id == sandbox.id);
    let told = json!({
        "pid": pause.map(|pause| pause.pid),
        "netNamespace": sandbox.netns,
        "cniResult": sandbox.cni.as_ref().and_then(|cni| serde_json::from_str::<Value>(&cni.result).ok()),
        "runtimeHandler": sandbox.handler,
        "runtimeType": runtime_type(shim, &sandbox.handler, sandbox.is_wasm()),
        "config": sandbox.config(),
    });
    info("info", said(told))
}

pub fn image(image: &Image) -> Info {
    let config =
        serde_json::from_str(&image.raw_config).unwrap_or_else(|_| Value::from(image.raw_config.clone()));
    info("info", json!({ "imageSpec": config }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_said_is_told() {
        let told =
            json!({ "a": "", "b": { "c": 0, "d": [] }, "e": [{ "f": false }, "x"], "g": 1, "h": null });
        assert_eq!(said(told), json!({ "e": [{}, "x"], "g": 1 }));
    }
}
