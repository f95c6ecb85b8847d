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
