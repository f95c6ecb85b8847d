//! The built-in kinds.

use super::Subresource::{
    Approval, Attach, Binding, EphemeralContainers, Eviction, Exec, Finalize, Log, PortForward, Proxy, Scale,
    Status, Token,
};
use super::{
    Kind, certificate, columns, config, daemonset, deployment, disruption, endpoints, event, job, lease,
    limits, namespace, node, pod, priority_class, rbac, replicaset, revision, runtimeclass, service,
    statefulset,
};
use crate::reviews;
use crate::usage::UsageOf;

const AUTHN: &str = "authentication.k8s.io";
const AUTHZ: &str = "authorization.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";

#[rustfmt::skip]
pub fn rows() -> Vec<Kind> {
    vec![
        Kind::new("", "v1", "ConfigMap", "configmaps").short_names(&["cm"])
            .columns(columns::CONFIG_MAP).strategy(&config::ConfigMap),
        Kind::new("", "v1", "Endpoints", "endpoints").short_names(&["ep"])
            .columns(columns::ENDPOINTS).strategy(&endpoints::Endpoints),
        Kind::new("", "v1", "Event", "events").short_names(&["ev"])
            .fields(event::FIELDS).columns(columns::EVENT).strategy(&event::Event),
        Kind::new("", "v1", "LimitRange", "limitranges").short_names(&["limits"])
            .columns(columns::LIMIT_RANGE).strategy(&limits::LimitRange),
        Kind::new("", "v1", "Namespace", "namespaces").short_names(&["ns"]).cluster_wide()
            .subresources(&[Status, Finalize]).fields(&["status.phase"])
            .columns(columns::NAMESPACE).strategy(&namespace::Namespace),
        Kind::new("", "v1", "Node", "nodes").short_names(&["no"]).cluster_wide()
            .subresources(&[Status, Proxy]).fields(&["spec.unschedulable"])
            .columns(columns::NODE).strategy(&node::Node),
        Kind::new("", "v1", "Pod", "pods").short_names(&["po"]).categories(&["all"])
            .subresources(&[Status, Binding, Eviction, Log, PortForward, Exec, Attach, EphemeralContainers]).fields(pod::FIELDS)
            .columns(columns::POD).strategy(&pod::Pod),
        Kind::new("", "v1", "PodTemplate", "podtemplates")
            .columns(columns::POD_TEMPLATE).strategy(&revision::PodTemplate),
        Kind::new("", "v1", "ResourceQuota", "resourcequotas").short_names(&["quota"])
            .subresources(&[Status])
            .columns(columns::RESOURCE_QUOTA).strategy(&limits::ResourceQuota),
        Kind::new("", "v1", "Secret", "secrets").fields(&["type"])
            .columns(columns::SECRET).strategy(&config::Secret),
        Kind::new("", "v1", "Service", "services").short_names(&["svc"]).categories(&["all"])
            .subresources(&[Status]).fields(&["spec.clusterIP", "spec.type"])
            .columns(columns::SERVICE).strategy(&service::Service),
        Kind::new("", "v1", "ServiceAccount", "serviceaccounts").short_names(&["sa"])
            .subresources(&[Token])
            .columns(columns::SERVICE_ACCOUNT),
        Kind::new("apps", "v1", "ControllerRevision", "controllerrevisions")
            .columns(columns::CONTROLLER_REVISION).strategy(&revision::ControllerRevision),
        Kind::new("apps", "v1", "DaemonSet", "daemonsets").short_names(&["ds"]).categories(&["all"])
            .subresources(&[Status])
            .columns(columns::DAEMON_SET).strategy(&daemonset::DaemonSet),
        Kind::new("apps", "v1", "Deployment", "deployments").short_names(&["deploy"]).categories(&["all"])
            .subresources(&[Status, Scale])
            .columns(columns::DEPLOYMENT).strategy(&deployment::Deployment),
        Kind::new("apps", "v1", "ReplicaSet", "replicasets").short_names(&["rs"]).categories(&["all"])
            .subresources(&[Status, Scale]).fields(&["status.replicas"])
            .columns(columns::REPLICA_SET).strategy(&replicaset::ReplicaSet),
        Kind::new("apps", "v1", "StatefulSet", "statefulsets").short_names(&["sts"]).categories(&["all"])
            .subresources(&[Status, Scale])
            .columns(columns::STATEFUL_SET).strategy(&statefulset::StatefulSet),
        Kind::new(AUTHN, "v1", "SelfSubjectReview", "selfsubjectreviews").cluster_wide()
            .review(reviews::self_subject),
        Kind::new(AUTHN, "v1", "TokenReview", "tokenreviews").cluster_wide()
            .review(reviews::token),
        Kind::new(AUTHZ, "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews")
            .review(reviews::local_subject_access),
        Kind::new(AUTHZ, "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews").cluster_wide()
            .review(reviews::self_subject_access),
        Kind::new(AUTHZ, "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews").cluster_wide()
            .review(reviews::self_subject_rules),
        Kind::new(AUTHZ, "v1", "SubjectAccessReview", "subjectaccessreviews").cluster_wide()
            .review(reviews::subject_access),
        Kind::new("batch", "v1", "CronJob", "cronjobs").short_names(&["cj"]).categories(&["all"])
            .subresources(&[Status])
            .columns(columns::CRON_JOB).strategy(&job::CronJob),
        Kind::new("batch", "v1", "Job", "jobs").categories(&["all"])
            .subresources(&[Status])
            .columns(columns::JOB).strategy(&job::Job),
        Kind::new("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests")
            .short_names(&["csr"]).cluster_wide().subresources(&[Status, Approval]).fields(&["spec.signerName"])
            .columns(columns::CERTIFICATE_REQUEST).strategy(&certificate::CertificateSigningRequest),
        Kind::new("coordination.k8s.io", "v1", "Lease", "leases")
            .columns(columns::LEASE).strategy(&lease::Lease),
        Kind::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
            .columns(columns::ENDPOINT_SLICE).strategy(&endpoints::EndpointSlice),
        Kind::new("metrics.k8s.io", "v1beta1", "NodeMetrics", "nodes").cluster_wide()
            .columns(columns::NODE_METRICS).usage(UsageOf::Nodes),
        Kind::new("metrics.k8s.io", "v1beta1", "PodMetrics", "pods")
            .columns(columns::POD_METRICS).usage(UsageOf::Pods),
        Kind::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses").cluster_wide()
            .columns(columns::RUNTIME_CLASS).strategy(&runtimeclass::RuntimeClass),
        Kind::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets").short_names(&["pdb"])
            .subresources(&[Status])
            .columns(columns::DISRUPTION_BUDGET).strategy(&disruption::PodDisruptionBudget),
        Kind::new("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses").short_names(&["pc"])
            .cluster_wide().columns(columns::PRIORITY_CLASS).strategy(&priority_class::PriorityClass),
        Kind::new(RBAC, "v1", "ClusterRole", "clusterroles").cluster_wide()
            .columns(columns::ROLE).strategy(&rbac::ClusterRole),
        Kind::new(RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings").cluster_wide()
            .columns(columns::ROLE_BINDING).strategy(&rbac::Binding { cluster: true }),
        Kind::new(RBAC, "v1", "Role", "roles")
            .columns(columns::ROLE).strategy(&rbac::Role),
        Kind::new(RBAC, "v1", "RoleBinding", "rolebindings")
            .columns(columns::ROLE_BINDING).strategy(&rbac::Binding { cluster: false }),
    ]
}
