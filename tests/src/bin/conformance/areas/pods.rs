//! What is done to a running pod, of OCI containers and of wasm components.

use crate::row::{Row, run};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: shell}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {name: main, image: registry.wharf/busybox:1, args: [-c, 'echo one; echo two; echo three; while :; do sleep 1; done']}
    - {name: side, image: registry.wharf/busybox:1, args: [-c, 'echo aside; while :; do sleep 1; done']}
---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: registry.wharf/busybox:1, stdin: true, args: [-c, 'echo waiting; while read line; do echo got $line; done; sleep 999']}]
---
apiVersion: v1
kind: Pod
metadata: {name: again}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: registry.wharf/busybox:1, args: [-c, 'echo a life; exit 3']}]
---
apiVersion: v1
kind: Pod
metadata: {name: guest}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: registry.wharf/greeter:1, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: clock}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: registry.wharf/clock:1, ports: [{containerPort: 8080}]}]
";

pub fn rows() -> Vec<Row> {
    vec![
        run("apply -f -").reads(PODS).says(&["pod/shell created", "pod/guest created"]),
        run("wait --for=condition=Ready pod/shell pod/reader pod/guest pod/clock --timeout=60s").says(&["pod/guest condition met"]),
        // logs
        run("logs shell").says(&["Defaulted container \"main\" out of: main, side", "one\ntwo\nthree"]),
        run("logs shell -c side").says(&["aside"]),
        run("logs shell -c main --tail=1").says(&["three"]).hides(&["two"]),
        run("logs shell --all-containers --prefix").says(&["[pod/shell/main] one", "[pod/shell/side] aside"]),
        run("logs -l app=shell --all-containers").says(&["three", "aside"]),
        run("logs shell -c main --timestamps --since=1h").says(&["20*T*Z one"]),
        run("logs shell -c main --limit-bytes=3").says(&["one"]).hides(&["two"]),
        run("logs -f shell -c main").goes_on().says(&["one\ntwo\nthree"]),
        run("logs shell -c nothing").fails().says(&["error: container nothing is not valid for pod shell"]),
        run("logs nothing").fails().says(&["pods \"nothing\" not found"]),
        run("logs shell -c main --previous").fails().says(&["*previous terminated container \"main\" in pod \"shell\" not found"]),
        run("get pod again").at_last().says(&["again 0/1 CrashLoopBackOff"]),
        run("logs again --previous").at_last().says(&["a life"]),
        run("describe pod again").says(&["Reason: CrashLoopBackOff", "Exit Code: 3", "Restart Count: ", "Warning BackOff *Back-off restarting failed container main in pod again_pods"]),
        // exec
        run("exec shell -c main -- sh -c 'echo hello; exit 7'").ends_with(7).says(&["hello", "command terminated with exit code 7"]),
        run("exec -i shell -c side -- cat").reads("over there").says(&["over there"]),
        run("exec shell -- sh -c 'echo error >&2'").says(&["Defaulted container", "error"]),
        run("exec shell -c main -- nothing").fails().says(&["*executable 'nothing' not found*"]),
        run("exec guest -- greeter").ends_with(134).says(&["command terminated with exit code 134"]),
        // attach
        run("attach -i reader").reads("a line\n").goes_on().says(&["got a line"]),
        run("attach reader -c nothing").fails().says(&["error: cannot attach to the container: container nothing is not valid for pod reader*"]),
        // cp
        run("cp {dir}/greeting shell:/greeting -c main").hides(&["error"]),
        run("exec shell -c main -- cat /greeting").says(&["good morning"]),
        run("cp shell:/greeting {dir}/back -c main").leaves("back", "good morning"),
        run("cp {dir}/folder shell:/folder -c main").hides(&["error"]),
        run("cp shell:/folder {dir}/returned -c main").leaves("returned/two", "2"),
        // port-forward
        run("port-forward pod/clock 0:8080").answers("/", "oci"),
        run("port-forward pod/guest 0:8080").answers("/", "wasm"),
        run("port-forward pod/nothing 0:8080").fails().says(&["Error from server (NotFound): pods \"nothing\" not found"]),
        // run
        run("run quick --image=registry.wharf/busybox:1 --restart=Never -- -c 'echo ran'").says(&["pod/quick created"]),
        run("wait --for=jsonpath={.status.phase}=Succeeded pod/quick --timeout=60s").says(&["pod/quick condition met"]),
        run("logs quick").says(&["ran"]),
        run("run once --image=registry.wharf/busybox:1 --restart=Never --rm -i -- -c 'read line; echo read $line'").reads("this\n")
            .says(&["read this", "pod \"once\" deleted from pods namespace"]),
        run("run command --image=registry.wharf/busybox:1 --labels=a=b --env=X=y --command --dry-run=client -o yaml -- sh").says(&["command:", "a: b"]),
        run("run Bad_Name --image=x").fails().says(&["* metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain*"]),
        // debug
        run("debug clock --image=registry.wharf/busybox:1 --container=look --profile=general -- sh -c 'echo looking'").hides(&["error"]),
        run("logs clock -c look").at_last().says(&["looking"]),
        run("debug -i shell --image=registry.wharf/busybox:1 --container=within --target=main --profile=general -- sh -c 'read line; echo $line; cat /proc/1/cmdline; sleep 1'")
            .reads("among the others\n").goes_on().says(&["among the others", "*echo one; echo two*"]),
        run("debug guest --image=registry.wharf/greeter:1 --container=beside --profile=general").hides(&["error"]),
        run("get pod guest -o jsonpath={.status.ephemeralContainerStatuses[0].state}").at_last().says(&["*startedAt*"]),
        run("debug guest --image=registry.wharf/greeter:1 --container=main --profile=general").fails().says(&["*main*"]),
        run("describe pod clock").says(&["Ephemeral Containers:", "look:", "Exit Code: 0"]),
        run("debug shell --copy-to=copied --container=main --set-image=main=registry.wharf/busybox:1 -- sh -c 'echo copied; sleep 99'").hides(&["error"]),
        run("logs copied -c main").at_last().says(&["copied"]),
        run("debug node/node-1 --image=registry.wharf/busybox:1 --profile=general -- sh -c 'echo on a node'").says(&["Creating debugging pod node-debugger-node-1-* with container debugger on node node-1."]),
        // delete
        run("delete pod again --now").says(&["pod \"again\" deleted from pods namespace"]),
        run("delete pod reader --wait=false").says(&["pod \"reader\" deleted from pods namespace"]),
        run("wait --for=delete pod/reader --timeout=60s").hides(&["error"]),
        run("delete pod guest --grace-period=0 --force").says(&["Warning: Immediate deletion does not wait for confirmation*", "pod \"guest\" force deleted from pods namespace"]),
        run("delete pods -l app=shell").says(&["pod \"shell\" deleted from pods namespace"]),
        run("delete pods --field-selector=status.phase=Succeeded").says(&["pod \"quick\" deleted from pods namespace"]),
    ]
}
