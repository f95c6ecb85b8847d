//! Who one is, what one may, and how others are let in.

use crate::row::{Row, run};

const ROLES: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: access}
rules: [{apiGroups: [''], resources: [pods, configmaps], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: access}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: robot, namespace: access}, {kind: User, name: alice, apiGroup: rbac.authorization.k8s.io}]
";
const WIDER: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: access}
rules: [{apiGroups: [''], resources: [pods, configmaps, events], verbs: [get, list, watch]}]
";
pub fn rows() -> Vec<Row> {
    vec![
        run("auth whoami").says(&["ATTRIBUTE VALUE", "Username kubernetes-admin", "Groups [system:masters system:authenticated]"]),
        run("auth whoami -o json --as=alice --as-group=crew").says(&["\"kind\": \"SelfSubjectReview\"", "\"username\": \"alice\"", "\"crew\""]),
        run("auth can-i '*' '*' -A").says(&["yes"]),
        run("auth can-i list pods --as=alice").fails().says(&["no"]),
        run("create serviceaccount robot").says(&["serviceaccount/robot created"]),
        run("auth reconcile -f -").reads(ROLES).says(&["role.rbac.authorization.k8s.io/reader reconciled", "rolebinding.rbac.authorization.k8s.io/reader reconciled"]),
        run("auth reconcile -f - ").reads(WIDER).says(&["role.rbac.authorization.k8s.io/reader reconciled", "{Verbs:[get] APIGroups:[] Resources:[events]*"]),
        run("auth can-i list pods --as=alice ").at_last().says(&["yes"]),
        run("auth can-i list pods --as=system:serviceaccount:access:robot").says(&["yes"]),
        run("auth can-i get pods --subresource=log --as=alice").fails().says(&["no"]),
        run("auth can-i get /healthz --as=alice").says(&["yes"]),
        run("auth can-i --list --as=alice").says(&["Resources Non-Resource URLs Resource Names Verbs", "pods [] [] [get list watch]", "selfsubjectreviews.authentication.k8s.io [] [] [create]"]),
        run("get pods --as=alice").says(&["No resources found in access namespace."]),
        run("get secrets --as=alice").fails().says(&[
            "Error from server (Forbidden): secrets is forbidden: User \"alice\" cannot list resource \"secrets\" in API group \"\" in the namespace \"access\"",
        ]),
        run("get nodes --as=alice").fails().says(&[
            "Error from server (Forbidden): nodes is forbidden: User \"alice\" cannot list resource \"nodes\" in API group \"\" at the cluster scope",
        ]),
        run("create configmap x --as=alice").fails().says(&[
            "*configmaps is forbidden: User \"alice\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"access\"",
        ]),
        // A service account by its token.
        run("create token robot").says(&["eyJ"]).kept_as("token"),
        run("config view --minify -o 'jsonpath={.clusters[0].cluster.server}'").kept_as("server"),
        run("config set-cluster tour --kubeconfig={dir}/robot --server={server} --insecure-skip-tls-verify").says(&["Cluster \"tour\" set."]),
        run("config set-credentials robot --kubeconfig={dir}/robot --token={token}").says(&["User \"robot\" set."]),
        run("config set-context tour --kubeconfig={dir}/robot --cluster=tour --user=robot").says(&["Context \"tour\" created."]),
        run("config use-context tour --kubeconfig={dir}/robot").says(&["Switched to context \"tour\"."]),
        run("auth whoami --kubeconfig={dir}/robot").says(&["Username system:serviceaccount:access:robot", "Groups [system:serviceaccounts system:serviceaccounts:access system:authenticated]"]),
        run("get configmaps --kubeconfig={dir}/robot -o name").says(&["configmap/kube-root-ca.crt"]),
        run("get secrets --kubeconfig={dir}/robot").fails().says(&["*User \"system:serviceaccount:access:robot\" cannot list resource \"secrets\"*"]),
        run("config set-credentials robot --kubeconfig={dir}/robot --token=wrong").says(&["User \"robot\" set."]),
        run("get configmaps --kubeconfig={dir}/robot").fails().says(&["*You must be logged in to the server*"]),
    ]
}
