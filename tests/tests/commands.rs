//! The commands of `wctl` for people: what would change, what there is, what happened, and until when.

use serde_json::json;
use wharf_tests::{Space, manifest};

const CONFIG: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: words}, data: {word: VALUE}}";

#[test]
fn a_diff_tells_what_an_apply_would_change_and_changes_nothing() {
    let space = Space::new("diff");
    let (old, new) = (CONFIG.replace("VALUE", "old"), CONFIG.replace("VALUE", "new"));
    let said = space.wctl_reading(&["diff", "-f", "-"], &old);
    assert_eq!(said.code, Some(1), "{said}");
    assert!(said.stdout.contains("+  word: old"), "{said}");
    space.wctl_reading(&["apply", "-f", "-"], &old).ok();
    assert_eq!(space.wctl_reading(&["diff", "-f", "-"], &old).ok(), "");
    let said = space.wctl_reading(&["diff", "-f", "-"], &new);
    assert_eq!(said.code, Some(1), "{said}");
    assert!(said.stdout.contains("-  word: old\n+  word: new\n"), "{said}");
    assert_eq!(space.get(&["configmap/words"])["data"]["word"], "old");
    let said =
        space.wctl_reading(&["diff", "-f", "-"], "{apiVersion: v1, kind: Nothing, metadata: {name: a}}");
    assert_eq!(said.code, Some(2), "{said}");
}

#[test]
fn an_edit_is_written_and_a_refused_one_is_kept() {
    let space = Space::new("edit");
    space.wctl_reading(&["apply", "-f", "-"], &CONFIG.replace("VALUE", "old")).ok();
    let edit = |editor: &str| {
        let mut command = space.cluster.command();
        command.args(["-n", space.name, "edit", "configmap/words"]).env("KUBE_EDITOR", editor);
        let output = command.output().expect("wctl runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(edit("true"), (Some(0), "configmap/words unchanged\n".to_owned(), String::new()));
    let edited = edit("sed -i 's/word: old/word: new/'");
    assert_eq!(edited, (Some(0), "configmap/words edited\n".to_owned(), String::new()));
    assert_eq!(space.get(&["configmap/words"])["data"]["word"], "new");

    // The second time the editor sees the refusal and changes nothing.
    let (code, _, stderr) = edit("sed -i 's/^data:/dada:/'");
    assert_eq!(code, Some(1), "{stderr}");
    let kept = stderr.trim().rsplit(' ').next().expect("a path");
    let text = std::fs::read_to_string(kept).unwrap_or_else(|error| panic!("{kept:?}: {error}: {stderr}"));
    std::fs::remove_file(kept).expect("it is there");
    assert!(text.contains("# This was refused:") && text.contains("unknown field \"dada\""), "{text}");
    assert_eq!(space.get(&["configmap/words"])["data"]["word"], "new");
}

#[test]
fn an_object_is_told_with_what_happened_to_it() {
    let space = Space::new("describe");
    let mut pod = manifest::pod("broken", "no-such-image:1", &[]);
    pod["spec"]["containers"][0]["env"] = json!([{"name": "WORD", "value": "said"}]);
    space.apply(&[pod], false);
    let said = space.wctl(&["wait", "pod/broken", "--for", "condition=Ready", "--timeout", "1s"]);
    said.fails_with(&["pod/broken was not as asked within 1 s"]);
    let waiting = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    space.wctl(&["wait", "pod/broken", "--for", waiting, "--timeout", "30s"]).ok();

    wharf_tests::eventually("an event tells that the image is not there", || {
        let events = space.wctl(&["events", "--for", "pod/broken", "--types", "Warning"]).ok();
        if events.contains("pod/broken") && events.contains("no-such-image") { Ok(()) } else { Err(events) }
    });
    let page = space.wctl(&["describe", "pod/broken"]).ok();
    for part in
        ["Namespace:", "registry.wharf/no-such-image:1", "WORD: said", "Conditions:", "Events:", "Warning"]
    {
        assert!(page.contains(part), "{part:?} is not in\n{page}");
    }
    let page = space.wctl(&["describe", "node", "node-1"]).ok();
    for part in ["Allocatable:", "Ready", "broken", "System Info:"] {
        assert!(page.contains(part), "{part:?} is not in\n{page}");
    }
    space
        .wctl_reading(
            &["apply", "-f", "-"],
            "{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {k: hush}}",
        )
        .ok();
    let page = space.wctl(&["describe", "secret/s"]).ok();
    assert!(page.contains("4 bytes") && !page.contains("hush") && !page.contains("aHVzaA"), "{page}");

    space.wctl(&["delete", "pod/broken", "--no-wait"]).ok();
    space.wctl(&["wait", "pod/broken", "--for", "delete", "--timeout", "30s"]).ok();
    space.wctl(&["wait", "pod/broken", "--for", "condition=Ready"]).fails_with(&["not found"]);
}

#[tokio::test]
async fn what_burns_the_processor_is_seen_at_the_top_whichever_way_it_runs() {
    let space = Space::new("top");
    let limited = |mut pod: serde_json::Value| {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
        pod["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "200m", "memory": "64Mi"}});
        pod
    };
    let mut container = limited(manifest::pod("container", "busybox:1", &["-c", "while :; do :; done"]));
    let idle = json!({"name": "idle", "image": "registry.wharf/busybox:1", "args": ["-c", "sleep 9999"]});
    container["spec"]["containers"].as_array_mut().expect("a list").push(idle);
    let component = limited(manifest::pod("component", "guest-command:1", &["loop"]));
    space.apply(&[container, component], false);
    for pod in ["pod/container", "pod/component"] {
        space.wctl(&["wait", pod, "--for", "condition=Ready", "--timeout", "60s"]).ok();
    }

    // A quota of a fifth: much more is a fault, and less than a tenth comes of a machine that is busy.
    let rows = wharf_tests::eventually("what both use is told", || {
        let said = space.wctl(&["top", "pods", "--containers", "--no-headers", "--sort-by", "cpu"]);
        let rows: Vec<Vec<String>> =
            said.stdout.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
        let millis = |row: &[String]| row.get(2).and_then(|cell| cell.strip_suffix('m')?.parse::<u32>().ok());
        let burns = |row: &&Vec<String>| millis(row).is_some_and(|millis| (100..300).contains(&millis));
        if rows.len() == 3 && rows.iter().filter(burns).count() == 2 {
            Ok(rows)
        } else {
            Err(said.to_string())
        }
    });
    let names: Vec<String> = rows.iter().map(|row| format!("{}/{}", row[0], row[1])).collect();
    assert_eq!(names[2], "container/idle", "it sleeps: {rows:?}");
    let memory = |row: &[String]| row[3].strip_suffix("Mi").and_then(|number| number.parse::<u32>().ok());
    assert!(rows.iter().all(|row| memory(row).is_some_and(|memory| memory < 64)), "{rows:?}");

    let table = space.wctl(&["top", "pods", "-A", "-l", "app=container"]).ok();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAMESPACE", "NAME", "CPU(cores)", "MEMORY(bytes)"], "{table}");
    assert_eq!((lines.len(), lines[1][..2].to_vec()), (2, vec!["top", "container"]), "{table}");
    let table = space.wctl(&["top", "nodes"]).ok();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"], "{table}");
    assert!(lines[1][0] == "node-1" && lines[1][2].ends_with('%'), "{table}");
    space.wctl(&["top", "pods", "nothing"]).fails_with(&["pods.metrics.k8s.io \"nothing\" not found"]);

    // The node tells more by its proxy: the container's link and layer, which a component has none of.
    let client = space.cluster.client().await;
    let ask = async |path: &str| {
        let request = http::Request::get(format!("/api/v1/nodes/node-1/proxy{path}")).body(Vec::new());
        client.request_text(request.expect("a request")).await.expect("an answer")
    };
    let text = ask("/stats/summary").await;
    let summary: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let pod = |name: &str| {
        let pods = summary["pods"].as_array().expect("a list");
        let found =
            pods.iter().find(|pod| pod["podRef"]["name"] == name && pod["podRef"]["namespace"] == "top");
        found.unwrap_or_else(|| panic!("{name} is missing in {text}"))
    };
    let (container, component) = (pod("container"), pod("component"));
    assert!(container["network"]["rxBytes"].is_u64() && component["network"].is_null(), "{text}");
    assert_eq!(container["process_stats"]["process_count"], 2, "{container}");
    for (pod, has_layer) in [(container, true), (component, false)] {
        let containers = pod["containers"].as_array().expect("a list");
        let main = containers.iter().find(|one| one["name"] == "main").expect("it is there");
        assert_eq!(main["rootfs"]["usedBytes"].is_u64(), has_layer, "{main}");
        assert!(main["memory"]["availableBytes"].as_u64().is_some_and(|left| left < 64 << 20), "{main}");
    }
    let metrics = ask("/metrics/resource").await;
    for (name, container) in [("container", "main"), ("container", "idle"), ("component", "main")] {
        let labels = format!("{{container=\"{container}\",namespace=\"top\",pod=\"{name}\"}} ");
        for metric in ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes"] {
            assert!(
                metrics.contains(&format!("\n{metric}{labels}")),
                "{metric}{labels}is missing in {metrics}"
            );
        }
    }
}
