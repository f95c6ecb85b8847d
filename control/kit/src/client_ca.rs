//! Who may be told by a client certificate, decided after the handshake.
//!
//! As with kube-apiserver, a handshake asks for a certificate and checks that who shows one has its key
//! ([`ClientCa::asked`]); what the certificate proves is decided when it is to tell a user ([`ClientCa::verify`]). So
//! who shows an expired or a foreign one gets an answer with a status, not a broken connection.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::identity::{self, Error, Peer};

/// The CA that signs users' certificates. Clones share it.
#[derive(Debug, Clone)]
pub struct ClientCa(Arc<dyn ClientCertVerifier>);

/// What a good certificate proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub peer: Peer,
    /// The last moment at which it does.
    pub until: SystemTime,
}

impl ClientCa {
    /// `ca_pem`: its certificates, PEM.
    ///
    /// # Errors
    /// If it holds none that can be used.
    pub fn new(ca_pem: &str) -> Result<Self, Error> {
        let roots = Arc::new(identity::roots(ca_pem)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, identity::provider());
        Ok(Self(verifier.build().map_err(Error::ClientCa)?))
    }

    /// For a server that asks for certificates and judges them later.
    pub(crate) fn asked(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::new(Asked(self.0.clone()))
    }

    /// For a server that speaks to nobody else.
    pub(crate) fn required(&self) -> Arc<dyn ClientCertVerifier> {
        self.0.clone()
    }

    /// Who shows this chain at `now`. That the peer has the first certificate's key is the handshake's to check.
    ///
    /// # Errors
    /// If this CA did not sign it for a client, it is not yet or no longer valid, or it names nobody.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<Proof, Error> {
        let (first, rest) = chain.split_first().ok_or(Error::NoCertificate)?;
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.0
            .verify_client_cert(first, rest, UnixTime::since_unix_epoch(since))
            .map_err(Error::ClientCertificate)?;
        let ends = chain.iter().map(|der| end(der)).collect::<Result<Vec<_>, _>>()?;
        let until = ends.into_iter().min().ok_or(Error::NoCertificate)?;
        Ok(Proof { peer: identity::peer_identity(first)?, until })
    }
}

/// The last moment of a certificate's validity.
fn end(der: &[u8]) -> Result<SystemTime, Error> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|_| Error::Unreadable)?;
    let seconds = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(Error::Unreadable)
}

/// Checks signatures alone: of whom the certificate is, is asked later.
#[derive(Debug)]
struct Asked(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Asked {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _first: &CertificateDer<'_>,
        _rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Ca, Pair};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn chain(pair: &Pair) -> Vec<CertificateDer<'static>> {
        identity::certificates(&pair.cert_pem).unwrap()
    }

    #[test]
    fn a_certificate_proves_its_user_in_its_time_for_its_purpose_and_to_its_own_ca_alone() {
        let (ca, other) = (Ca::generate("test-ca").unwrap(), Ca::generate("test-ca").unwrap());
        let clients = ClientCa::new(ca.cert_pem()).unwrap();
        let now = SystemTime::now();
        let good = chain(&ca.short("jane", DAY).unwrap());
        let proof = clients.verify(&good, now).unwrap();
        assert_eq!((&*proof.peer.user, proof.peer.groups.len()), ("jane", 0));
        let left = proof.until.duration_since(now).unwrap();
        assert!(left <= DAY && left > DAY - Duration::from_secs(60), "{left:?}");
        let none: [&str; 0] = [];
        let foreign = chain(&other.client("jane", &none).unwrap());
        let serving = chain(&ca.server("jane", &["127.0.0.1"]).unwrap());
        for (what, chain, now) in [
            ("expired", &good[..], now + DAY * 2),
            ("not yet valid", &good, now - DAY),
            ("of another CA of the same name", &foreign, now),
            ("a server's", &serving, now),
            ("none", &[], now),
            ("no certificate", &[CertificateDer::from(vec![1, 2, 3])], now),
        ] {
            assert!(clients.verify(chain, now).is_err(), "{what}");
        }
    }
}
