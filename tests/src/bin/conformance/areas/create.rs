//! Every generator of create, expose and autoscale.

use crate::row::{Row, run};

pub fn rows() -> Vec<Row> {
    vec![
        run("create namespace created").says(&["namespace/created created"]),
        run("delete namespace created").says(&["namespace \"created\" deleted"]),
        run("create configmap map --from-literal=a=1 --from-file={dir}/greeting --from-file=sub={dir}/greeting").says(&["configmap/map created"]),
        run("create configmap envs --from-env-file={dir}/greeting.env").says(&["configmap/envs created"]),
        run("create configmap folder --from-file={dir}/folder").says(&["configmap/folder created"]),
        run("get configmap map folder envs -o 'jsonpath={.items[*].data}'").says(&[
            "{\"a\":\"1\",\"greeting\":\"good morning\",\"sub\":\"good morning\"} {\"one\":\"1\",\"two\":\"2\"} {\"EVENING\":\"fair\",\"MORNING\":\"good\"}",
        ]),
        run("create secret generic secret --from-literal=word=sesame").says(&["secret/secret created"]),
        run("create secret docker-registry pull --docker-server=registry.test --docker-username=u --docker-password=p").says(&["secret/pull created"]),
        run("get secret pull -o 'jsonpath={.type}'").says(&["kubernetes.io/dockerconfigjson"]),
        run("create deployment web --image=registry.wharf/clock:1 --port=8080 --replicas=1").says(&["deployment.apps/web created"]),
        run("create deployment later --image=registry.wharf/clock:1 --dry-run=client -o yaml").says(&["kind: Deployment", "app: later"]),
        run("create deployment later --image=registry.wharf/clock:1 --dry-run=server").says(&["deployment.apps/later created (server dry run)"]),
        run("expose deployment web --port=80 --target-port=8080").says(&["service/web exposed"]),
        run("create service nodeport node --tcp=80:8080 --node-port=30080").says(&["service/node created"]),
        run("create service loadbalancer balanced --tcp=80:8080").says(&["service/balanced created"]),
        run("create service externalname far --external-name=example.test").says(&["service/far created"]),
        run("get services").says(&["NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE", "far ExternalName <none> example.test", "node NodePort *80:30080/TCP"]),
        run("create role reader --verb=get,list --resource=pods,pods/log").says(&["role.rbac.authorization.k8s.io/reader created"]),
        run("create rolebinding reader --role=reader --serviceaccount=create:robot").says(&["rolebinding.rbac.authorization.k8s.io/reader created"]),
        run("create clusterrole tour-nodes --verb=get --resource=nodes").says(&["clusterrole.rbac.authorization.k8s.io/tour-nodes created"]),
        run("create clusterrolebinding tour-nodes --clusterrole=tour-nodes --user=mallory").says(&["clusterrolebinding.rbac.authorization.k8s.io/tour-nodes created"]),
        run("describe role reader").says(&["Resources Non-Resource URLs Resource Names Verbs", "pods/log [] [] [get list]"]),
        run("describe rolebinding reader").says(&["ServiceAccount robot create"]),
        run("delete clusterrole,clusterrolebinding tour-nodes").says(&["clusterrole.rbac.authorization.k8s.io \"tour-nodes\" deleted"]),
        run("create serviceaccount robot").says(&["serviceaccount/robot created"]),
        run("create token robot --duration=10m --audience=tour").says(&["eyJ"]),
        run("create token nobody").fails().says(&["error: failed to create token: serviceaccounts \"nobody\" not found"]),
        run("create quota few --hard=configmaps=20,pods=10").says(&["resourcequota/few created"]),
        run("wait --for=jsonpath={.status.hard.pods}=10 quota/few --timeout=60s").says(&["resourcequota/few condition met"]),
        run("describe quota few").says(&["Resource Used Hard", "configmaps * 20", "pods * 10"]),
        run("delete quota few").says(&["resourcequota \"few\" deleted"]),
        run("create priorityclass tour-high --value=1000 --description=tour").says(&["priorityclass.scheduling.k8s.io/tour-high created"]),
        run("delete priorityclass tour-high").says(&["priorityclass.scheduling.k8s.io \"tour-high\" deleted"]),
        run("create poddisruptionbudget web --selector=app=web --min-available=1").says(&["poddisruptionbudget.policy/web created"]),
        run("get pdb").says(&["NAME MIN AVAILABLE MAX UNAVAILABLE ALLOWED DISRUPTIONS AGE", "web 1 N/A"]),
        run("create job once --image=registry.wharf/busybox:1 -- sh -c 'echo done'").says(&["job.batch/once created"]),
        run("wait --for=condition=complete job/once --timeout=60s").says(&["job.batch/once condition met"]),
        run("logs job/once").says(&["done"]),
        run("get jobs").says(&["NAME STATUS COMPLETIONS DURATION AGE", "once Complete 1/1"]),
        run("describe job once").says(&["Completions: 1", "Pods Statuses: 0 Active (0 Ready) / 1 Succeeded / 0 Failed"]),
        run("create cronjob hourly --image=registry.wharf/busybox:1 --schedule='0 * * * *' -- sh -c 'echo hour'").says(&["cronjob.batch/hourly created"]),
        run("create cronjob never --image=x --schedule='often'").fails().says(&["*CronJob.batch \"never\" is invalid: spec.schedule: Invalid value: \"often\": *"]),
        run("get cronjobs").says(&["NAME SCHEDULE TIMEZONE SUSPEND ACTIVE LAST SCHEDULE AGE", "hourly 0 * * * * <none> False 0 <none>"]),
        run("create job --from=cronjob/hourly now").says(&["job.batch/now created"]),
        run("wait --for=condition=complete job/now --timeout=60s").says(&["job.batch/now condition met"]),
        run("create ingress in --rule=tour.test/=web:80").says(&["ingress.networking.k8s.io/in created"]),
        run("autoscale deployment web --min=1 --max=2 --cpu=80%").says(&["horizontalpodautoscaler.autoscaling/web autoscaled"]),
        run("create -f - --edit").with("KUBE_EDITOR", "sed -i s/first/last/").reads("{apiVersion: v1, kind: ConfigMap, metadata: {name: first}}")
            .says(&["configmap/last created"]),
        run("create --raw /api/v1/namespaces/create/configmaps -f -").reads("{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"raw\"}}")
            .says(&["\"name\":\"raw\""]),
        run("create configmap No_Name").fails().says(&[
            "*ConfigMap \"No_Name\" is invalid: metadata.name: Invalid value: \"No_Name\": a lowercase RFC 1123 subdomain must consist of*",
        ]),
    ]
}
