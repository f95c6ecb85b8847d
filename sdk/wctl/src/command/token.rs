//! `wctl token`: the tokens with which machines join.

use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use http::Method;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use wharf_local::token::{SECRET_PREFIX, SECRET_TYPE, Token};

use crate::api::Api;
use crate::command::{duration, node};
use crate::uri::{segment, with_query};
use crate::{Global, output};

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a token and print it
    Create(CreateOptions),
    /// Show the tokens, without what is secret of them
    List,
    /// Delete tokens: nobody joins with them any more
    Delete {
        /// Tokens, or their ids (the part before the dot)
        #[arg(required = true, value_name = "TOKEN")]
        tokens: Vec<String>,
    },
}

#[derive(clap::Args)]
struct CreateOptions {
    /// How long it is good; 0 for ever
    #[arg(long, default_value = "24h", value_parser = duration)]
    ttl: Duration,
    /// What it is for
    #[arg(long, default_value = "")]
    description: String,
    /// Print the command that joins a machine instead
    #[arg(long)]
    print_join_command: bool,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    match options.command {
        Command::Create(options) => create(&api, &options, global).await,
        Command::List => list(&api).await,
        Command::Delete { tokens } => {
            for token in &tokens {
                let id = token.split('.').next().unwrap_or_default();
                let path = format!("{SECRETS}/{SECRET_PREFIX}{}", segment(id));
                api.call(Method::DELETE, &path, &[], Vec::new()).await?;
                output::line(&format!("bootstrap token {id} deleted"));
            }
            Ok(())
        }
    }
}

async fn create(api: &Api, options: &CreateOptions, global: &Global) -> anyhow::Result<()> {
    let token = Token::generate();
    let expires = match options.ttl {
        Duration::ZERO => None,
        ttl => Some(jiff::Timestamp::now().checked_add(ttl).context("--ttl is too long")?),
    };
    // What could fail comes first: no token stays that nobody was told of.
    let join = match options.print_join_command {
        true => Some((server(api).await?, ca_hash(api).await?)),
        false => None,
    };
    let body = serde_json::to_vec(&token.object(expires, &options.description))?;
    api.call(Method::POST, SECRETS, &[("content-type", "application/json")], body).await?;
    let Some((server, hash)) = join else {
        output::line(&token.text());
        return Ok(());
    };
    output::line(&format!(
        "wharf node --server {server} --token {} --ca-cert-hash sha256:{hash}",
        token.text()
    ));
    if let Some(cluster) = node::local(api, global) {
        eprintln!(
            "note: {:?} has a network of its own on this machine: {server} is reached from inside it alone",
            cluster.name
        );
    } else if server == api.server {
        eprintln!(
            "note: the cluster does not tell its address, so this is the kubeconfig's; it has to be one that the new \
             machine reaches and that is in the server's certificate (`wharf server --advertise-address`)"
        );
    }
    Ok(())
}

/// The URL by which machines reach the API: as the cluster tells it, else the kubeconfig's.
async fn server(api: &Api) -> anyhow::Result<String> {
    let told = api.find("/api/v1/namespaces/kube-public/configmaps/cluster-info").await?;
    Ok(told.as_ref().and_then(told_server).unwrap_or_else(|| api.server.clone()))
}

/// The server of kubeadm's ConfigMap `cluster-info`.
fn told_server(map: &Value) -> Option<String> {
    let config: Value = serde_yaml::from_str(map["data"]["kubeconfig"].as_str()?).ok()?;
    let server = config["clusters"][0]["cluster"]["server"].as_str()?;
    Some(server.trim_end_matches('/').to_owned())
}

/// The SHA-256 of the public key of the cluster's CA, as each namespace is told of it.
async fn ca_hash(api: &Api) -> anyhow::Result<String> {
    let map = api.get("/api/v1/namespaces/kube-system/configmaps/kube-root-ca.crt").await?;
    let pem = map["data"]["ca.crt"].as_str().unwrap_or_default();
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .context("the ConfigMap kube-system/kube-root-ca.crt has no certificate")?;
    let (_, ca) = x509_parser::parse_x509_certificate(&der)
        .context("the ConfigMap kube-system/kube-root-ca.crt has no certificate that can be read")?;
    let digest = Sha256::digest(ca.public_key().raw);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn list(api: &Api) -> anyhow::Result<()> {
    let found = api.get(&with_query(SECRETS, [("fieldSelector", &*format!("type={SECRET_TYPE}"))])).await?;
    let mut rows = vec![["ID", "EXPIRES", "DESCRIPTION"].map(str::to_owned).to_vec()];
    rows.extend(found["items"].as_array().into_iter().flatten().map(|secret| {
        let or = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
        vec![data(secret, "token-id"), or(data(secret, "expiration"), "never"), data(secret, "description")]
    }));
    output::columns(&rows).iter().for_each(|row| output::line(row.trim_end()));
    Ok(())
}

/// A value of a Secret.
fn data(secret: &Value, key: &str) -> String {
    let encoded = secret["data"][key].as_str().unwrap_or_default();
    let bytes = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, encoded).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
