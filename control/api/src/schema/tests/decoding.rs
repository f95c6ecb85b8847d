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
    let (ignored, warnings) = decode(body, Format::Json, deployment(), Validation::Ignore).expect("ignore");
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
    assert_eq!(error(json!({"data": {"a": "%"}}), ty("", "Secret")), "illegal base64 data at input byte 0");
    let port = pod_with(json!({"livenessProbe": {"httpGet": {"port": false}}}));
    assert!(error(port, pod).contains("cannot unmarshal bool into Go struct field"));
    let good = pod_with(json!({
        "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}},
        "livenessProbe": {"httpGet": {"port": "http"}},
    }));
    let (good, _) = decode_value(good, pod, Validation::Strict).expect("a sound pod");
    assert_eq!(good["spec"]["containers"][0]["resources"]["limits"], json!({"cpu": "500m", "memory": "1Gi"}));
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
    assert_eq!(decode_applied(b"{spec: {replicas: 1}}", deployment()), Ok(json!({"spec": {"replicas": 1}})));
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
