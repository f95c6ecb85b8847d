//! What is asked of the cluster as a whole: versions, discovery, documentation, settings, nodes.

use crate::row::{Row, run};

pub fn rows() -> Vec<Row> {
    vec![
        run("version").says(&["Client Version: v1.36*", "Server Version: v1.36*"]).hides(&["WARNING"]),
        run("version -o json").says(&["\"serverVersion\": {", "\"major\": \"1\"", "\"minor\": \"36\""]),
        run("cluster-info").says(&["Kubernetes control plane*is running at*https://127.0.0.1:"]),
        run("get --raw /readyz").says(&["ok"]),
        run("get --raw /healthz/nothing").fails().says(&["Error from server (NotFound)"]),
        run("api-versions").says(&["apps/v1", "batch/v1", "rbac.authorization.k8s.io/v1", "v1"]),
        run("api-resources").says(&[
            "NAME SHORTNAMES APIVERSION NAMESPACED KIND",
            "configmaps cm v1 true ConfigMap",
            "deployments deploy apps/v1 true Deployment",
            "nodes no v1 false Node",
        ]),
        run("api-resources --api-group=batch -o wide --sort-by=name").says(&[
            "cronjobs cj batch/v1 true CronJob create,delete,deletecollection,get,list,patch,update,watch all",
            "jobs batch/v1 true Job create,*",
        ]),
        run("api-resources --namespaced=false -o name --verbs=list,get")
            .says(&["nodes", "clusterroles.rbac.authorization.k8s.io"])
            .hides(&["pods", "selfsubject*"]),
        run("api-resources --categories=all -o name").says(&["pods", "statefulsets.apps"]).hides(&["nodes"]),
        // explain
        run("explain pods").says(&["KIND: Pod", "VERSION: v1", "DESCRIPTION:", "spec <PodSpec>"]),
        run("explain deployment.spec.strategy.rollingUpdate.maxSurge").says(&[
            "GROUP: apps",
            "KIND: Deployment",
            "FIELD: maxSurge <IntOrString>",
            "The maximum number of pods*",
        ]),
        run("explain pod.spec.containers.imagePullPolicy").says(&["ENUM:", "IfNotPresent"]),
        run("explain job.spec.template --recursive").says(&["initContainers <[]Container>", "restartPolicy <string>"]),
        run("explain cronjobs --api-version=batch/v1").says(&["KIND: CronJob", "VERSION: v1"]),
        run("explain pod.spec.nothing").fails().says(&["error: field \"nothing\" does not exist"]),
        run("explain service.spec.ports --output plaintext-openapiv2").says(&["RESOURCE: ports <[]Object>", "targetPort"]),
        // config
        run("config view").says(&["kind: Config", "client-key-data: DATA+OMITTED", "current-context: wharf-*"]),
        run("config view --minify -o 'jsonpath={.clusters[0].cluster.server}'").says(&["https://127.0.0.1:*"]).kept_as("server"),
        run("config get-contexts").says(&["CURRENT NAME CLUSTER AUTHINFO NAMESPACE", "* wharf-*"]),
        run("config current-context").says(&["wharf-*"]).kept_as("context"),
        run("config set-context --current --namespace=cluster").says(&["Context \"wharf-*\" modified."]),
        run("config set-context other --cluster={context} --user={context} --namespace=kube-system")
            .says(&["Context \"other\" created."]),
        run("config use-context other").says(&["Switched to context \"other\"."]),
        run("config use-context {context}").says(&["Switched to context \"wharf-*\"."]),
        run("config delete-context other").says(&["deleted context other from*"]),
        // nodes
        run("get nodes").says(&["NAME STATUS ROLES AGE VERSION", "node-1 Ready", "node-2 Ready"]),
        run("get nodes -o wide").says(&["INTERNAL-IP EXTERNAL-IP OS-IMAGE KERNEL-VERSION CONTAINER-RUNTIME", "node-2*10.64.0.12"]),
        run("describe node node-2").says(&[
            "Name: node-2",
            "Conditions:",
            "Ready True",
            "Addresses:",
            "InternalIP: 10.64.0.12",
            "Allocatable:",
            "System Info:",
            "Container Runtime Version:",
            "PodCIDR:",
            "Lease:",
            "HolderIdentity: node-2",
            "Allocated resources:",
        ]),
        run("cordon node-2").says(&["node/node-2 cordoned"]),
        run("cordon node-2").says(&["node/node-2 already cordoned"]),
        run("get node node-2").says(&["node-2 Ready,SchedulingDisabled"]),
        run("uncordon node-2").says(&["node/node-2 uncordoned"]),
        run("taint nodes node-2 tour=here:NoSchedule").says(&["node/node-2 tainted"]),
        run("get node node-2 -o 'jsonpath={.spec.taints}'").says(&["\"effect\":\"NoSchedule\",\"key\":\"tour\",\"value\":\"here\""]),
        run("taint nodes node-2 tour=here:NoSchedule").fails().says(&["already has tour taint(s) with same effect(s)*"]),
        run("taint nodes node-2 tour-").says(&["node/node-2 untainted"]),
        run("label node node-2 disk=fast").says(&["node/node-2 labeled"]),
        run("get nodes -l disk=fast -o name").says(&["node/node-2"]).hides(&["node-1"]),
        run("get nodes -L disk").says(&["VERSION DISK", "node-2 *fast"]),
        run("label node node-2 disk-").says(&["node/node-2 unlabeled"]),
        run("get --raw /api/v1/nodes/node-1/proxy/healthz").says(&["ok"]),
        run("get --raw /api/v1/nodes/node-2/proxy/metrics/resource").says(&["node_cpu_usage_seconds_total "]),
        run("get --raw /api/v1/nodes/node-2/proxy/stats/summary").says(&["\"nodeName\":\"node-2\""]),
        run("get --raw /api/v1/nodes/node-2/proxy/nothing").fails().says(&["*NotFound*"]),
        run("get nodes.metrics.k8s.io node-1").says(&["NAME CPU MEMORY WINDOW", "node-1"]),
        run("top node node-2 --no-headers").says(&["node-2"]).hides(&["NAME", "node-1"]),
        run("top node --sort-by=memory").says(&["node-1", "node-2"]),
        run("top node").says(&["NAME CPU(cores) CPU(%) MEMORY(bytes) MEMORY(%)", "node-1"]).at_last(),
        run("get namespaces").says(&["cluster Active", "default Active", "kube-system Active"]),
        run("describe namespace cluster").says(&["Name: cluster", "Status: Active", "No resource quota.", "No LimitRange resource."]),
        run("get nothings").fails().says(&["error: the server doesn't have a resource type \"nothings\""]),
        run("completion bash").says(&["# bash completion V2 for kubectl*"]),
        run("options").says(&["--as='':", "--kubeconfig='':"]),
    ]
}
