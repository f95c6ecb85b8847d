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
/// Requests a certificate for `jane` of `crew`, whose key is the tour's alone; twice.
const REQUESTS: &str = "
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: jane}
spec:
  signerName: kubernetes.io/kube-apiserver-client
  usages: [client auth]
  expirationSeconds: 3600
  request: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIWk1JR0FBZ0VBTUI0eERUQUxCZ05WQkFvTUJHTnlaWGN4RFRBTEJnTlZCQU1NQkdwaGJtVXdXVEFUQmdjcQpoa2pPUFFJQkJnZ3Foa2pPUFFNQkJ3TkNBQVJZdVZMUFVTcXhSanpUTFR6NHQ2Ky9FZ2ZBWjhWSXMyMVphaThQCnhNSXRxUzQ2SGNaVk1ueEtld1Q2MW5QZnN2QWE3WEdxcUM2aFY0V0h0TVZzd09vbG9BQXdDZ1lJS29aSXpqMEUKQXdJRFNBQXdSUUlnRTFPWXBkR0hUZENnaEtoZDBIejhxeFAzcldyNWxON3JrcHNWNTJNVFFJTUNJUURaYnlwWQpobThXNXk1a3Znc0lLclRUb2wwYU0wMWIvWmgvaFJiazdyWE1xZz09Ci0tLS0tRU5EIENFUlRJRklDQVRFIFJFUVVFU1QtLS0tLQo=
---
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: unwanted}
spec:
  signerName: kubernetes.io/kube-apiserver-client
  usages: [client auth]
  request: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIWk1JR0FBZ0VBTUI0eERUQUxCZ05WQkFvTUJHTnlaWGN4RFRBTEJnTlZCQU1NQkdwaGJtVXdXVEFUQmdjcQpoa2pPUFFJQkJnZ3Foa2pPUFFNQkJ3TkNBQVJZdVZMUFVTcXhSanpUTFR6NHQ2Ky9FZ2ZBWjhWSXMyMVphaThQCnhNSXRxUzQ2SGNaVk1ueEtld1Q2MW5QZnN2QWE3WEdxcUM2aFY0V0h0TVZzd09vbG9BQXdDZ1lJS29aSXpqMEUKQXdJRFNBQXdSUUlnRTFPWXBkR0hUZENnaEtoZDBIejhxeFAzcldyNWxON3JrcHNWNTJNVFFJTUNJUURaYnlwWQpobThXNXk1a3Znc0lLclRUb2wwYU0wMWIvWmgvaFJiazdyWE1xZz09Ci0tLS0tRU5EIENFUlRJRklDQVRFIFJFUVVFU1QtLS0tLQo=
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
        // A person by a certificate that another person approved.
        run("apply -f -").reads(REQUESTS).says(&[
            "certificatesigningrequest.certificates.k8s.io/jane created",
            "certificatesigningrequest.certificates.k8s.io/unwanted created",
        ]),
        run("get csr jane").says(&["NAME AGE SIGNERNAME REQUESTOR REQUESTEDDURATION CONDITION", "kubernetes.io/kube-apiserver-client kubernetes-admin 60m Pending"]),
        run("certificate approve jane --as=alice").fails().says(&["Error from server (Forbidden): *"]),
        run("certificate approve jane").says(&["certificatesigningrequest.certificates.k8s.io/jane approved"]),
        run("certificate approve csr/jane").says(&["certificatesigningrequest.certificates.k8s.io/jane approved"]),
        run("get csr jane ").at_last().says(&["Approved,Issued"]),
        run("describe csr jane").says(&["Name: jane", "Requesting User: kubernetes-admin", "Signer: kubernetes.io/kube-apiserver-client", "Requested Duration: 60m", "Status: Approved,Issued", "Common Name: jane", "Organization: crew"]),
        run("certificate deny jane").fails().says(&["error: certificate signing request \"jane\" is already Approved"]),
        run("certificate deny unwanted").says(&["certificatesigningrequest.certificates.k8s.io/unwanted denied"]),
        run("get csr unwanted").says(&["<none> Denied"]),
        run("certificate approve unwanted").fails().says(&["error: certificate signing request \"unwanted\" is already Denied"]),
        run("certificate approve nobody").fails().says(&["Error from server (NotFound): certificatesigningrequests.certificates.k8s.io \"nobody\" not found"]),
        run("get csr jane -o 'jsonpath={.status.certificate}'").kept_as("certificate"),
        run("config set-credentials jane --kubeconfig={dir}/jane").says(&["User \"jane\" set."]),
        run("config set users.jane.client-certificate-data {certificate} --kubeconfig={dir}/jane").says(&["Property \"users.jane.client-certificate-data\" set."]),
        run("config set users.jane.client-key-data LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCk1JR0hBZ0VBTUJNR0J5cUdTTTQ5QWdFR0NDcUdTTTQ5QXdFSEJHMHdhd0lCQVFRZ2lWNDQwaDFCYUJHZVplcTIKZGtHcDQ5Q09DRk9PZldwd3NEWE9lamtTSXBtaFJBTkNBQVJZdVZMUFVTcXhSanpUTFR6NHQ2Ky9FZ2ZBWjhWSQpzMjFaYWk4UHhNSXRxUzQ2SGNaVk1ueEtld1Q2MW5QZnN2QWE3WEdxcUM2aFY0V0h0TVZzd09vbAotLS0tLUVORCBQUklWQVRFIEtFWS0tLS0tCg== --kubeconfig={dir}/jane").says(&["Property \"users.jane.client-key-data\" set."]),
        run("config set-cluster tour --kubeconfig={dir}/jane --server={server} --insecure-skip-tls-verify").says(&["Cluster \"tour\" set."]),
        run("config set-context tour --kubeconfig={dir}/jane --cluster=tour --user=jane").says(&["Context \"tour\" created."]),
        run("auth whoami --kubeconfig={dir}/jane --context=tour").says(&["Username jane", "Groups [crew system:authenticated]"]),
        run("delete csr jane unwanted").says(&["certificatesigningrequest.certificates.k8s.io \"jane\" deleted*"]),
    ]
}
