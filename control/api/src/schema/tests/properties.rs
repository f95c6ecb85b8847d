use super::*;

/// Objects of a few fields, so that they meet: labels, an atomic map, a list map with nested lists, a set.
fn pods() -> impl Strategy<Value = Value> {
    let labels = prop::collection::btree_map("[ab]", "[xy]", 0..3);
    let ports = prop::collection::btree_set((1..3_i32, prop::option::of("TCP|UDP")), 0..3);
    let container = (
        "[ab]",
        prop::option::of("[xy]"),
        prop::option::of(ports),
        prop::option::of(prop::collection::vec("[xy]", 0..2)),
    );
    let containers = prop::collection::vec(container, 0..3);
    let finalizers = prop::collection::btree_set("[abc]", 0..3);
    let selector = prop::option::of(prop::collection::btree_map("[ab]", "[xy]", 0..2));
    (labels, containers, finalizers, selector).prop_map(|(labels, containers, finalizers, selector)| {
        let mut names = Vec::new();
        let mut items = Vec::new();
        for (name, image, ports, args) in containers {
            if names.contains(&name) {
                continue;
            }
            names.push(name.clone());
            let mut item = json!({"name": name});
            if let Some(image) = image {
                item["image"] = image.into();
            }
            if let Some(args) = args {
                item["args"] = args.into();
            }
            if let Some(ports) = ports {
                let mut seen = Vec::new();
                let ports = ports.into_iter().filter_map(|(number, protocol)| {
                    let key = (number, protocol.clone().unwrap_or_else(|| "TCP".to_owned()));
                    if seen.contains(&key) {
                        return None;
                    }
                    seen.push(key);
                    let mut port = json!({"containerPort": number});
                    if let Some(protocol) = protocol {
                        port["protocol"] = protocol.into();
                    }
                    Some(port)
                });
                let ports: Vec<Value> = ports.collect();
                if !ports.is_empty() {
                    item["ports"] = ports.into();
                }
            }
            items.push(item);
        }
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
        // Kubernetes tracks no empty list, and drops it with what is around it.
        if !items.is_empty() {
            pod["spec"] = json!({"containers": items});
        }
        if !labels.is_empty() {
            pod["metadata"]["labels"] = json!(labels);
        }
        if !finalizers.is_empty() {
            pod["metadata"]["finalizers"] = json!(finalizers);
        }
        if let Some(selector) = selector {
            pod["spec"]["nodeSelector"] = json!(selector);
        }
        pod
    })
}

fn steps() -> impl Strategy<Value = Vec<(bool, u8, Value)>> {
    prop::collection::vec((any::<bool>(), 0..3_u8, pods()), 1..8)
}

fn name(nth: u8) -> &'static str {
    ["a", "b", "c"][usize::from(nth)]
}

fn actor(manager: u8, second: usize) -> Actor<'static> {
    let now = jiff::Timestamp::from_second(i64::try_from(second).expect("small")).expect("small");
    Actor { manager: name(manager), subresource: None, now }
}

/// Carries out some applies (by force) and updates.
fn history(steps: Vec<(bool, u8, Value)>) -> Value {
    let pod = ty("", "Pod");
    let mut live: Option<Value> = None;
    for (second, (applies, manager, object)) in steps.into_iter().enumerate() {
        let actor = actor(manager, second + 1);
        live = Some(if applies {
            apply(live.as_ref(), &object, pod, &actor, true).expect("applied by force")
        } else {
            let mut after = object;
            track_update(live.as_ref(), &mut after, pod, &actor);
            after
        });
    }
    live.expect("at least one step")
}

fn sets(object: &Value) -> Vec<FieldSet> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries.iter().map(|entry| FieldSet::from_value(&entry["fieldsV1"]).expect("sound")).collect()
}

fn soup() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9:$.é]{0,6}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("spec".to_owned()),
        Just("metadata".to_owned()),
        Just("containers".to_owned()),
        Just("name".to_owned()),
        Just("labels".to_owned()),
        Just("managedFields".to_owned()),
        Just("fieldsV1".to_owned()),
        Just("operation".to_owned()),
        Just("ports".to_owned()),
        Just("finalizers".to_owned()),
        Just("resources".to_owned()),
        Just("limits".to_owned()),
        Just("$patch".to_owned()),
        Just("$setElementOrder/containers".to_owned()),
        Just("f:x".to_owned()),
        Just("k:{\"a\":1}".to_owned()),
        "[a-z]{0,3}",
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn apply_is_idempotent(steps in steps(), config in pods(), manager in 0..3_u8) {
        let live = history(steps);
        let once = apply(Some(&live), &config, ty("", "Pod"), &actor(manager, 100), true).expect("applied");
        let twice = apply(Some(&once), &config, ty("", "Pod"), &actor(manager, 200), false).expect("no conflict with oneself");
        prop_assert_eq!(&twice, &once);
        prop_assert_eq!(sets(&once).len(), once["metadata"]["managedFields"].as_array().map_or(0, Vec::len));
    }

    #[test]
    fn what_is_applied_is_there(steps in steps(), config in pods(), manager in 0..3_u8) {
        let live = history(steps);
        let pod = ty("", "Pod");
        let result = apply(Some(&live), &config, pod, &actor(manager, 100), true).expect("applied");
        let differs = merge::compare(merge::root(pod), &config, &result);
        prop_assert!(differs.modified.is_empty(), "{}", differs.modified);
        prop_assert!(differs.removed.is_empty(), "{}", differs.removed);
    }

    #[test]
    fn a_refused_apply_would_have_taken_what_it_names(steps in steps(), config in pods(), manager in 0..3_u8) {
        let live = history(steps);
        let pod = ty("", "Pod");
        let actor = actor(manager, 100);
        if let Err(ApplyError::Conflicts(conflicts)) = apply(Some(&live), &config, pod, &actor, false) {
            prop_assert!(!conflicts.is_empty());
            let forced = apply(Some(&live), &config, pod, &actor, true).expect("forced");
            let own = forced["metadata"]["managedFields"].as_array().expect("entries").iter()
                .find(|entry| entry["manager"] == actor.manager && entry["operation"] == "Apply").expect("its own entry").clone();
            let paths = FieldSet::from_value(&own["fieldsV1"]).expect("sound").paths();
            for conflict in conflicts {
                prop_assert!(paths.contains(&conflict.field), "{} is not in {paths:?}", conflict.field);
            }
        }
    }

    #[test]
    fn sets_survive_their_json_form(steps in steps()) {
        for set in sets(&history(steps)) {
            prop_assert_eq!(&FieldSet::from_value(&set.to_value()).expect("sound"), &set);
            let text: Value = serde_json::from_str(&set.to_string()).expect("JSON");
            prop_assert_eq!(&FieldSet::from_value(&text).expect("sound"), &set);
            let mut none = set.clone();
            none.subtract(&set);
            prop_assert!(none.is_empty());
            prop_assert_eq!(&set.union(&set), &set);
            prop_assert_eq!(&set.intersection(&set), &set);
        }
    }

    #[test]
    fn nothing_makes_it_panic(value in soup(), other in soup()) {
        let pod = ty("", "Pod");
        let actor = actor(0, 1);
        let text = value.to_string();
        for format in [Format::Json, Format::Yaml] {
            for validation in [Validation::Strict, Validation::Warn] {
                if let Ok((decoded, _)) = decode(text.as_bytes(), format, pod, validation) {
                    let again = decode_value(decoded.clone(), pod, Validation::Strict).expect("what was decoded is sound");
                    prop_assert_eq!(again.0, decoded);
                }
            }
        }
        let _ = decode_applied(text.as_bytes(), pod);
        let mut filled = value.clone();
        default(&mut filled, pod);
        let _ = apply(Some(&value), &other, pod, &actor, true);
        let mut after = value.clone();
        track_update(Some(&other), &mut after, pod, &actor);
        let mut patched = value.clone();
        let _ = patch::strategic_merge(&mut patched, other.clone(), pod);
        patch::merge_patch(&mut patched, &other);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[{}\\[\\]:,\"a-z0-9 \n&*!|>#%-]{0,64}") {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            for format in [Format::Json, Format::Yaml] {
                let _ = decode(bytes, format, ty("", "Pod"), Validation::Strict);
            }
            let _ = patch::json_patch(&mut json!({"a": [1]}), bytes);
        }
    }
}
