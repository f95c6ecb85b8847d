//! Joining: how a machine with a token becomes a node, and how its certificates stay good.
//!
//! 1. Whom to trust: the cluster's CA, from a file, or from the server's own certificate chain if the CA's public key
//!    has the pinned hash (kubeadm's form, `sha256:…`). Nothing is sent before.
//! 2. Who to be: a certificate request for `system:node:NAME`, made with the token; later ones with the certificate.
//! 3. How to be known: a request for the node server's certificate, at the node's name and address.
//!
//! Keys are made here, stay here, and are readable by their owner alone. Whatever is on disk and good is used again.
//! Renewal is `wharf_kit::renew`'s, by the same request.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::info;
use wharf_kit::api::{self, Kind, Object, Rest};
use wharf_kit::identity::{self, Pair, Request};
use wharf_kit::view::{Filter, Hub, Key, Meta, View, or_default};

/// How long a request may wait for its approval: a person may have to give it.
const APPROVAL: Duration = Duration::from_secs(15 * 60);
/// How long the server may take to show its certificates.
const CONNECT: Duration = Duration::from_secs(10);

/// The parts of a CertificateSigningRequest that tell its end.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    metadata: Meta,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    certificate: Option<String>,
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    #[serde(deserialize_with = "or_default")]
    message: String,
}

impl View for Asked {
    const KIND: Kind =
        Kind::new("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests")
            .cluster();

    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

/// One of a node's two certificates.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Of its files: `node`, `serving`.
    pub file: &'static str,
    pub signer: &'static str,
    pub usage: &'static str,
    /// The node's.
    pub user: String,
    pub names: Vec<String>,
}

impl Wanted {
    /// By which an agent is its node.
    pub fn client(node: &str) -> Self {
        Self {
            file: "node",
            signer: "kubernetes.io/kube-apiserver-client-kubelet",
            usage: "client auth",
            user: format!("system:node:{node}"),
            names: Vec::new(),
        }
    }

    /// By which the API server knows the node's server.
    pub fn serving(node: &str, address: std::net::IpAddr) -> Self {
        Self {
            file: "serving",
            signer: "kubernetes.io/kubelet-serving",
            usage: "server auth",
            user: format!("system:node:{node}"),
            names: vec![node.to_owned(), address.to_string()],
        }
    }

    /// The one on disk, if it is still good.
    pub fn kept(&self, pki: &Path) -> Option<Pair> {
        let pair = Pair::load(&self.path(pki, "crt"), &self.path(pki, "key"));
        pair.ok().filter(|pair| pair.is_good_for(&self.user, &self.names))
    }

    fn path(&self, pki: &Path, kind: &str) -> PathBuf {
        pki.join(format!("{}.{kind}", self.file))
    }

    /// Asks the cluster for one, waits until it is issued, and keeps it.
    pub async fn ask(&self, client: &kube::Client, pki: &Path) -> anyhow::Result<Pair> {
        let (key_pem, request) = Request::make(&self.user, &["system:nodes"], &self.names)?;
        let body = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "node-csr-"},
            "spec": {
                "request": BASE64_STANDARD.encode(request), "signerName": self.signer,
                "usages": ["digital signature", self.usage],
            },
        });
        let made: Object = Rest::new(client.clone()).create(Asked::KIND, "", &body).await.map_err(refused)?;
        let name = made.metadata.name.to_string();
        info!(request = name, signer = self.signer, "asked for a certificate");
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let hub = Hub::new(client.clone(), stop);
        let store = hub.view_of::<Asked>(Filter::fields(format!("metadata.name={name}")));
        store.ready().await;
        let key = Key::cluster(name.as_str());
        let ended = |asked: Option<&Asked>| match asked {
            None => true,
            Some(asked) => {
                asked.status.certificate.is_some()
                    || asked.status.conditions.iter().any(|one| matches!(&*one.r#type, "Denied" | "Failed"))
            }
        };
        if tokio::time::timeout(APPROVAL, store.until(&key, ended)).await.is_err() {
            bail!(
                "the certificate request {name} was not approved; `kubectl certificate approve {name}` does it"
            );
        }
        let asked = store.get(&key).with_context(|| format!("the certificate request {name} was deleted"))?;
        let Some(certificate) = &asked.status.certificate else {
            let why = asked.status.conditions.iter().map(|one| format!("{}: {}", one.r#type, one.message));
            bail!("the certificate request {name} was refused: {}", why.collect::<Vec<_>>().join("; "));
        };
        let cert_pem = String::from_utf8(BASE64_STANDARD.decode(certificate)?)?;
        let pair = Pair { cert_pem, key_pem };
        pair.save(&self.path(pki, "crt"), &self.path(pki, "key"))?;
        Ok(pair)
    }
}

/// What to do about a request that was not even taken.
fn refused(error: api::Error) -> anyhow::Error {
    let next = match error.code() {
        401 => "the token is wrong or has expired, or the certificate is of another cluster",
        403 => "this token or certificate may not ask for that node's certificate",
        _ => "could not ask for a certificate",
    };
    anyhow::Error::new(error).context(next)
}

/// The CA that the server at this host and port shows, PEM, if its public key has this hash and it signed the server's
/// certificate.
pub async fn discover(host: &str, port: u16, hash: &str) -> anyhow::Result<String> {
    let pin = hash
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .with_context(|| format!("{hash:?} is no hash such as sha256:… with 64 hexadecimal digits"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let found = Mutex::default();
    let verifier = Arc::new(Pinned { pin: pin.to_lowercase(), provider: provider.clone(), found });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).with_context(|| format!("{host:?} is no name"))?;
    let connect = async {
        let stream = tokio::net::TcpStream::connect((host, port)).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    let connected = tokio::time::timeout(CONNECT, connect).await.context("the server does not answer")?;
    connected.with_context(|| format!("the server {host}:{port} is not to be trusted, or not there"))?;
    let found = verifier.found.lock().expect("no holder of this lock panics").take();
    Ok(identity::pem(&found.context("the server showed no CA")?))
}

/// Trusts the CA whose public key has the pinned hash, and nobody else.
#[derive(Debug)]
struct Pinned {
    pin: String,
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let refused = |why: &str| rustls::Error::General(why.to_owned());
        let ca = intermediates
            .iter()
            .find(|certificate| identity::public_key_hash(certificate).is_ok_and(|hash| hash == self.pin))
            .ok_or_else(|| {
                refused("none of the server's certificates has the pinned hash (--ca-cert-hash)")
            })?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone());
        let verifier = verifier.build().map_err(|error| refused(&error.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
        *self.found.lock().expect("no holder of this lock panics") = Some(ca.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server with this chain, and what `discover` says of it.
    async fn discovered(chain: &str, key: &str, hash: &str) -> anyhow::Result<String> {
        let pair = Pair { cert_pem: chain.to_owned(), key_pem: key.to_owned() };
        let config = identity::server_config(&pair, identity::ClientAuth::None, &[]).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = tokio_rustls::TlsAcceptor::from(config).accept(stream).await;
        };
        tokio::join!(discover("127.0.0.1", port, hash), serve).0
    }

    #[tokio::test]
    async fn only_the_ca_with_the_pinned_key_is_trusted_and_only_with_a_certificate_that_it_signed() {
        let (ca, foreign) = (identity::Ca::generate("ca").unwrap(), identity::Ca::generate("other").unwrap());
        let hash = |ca: &identity::Ca| {
            let der = identity::certificates(ca.cert_pem()).unwrap();
            format!("sha256:{}", identity::public_key_hash(&der[0]).unwrap())
        };
        let own = ca.server("s", &["127.0.0.1"]).unwrap();
        let chain = format!("{}{}", own.cert_pem, ca.cert_pem());
        assert_eq!(
            identity::certificates(&discovered(&chain, &own.key_pem, &hash(&ca)).await.unwrap()).unwrap(),
            identity::certificates(ca.cert_pem()).unwrap()
        );
        let words = |error: anyhow::Error| format!("{error:#}");
        let wrong = words(discovered(&chain, &own.key_pem, &hash(&foreign)).await.unwrap_err());
        assert!(wrong.contains("has the pinned hash"), "{wrong}");
        // Whoever shows the right CA without a certificate of it is nobody.
        let theirs = foreign.server("s", &["127.0.0.1"]).unwrap();
        let forged = format!("{}{}", theirs.cert_pem, ca.cert_pem());
        assert!(discovered(&forged, &theirs.key_pem, &hash(&ca)).await.is_err());
        // Nor is who is certified for another name.
        let elsewhere = ca.server("s", &["10.0.0.1"]).unwrap();
        let chain = format!("{}{}", elsewhere.cert_pem, ca.cert_pem());
        assert!(discovered(&chain, &elsewhere.key_pem, &hash(&ca)).await.is_err());
        for bad in ["sha256:12", "md5:00", ""] {
            assert!(
                words(discover("127.0.0.1", 1, bad).await.unwrap_err()).contains("64 hexadecimal digits")
            );
        }
    }
}
