//! Deployments and their kin: rollout, scale, cascading deletion, drain.

use crate::row::{Row, run};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {kubernetes.io/change-cause: first}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: registry.wharf/clock:1}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: registry.wharf/clock:1}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: named}
spec:
  serviceName: named
  replicas: 2
  selector: {matchLabels: {app: named}}
  template:
    metadata: {labels: {app: named}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: registry.wharf/clock:1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bare}
spec: {nodeName: node-2, terminationGracePeriodSeconds: 1, containers: [{name: main, image: registry.wharf/clock:1}]}
";

pub fn rows() -> Vec<Row> {
    vec![
        run("apply -f -").reads(WEB).says(&["deployment.apps/web created", "daemonset.apps/each created", "statefulset.apps/named created"]),
        run("rollout status deployment/web --timeout=60s").says(&["deployment \"web\" successfully rolled out"]),
        run("scale deployment/web --replicas=3").says(&["deployment.apps/web scaled"]),
        run("scale deployment/web --replicas=4 --current-replicas=9").fails().says(&["error: Expected replicas to be 9, was 3"]),
        run("rollout status deployment/web --timeout=60s ").says(&["successfully rolled out"]),
        run("scale deployment/web --replicas=2").says(&["deployment.apps/web scaled"]),
        run("set env deployment/web ROUND=2").says(&["deployment.apps/web env updated"]),
        run("rollout status deployment/web --timeout=61s").says(&["successfully rolled out"]),
        run("rollout history deployment/web").says(&["REVISION CHANGE-CAUSE", "1 first", "2 "]),
        run("rollout history deployment/web --revision=2").says(&["Pod Template:", "ROUND: 2"]),
        run("rollout undo deployment/web").says(&["deployment.apps/web rolled back"]),
        run("rollout status deployment/web --timeout=62s").says(&["successfully rolled out"]),
        run("get deployment web -o 'jsonpath={.spec.template.spec.containers[0].env}'").hides(&["ROUND"]),
        run("rollout undo deployment/web --to-revision=2").says(&["deployment.apps/web rolled back"]),
        run("get deployment web -o 'jsonpath={.spec.template.spec.containers[0].env}' ").says(&["\"name\":\"ROUND\",\"value\":\"2\""]),
        run("rollout undo deployment/web --to-revision=9").fails().says(&["error: unable to find specified revision 9 in history"]),
        run("rollout restart deployment/web").says(&["deployment.apps/web restarted"]),
        run("rollout status deployment/web --timeout=63s").says(&["successfully rolled out"]),
        run("rollout pause deployment/web").says(&["deployment.apps/web paused"]),
        run("rollout pause deployment/web ").fails().says(&["*is already paused"]),
        run("rollout resume deployment/web").says(&["deployment.apps/web resumed"]),
        run("rollout resume deployment/web ").fails().says(&["*is not paused"]),
        run("rollout status daemonset/each --timeout=60s").says(&["daemon set \"each\" successfully rolled out"]),
        run("get daemonsets").says(&["NAME DESIRED CURRENT READY UP-TO-DATE AVAILABLE NODE SELECTOR AGE", "each 2 2 2 2 2 <none>"]),
        run("set env daemonset/each ROUND=2").says(&["daemonset.apps/each env updated"]),
        run("rollout history daemonset/each").at_last().says(&["1 <none>\n2 <none>"]),
        run("rollout history daemonset/each --revision=2").says(&["daemonset.apps/each with revision #2", "Pod Template:", "ROUND: 2"]),
        run("rollout undo daemonset/each").says(&["daemonset.apps/each rolled back"]),
        run("get daemonset each -o 'jsonpath={.spec.template.spec.containers[0].env}'").hides(&["ROUND"]),
        run("rollout restart daemonset/each").says(&["daemonset.apps/each restarted"]),
        run("rollout status daemonset/each --timeout=61s").says(&["daemon set \"each\" successfully rolled out"]),
        run("rollout pause daemonset/each").fails().says(&["*pausing is not supported"]),
        run("rollout resume daemonset/each").fails().says(&["*resuming is not supported"]),
        run("rollout undo daemonset/each --to-revision=9").fails().says(&["error: unable to find specified revision 9 in history"]),
        run("describe daemonset each").says(&["Desired Number of Nodes Scheduled: 2"]),
        run("rollout status statefulset/named --timeout=60s").says(&["partitioned roll out complete: 2 new pods have been updated..."]),
        run("get pod named-0 named-1 -o name").says(&["pod/named-0", "pod/named-1"]),
        run("scale statefulset named --replicas=1").says(&["statefulset.apps/named scaled"]),
        run("get statefulsets").at_last().says(&["NAME READY AGE", "named 1/1"]),
        run("rollout history statefulset/named").says(&["REVISION CHANGE-CAUSE", "1 <none>"]),
        run("set env statefulset/named ROUND=2").says(&["statefulset.apps/named env updated"]),
        run("rollout status statefulset/named --timeout=61s").says(&["partitioned roll out complete: 1 new pods have been updated..."]),
        run("rollout history statefulset/named ").says(&["1 <none>\n2 <none>"]),
        run("rollout history statefulset/named --revision=2").says(&["statefulset.apps/named with revision #2", "ROUND: 2"]),
        run("rollout undo statefulset/named").says(&["statefulset.apps/named rolled back"]),
        run("get statefulset named -o 'jsonpath={.spec.template.spec.containers[0].env}'").hides(&["ROUND"]),
        run("rollout restart statefulset/named").says(&["statefulset.apps/named restarted"]),
        run("rollout status statefulset/named --timeout=62s").says(&["partitioned roll out complete: 1 new pods have been updated..."]),
        run("rollout pause statefulset/named").fails().says(&["*pausing is not supported"]),
        run("describe statefulset named").says(&["Replicas: 1 desired | 1 total"]),
        // drain
        run("drain node-2 --timeout=30s").fails().says(&[
            "error: unable to drain node \"node-2\" due to error: *cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore): workloads/each-*",
            "*workloads/bare*",
        ]),
        run("drain node-2 --ignore-daemonsets --force --delete-emptydir-data --timeout=60s").says(&["evicting pod workloads/bare", "pod/bare evicted", "node/node-2 drained"]),
        run("get pods --field-selector=spec.nodeName=node-2 -o name").says(&["pod/each-"]).hides(&["web", "named"]),
        run("uncordon node-2").says(&["node/node-2 uncordoned"]),
        run("rollout status deployment/web --timeout=64s").says(&["successfully rolled out"]),
        // Deletion in its modes.
        run("delete deployment web --cascade=orphan").says(&["deployment.apps \"web\" deleted from workloads namespace"]),
        run("get replicasets -l app=web").says(&["web-* 2 2"]),
        run("delete replicasets -l app=web --cascade=foreground --timeout=60s").says(&["replicaset.apps \"web-*\" deleted"]),
        run("get pods -l app=web").says(&["No resources found in workloads namespace."]),
        run("delete daemonset/each statefulset/named --cascade=background --wait").says(&["daemonset.apps \"each\" deleted*", "statefulset.apps \"named\" deleted*"]),
        run("wait --for=delete pod -l app=each --timeout=60s").hides(&["error"]),
    ]
}
