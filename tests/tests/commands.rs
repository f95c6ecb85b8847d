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
