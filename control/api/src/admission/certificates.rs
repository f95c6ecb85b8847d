//! Who asks for a certificate is written down, so that who approves and signs it knows.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::json;

use super::{Operation, Request, World};
use crate::object::{child, text};
use crate::status::{Result, Status};
use crate::user::MASTERS;

/// Whose certificates let into this API server.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// Who signs for nodes.
const NODE_SIGNERS: [&str; 2] =
    ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"];

/// The requester's name and groups are those of the request that came, whatever it says.
pub fn requester(request: &mut Request<'_>, _world: &World<'_>) -> Result<()> {
    if !concerns(request) || request.operation != Operation::Create || request.subresource.is_some() {
        return Ok(());
    }
    let user = request.user;
    let spec = child(request.object, "spec");
    spec.insert("username".to_owned(), json!(user.name));
    spec.insert("groups".to_owned(), json!(user.groups));
    for (field, value, empty) in
        [("uid", json!(user.uid), user.uid.is_empty()), ("extra", json!(user.extra), user.extra.is_empty())]
    {
        match empty {
            true => spec.remove(field),
            false => spec.insert(field.to_owned(), value),
        };
    }
    Ok(())
}

/// Nobody gets into `system:masters` by a certificate that the cluster signs, and a node asks in its own name alone.
pub fn subject(request: &mut Request<'_>, _world: &World<'_>) -> Result<()> {
    if !concerns(request) || request.operation != Operation::Create || request.subresource.is_some() {
        return Ok(());
    }
    let signer = text(request.object, "/spec/signerName");
    let pem = BASE64_STANDARD.decode(text(request.object, "/spec/request")).unwrap_or_default();
    // What cannot be read is for validation to refuse.
    let Ok(asked) = wharf_kit::identity::Request::read(&String::from_utf8_lossy(&pem)) else { return Ok(()) };
    let refused = |why: String| Err(Status::forbidden_kind(request.kind, request.name, &why));
    if signer == CLIENT_SIGNER && asked.groups.iter().any(|group| group == MASTERS) {
        return refused(format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed"));
    }
    if NODE_SIGNERS.contains(&signer)
        && request.user.as_node().is_some()
        && asked.user.starts_with("system:node:")
        && asked.user != request.user.name
    {
        return refused(format!("can only create a node CSR with CN={}", request.user.name));
    }
    Ok(())
}

fn concerns(request: &Request<'_>) -> bool {
    request.kind.group == "certificates.k8s.io" && request.kind.plural == "certificatesigningrequests"
}
