//! `wctl certificate approve` and `deny`: a person's verdict on certificate requests.

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use crate::api::{Api, refused};
use crate::uri::segment;
use crate::{Global, output};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// A request that others change meanwhile is read again so often, as kubectl does.
const TRIES: u32 = 10;

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    verdict: Verdict,
}

#[derive(Subcommand)]
enum Verdict {
    /// Let the signer issue what is asked for
    Approve(Named),
    /// Let nothing be issued
    Deny(Named),
}

#[derive(clap::Args)]
struct Named {
    /// Names of certificate requests
    #[arg(required = true, value_name = "CSR")]
    requests: Vec<String>,
    /// Say it again although it was said
    #[arg(long)]
    force: bool,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let (named, verdict, word) = match &options.verdict {
        Verdict::Approve(named) => (named, APPROVED, "approved"),
        Verdict::Deny(named) => (named, DENIED, "denied"),
    };
    for name in &named.requests {
        let name = name.rsplit_once('/').map_or(name.as_str(), |(_, name)| name); // csr/NAME
        judge(&api, name, &verdict, named.force).await?;
        output::line(&format!("certificatesigningrequest.certificates.k8s.io/{name} {word}"));
    }
    Ok(())
}

/// A condition, and what says it.
struct Condition {
    kind: &'static str,
    reason: &'static str,
    message: &'static str,
}

const APPROVED: Condition = Condition {
    kind: "Approved",
    reason: "WctlApprove",
    message: "This CSR was approved by wctl certificate approve.",
};
const DENIED: Condition = Condition {
    kind: "Denied",
    reason: "WctlDeny",
    message: "This CSR was denied by wctl certificate deny.",
};

async fn judge(api: &Api, name: &str, verdict: &Condition, force: bool) -> anyhow::Result<()> {
    let path = format!("{REQUESTS}/{}", segment(name));
    let headers = [("content-type", "application/json")];
    let mut left = TRIES;
    loop {
        left -= 1;
        let request = api.get(&path).await?;
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let Some(judged) = judged(request, verdict, &now, force) else { return Ok(()) };
        let body = judged.to_string().into_bytes();
        match api.call(Method::PUT, &format!("{path}/approval"), &headers, body).await {
            Ok(_) => return Ok(()),
            Err(error) if left > 0 && refused(&error).is_some_and(|no| no.code == 409) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The request with this verdict; nothing if it has it already. Pure.
fn judged(mut request: Value, verdict: &Condition, now: &str, force: bool) -> Option<Value> {
    let condition = json!({
        "type": verdict.kind, "status": "True", "reason": verdict.reason, "message": verdict.message,
        "lastUpdateTime": now,
    });
    let status = request.as_object_mut()?.entry("status").or_insert_with(|| json!({}));
    let conditions = status.as_object_mut()?.entry("conditions").or_insert_with(|| json!([]));
    let conditions = conditions.as_array_mut()?;
    match conditions.iter_mut().find(|one| one["type"] == verdict.kind) {
        Some(_) if !force => return None,
        Some(said) => {
            let since = said["lastTransitionTime"].take();
            *said = condition;
            said["lastTransitionTime"] = since;
        }
        None => conditions.push(condition),
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_added_to_what_was_said_and_said_once() {
        let open = json!({"metadata": {"name": "a"}, "spec": {}});
        let judged_once = judged(open, &APPROVED, "now", false).expect("a verdict");
        let conditions = &judged_once["status"]["conditions"];
        assert_eq!((&conditions[0]["type"], &conditions[0]["status"]), (&json!("Approved"), &json!("True")));
        assert_eq!(judged(judged_once.clone(), &APPROVED, "later", false), None);
        let again = judged(judged_once.clone(), &APPROVED, "later", true).expect("said again");
        assert_eq!(again["status"]["conditions"].as_array().map(Vec::len), Some(1));
        assert_eq!(again["status"]["conditions"][0]["lastUpdateTime"], "later");
        let both = judged(judged_once, &DENIED, "now", false).expect("the cluster refuses it, not we");
        assert_eq!(both["status"]["conditions"].as_array().map(Vec::len), Some(2));
    }
}
