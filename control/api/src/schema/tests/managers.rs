use super::*;

fn at(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(second).expect("a small number")
}

#[test]
fn beyond_ten_updaters_the_oldest_are_folded() {
    let map = ty("", "ConfigMap");
    let mut live = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {}});
    for nth in 0..14_i64 {
        let before = (nth > 0).then(|| live.clone());
        live["data"][format!("k{nth}")] = "v".into();
        let manager = format!("m{nth:02}");
        track_update(
            before.as_ref(),
            &mut live,
            map,
            &Actor { manager: &manager, subresource: None, now: at(nth + 1) },
        );
    }
    let entries = live["metadata"]["managedFields"].as_array().expect("entries").clone();
    assert_eq!(entries.len(), 10);
    assert_eq!(entries[0]["manager"], "ancient-changes");
    assert_eq!(
        entries[0]["fieldsV1"],
        json!({"f:data": {".": {}, "f:k0": {}, "f:k1": {}, "f:k2": {}, "f:k3": {}, "f:k4": {}}})
    );
    assert_eq!(entries[1]["manager"], "m05");
}

#[test]
fn conflict_messages_are_those_of_kubernetes() {
    let conflict =
        |manager: &str, field: &str| Conflict { manager: manager.to_owned(), field: field.to_owned() };
    let one = ApplyError::Conflicts(vec![conflict("\"kubectl\" using apps/v1", ".spec.replicas")]);
    assert_eq!(
        one.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas"
    );
    let more = ApplyError::Conflicts(vec![
        conflict("\"b\"", ".x"),
        conflict("\"a\"", ".y"),
        conflict("\"b\"", ".z"),
    ]);
    assert_eq!(
        more.to_string(),
        "Apply failed with 3 conflicts: conflicts with \"a\":\n- .y\nconflicts with \"b\":\n- .x\n- .z"
    );
}

/// Run with `--nocapture` for the figures.
#[test]
fn an_apply_of_a_deployment_takes_well_under_a_millisecond() {
    let config = web(3, "i:1");
    let actor = Actor { manager: "a", subresource: None, now: at(1) };
    let mut live = apply(None, &config, deployment(), &actor, false).expect("applied");
    default(&mut live, deployment());
    let changed = web(4, "i:2");
    let body = live.to_string();
    let mut best = [std::time::Duration::MAX; 4];
    for _ in 0..200 {
        let mut steps: [&mut dyn FnMut(); 4] = [
            &mut || drop(decode(body.as_bytes(), Format::Json, deployment(), Validation::Strict)),
            &mut || drop(apply(Some(&live), &changed, deployment(), &actor, false)),
            &mut || drop(apply(Some(&live), &config, deployment(), &actor, false)),
            &mut || {
                let mut after = live.clone();
                after["spec"]["replicas"] = 9.into();
                track_update(Some(&live), &mut after, deployment(), &Actor { manager: "b", ..actor });
            },
        ];
        for (best, step) in best.iter_mut().zip(&mut steps) {
            let start = std::time::Instant::now();
            step();
            *best = start.elapsed().min(*best);
        }
    }
    println!(
        "decode {:?}, apply {:?}, apply without effect {:?}, track {:?}",
        best[0], best[1], best[2], best[3]
    );
    assert!(best.iter().all(|time| time.as_micros() < 1000), "{best:?}");
}

fn web(replicas: i32, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{
            "name": "web", "image": image, "ports": [{"containerPort": 80, "name": "http"}],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
            "readinessProbe": {"httpGet": {"port": 80, "path": "/ready"}},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/config"}],
        }], "volumes": [{"name": "config", "configMap": {"name": "m"}}]}},
    }})
}
