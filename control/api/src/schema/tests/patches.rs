use super::*;

fn strategic(object: Value, patch: Value, kind: Type) -> Value {
    let mut object = object;
    patch::strategic_merge(&mut object, patch, kind).expect("a sound patch");
    object
}

#[test]
fn json_patches_say_what_is_wrong() {
    let mut object = json!({"spec": {"replicas": 1}});
    let patch = br#"[{"op":"test","path":"/spec/replicas","value":1},{"op":"replace","path":"/spec/replicas","value":2}]"#;
    patch::json_patch(&mut object, patch).expect("patched");
    assert_eq!(object, json!({"spec": {"replicas": 2}}));
    assert!(matches!(patch::json_patch(&mut object, patch), Err(patch::Error::Rejected(_))));
    let missing = br#"[{"op":"remove","path":"/metadata/labels"}]"#;
    assert!(matches!(patch::json_patch(&mut object, missing), Err(patch::Error::Rejected(_))));
    assert!(matches!(patch::json_patch(&mut object, b"{}"), Err(patch::Error::Malformed(_))));
}

#[test]
fn json_patches_cannot_grow_without_end() {
    for operation in
        [json!({"op": "copy", "from": "", "path": "/a"}), json!({"op": "copy", "from": "/b", "path": "/b/-"})]
    {
        let mut object = json!({"b": ["x".repeat(1000)]});
        let patch = Value::Array(vec![operation; 5000]).to_string();
        let error = patch::json_patch(&mut object, patch.as_bytes()).expect_err("refused");
        assert!(matches!(error, patch::Error::TooLarge(_)), "{error}");
    }
    let many = Value::Array(vec![json!({"op": "test", "path": "", "value": 1}); 10_001]).to_string();
    assert!(matches!(patch::json_patch(&mut json!(1), many.as_bytes()), Err(patch::Error::TooLarge(_))));
}

#[test]
fn strategic_patches_merge_lists_by_key() {
    let pod = json!({"spec": {"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}],
        "tolerations": [{"key": "k"}]}, "metadata": {"finalizers": ["x", "y"]}});
    let patch = json!({"spec": {"containers": [{"name": "a", "image": "2", "args": ["y"]}, {"name": "c", "env": [{"name": "E", "value": null}]}],
        "tolerations": [{"key": "l"}]}, "metadata": {"finalizers": ["z", "x"]}});
    assert_eq!(
        strategic(pod, patch, ty("", "Pod")),
        json!({
        "spec": {"containers": [{"name": "a", "image": "2", "args": ["y"]}, {"name": "c", "env": [{"name": "E"}]}, {"name": "b"}],
        "tolerations": [{"key": "l"}]}, "metadata": {"finalizers": ["z", "x", "y"]}})
    );
}

#[test]
fn strategic_patches_obey_their_directives() {
    let pod = ty("", "Pod");
    let live = || {
        pod_with(
            json!({"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}, {"name": "Z", "value": "3"}]}),
        )
    };
    let env = |patch: Value| {
        strategic(live(), pod_with(json!({"name": "a", "env": patch})), pod)["spec"]["containers"][0]["env"]
            .clone()
    };
    assert_eq!(
        env(json!([{"name": "Y", "$patch": "delete"}])),
        json!([{"name": "X", "value": "1"}, {"name": "Z", "value": "3"}])
    );
    assert_eq!(env(json!([{"$patch": "replace"}, {"name": "N"}])), json!([{"name": "N"}]));
    let ordered = pod_with(
        json!({"name": "a", "env": [{"name": "W"}], "$setElementOrder/env": [{"name": "Z"}, {"name": "W"}, {"name": "X"}]}),
    );
    let ordered = strategic(live(), ordered, pod);
    let names: Vec<&Value> = ordered["spec"]["containers"][0]["env"]
        .as_array()
        .expect("env")
        .iter()
        .map(|item| &item["name"])
        .collect();
    assert_eq!(names, ["Y", "Z", "W", "X"]);
    let finalizers = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    let less = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"]}});
    assert_eq!(strategic(finalizers, less, pod), json!({"metadata": {"finalizers": ["a", "c"]}}));

    let rolling = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let recreate = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        strategic(rolling, recreate, deployment()),
        json!({"spec": {"strategy": {"type": "Recreate"}}})
    );
    let labels = json!({"metadata": {"labels": {"a": "1"}}});
    let replaced = json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}}});
    assert_eq!(strategic(labels, replaced, pod), json!({"metadata": {"labels": {"b": "2"}}}));
    let keyless = pod_with(json!({"image": "i"}));
    assert!(patch::strategic_merge(&mut live(), keyless, pod).is_err());
}
