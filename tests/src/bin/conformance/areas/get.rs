//! get in every output, describe, events, and wait.

use crate::row::{Row, run};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: main
          image: registry.wharf/clock:1
          ports: [{containerPort: 8080}]
          env: [{name: TOUR, value: here}]
          resources: {requests: {cpu: 10m, memory: 8Mi}, limits: {memory: 32Mi}}
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: guest, labels: {app: guest}}
spec:
  selector: {matchLabels: {app: guest}}
  template:
    metadata: {labels: {app: guest}}
    spec: {containers: [{name: main, image: registry.wharf/greeter:1, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: map, labels: {tier: low}, annotations: {a: b}}, data: {key: value}}
---
{apiVersion: v1, kind: Secret, metadata: {name: secret}, stringData: {word: sesame}}
";

pub fn rows() -> Vec<Row> {
    vec![
        run("apply -f -").reads(WEB).says(&[
            "deployment.apps/web created",
            "service/web created",
            "secret/secret created",
        ]),
        run("wait --for=condition=Available deployment/web deployment/guest --timeout=60s")
            .says(&["deployment.apps/web condition met", "deployment.apps/guest condition met"]),
        run("wait --for=jsonpath={.status.readyReplicas}=2 deployment/web --timeout=60s")
            .says(&["deployment.apps/web condition met"]),
        run("wait --for=create configmap/map --timeout=5s").says(&["configmap/map condition met"]),
        run("wait --for=condition=Available=false deployment/web --timeout=1s")
            .fails()
            .says(&["error: timed out waiting for the condition on deployments/web"]),
        run("get pods").says(&[
            "NAME READY STATUS RESTARTS AGE",
            "web-* 1/1 Running 0",
            "guest-* 1/1 Running 0",
        ]),
        run("get pods -o wide")
            .says(&["NODE NOMINATED NODE READINESS GATES", "web-* 10.1*node-*<none> <none>"]),
        run("get pods --show-labels -l app=web")
            .says(&["LABELS", "app=web,pod-template-hash="])
            .hides(&["guest"]),
        run("get pods -l 'app in (guest,other),app!=web' -o name").says(&["pod/guest-"]).hides(&["web"]),
        run("get pods --field-selector=status.phase=Running,spec.nodeName!=node-9 -o name")
            .says(&["pod/web-", "pod/guest-"]),
        run("get pods --field-selector=spec.nothing=1")
            .fails()
            .says(&["*field label not supported: spec.nothing"]),
        run("get pods --sort-by=.metadata.name").says(&["guest-*\nweb-*\nweb-*"]),
        run("get pods -A --no-headers").says(&["get web-"]).hides(&["NAMESPACE"]),
        run("get pods --chunk-size=1 -o name").says(&["pod/guest-*\npod/web-*\npod/web-*"]),
        run("get deployment/web service/web -o name").says(&["deployment.apps/web", "service/web"]),
        run("get deployments").says(&["NAME READY UP-TO-DATE AVAILABLE AGE", "web 2/2 2 2"]),
        run("get deployments -o wide")
            .says(&["CONTAINERS IMAGES SELECTOR", "main registry.wharf/clock:1 app=web"]),
        run("get deploy,rs,svc").says(&[
            "deployment.apps/web 2/2",
            "replicaset.apps/web-* 2 2 2",
            "service/web ClusterIP",
        ]),
        run("get all").says(&["pod/web-", "deployment.apps/web", "replicaset.apps/web-", "service/web"]),
        run("get deployment web -o json")
            .says(&["\"apiVersion\": \"apps/v1\"", "\"replicas\": 2,"])
            .hides(&["managedFields"]),
        run("get deployment web -o yaml --show-managed-fields")
            .says(&["managedFields:", "manager: kubectl-client-side-apply"]),
        run("get deployment web -o 'jsonpath={.spec.template.spec.containers[?(@.name==\"main\")].image}'")
            .says(&["registry.wharf/clock:1"]),
        run("get deployment web -o 'jsonpath-as-json={.spec.replicas}'").says(&["2"]),
        run("get deployment -o custom-columns=NAME:.metadata.name,WANTED:.spec.replicas").says(&[
            "NAME WANTED",
            "guest 1",
            "web 2",
        ]),
        run("get deployment -o 'go-template={{range .items}}{{.metadata.name}};{{end}}'")
            .says(&["guest;web;"]),
        run("get deployment web -o kyaml").says(&["kind: \"Deployment\","]),
        run("get deployment web --output-watch-events -w -o name").goes_on().says(&["deployment.apps/web"]),
        run("get pods -w").goes_on().says(&["NAME READY STATUS RESTARTS AGE", "web-* 1/1 Running 0"]),
        run("get deployment web --subresource=status -o name").says(&["deployment.apps/web"]),
        run("get deployment web --subresource=scale").says(&["NAME DESIRED AVAILABLE", "web 2 2"]),
        run("get secret,cm").says(&["secret/secret Opaque 1", "configmap/map 1"]),
        run("get cm map nothing")
            .fails()
            .says(&["map 1", "Error from server (NotFound): configmaps \"nothing\" not found"]),
        run("get cm nothing --ignore-not-found").hides(&["*"]),
        run("get cm -l tier=high").says(&["No resources found in get namespace."]),
        run("get -f - -o name")
            .reads("{apiVersion: v1, kind: ConfigMap, metadata: {name: map}}")
            .says(&["configmap/map"]),
        run("get --raw '/api/v1/namespaces/get/configmaps?limit=1'").says(&["\"kind\":\"ConfigMapList\""]),
        run("get events").says(&[
            "LAST SEEN TYPE REASON OBJECT MESSAGE",
            "Normal Scheduled pod/web-* Successfully assigned get/web-* to node-*",
        ]),
        run("get events --field-selector=involvedObject.kind=Deployment,reason=ScalingReplicaSet")
            .says(&["ScalingReplicaSet deployment/web Scaled up replica set web-* from 0 to 2"])
            .hides(&["pod/"]),
        run("events").says(&[
            "LAST SEEN TYPE REASON OBJECT MESSAGE",
            "Normal SuccessfulCreate ReplicaSet/web-* Created pod: web-",
        ]),
        run("events --for deployment/web --types=Normal")
            .says(&["ScalingReplicaSet Deployment/web"])
            .hides(&["Pod/"]),
        run("events -w").goes_on().says(&["Normal *Pod/web-"]),
        // describe
        run("describe pods -l app=web --show-events").says(&[
            "Name: web-",
            "Namespace: get",
            "Priority: 0",
            "Node: node-*/10.64.0.1",
            "Labels: app=web",
            "Status: Running",
            "Controlled By: ReplicaSet/web-",
            "Image: registry.wharf/clock:1",
            "Image ID: ",
            "Port: 8080/TCP",
            "State: Running",
            "Ready: True",
            "Requests:",
            "memory: 8Mi",
            "Readiness: http-get http://:8080/healthz",
            "TOUR: here",
            "PodScheduled True",
            "QoS Class: Burstable",
            "Normal Scheduled *Successfully assigned",
            "Normal Started *",
        ]),
        run("describe deployment web").says(&[
            "Name: web",
            "Selector: app=web",
            "Replicas: 2 desired | 2 updated | 2 total | 2 available | 0 unavailable",
            "StrategyType: RollingUpdate",
            "RollingUpdateStrategy: 25% max unavailable, 25% max surge",
            "Available True MinimumReplicasAvailable",
            "NewReplicaSet: web-* (2/2 replicas created)",
            "Normal ScalingReplicaSet *Scaled up replica set web-*from 0 to 2",
        ]),
        run("describe replicaset -l app=web").says(&[
            "Controlled By: Deployment/web",
            "Pods Status: 2 Running / 0 Waiting / 0 Succeeded / 0 Failed",
        ]),
        run("describe service web").says(&["Type: ClusterIP", "TargetPort: 8080/TCP"]),
        run("describe configmap map").says(&["Labels: tier=low", "Annotations: a: b", "key:", "value"]),
        run("describe secret secret").says(&["Type: Opaque", "word: 6 bytes"]).hides(&["sesame"]),
        run("describe serviceaccount default").says(&["Name: default", "Namespace: get"]),
        run("describe pod nothing")
            .fails()
            .says(&["Error from server (NotFound): pods \"nothing\" not found"]),
        run("top pod").says(&["NAME CPU(cores) MEMORY(bytes)", "web-"]).at_last(),
        run("top pod -A --containers --sort-by=cpu").says(&["NAMESPACE POD NAME CPU(cores) MEMORY(bytes)"]),
    ]
}
