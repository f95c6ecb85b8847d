//! Who approves or signs a certificate request needs the signer's leave too: the verbs `approve` and `sign` on it.

use serde_json::Value;

use super::{Action, Attributes, check};
use crate::kinds::Subresource;
use crate::object::text;
use crate::status::{Result, Status};
use crate::verbs::Call;

impl Call {
    /// Refuses a verdict on a request, or its certificate, from who has no leave for its signer (by its whole name,
    /// or by `DOMAIN/*`).
    pub fn check_signer(&self, new: &Value, old: &Value, subresource: Option<Subresource>) -> Result<()> {
        if self.kind.group != "certificates.k8s.io" || self.kind.plural != "certificatesigningrequests" {
            return Ok(());
        }
        let verb = match subresource {
            Some(Subresource::Approval) => "approve",
            Some(Subresource::Status)
                if text(new, "/status/certificate") != text(old, "/status/certificate") =>
            {
                "sign"
            }
            _ => return Ok(()),
        };
        let signer = text(old, "/spec/signerName");
        let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
        let may = |name: &str| {
            let action = Action::Resource {
                group: &self.kind.group,
                resource: "signers",
                subresource: "",
                namespace: "",
                name,
                fields: &[],
            };
            check(&self.server.authorizers, &Attributes { user: &self.user, verb, action }).is_ok()
        };
        if may(signer) || may(&domain) {
            return Ok(());
        }
        let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
        Err(Status::forbidden_kind(&self.kind, &self.path.name, &why))
    }
}
