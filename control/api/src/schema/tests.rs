//! What the module promises beyond the written apply cases.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

mod cases;

fn ty(group: &str, kind: &str) -> Type {
    Schema::get().kind(group, "v1", kind).expect("a kind of the schema")
}

fn deployment() -> Type {
    ty("apps", "Deployment")
}

fn error(object: Value, ty: Type) -> String {
    decode(object.to_string().as_bytes(), Format::Json, ty, Validation::Strict)
        .expect_err("malformed")
        .to_string()
}

fn pod_with(container: Value) -> Value {
    json!({"spec": {"containers": [container]}})
}

mod the_schema {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_names() {
        let mut kinds = 0;
        for (gvk, ty) in Schema::get().kinds() {
            assert_eq!(Schema::get().kind(gvk.group, gvk.version, gvk.kind), Some(ty));
            assert_eq!(Schema::get().named(ty.name()), Some(ty));
            kinds += 1;
        }
        assert!(kinds > 150, "{kinds} kinds");
        assert_eq!(deployment().gvk().map(ToString::to_string).as_deref(), Some("apps/v1, Kind=Deployment"));
        assert_eq!(ty("", "Pod").gvk().map(Gvk::api_version).as_deref(), Some("v1"));
        assert!(Schema::get().kind("", "v1", "Deployment").is_none());
        assert!(deployment().has_status() && !ty("", "ConfigMap").has_status());
    }

    #[test]
    fn fields_carry_how_they_are_merged() {
        let spec = Schema::get().named("core.v1.PodSpec").expect("PodSpec");
        let containers = spec.field("containers").expect("containers");
        assert!(containers.required);
        assert_eq!(containers.list, ListType::Map(vec!["name"]));
        assert_eq!(containers.patch.merge, Some("name"));
        let volumes = spec.field("volumes").expect("volumes");
        assert!(volumes.patch.retain_keys);
        let port = Schema::get().named("core.v1.ServicePort").expect("ServicePort");
        assert_eq!(port.field("protocol").and_then(|field| field.default.clone()), Some(json!("TCP")));
        assert!(spec.field("nothing").is_none());
    }
}

mod decoding {
    use super::*;

    #[test]
    fn unknown_and_duplicate_fields_are_an_error_a_warning_or_nothing() {
        let body = br#"{"kind":"Deployment","spec":{"unknownField":1,"replicas":1,"replicas":2,
            "template":{"spec":{"containers":[{"name":"c","ports":[{"port":1}]}],"x":{}}}},"metadata":{"labels":{"a":"1","a":"2"}}}"#;
        let strict = decode(body, Format::Json, deployment(), Validation::Strict).expect_err("strict");
        let faults = [
            r#"unknown field "spec.unknownField""#,
            r#"duplicate field "spec.replicas""#,
            r#"unknown field "spec.template.spec.containers[0].ports[0].port""#,
            r#"unknown field "spec.template.spec.x""#,
            r#"duplicate field "metadata.labels.a""#,
        ];
        assert_eq!(strict.to_string(), format!("strict decoding error: {}", faults.join(", ")));
        assert!(strict.for_kind(deployment()).starts_with(
            r#"Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: unknown field"#
        ));
        let (value, warnings) = decode(body, Format::Json, deployment(), Validation::Warn).expect("warn");
        assert_eq!(warnings, faults);
        assert_eq!(value["spec"]["replicas"], 2);
        assert_eq!(value["metadata"]["labels"]["a"], "2");
        assert_eq!(value["spec"].get("unknownField"), None);
        let (ignored, warnings) =
            decode(body, Format::Json, deployment(), Validation::Ignore).expect("ignore");
        assert_eq!((ignored, warnings), (value, Vec::new()));
    }

    #[test]
    fn wrong_types_are_told_as_go_tells_them() {
        for (object, message) in [
            (
                json!({"spec": {"replicas": "3"}}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"spec": {"replicas": 1.5}}),
                "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"spec": {"replicas": 3_000_000_000_u32}}),
                "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"spec": {"paused": 1}}),
                "json: cannot unmarshal number into Go struct field DeploymentSpec.spec.paused of type bool",
            ),
            (
                json!({"spec": []}),
                "json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec",
            ),
            (
                json!({"spec": {"template": {"spec": {"containers": {}}}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
            (
                json!({"spec": {"template": {"spec": {"containers": [{"env": [{"value": 1}]}]}}}}),
                "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string",
            ),
            (
                json!({"metadata": {"labels": {"a": true}}}),
                "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (json!([]), "json: cannot unmarshal array into Go value of type v1.Deployment"),
        ] {
            assert_eq!(error(object, deployment()), message);
        }
    }

    #[test]
    fn amounts_times_and_bytes_are_checked() {
        let pod = ty("", "Pod");
        let quantity = pod_with(json!({"resources": {"limits": {"cpu": "much"}}}));
        assert!(error(quantity, pod).starts_with("quantities must match the regular expression"));
        let time = json!({"metadata": {"creationTimestamp": "today"}});
        assert!(error(time, pod).starts_with("parsing time"));
        assert_eq!(
            error(json!({"data": {"a": "%"}}), ty("", "Secret")),
            "illegal base64 data at input byte 0"
        );
        let port = pod_with(json!({"livenessProbe": {"httpGet": {"port": false}}}));
        assert!(error(port, pod).contains("cannot unmarshal bool into Go struct field"));
        let good = pod_with(json!({
            "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}},
            "livenessProbe": {"httpGet": {"port": "http"}},
        }));
        let (good, _) = decode_value(good, pod, Validation::Strict).expect("a sound pod");
        assert_eq!(
            good["spec"]["containers"][0]["resources"]["limits"],
            json!({"cpu": "500m", "memory": "1Gi"})
        );
    }

    #[test]
    fn null_is_absent() {
        let body = json!({"metadata": {"labels": null, "annotations": {"a": null}, "finalizers": [null]}, "spec": {"replicas": null}});
        let (value, _) = decode_value(body, deployment(), Validation::Strict).expect("decoded");
        assert_eq!(value, json!({"metadata": {"annotations": {"a": ""}, "finalizers": [""]}, "spec": {}}));
    }

    #[test]
    fn yaml_is_read_as_kubernetes_reads_it() {
        let body = b"spec:\n  containers:\n  - name: c\n    tty: yes\n  volumes:\n  - name: v\n    secret: {defaultMode: 0400}\nmetadata:\n  annotations: {1: one, true: two}\n";
        let (value, _) = decode(body, Format::Yaml, ty("", "Pod"), Validation::Strict).expect("decoded");
        assert_eq!(value["spec"]["containers"][0]["tty"], true);
        assert_eq!(value["spec"]["volumes"][0]["secret"]["defaultMode"], 256);
        assert_eq!(value["metadata"]["annotations"], json!({"1": "one", "true": "two"}));
        let twice = b"spec:\n  nodeName: a\n  nodeName: b\n";
        let error = decode(twice, Format::Yaml, ty("", "Pod"), Validation::Strict).expect_err("duplicate");
        assert_eq!(error.to_string(), r#"strict decoding error: duplicate field "spec.nodeName""#);
        for broken in [&b"a: [1"[..], b"a: 1\n---\nb: 2\n", b"a: *x", b"- a\nb: c", b"spec: !t {}"] {
            let outcome = decode(broken, Format::Yaml, ty("", "Pod"), Validation::Ignore);
            assert!(outcome.is_err(), "{} is {outcome:?}", String::from_utf8_lossy(broken));
        }
    }

    #[test]
    fn an_applied_configuration_names_fields_that_no_schema_has() {
        let error = decode_applied(b"spec: {unknownField: 1}", deployment()).expect_err("undeclared");
        assert_eq!(error.to_string(), ".spec.unknownField: field not declared in schema");
        let named = decode_applied(b"{metadata: {name: web, namespace: shop}, x: 1}", deployment())
            .expect_err("undeclared");
        assert_eq!(
            named.for_kind(deployment()),
            "failed to create typed patch object (shop/web; apps/v1, Kind=Deployment): .x: field not declared in schema"
        );
        let error = decode_applied(br#"{"a": 1, "b": 2}"#, deployment()).expect_err("undeclared");
        assert_eq!(
            error.to_string(),
            "errors:\n  .a: field not declared in schema\n  .b: field not declared in schema"
        );
        assert_eq!(
            decode_applied(b"{spec: {replicas: 1}}", deployment()),
            Ok(json!({"spec": {"replicas": 1}}))
        );
    }

    #[test]
    fn size_and_depth_have_limits() {
        let big = vec![b' '; MAX_BYTES + 1];
        assert_eq!(decode(&big, Format::Json, deployment(), Validation::Ignore), Err(DecodeError::TooLarge));
        let deep = format!("{{\"spec\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        for format in [Format::Json, Format::Yaml] {
            assert!(decode(deep.as_bytes(), format, deployment(), Validation::Ignore).is_err());
        }
        let bomb = "metadata:\n managedFields:\n - fieldsV1:\n    a: &a [x,x,x,x,x,x,x,x,x]\n    b: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n    c: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n    d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\n    e: &e [*d,*d,*d,*d,*d,*d,*d,*d]\n    f: &f [*e,*e,*e,*e,*e,*e,*e,*e]\n    g: &g [*f,*f,*f,*f,*f,*f,*f,*f]\n    h: [*g,*g,*g,*g,*g,*g,*g,*g]\n";
        assert!(decode(bomb.as_bytes(), Format::Yaml, deployment(), Validation::Ignore).is_err());
    }
}

mod defaults {
    use super::*;

    fn filled(mut object: Value, ty: Type) -> Value {
        default(&mut object, ty);
        let once = object.clone();
        default(&mut object, ty);
        assert_eq!(object, once, "defaulting again changes nothing");
        once
    }

    #[test]
    fn of_a_pod_are_those_of_kubernetes() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{
                "name": "c", "image": "nginx",
                "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
            }],
            "serviceAccountName": "robot",
            "volumes": [{"name": "v", "configMap": {"name": "m"}}, {"name": "e"}],
        }});
        assert_eq!(
            filled(pod, ty("", "Pod")),
            json!({"metadata": {"name": "p"}, "status": {}, "spec": {
                "containers": [{
                    "name": "c", "image": "nginx", "imagePullPolicy": "Always",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "livenessProbe": {
                        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                        "periodSeconds": 10, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3,
                    },
                    "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "serviceAccountName": "robot", "serviceAccount": "robot",
                "volumes": [{"name": "v", "configMap": {"name": "m", "defaultMode": 420}}, {"name": "e", "emptyDir": {}}],
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
                "terminationGracePeriodSeconds": 30, "securityContext": {}, "enableServiceLinks": true,
            }})
        );
    }

    #[test]
    fn of_a_pull_policy_follow_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1", "IfNotPresent"),
            ("host:5000/nginx", "Always"),
            ("host:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
            ("nginx:latest@sha256:00", "Always"),
            ("", "IfNotPresent"),
        ] {
            let pod = filled(pod_with(json!({"name": "c", "image": image})), ty("", "Pod"));
            assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], policy, "{image}");
        }
    }

    #[test]
    fn of_a_deployment_are_those_of_kubernetes() {
        let made = filled(
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i:1"}]}}}}),
            deployment(),
        );
        assert_eq!(made["spec"]["replicas"], 1);
        assert_eq!(made["spec"]["revisionHistoryLimit"], 10);
        assert_eq!(made["spec"]["progressDeadlineSeconds"], 600);
        assert_eq!(
            made["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        let template = &made["spec"]["template"]["spec"];
        assert_eq!(template["restartPolicy"], "Always");
        assert_eq!(template.get("enableServiceLinks"), None, "whole pods alone have it");
        let recreate = filled(json!({"spec": {"strategy": {"type": "Recreate"}}}), deployment());
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
    }

    #[test]
    fn of_services_secrets_and_bindings_are_those_of_kubernetes() {
        let service = filled(json!({"spec": {"ports": [{"port": 80}]}}), ty("", "Service"));
        assert_eq!(
            service["spec"],
            json!({
                "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}],
                "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            })
        );
        let secret = filled(json!({"data": {"a": "YQ=="}, "stringData": {"b": "b"}}), ty("", "Secret"));
        assert_eq!(secret, json!({"metadata": {}, "type": "Opaque", "data": {"a": "YQ==", "b": "Yg=="}}));
        let binding = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]});
        let binding = filled(binding, ty("rbac.authorization.k8s.io", "RoleBinding"));
        assert_eq!(binding["roleRef"]["apiGroup"], "rbac.authorization.k8s.io");
        assert_eq!(binding["subjects"][0]["apiGroup"], "rbac.authorization.k8s.io");
        assert_eq!(binding["subjects"][1].get("apiGroup"), None);
    }
}

mod patches {
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
        for operation in [
            json!({"op": "copy", "from": "", "path": "/a"}),
            json!({"op": "copy", "from": "/b", "path": "/b/-"}),
        ] {
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
            "spec": {"containers": [{"name": "a", "image": "2", "args": ["y"]}, {"name": "b"}, {"name": "c", "env": [{"name": "E"}]}],
            "tolerations": [{"key": "l"}]}, "metadata": {"finalizers": ["x", "y", "z"]}})
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
            strategic(live(), pod_with(json!({"name": "a", "env": patch})), pod)["spec"]["containers"][0]["env"].clone()
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

        let rolling =
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
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
}

mod managers {
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
}

mod properties {
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
}
