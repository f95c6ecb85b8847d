//! The roles and bindings every cluster has, and the other objects that exist from the start.

use serde_json::{Value, json};

use crate::kinds::priority_class;

const RBAC: &str = "rbac.authorization.k8s.io";

/// An object to be there, with the group and plural it belongs to.
pub struct Bootstrap {
    pub group: &'static str,
    pub plural: &'static str,
    pub object: Value,
}

const CERTIFICATES: &[&str] = &["certificates.k8s.io"];

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn paths(urls: &[&str], verbs: &[&str]) -> Value {
    json!({"nonResourceURLs": urls, "verbs": verbs})
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    })
}

fn role(name: &str, rules: Vec<Value>) -> Bootstrap {
    let object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata(name), "rules": rules,
    });
    Bootstrap { group: RBAC, plural: "clusterroles", object }
}

/// `role` as part of the roles that aggregate by this label.
fn part_of(label: &str, mut role: Bootstrap) -> Bootstrap {
    role.object["metadata"]["labels"][aggregate_label(label)] = json!("true");
    role
}

/// A role made of those that [`part_of`] says. The rules are what the aggregation comes to, so that it has them
/// before the controller has looked at it.
fn sum_of(label: &str, mut role: Bootstrap) -> Bootstrap {
    let selector = json!({"matchLabels": {aggregate_label(label): "true"}});
    role.object["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
    role
}

fn aggregate_label(of: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{of}")
}

/// Both lists, each rule once.
fn union(mut rules: Vec<Value>, more: Vec<Value>) -> Vec<Value> {
    for rule in more {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    rules
}

fn binding(name: &str, role: &str, kind: &str, subjects: &[&str]) -> Bootstrap {
    let subjects: Vec<Value> =
        subjects.iter().map(|subject| json!({"apiGroup": RBAC, "kind": kind, "name": subject})).collect();
    let object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": metadata(name),
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}, "subjects": subjects,
    });
    Bootstrap { group: RBAC, plural: "clusterrolebindings", object }
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const ALL: &[&str] = &["*"];

/// What may be seen in a namespace: everything but Secrets and RBAC.
fn view_rules() -> Vec<Value> {
    vec![
        rule(
            &[""],
            &[
                "bindings",
                "configmaps",
                "events",
                "limitranges",
                "namespaces",
                "namespaces/status",
                "pods",
                "pods/log",
                "pods/status",
                "replicationcontrollers",
                "resourcequotas",
                "serviceaccounts",
                "services",
                "services/status",
                "endpoints",
                "persistentvolumeclaims",
            ],
            READ,
        ),
        rule(
            &["apps"],
            &[
                "controllerrevisions",
                "daemonsets",
                "daemonsets/status",
                "deployments",
                "deployments/scale",
                "deployments/status",
                "replicasets",
                "replicasets/scale",
                "replicasets/status",
                "statefulsets",
                "statefulsets/scale",
                "statefulsets/status",
            ],
            READ,
        ),
        rule(&["batch"], &["jobs", "jobs/status", "cronjobs", "cronjobs/status"], READ),
        rule(&["discovery.k8s.io"], &["endpointslices"], READ),
        rule(&["networking.k8s.io"], &["ingresses", "ingresses/status", "networkpolicies"], READ),
        rule(&["events.k8s.io"], &["events"], READ),
    ]
}

/// What may be done in a namespace besides: everything but RBAC.
fn edit_rules() -> Vec<Value> {
    vec![
        rule(
            &[""],
            &[
                "configmaps",
                "events",
                "persistentvolumeclaims",
                "pods",
                "replicationcontrollers",
                "secrets",
                "serviceaccounts",
                "services",
            ],
            WRITE,
        ),
        rule(&[""], &["secrets"], READ),
        rule(
            &[""],
            &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "services/proxy"],
            &["get", "create"],
        ),
        rule(&[""], &["pods/eviction", "serviceaccounts/token"], &["create"]),
        rule(&[""], &["serviceaccounts"], &["impersonate"]),
        rule(
            &["apps"],
            &[
                "daemonsets",
                "deployments",
                "deployments/rollback",
                "deployments/scale",
                "replicasets",
                "replicasets/scale",
                "statefulsets",
                "statefulsets/scale",
            ],
            WRITE,
        ),
        rule(&["batch"], &["jobs", "cronjobs"], WRITE),
        rule(&["networking.k8s.io"], &["ingresses", "networkpolicies"], WRITE),
        rule(
            &["coordination.k8s.io"],
            &["leases"],
            &["get", "list", "watch", "create", "delete", "deletecollection", "patch", "update"],
        ),
    ]
}

fn admin_rules() -> Vec<Value> {
    vec![
        rule(&[RBAC], &["roles", "rolebindings"], &[READ, WRITE].concat()),
        rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]),
    ]
}

/// Roles first, so that bindings find theirs.
pub fn rbac() -> Vec<Bootstrap> {
    let events = || rule(&["", "events.k8s.io"], &["events"], &["create", "patch", "update"]);
    // The parts of a role in the order in which the controller puts them: by name.
    let usage = || vec![rule(&["metrics.k8s.io"], &["pods", "nodes"], READ)];
    let view = || union(view_rules(), usage());
    let edit = || union(union(edit_rules(), usage()), view());
    let discovery = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ];
    vec![
        role("cluster-admin", vec![rule(ALL, ALL, ALL), paths(ALL, ALL)]),
        part_of("view", role("system:aggregate-to-view", view_rules())),
        part_of("edit", role("system:aggregate-to-edit", edit_rules())),
        part_of("admin", role("system:aggregate-to-admin", admin_rules())),
        // Who sees pods sees what they use.
        part_of("view", part_of("edit", part_of("admin", role("system:aggregated-metrics-reader", usage())))),
        sum_of("admin", role("admin", union(edit(), admin_rules()))),
        part_of("admin", sum_of("edit", role("edit", edit()))),
        part_of("edit", sum_of("view", role("view", view()))),
        role("system:discovery", vec![paths(&discovery, &["get"])]),
        role(
            "system:public-info-viewer",
            vec![paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"], &["get"])],
        ),
        role(
            "system:basic-user",
            vec![
                rule(
                    &["authorization.k8s.io"],
                    &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                    &["create"],
                ),
                rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
            ],
        ),
        role(
            "system:kube-scheduler",
            vec![
                events(),
                rule(
                    &["coordination.k8s.io"],
                    &["leases"],
                    &["create", "get", "list", "update", "watch", "patch"],
                ),
                rule(
                    &[""],
                    &[
                        "nodes",
                        "namespaces",
                        "services",
                        "replicationcontrollers",
                        "persistentvolumeclaims",
                        "persistentvolumes",
                    ],
                    READ,
                ),
                rule(&[""], &["pods"], &["get", "list", "watch", "delete"]),
                rule(&[""], &["bindings", "pods/binding"], &["create"]),
                rule(&[""], &["pods/status"], &["patch", "update"]),
                rule(&["apps"], &["replicasets", "statefulsets"], READ),
                rule(&["node.k8s.io"], &["runtimeclasses"], READ),
            ],
        ),
        // For machines that ask to become nodes; whose tokens get it is the administrator's to say.
        role(
            "system:node-bootstrapper",
            vec![rule(
                &["certificates.k8s.io"],
                &["certificatesigningrequests"],
                &["create", "get", "list", "watch"],
            )],
        ),
        // For servers that leave authentication and authorization to this one.
        role(
            "system:auth-delegator",
            vec![
                rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
                rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
            ],
        ),
        // In Kubernetes each controller has a service account; here they are one user. Garbage collection and
        // namespace deletion touch every kind.
        role(
            "system:kube-controller-manager",
            vec![
                events(),
                rule(ALL, ALL, READ),
                rule(ALL, ALL, &["delete", "deletecollection", "patch", "update"]),
                rule(
                    &[""],
                    &[
                        "namespaces/finalize",
                        "namespaces/status",
                        "nodes/status",
                        "pods/status",
                        "resourcequotas/status",
                    ],
                    &["update", "patch"],
                ),
                rule(&[""], &["pods", "serviceaccounts", "configmaps", "secrets", "endpoints"], &["create"]),
                rule(&[""], &["serviceaccounts/token"], &["create"]),
                // Aggregation gives roles rules that the controller itself does not have.
                rule(&[RBAC], &["clusterroles"], &["escalate"]),
                rule(&["apps"], &["replicasets", "controllerrevisions"], &["create"]),
                rule(&["batch"], &["jobs"], &["create"]),
                rule(&["discovery.k8s.io"], &["endpointslices"], &["create"]),
                rule(&["coordination.k8s.io"], &["leases"], &["create"]),
                rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
                rule(CERTIFICATES, &["signers"], &["approve", "sign"]),
            ],
        ),
        // Granted by the node authorizer, not by a binding; it is here for who looks it up.
        role(
            "system:node",
            vec![
                rule(&[""], &["nodes"], &["create", "get", "list", "watch", "update", "patch"]),
                rule(&[""], &["nodes/status"], &["update", "patch"]),
                rule(&[""], &["pods"], &["get", "list", "watch", "delete"]),
                rule(&[""], &["pods/status"], &["get", "update", "patch"]),
                rule(&[""], &["pods/eviction"], &["create"]),
                rule(&[""], &["secrets", "configmaps"], &["get"]),
                rule(&[""], &["serviceaccounts/token"], &["create"]),
                rule(&[""], &["services"], READ),
                rule(&["coordination.k8s.io"], &["leases"], &["create", "delete", "get", "patch", "update"]),
                rule(&["node.k8s.io"], &["runtimeclasses"], READ),
                rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
                rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
                events(),
            ],
        ),
        // What node servers answer, for those who look after nodes.
        role(
            "system:kubelet-api-admin",
            vec![
                rule(&[""], &["nodes"], &["get", "list", "watch", "proxy"]),
                rule(
                    &[""],
                    &[
                        "nodes/configz",
                        "nodes/healthz",
                        "nodes/log",
                        "nodes/metrics",
                        "nodes/pods",
                        "nodes/proxy",
                        "nodes/stats",
                    ],
                    ALL,
                ),
            ],
        ),
        role(
            "system:service-account-issuer-discovery",
            vec![paths(
                &[
                    "/.well-known/openid-configuration",
                    "/.well-known/openid-configuration/",
                    "/openid/v1/jwks",
                    "/openid/v1/jwks/",
                ],
                &["get"],
            )],
        ),
        role(
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            vec![rule(CERTIFICATES, &["certificatesigningrequests/nodeclient"], &["create"])],
        ),
        role(
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            vec![rule(CERTIFICATES, &["certificatesigningrequests/selfnodeclient"], &["create"])],
        ),
        role("wharf:node-router", vec![rule(&[""], &["nodes"], &["list", "watch"])]),
        role("wharf:registry-puller", vec![paths(&["/v2/*", "/v2"], &["get", "head"])]),
        role("wharf:registry-pusher", vec![paths(&["/v2/*", "/v2"], ALL)]),
        binding("cluster-admin", "cluster-admin", "Group", &["system:masters"]),
        binding("system:discovery", "system:discovery", "Group", &["system:authenticated"]),
        binding("system:basic-user", "system:basic-user", "Group", &["system:authenticated"]),
        binding(
            "system:public-info-viewer",
            "system:public-info-viewer",
            "Group",
            &["system:authenticated", "system:unauthenticated"],
        ),
        binding(
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            "Group",
            &["system:serviceaccounts"],
        ),
        binding("system:kube-scheduler", "system:kube-scheduler", "User", &["system:kube-scheduler"]),
        binding(
            "system:kube-controller-manager",
            "system:kube-controller-manager",
            "User",
            &["system:kube-controller-manager"],
        ),
        // Who has a bootstrap token may become a node, and a node may renew what it has: the bindings that kubeadm makes.
        binding(
            "wharf:node-bootstrapper",
            "system:node-bootstrapper",
            "Group",
            &["system:bootstrappers", "system:nodes"],
        ),
        binding(
            "wharf:node-autoapprove-bootstrap",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            "Group",
            &["system:bootstrappers"],
        ),
        binding(
            "wharf:node-autoapprove-certificate-rotation",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            "Group",
            &["system:nodes"],
        ),
        // A node leads packets to the pods of the others, so it must know where those are. (In Kubernetes the service
        // proxy and the network plugin of each node may look; they are other users there.)
        binding("wharf:node-router", "wharf:node-router", "Group", &["system:nodes"]),
        binding("wharf:registry-puller", "wharf:registry-puller", "Group", &["system:nodes"]),
    ]
}

/// The namespaces, runtime classes and priority classes of every cluster.
pub fn objects() -> Vec<Bootstrap> {
    let namespaces =
        ["default", "kube-system", "kube-public", "kube-node-lease"].into_iter().map(|name| Bootstrap {
            group: "",
            plural: "namespaces",
            object: json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        });
    let classes = ["wasm", "oci"].into_iter().map(|name| Bootstrap {
        group: "node.k8s.io",
        plural: "runtimeclasses",
        object: json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": name,
        }),
    });
    let priorities = priority_class::SYSTEM.into_iter().map(|(name, value, description)| Bootstrap {
        group: "scheduling.k8s.io",
        plural: "priorityclasses",
        object: json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description,
        }),
    });
    namespaces.chain(classes).chain(priorities).collect()
}
