//! Changes to what is there: patch, edit, label, annotate, replace.

use crate::row::{Row, run};

const WORK: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: work, labels: {app: work}}
spec:
  replicas: 0
  selector: {matchLabels: {app: work}}
  template:
    metadata: {labels: {app: work}}
    spec: {containers: [{name: main, image: registry.wharf/clock:1, ports: [{containerPort: 8080}]}]}
";
const MAP: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: map}, data: {a: '1'}}";
const OTHER: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: map}, data: {b: '2'}}";
const STALE: &str =
    "{apiVersion: v1, kind: ConfigMap, metadata: {name: map, resourceVersion: '1'}, data: {b: '3'}}";

pub fn rows() -> Vec<Row> {
    vec![
        run("create -f -").reads(WORK).says(&["deployment.apps/work created"]),
        run("create -f - --save-config").reads(MAP).says(&["configmap/map created"]),
        run("create -f - -o name").reads(MAP).fails().says(&[
            "Error from server (AlreadyExists): error when creating \"STDIN\": configmaps \"map\" already exists",
        ]),
        // The three types of patch.
        run("patch deployment work -p '{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"side\",\"image\":\"registry.wharf/greeter:1\"}]}}}}'")
            .says(&["deployment.apps/work patched"]),
        run("get deployment work -o 'jsonpath={.spec.template.spec.containers[*].name}'").says(&["side main"]),
        run("patch deployment work -p '{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"side\",\"$patch\":\"delete\"}]}}}}'")
            .says(&["deployment.apps/work patched"]),
        run("patch deployment work --type=merge -p '{\"metadata\":{\"labels\":{\"app\":null,\"by\":\"merge\"}}}'")
            .says(&["deployment.apps/work patched"]),
        run("get deployment work --show-labels").says(&["0/0 *by=merge"]),
        run("patch deployment work --type=json -p '[{\"op\":\"test\",\"path\":\"/spec/replicas\",\"value\":0},{\"op\":\"add\",\"path\":\"/metadata/annotations/by\",\"value\":\"json\"}]' -o 'jsonpath={.metadata.annotations.by}'")
            .says(&["json"]),
        run("patch deployment work --type=json -p '[{\"op\":\"test\",\"path\":\"/spec/replicas\",\"value\":7}]'").fails()
            .says(&["The request is invalid: *"]),
        run("patch deployment work -p '{\"spec\":{\"replicas\":0}}'").says(&["deployment.apps/work patched (no change)"]),
        run("patch deployment work -p '{\"spec\":{\"replicas\":-1}}'").fails().says(&[
            "The Deployment \"work\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ]),
        run("patch deployment work -p '{\"spec\":{\"nothing\":1}}'").says(&["Warning: unknown field \"spec.nothing\""]),
        run("patch deployment work --subresource=status --type=merge -p '{\"status\":{\"observedGeneration\":1}}'")
            .says(&["deployment.apps/work patched"]),
        run("patch deployment work --subresource=scale --type=merge -p '{\"spec\":{\"replicas\":0}}'")
            .says(&["*/work patched"]),
        run("patch -f - --type=merge -p '{\"data\":{\"z\":\"9\"}}' --dry-run=server -o yaml").reads(MAP).says(&["z: \"9\""]),
        run("patch configmap map --local -f - --type=merge -p '{\"data\":{\"z\":\"9\"}}'").fails().says(&["error: cannot specify --local and server resources"]),
        // edit
        run("edit configmap map").with("KUBE_EDITOR", "sed -i 's/a: \"1\"/a: \"5\"/'").says(&["configmap/map edited"]),
        run("get configmap map -o 'jsonpath={.data.a}'").says(&["5"]),
        run("edit configmap map ").with("KUBE_EDITOR", "true").says(&["Edit cancelled, no changes made."]),
        run("edit deployment work").with("KUBE_EDITOR", "sed -i 's/^  replicas: 0$/  replicas: -3/'").fails()
            .says(&["error: deployments.apps \"work\" is invalid"]),
        run("edit configmap map --output-patch").with("KUBE_EDITOR", "sed -i 's/a: \"5\"/a: \"6\"/'").says(&["Patch: {\"data\":{\"a\":\"6\"}*", "configmap/map edited"]),
        // label and annotate
        run("label configmap map tier=low").says(&["configmap/map labeled"]),
        run("label configmap map tier=high").fails().says(&["error: 'tier' already has a value (low), and --overwrite is false"]),
        run("label configmap map tier=high --overwrite").says(&["configmap/map labeled"]),
        run("label configmap map --list").says(&["tier=high"]),
        run("label configmaps --all 'tier=_no_'").fails().says(&["error: invalid label value*"]),
        run("label configmap map tier-").says(&["configmap/map unlabeled"]),
        run("annotate configmap map note='hello there'").says(&["configmap/map annotated"]),
        run("annotate configmap map --list").says(&["note=hello there"]),
        run("annotate configmap map note- --resource-version=1").fails().says(&[
            "Error from server (Conflict): Operation cannot be fulfilled on configmaps \"map\": the object has been modified; please apply your changes to the latest version and try again",
        ]),
        run("annotate configmap map note-").says(&["configmap/map annotated"]),
        // replace
        run("replace -f -").reads(OTHER).says(&["configmap/map replaced"]),
        run("get configmap map -o 'jsonpath={.data}'").says(&["{\"b\":\"2\"}"]),
        run("replace -f - -o name").reads(STALE).fails().says(&[
            "Error from server (Conflict): error when replacing \"STDIN\": Operation cannot be fulfilled on configmaps \"map\": the object has been modified; please apply your changes to the latest version and try again",
        ]),
        run("replace --force -f -").reads(MAP).says(&["configmap \"map\" deleted*", "configmap/map replaced"]),
        run("replace --save-config -f -").reads("{apiVersion: v1, kind: ConfigMap, metadata: {name: nothing}}").fails()
            .says(&["Error from server (NotFound): error when replacing \"STDIN\": configmaps \"nothing\" not found"]),
        // set
        run("set image deployment/work main=registry.wharf/clock:2").says(&["deployment.apps/work image updated"]),
        run("set env deployment/work TOUR=here").says(&["deployment.apps/work env updated"]),
        run("set env deployment/work --from=configmap/map --prefix=M_").says(&["deployment.apps/work env updated"]),
        run("set env deployment/work --list").says(&["TOUR=here", "# M_A from configmap map, key a"]),
        run("set env deployment/work TOUR-").says(&["deployment.apps/work env updated"]),
        run("set resources deployment/work -c=main --requests=cpu=10m --limits=memory=32Mi").says(&["deployment.apps/work resource requirements updated"]),
        run("set serviceaccount deployment/work default").says(&["deployment.apps/work serviceaccount updated"]),
        run("get deployment work -o 'jsonpath={.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].resources.requests.cpu} {.spec.template.spec.serviceAccountName}'")
            .says(&["registry.wharf/clock:2 10m default"]),
        run("create service clusterip work --tcp=80").says(&["service/work created"]),
        run("set selector service work app=other").says(&["service/work selector updated"]),
        // delete
        run("create -f - -o yaml").reads("{apiVersion: v1, kind: ConfigMap, metadata: {name: one}}").says(&["name: one"]),
        run("delete configmap one --dry-run=server").says(&["configmap \"one\" deleted from edit namespace (server dry run)"]),
        run("delete configmap one").says(&["configmap \"one\" deleted from edit namespace"]),
        run("delete configmap one ").fails().says(&["Error from server (NotFound): configmaps \"one\" not found"]),
        run("delete configmap one --ignore-not-found").hides(&["*"]),
        run("delete configmap,service --all -o name").says(&["configmap/map", "service/work"]),
        run("delete deployment work --cascade=foreground").says(&["deployment.apps \"work\" deleted from edit namespace"]),
    ]
}
