//! What people do with `crictl` on a node of ours, day by day.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use wharf_tests::{CriServer, LocalRegistry, isolate};

use crate::guide::{Guide, Sums};
use crate::row::{Row, run};
use crate::skips::Skips;

/// Takes a crictl on a tour of a shim alone.
pub fn take(crictl: &Path) -> anyhow::Result<ExitCode> {
    isolate()?;
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let registry = runtime.block_on(LocalRegistry::of_both_sorts(&dir.path().join("registry")))?;
    let shim = CriServer::shim(dir.path(), &registry.url, "10.88.0.0/16")?;
    for (name, content) in files(dir.path()) {
        fs::write(dir.path().join(name), content.to_string())?;
    }
    let config = dir.path().join("crictl.yaml");
    fs::write(&config, format!("runtime-endpoint: unix://{}\n", shim.socket.display()))?;
    let guide = Guide {
        name: "crictl",
        program: crictl.to_owned(),
        dir: dir.path().to_owned(),
        environment: ("CRI_CONFIG_FILE", config),
    };
    let (mut sums, began) = (Sums::default(), Instant::now());
    guide.rows(&[], rows(), &Skips::none(), &mut sums)?;
    let code = sums.tell(guide.name, began);
    drop(shim);
    Ok(code)
}

fn files(dir: &Path) -> [(&'static str, serde_json::Value); 4] {
    let pod = |name: &str| {
        json!({"metadata": {"name": name, "namespace": "default", "uid": name, "attempt": 1},
            "hostname": name, "log_directory": dir.join(format!("logs-{name}")), "linux": {},
            "labels": {"app": name}})
    };
    // crictl has a container's pod from them, as kubelets set them.
    let labels = |pod: &str| json!({"io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": "default"});
    let script = "echo hello; echo to nobody >&2; echo served > index.html; exec busybox httpd -f -p 8080";
    [
        ("pod.json", pod("one")),
        (
            "container.json",
            json!({"metadata": {"name": "main"}, "labels": labels("one"), "image": {"image": "tests.test/shell"}, "log_path": "main.log",
                "command": ["sh", "-c", script], "linux": {"resources": {"memory_limit_in_bytes": 64 << 20}}}),
        ),
        ("wasm-pod.json", pod("light")),
        (
            "wasm-container.json",
            json!({"metadata": {"name": "service"}, "labels": labels("light"), "image": {"image": "tests.test/guest"}, "log_path": "main.log",
                "linux": {}}),
        ),
    ]
}

fn rows() -> Vec<Row> {
    vec![
        run("version").says(&["RuntimeName: wharf", "RuntimeApiVersion: v1"]),
        run("info").says(&[
            "\"type\": \"RuntimeReady\"",
            "\"type\": \"NetworkReady\"",
            "\"podRange\": \"10.88.0.0/16\"",
        ]),
        run("runtime-config").says(&["cgroup driver: CGROUPFS"]),
        // Images.
        run("pull tests.test/shell").says(&["Image is up to date for sha256:"]),
        run("pull tests.test/nothing").fails().says(&["tests.test/nothing"]),
        run("images").says(&["IMAGE TAG IMAGE ID SIZE", "tests.test/shell latest"]),
        run("inspecti tests.test/shell").says(&[
            "\"tests.test/shell:latest\"",
            "\"imageSpec\": {",
            "\"diff_ids\": [",
        ]),
        run("imagefsinfo").says(&["\"imageFilesystems\": [", "\"usedBytes\": {"]),
        // A pod's life.
        run("runp pod.json").kept_as("pod"),
        run("runp --runtime kata pod.json").fails().says(&["no runtime handler"]),
        run("pods").says(&["POD ID CREATED STATE NAME NAMESPACE ATTEMPT RUNTIME", "Ready one default 1"]),
        run("pods --label app=other").hides(&["one"]),
        run("inspectp {pod}").says(&[
            "\"state\": \"SANDBOX_READY\"",
            "\"ip\": \"10.88.",
            "\"runtimeType\": \"libcontainer\"",
        ]),
        run("create {pod} container.json pod.json").kept_as("main"),
        run("ps -a").says(&["Created main 0"]),
        run("start {main}"),
        run("ps").says(&[
            "CONTAINER IMAGE CREATED STATE NAME ATTEMPT POD ID POD NAMESPACE",
            "Running main 0 * one default",
        ]),
        run("ps --name mai --state Running").says(&["Running main 0"]),
        // Its output, and into it.
        run("logs {main}").at_last().says(&["hello", "to nobody"]),
        run("logs --tail 1 -f {main}").goes_on().says(&["to nobody"]),
        run("exec {main} sh -c 'echo streamed'").says(&["streamed"]),
        run("exec -s {main} sh -c 'echo at once'").says(&["at once"]),
        run("exec {main} sh -c 'exit 3'").fails().says(&["exit code 3"]),
        run("exec -i {main} sh -c 'read word; echo got $word'").reads("it\n").says(&["got it"]),
        run("exec --transport websocket {main} sh -c 'echo by websocket'").says(&["by websocket"]),
        run("port-forward {pod} 28080:8080").answers("/", "served"),
        run("port-forward --transport websocket {pod} 28081:8080").answers("/", "served"),
        // What it uses.
        run("stats").at_last().says(&["CONTAINER NAME CPU % MEM DISK INODES SWAP", "main 0.0"]),
        run("stats -o json {main}").says(&[
            "\"workingSetBytes\": {",
            "\"usageCoreNanoSeconds\": {",
            "\"writableLayer\": {",
        ]),
        run("statsp").says(&["POD POD ID CPU % MEM", "one"]),
        run("statsp -o json").says(&["\"defaultInterface\": {", "\"processCount\": {"]),
        run("metricdescs").says(&["\"name\": \"container_cpu_usage_seconds_total\""]),
        run("metricsp").says(&["\"name\": \"container_memory_working_set_bytes\""]),
        run("inspect {main}").says(&[
            "\"state\": \"CONTAINER_RUNNING\"",
            "\"runtimeSpec\": {",
            "\"memoryLimitInBytes\": \"67108864\"",
        ]),
        run("update --memory 33554432 --cpu-share 512 {main}"),
        run("inspect {main}").says(&["\"memoryLimitInBytes\": \"33554432\"", "\"cpuShares\": \"512\""]),
        run("checkpoint --export={dir}/checkpoint {main}").fails().says(&["CRIU"]),
        // Its end.
        run("stop -t 5 {main}"),
        run("ps -a").says(&["Exited main 0"]),
        run("exec {main} true").fails().says(&["not running"]),
        run("rm {main}"),
        run("stopp {pod}").says(&["Stopped sandbox"]),
        run("pods").says(&["NotReady one default 1"]),
        run("rmp {pod}").says(&["Removed sandbox"]),
        run("run container.json pod.json").kept_as("main"),
        run("rmp -f -a").says(&["Removed sandbox"]),
        run("ps -a").hides(&["main"]),
        run("rmi tests.test/shell").says(&["Deleted: tests.test/shell:latest"]),
        run("images").hides(&["shell"]),
        // Wasm.
        run("pull tests.test/guest").says(&["Image is up to date for sha256:"]),
        run("runp --runtime wasm wasm-pod.json").kept_as("pod"),
        run("create {pod} wasm-container.json wasm-pod.json").kept_as("service"),
        run("start {service}"),
        run("ps").says(&["Running service 0 * light default"]),
        run("pods").says(&["Ready light default 1 wasm"]),
        run("port-forward {pod} 28082:8080").answers("/", "hello"),
        run("stats -o json {service}").says(&["\"workingSetBytes\": {"]),
        run("inspect {service}").says(&["\"runtimeType\": \"wasmtime\""]),
        run("rmp -f {pod}").says(&["Removed sandbox"]),
        run("rmi --prune").says(&["Deleted: tests.test/guest:latest"]),
    ]
}
