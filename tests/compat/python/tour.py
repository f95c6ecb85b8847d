"""A tour with the Python client: `tour.py NAMESPACE IMAGE`, with KUBECONFIG set.

Prints one line a step. The first step that is not as it should be ends it with a traceback.
"""

import sys
import time

from kubernetes import client, config, dynamic, watch
from kubernetes.stream import stream, portforward

PATIENCE = 60  # seconds


def tell(step):
    print("ok", step, flush=True)


def refused(code, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except client.ApiException as error:
        assert error.status == code, f"{error.status} instead of {code}: {error.body}"
    else:
        raise AssertionError(f"{call.__name__} was to be refused with {code}")


def config_maps(core, namespace):
    made = core.create_namespaced_config_map(namespace, {"metadata": {"name": "py", "labels": {"by": "python"}}, "data": {"a": "1"}})
    assert made.metadata.uid and made.metadata.creation_timestamp
    refused(409, core.create_namespaced_config_map, namespace, {"metadata": {"name": "py"}})
    made.data["a"] = "2"
    assert core.replace_namespaced_config_map("py", namespace, made).data == {"a": "2"}
    refused(409, core.replace_namespaced_config_map, "py", namespace, made)
    assert core.patch_namespaced_config_map("py", namespace, {"data": {"b": "3"}}).data == {"a": "2", "b": "3"}
    operations = [{"op": "remove", "path": "/data/a"}]
    assert core.patch_namespaced_config_map("py", namespace, operations).data == {"b": "3"}
    listed = core.list_namespaced_config_map(namespace, label_selector="by=python").items
    assert [item.metadata.name for item in listed] == ["py"]
    page = core.list_namespaced_config_map(namespace, limit=1)
    rest = core.list_namespaced_config_map(namespace, limit=100, _continue=page.metadata._continue)
    assert page.items[0].metadata.name not in [item.metadata.name for item in rest.items]
    core.delete_namespaced_config_map("py", namespace)
    refused(404, core.read_namespaced_config_map, "py", namespace)
    tell("create, replace, patch, list, page and delete ConfigMaps")


def deployment(apps, core, namespace, image):
    labels = {"app": "py"}
    apps.create_namespaced_deployment(
        namespace,
        client.V1Deployment(
            metadata=client.V1ObjectMeta(name="py"),
            spec=client.V1DeploymentSpec(
                selector=client.V1LabelSelector(match_labels=labels),
                template=client.V1PodTemplateSpec(
                    metadata=client.V1ObjectMeta(labels=labels),
                    spec=client.V1PodSpec(
                        containers=[
                            client.V1Container(
                                name="main",
                                image=image,
                                ports=[client.V1ContainerPort(container_port=8080)],
                                readiness_probe=client.V1Probe(
                                    http_get=client.V1HTTPGetAction(path="/", port=8080), period_seconds=1
                                ),
                            )
                        ]
                    ),
                ),
            ),
        ),
    )
    for event in watch.Watch().stream(
        apps.list_namespaced_deployment, namespace, field_selector="metadata.name=py", timeout_seconds=PATIENCE
    ):
        if event["object"].status.available_replicas == 1:
            break
    else:
        raise AssertionError("the Deployment did not become available")
    tell("create a Deployment and watch it become available")

    scale = apps.read_namespaced_deployment_scale("py", namespace)
    scale.spec.replicas = 2
    assert apps.replace_namespaced_deployment_scale("py", namespace, scale).spec.replicas == 2
    end = time.monotonic() + PATIENCE
    version = None
    while True:
        pods = core.list_namespaced_pod(namespace, label_selector="app=py")
        ready = [p for p in pods.items if any(c.type == "Ready" and c.status == "True" for c in p.status.conditions or [])]
        if len(ready) == 2:
            break
        assert time.monotonic() < end, "two pods did not become ready"
        version = pods.metadata.resource_version
        # Waits for the next change rather than asking again.
        for _ in watch.Watch().stream(
            core.list_namespaced_pod, namespace, label_selector="app=py", resource_version=version, timeout_seconds=5
        ):
            break
    tell("scale it by its subresource")
    return ready[0].metadata.name


def pod(core, namespace, name):
    core.read_namespaced_pod_log(name, namespace)
    tell("read a pod's log")
    socket = portforward(core.connect_get_namespaced_pod_portforward, name, namespace, ports="8080").socket(8080)
    socket.settimeout(PATIENCE)
    socket.sendall(b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n")
    answer = b""
    while chunk := socket.recv(4096):
        answer += chunk
    assert answer.startswith(b"HTTP/1.1 200"), answer
    tell("forward a port to a pod")


def apply(namespace):
    maps = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"a": "1"}}
    maps.server_side_apply(body=body, name="applied", namespace=namespace, field_manager="python")
    body["data"] = {"b": "2"}
    assert dict(maps.server_side_apply(body=body, name="applied", namespace=namespace, field_manager="python").data) == {"b": "2"}
    body["data"] = {"b": "3"}
    try:
        maps.server_side_apply(body=body, name="applied", namespace=namespace, field_manager="another")
    except dynamic.exceptions.ConflictError as error:
        assert "python" in str(error.body)
    else:
        raise AssertionError("another manager's field was taken")
    tell("discover, apply and conflict with the dynamic client")


def access(namespace):
    review = client.V1SelfSubjectAccessReview(
        spec=client.V1SelfSubjectAccessReviewSpec(
            resource_attributes=client.V1ResourceAttributes(namespace=namespace, verb="delete", resource="pods")
        )
    )
    assert client.AuthorizationV1Api().create_self_subject_access_review(review).status.allowed
    core = client.CoreV1Api()
    request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    token = core.create_namespaced_service_account_token("default", namespace, request).status.token
    with_token = client.Configuration.get_default_copy()
    with_token.cert_file = with_token.key_file = None
    with_token.api_key = {"authorization": token}
    with_token.api_key_prefix = {"authorization": "Bearer"}
    account = client.ApiClient(with_token)
    who = client.AuthenticationV1Api(account).create_self_subject_review({}).status.user_info
    assert who.username == f"system:serviceaccount:{namespace}:default", who
    refused(403, client.CoreV1Api(account).list_namespaced_pod, namespace)
    tell("ask for access, get a token and be another by it")


def main():
    namespace, image = sys.argv[1:]
    config.load_kube_config()
    core, apps = client.CoreV1Api(), client.AppsV1Api()
    assert client.VersionApi().get_code().major == "1"
    config_maps(core, namespace)
    apply(namespace)
    access(namespace)
    name = deployment(apps, core, namespace, image)
    pod(core, namespace, name)
    apps.delete_namespaced_deployment("py", namespace, propagation_policy="Foreground")
    tell("delete it")


main()
