//! apply in all its ways: by the client, by the server, pruning, and what it refuses.

use crate::row::{Row, run};

const MAP: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: map}, data: {a: '1', b: '2'}}";
const CHANGED: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: map}, data: {a: '3', c: '4'}}";
const SERVED: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: served}, data: {a: '1', b: '2'}}";
const SERVED_CHANGED: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: served}, data: {a: '3'}}";

const WORK: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: work}
spec:
  replicas: 0
  selector: {matchLabels: {app: work}}
  template:
    metadata: {labels: {app: work}}
    spec:
      containers:
        - {name: one, image: registry.wharf/clock:1, env: [{name: A, value: '1'}, {name: B, value: '2'}]}
        - {name: two, image: registry.wharf/greeter:1}
";
/// `two` is gone, `three` is new, `one` lost A and has another B.
const WORK_CHANGED: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: work}
spec:
  selector: {matchLabels: {app: work}}
  template:
    metadata: {labels: {app: work}}
    spec:
      containers:
        - {name: one, image: registry.wharf/clock:1, env: [{name: B, value: '3'}]}
        - {name: three, image: registry.wharf/greeter:1}
";
const WORK_OTHER_SELECTOR: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: work}
spec:
  selector: {matchLabels: {app: other}}
  template:
    metadata: {labels: {app: other}}
    spec: {containers: [{name: one, image: registry.wharf/clock:1}]}
";
const UNKNOWN: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: odd}, dat: {a: '1'}}";
const WRONG: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: wrong}
spec:
  replicas: many
  selector: {matchLabels: {app: wrong}}
  template: {metadata: {labels: {app: wrong}}, spec: {containers: [{name: one, image: x}]}}
";
const MISMATCH: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: wrong}
spec:
  selector: {matchLabels: {app: wrong}}
  template: {metadata: {labels: {app: right}}, spec: {containers: [{name: one, image: x}]}}
";
const TWO: &str = "
{apiVersion: v1, kind: ConfigMap, metadata: {name: first, labels: {set: tour}}, data: {a: '1'}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: second, labels: {set: tour}}, data: {a: '1'}}
";
const ONE: &str =
    "{apiVersion: v1, kind: ConfigMap, metadata: {name: first, labels: {set: tour}}, data: {a: '1'}}";

pub fn rows() -> Vec<Row> {
    vec![
        // By the client.
        run("apply -f - --dry-run=client").reads(MAP).says(&["configmap/map created (dry run)"]),
        run("apply -f - --dry-run=server").reads(MAP).says(&["configmap/map created (server dry run)"]),
        run("get configmap map").fails().says(&["Error from server (NotFound): configmaps \"map\" not found"]),
        run("apply -f -").reads(MAP).says(&["configmap/map created"]),
        run("apply -f -").reads(MAP).says(&["configmap/map unchanged"]),
        run("diff -f -").reads(MAP).hides(&["*"]),
        run("diff -f -").reads(CHANGED).ends_with(1).says(&["- a: \"1\"", "- b: \"2\"", "+ a: \"3\"", "+ c: \"4\""]),
        run("apply -f -").reads(CHANGED).says(&["configmap/map configured"]),
        run("get configmap map -o 'jsonpath={.data}'").says(&["{\"a\":\"3\",\"c\":\"4\"}"]),
        run("apply view-last-applied configmap/map").says(&["a: \"3\"", "name: map"]),
        run("apply set-last-applied -f -").reads(MAP).says(&["configmap/map configured"]),
        run("apply edit-last-applied configmap/map").with("KUBE_EDITOR", "sed -i 's/\"b\":\"2\"/\"b\":\"5\"/; s/b: \"2\"/b: \"5\"/'").says(&["configmap/map edited"]),
        run("apply -f -").reads(WORK).says(&["deployment.apps/work created"]),
        run("apply -f -").reads(WORK_CHANGED).says(&["deployment.apps/work configured"]),
        run("get deployment work -o 'jsonpath={range .spec.template.spec.containers[*]}{.name}={.env[*].value} {end}'")
            .says(&["one=3 three="]),
        run("apply -f - ").reads(WORK_OTHER_SELECTOR).fails().says(&[
            "The Deployment \"work\" is invalid: *spec.selector: Invalid value: *: field is immutable",
        ]),
        // What is refused or warned of.
        run("apply -f - --validate=strict").reads(UNKNOWN).fails().says(&[
            "Error from server (BadRequest): error when creating \"STDIN\": ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dat\"",
        ]),
        run("apply -f - --validate=warn --dry-run=server").reads(UNKNOWN).says(&[
            "Warning: unknown field \"dat\"",
            "configmap/odd created (server dry run)",
        ]),
        run("apply -f - --validate=ignore --dry-run=server").reads(UNKNOWN).hides(&["Warning"]),
        run("apply -f - --server-side --dry-run=server").reads(UNKNOWN).fails().says(&[
            "*failed to create typed patch object (apply/odd; /v1, Kind=ConfigMap): .dat: field not declared in schema",
        ]),
        run("apply -f - --dry-run=server -o yaml").reads(WRONG).fails().says(&[
            "Error from server (BadRequest): error when creating \"STDIN\": Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ]),
        run("apply -f - --dry-run=server -o name").reads(MISMATCH).fails().says(&[
            "The Deployment \"wrong\" is invalid: spec.template.metadata.labels: Invalid value: {\"app\":\"right\"}: `selector` does not match template `labels`",
        ]),
        run("apply -f - -n nowhere").reads(MAP).fails().says(&[
            "Error from server (NotFound): error when creating \"STDIN\": namespaces \"nowhere\" not found",
        ]),
        run("apply -f - -o name").reads("{apiVersion: tour.dev/v1, kind: Ship, metadata: {name: x}}").fails().says(&[
            "*no matches for kind \"Ship\" in version \"tour.dev/v1\"",
            "ensure CRDs are installed first",
        ]),
        // By the server.
        run("apply --server-side -f -").reads(SERVED).says(&["configmap/served serverside-applied"]),
        run("apply --server-side -f - --field-manager=other").reads(SERVED_CHANGED).fails().says(&[
            "error: Apply failed with 1 conflict: conflict with \"kubectl\": .data.a",
            "Please review the fields above--they currently have other managers.*",
        ]),
        run("apply --server-side -f - --field-manager=other --force-conflicts").reads(SERVED_CHANGED)
            .says(&["configmap/served serverside-applied"]),
        run("get configmap served -o 'jsonpath={.data} {.metadata.managedFields[*].manager}' --show-managed-fields")
            .says(&["{\"a\":\"3\",\"b\":\"2\"} kubectl other"]),
        run("apply --server-side -f - -o name").reads("{apiVersion: v1, kind: ConfigMap, metadata: {name: served}, data: {}}")
            .says(&["configmap/served"]),
        run("get configmap served -o 'jsonpath={.data}'").says(&["{\"a\":\"3\"}"]).hides(&["\"b\""]),
        run("diff --server-side -f -").reads(SERVED).ends_with(2).says(&["*Apply failed with 1 conflict: conflict with \"other\": .data.a"]),
        run("diff --server-side --force-conflicts -f -").reads(SERVED).ends_with(1).says(&["- a: \"3\"", "+ a: \"1\"", "+ b: \"2\""]),
        // From the one to the other: what the client applied is the server's kubectl's then.
        run("apply -f -").reads(ONE).says(&["configmap/first created"]),
        run("apply --server-side -f - --show-managed-fields -o yaml").reads(ONE).says(&["manager: kubectl", "operation: Apply"])
            .hides(&["kubectl-client-side-apply"]),
        // Pruning.
        run("apply -f - -l set=tour --prune --prune-allowlist=core/v1/ConfigMap").reads(TWO)
            .says(&["configmap/first *", "configmap/second created"]),
        run("apply -f - -l set=tour --prune --prune-allowlist=core/v1/ConfigMap ").reads(ONE)
            .says(&["configmap/second pruned"]),
        run("apply -f - --prune --applyset=tour").with("KUBECTL_APPLYSET", "true").reads(TWO)
            .says(&["configmap/first configured", "configmap/second created"]),
        run("apply -f - --prune --applyset=tour ").with("KUBECTL_APPLYSET", "true").reads(ONE)
            .says(&["configmap/second pruned"]),
        run("apply -k kustomize").says(&["configmap/k-made created"]),
        run("kustomize kustomize").says(&["name: k-made", "by: kustomize"]),
        run("delete -k kustomize").says(&["configmap \"k-made\" deleted from apply namespace"]),
    ]
}
