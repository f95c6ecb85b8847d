//! TLS identities: a cluster's CA, the certificates it issues, and who a certificate says its holder is.
//!
//! Users are told by their client certificate as in Kubernetes: the common name is the user, each
//! organization is a group. Keys are ECDSA P-256, certificates X.509 v3, cryptography is *ring*.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::client_ca::ClientCa;
use crate::renew::Current;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Ten years, as kubeadm gives its CA.
const CA_VALIDITY: Duration = DAY.saturating_mul(3650);
/// One year, as kubeadm gives the certificates it issues.
pub const LEAF_VALIDITY: Duration = DAY.saturating_mul(365);
/// Certificates start in the past by this much, for peers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// As many organizations as a certificate of rcgen can carry (see `params`).
const MAX_GROUPS: usize = 2;

/// The application protocols of an HTTPS server or client that speaks HTTP/2 and HTTP/1.1.
pub const ALPN_HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];
/// As [`ALPN_HTTP`] without HTTP/2, for servers whose requests upgrade the connection.
pub const ALPN_HTTP1: &[&[u8]] = &[b"http/1.1"];

/// Why an identity could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not make the certificate for {subject}")]
    Issue {
        subject: String,
        #[source]
        cause: rcgen::Error,
    },
    #[error("{user} cannot be in {count} groups: a certificate names {MAX_GROUPS} at most")]
    TooManyGroups { user: String, count: usize },
    #[error("the certificate request is not valid")]
    BadRequest(#[source] rcgen::Error),
    #[error("the CA's certificate and key cannot be used")]
    BadCa(#[source] rcgen::Error),
    #[error("{what} is not valid PEM")]
    Pem {
        what: &'static str,
        #[source]
        cause: rustls_pki_types::pem::Error,
    },
    #[error("the PEM text holds no certificate")]
    NoCertificate,
    #[error("TLS refuses this certificate, key or CA")]
    Tls(#[source] rustls::Error),
    #[error("TLS refuses this client CA")]
    ClientCa(#[source] rustls::server::VerifierBuilderError),
    #[error("the client's certificate proves nothing")]
    ClientCertificate(#[source] rustls::Error),
    #[error("the peer's certificate cannot be read")]
    Unreadable,
    #[error("the peer's certificate has no common name")]
    Nameless,
    #[error("could not read {path}")]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("could not write {path}")]
    Write {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

/// A certificate authority: its certificate and the key that signs.
pub struct Ca {
    cert_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Ca").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl Ca {
    /// Makes a new self-signed CA, valid for ten years.
    pub fn generate(common_name: &str) -> Result<Self, Error> {
        let failed = issue_error(common_name);
        let key = KeyPair::generate().map_err(&failed)?;
        let mut params = params(common_name, &[], CA_VALIDITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let cert_pem = params.self_signed(&key).map_err(&failed)?.pem();
        let key_pem = key.serialize_pem();
        Ok(Self { cert_pem, key_pem, issuer: Issuer::new(params, key) })
    }

    /// Takes up a CA from its PEM texts, as [`Ca::cert_pem`] and [`Ca::key_pem`] gave them.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key_pem).map_err(Error::BadCa)?;
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).map_err(Error::BadCa)?;
        Ok(Self { cert_pem: cert_pem.to_owned(), key_pem: key_pem.to_owned(), issuer })
    }

    /// Reads the CA from two files; makes it, and writes them, if neither exists.
    pub fn load_or_generate(cert: &Path, key: &Path, common_name: &str) -> Result<Self, Error> {
        if cert.exists() || key.exists() {
            return Self::load(&read(cert)?, &read(key)?);
        }
        let ca = Self::generate(common_name)?;
        // The key first: a certificate without its key would be taken for a damaged CA for ever, and a
        // key alone is reported as such too, but only if we die between two adjacent renames.
        write_private(key, ca.key_pem.as_bytes())?;
        write_public(cert, ca.cert_pem.as_bytes())?;
        Ok(ca)
    }

    /// The CA's certificate, PEM: what clients trust.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The CA's private key, PEM (PKCS #8).
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Issues a server certificate. Each of `names` is an IP address or a DNS name.
    pub fn server<S: AsRef<str>>(&self, common_name: &str, names: &[S]) -> Result<Pair, Error> {
        self.issue(common_name, &[] as &[&str], names, &[ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// Issues a client certificate for `user`, a member of `groups` (at most two).
    pub fn client<S: AsRef<str>>(&self, user: &str, groups: &[S]) -> Result<Pair, Error> {
        self.issue(user, groups, &[] as &[&str], &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// Issues a certificate that serves at `names` and is also the client `user` of `groups`: a node's.
    pub fn peer<G: AsRef<str>, N: AsRef<str>>(
        &self,
        user: &str,
        groups: &[G],
        names: &[N],
    ) -> Result<Pair, Error> {
        self.issue(
            user,
            groups,
            names,
            &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        )
    }

    /// A client certificate that ends when `validity` has passed.
    #[cfg(test)]
    pub(crate) fn short(&self, user: &str, validity: Duration) -> Result<Pair, Error> {
        let none: [&str; 0] = [];
        let (key_pem, request) = Request::make(user, &[], &none)?;
        let cert_pem = self.sign(&Request::read(&request)?, Purpose::Client, validity)?;
        Ok(Pair { cert_pem, key_pem })
    }

    fn issue<G: AsRef<str>, N: AsRef<str>>(
        &self,
        user: &str,
        groups: &[G],
        names: &[N],
        uses: &[ExtendedKeyUsagePurpose],
    ) -> Result<Pair, Error> {
        let failed = issue_error(user);
        let groups: Vec<&str> = groups.iter().map(AsRef::as_ref).collect();
        if groups.len() > MAX_GROUPS {
            return Err(Error::TooManyGroups { user: user.to_owned(), count: groups.len() });
        }
        let mut params = params(user, &groups, LEAF_VALIDITY);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = uses.to_vec();
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = alternative_names(names).map_err(&failed)?;
        let key = KeyPair::generate().map_err(&failed)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(&failed)?;
        Ok(Pair { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

/// A new private key (ECDSA P-256, PKCS #8, PEM) for who signs without a certificate: the issuer of tokens.
pub fn signing_key() -> Result<String, Error> {
    let key = KeyPair::generate().map_err(issue_error("a signing key"))?;
    Ok(key.serialize_pem())
}

/// A request for a certificate (PKCS #10) whose signature was checked: who asks has the key.
#[derive(Debug)]
pub struct Request {
    /// The common name.
    pub user: String,
    /// The organizations.
    pub groups: Vec<String>,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// There are names of other sorts: URIs, mail addresses.
    pub other_names: bool,
    parsed: CertificateSigningRequestParams,
}

impl Request {
    /// Reads and checks a PEM text.
    pub fn read(pem: &str) -> Result<Self, Error> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|cause| Error::Pem { what: "the certificate request", cause })?;
        let parsed = CertificateSigningRequestParams::from_der(&der).map_err(Error::BadRequest)?;
        // rcgen keeps one value for each attribute type, and here a second group must not be overlooked.
        let (_, whole) = x509_parser::certification_request::X509CertificationRequest::from_der(&der)
            .map_err(|_| Error::Unreadable)?;
        let subject = &whole.certification_request_info.subject;
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().map(str::to_owned).map_err(|_| Error::Unreadable)
        };
        let user = subject.iter_common_name().next().ok_or(Error::Nameless).and_then(text)?;
        let groups = subject.iter_organization().map(text).collect::<Result<_, _>>()?;
        let (mut dns_names, mut addresses, mut other_names) = (Vec::new(), Vec::new(), false);
        for name in &parsed.params.subject_alt_names {
            match name {
                SanType::DnsName(name) => dns_names.push(name.as_str().to_owned()),
                SanType::IpAddress(address) => addresses.push(*address),
                _ => other_names = true,
            }
        }
        Ok(Self { user, groups, dns_names, addresses, other_names, parsed })
    }

    /// Makes a key and asks for a certificate of it: for `user` in `groups` (at most two), at `names`.
    /// Gives the key and the request, both PEM.
    pub fn make<N: AsRef<str>>(user: &str, groups: &[&str], names: &[N]) -> Result<(String, String), Error> {
        let failed = issue_error(user);
        let mut params = params(user, groups, LEAF_VALIDITY);
        params.subject_alt_names = alternative_names(names).map_err(&failed)?;
        let key = KeyPair::generate().map_err(&failed)?;
        let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(&failed)?;
        Ok((key.serialize_pem(), request))
    }
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Client,
    Server,
}

impl Ca {
    /// Signs a request as it is, for `validity` at most a year. Whether its holder may have such a certificate is for
    /// the caller to know. Gives the certificate, PEM.
    pub fn sign(&self, request: &Request, purpose: Purpose, validity: Duration) -> Result<String, Error> {
        let failed = issue_error(&request.user);
        if request.groups.len() > MAX_GROUPS {
            return Err(Error::TooManyGroups { user: request.user.clone(), count: request.groups.len() });
        }
        let groups: Vec<&str> = request.groups.iter().map(String::as_str).collect();
        let mut params = params(&request.user, &groups, validity.min(LEAF_VALIDITY));
        params.subject_alt_names = request.parsed.params.subject_alt_names.clone();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![match purpose {
            Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&request.parsed.public_key, &self.issuer).map_err(&failed)?;
        Ok(cert.pem())
    }
}

fn alternative_names<N: AsRef<str>>(names: &[N]) -> Result<Vec<SanType>, rcgen::Error> {
    let name = |name: &N| match name.as_ref().parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(name.as_ref().try_into()?)),
    };
    names.iter().map(name).collect()
}

fn issue_error(subject: &str) -> impl Fn(rcgen::Error) -> Error {
    let subject = subject.to_owned();
    move |cause| Error::Issue { subject: subject.clone(), cause }
}

fn params(common_name: &str, groups: &[&str], validity: Duration) -> CertificateParams {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    // rcgen keeps one value for each attribute type; the same type under its number is a second one.
    let types = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
    for (kind, group) in types.into_iter().zip(groups) {
        subject.push(kind, *group);
    }
    params.distinguished_name = subject;
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + validity).into();
    params
}

/// A certificate with its private key, both PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate, leaf first if there are several.
    pub cert_pem: String,
    /// The private key, PKCS #8.
    pub key_pem: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Pair").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl Pair {
    /// Reads both from files.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, Error> {
        Ok(Self { cert_pem: read(cert)?, key_pem: read(key)? })
    }

    /// Writes both to files; the key's is readable by its owner alone. Each file is whole or untouched.
    pub fn save(&self, cert: &Path, key: &Path) -> Result<(), Error> {
        write_private(key, self.key_pem.as_bytes())?;
        write_public(cert, self.cert_pem.as_bytes())
    }

    /// The share of its life that the first certificate still has, 0 to 1; `None` if it cannot be read.
    pub fn life_left(&self) -> Option<f64> {
        let (whole, left) = self.life()?;
        Some((left / whole).clamp(0.0, 1.0))
    }

    /// How long it takes until `share` of its life is left; zero if less is. `None` if it cannot be read.
    pub fn until_left(&self, share: f64) -> Option<Duration> {
        let (whole, left) = self.life()?;
        Some(Duration::from_secs_f64((left - whole * share).max(0.0)))
    }

    /// The first certificate's life and what is left of it, in seconds. That it was dated back is no part of its life.
    fn life(&self) -> Option<(f64, f64)> {
        let der = certificates(&self.cert_pem).ok()?;
        let (_, cert) = x509_parser::parse_x509_certificate(der.first()?).ok()?;
        let (from, to) = (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs_f64();
        let whole = match to - from - BACKDATE.as_secs() as i64 {
            whole if whole > 0 => whole,
            _ => (to - from).max(1), // another's, and short
        };
        Some((whole as f64, to as f64 - now))
    }

    /// Whether it can be used: it has not expired, the key is the certificate's, and it is for `user` at all `names`.
    pub fn is_good_for<N: AsRef<str>>(&self, user: &str, names: &[N]) -> bool {
        let Ok(key) = certified(self) else { return false };
        let Ok((_, cert)) = x509_parser::parse_x509_certificate(&key.cert[0]) else { return false };
        let alternative = cert.subject_alternative_name().ok().flatten();
        let has: Vec<String> = alternative
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                GeneralName::IPAddress(bytes) => match bytes.len() {
                    4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
                    _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
                },
                _ => None,
            })
            .collect();
        self.remaining().is_some()
            && peer_identity(&key.cert[0]).is_ok_and(|peer| peer.user == user)
            && names.iter().all(|name| has.iter().any(|one| one == name.as_ref()))
    }

    /// How long the first certificate is still valid; `None` if it expired or cannot be read.
    pub fn remaining(&self) -> Option<Duration> {
        let der = certificates(&self.cert_pem).ok()?;
        let (_, cert) = x509_parser::parse_x509_certificate(der.first()?).ok()?;
        cert.validity().time_to_expiration()?.try_into().ok()
    }
}

/// What a server asks of its clients' certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth<'a> {
    /// Clients show none.
    None,
    /// A client may show one whose key it has. This CA (PEM) says afterwards what it proves
    /// ([`ClientCa::verify`](crate::client_ca::ClientCa::verify)).
    Optional(&'a str),
    /// A client must show one that this CA (PEM) signed.
    Required(&'a str),
}

/// The TLS configuration of a server whose certificate stays.
pub fn server_config(
    pair: &Pair,
    clients: ClientAuth<'_>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Error> {
    renewing_server_config(&Current::new(pair)?, clients, alpn)
}

/// The TLS configuration of a server: each handshake shows the newest certificate. One that asks its clients for
/// certificates resumes no sessions: who resumes one is not asked again, and is who it was, with a certificate that may
/// have been replaced or be over since.
pub fn renewing_server_config(
    current: &Current,
    clients: ClientAuth<'_>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(Error::Tls)?;
    let builder = match clients {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Optional(ca) => builder.with_client_cert_verifier(ClientCa::new(ca)?.asked()),
        ClientAuth::Required(ca) => builder.with_client_cert_verifier(ClientCa::new(ca)?.required()),
    };
    let mut config = builder.with_cert_resolver(Arc::new(current.clone()));
    if clients != ClientAuth::None {
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    }
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// The TLS configuration of a client that trusts `ca_pem` alone, and shows `pair` if it has one.
pub fn client_config(ca_pem: &str, pair: Option<&Pair>, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
    renewing_client_config(ca_pem, &pair.map(Current::new).transpose()?.unwrap_or_default(), alpn)
}

/// As [`client_config`], for a client whose certificate is renewed: each handshake shows the newest.
pub fn renewing_client_config(
    ca_pem: &str,
    current: &Current,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(Error::Tls)?.with_root_certificates(roots(ca_pem)?);
    let mut config = builder.with_client_cert_resolver(Arc::new(current.clone()));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    // A session that goes on has the certificate that it began with.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// A pair as TLS shows it; an error if the key is not the certificate's.
pub(crate) fn certified(pair: &Pair) -> Result<rustls::sign::CertifiedKey, Error> {
    let (certs, key) = (certificates(&pair.cert_pem)?, private_key(&pair.key_pem)?);
    rustls::sign::CertifiedKey::from_der(certs, key, &provider()).map_err(Error::Tls)
}

/// The SHA-256 of a certificate's public key (its SubjectPublicKeyInfo), in hexadecimal: as kubeadm pins a CA.
pub fn public_key_hash(der: &[u8]) -> Result<String, Error> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|_| Error::Unreadable)?;
    let digest = ring::digest::digest(&ring::digest::SHA256, cert.public_key().raw);
    Ok(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A certificate as a PEM text.
pub fn pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) fn roots(ca_pem: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(ca_pem)? {
        roots.add(cert).map_err(Error::Tls)?;
    }
    Ok(roots)
}

/// All certificates of a PEM text, in its order. An error if there is none.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|cause| Error::Pem { what: "the certificate", cause })?;
    if found.is_empty() { Err(Error::NoCertificate) } else { Ok(found) }
}

/// The private key of a PEM text.
pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|cause| Error::Pem { what: "the private key", cause })
}

/// Who the holder of a verified client certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The certificate's common name.
    pub user: String,
    /// The certificate's organizations, in its order.
    pub groups: Vec<String>,
}

/// Reads user and groups from a certificate (DER) that TLS has verified already.
pub fn peer_identity(der: &[u8]) -> Result<Peer, Error> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|_| Error::Unreadable)?;
    let subject = cert.subject();
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().map(str::to_owned).map_err(|_| Error::Unreadable)
    };
    let user = subject.iter_common_name().next().ok_or(Error::Nameless).and_then(text)?;
    let groups = subject.iter_organization().map(text).collect::<Result<_, _>>()?;
    Ok(Peer { user, groups })
}

/// Writes a file that only its owner may read (0600). It is there whole, on disk, or as it was before.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_atomically(path, bytes, 0o600).map_err(|cause| Error::Write { path: path.to_owned(), cause })
}

/// As [`write_private`], for a file that all may read (0644).
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_atomically(path, bytes, 0o644).map_err(|cause| Error::Write { path: path.to_owned(), cause })
}

fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    // Unpredictable and created exclusively, so that nobody can have put a link in its place.
    let temporary = folder.join(format!(".{}.{:016x}", name.to_string_lossy(), rand::random::<u64>()));
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // it may not exist; the first error is the one to report
    }
    written
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|cause| Error::Read { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    /// Connects a client to a server at `127.0.0.1` and returns who the server thinks the client is.
    async fn meet(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Result<Option<Peer>, String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let mut tls = TlsAcceptor::from(server).accept(socket).await.map_err(|e| e.to_string())?;
            tls.write_all(b"x").await.map_err(|e| e.to_string())?;
            let certs = tls.get_ref().1.peer_certificates();
            Ok(certs.map(|certs| peer_identity(&certs[0]).unwrap()))
        });
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = rustls_pki_types::ServerName::IpAddress(address.ip().into());
        let mut tls = TlsConnector::from(client).connect(name, socket).await.map_err(|e| e.to_string())?;
        let mut byte = [0];
        let read = tls.read_exact(&mut byte).await.map_err(|e| e.to_string());
        let peer = served.await.unwrap();
        read.and(peer)
    }

    #[tokio::test]
    async fn a_server_learns_user_and_groups_of_its_client() {
        let ca = Ca::generate("test-ca").unwrap();
        let ca = Ca::load(ca.cert_pem(), ca.key_pem()).unwrap(); // what was saved issues as before
        let pair = ca.server("wharf", &["127.0.0.1", "kubernetes.default.svc"]).unwrap();
        let user = ca.client("system:node:n1", &["system:nodes", "system:masters"]).unwrap();
        for auth in [ClientAuth::Optional(ca.cert_pem()), ClientAuth::Required(ca.cert_pem())] {
            let server = server_config(&pair, auth, ALPN_HTTP).unwrap();
            let client = client_config(ca.cert_pem(), Some(&user), ALPN_HTTP).unwrap();
            let peer = meet(server, client).await.unwrap().expect("shown");
            assert_eq!(peer.user, "system:node:n1");
            assert_eq!(peer.groups, ["system:nodes", "system:masters"]);
        }
        assert!(pair.remaining().unwrap() > DAY * 360);
    }

    #[tokio::test]
    async fn a_client_that_resumes_sessions_is_told_by_its_newest_certificate() {
        let ca = Ca::generate("test-ca").unwrap();
        let pair = ca.server("wharf", &["127.0.0.1"]).unwrap();
        let none: [&str; 0] = [];
        for auth in [ClientAuth::Optional(ca.cert_pem()), ClientAuth::Required(ca.cert_pem())] {
            let server = server_config(&pair, auth, ALPN_HTTP).unwrap();
            let current = Current::new(&ca.client("first", &none).unwrap()).unwrap();
            let client = renewing_client_config(ca.cert_pem(), &current, ALPN_HTTP).unwrap();
            // Ours does not; a client's default is to do so.
            let mut client = Arc::unwrap_or_clone(client);
            client.resumption = rustls::client::Resumption::default();
            let client = Arc::new(client);
            assert_eq!(meet(server.clone(), client.clone()).await.unwrap().expect("shown").user, "first");
            let mut resuming = ServerConfig::clone(&server);
            resuming.send_tls13_tickets = 2;
            resuming.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
            let resuming = Arc::new(resuming);
            meet(resuming.clone(), client.clone()).await.unwrap();
            current.replace(&ca.client("second", &none).unwrap()).unwrap();
            assert_eq!(
                meet(resuming, client.clone()).await.unwrap().expect("shown").user,
                "first",
                "rustls' way"
            );
            assert_eq!(meet(server, client).await.unwrap().expect("shown").user, "second");
        }
    }

    #[tokio::test]
    async fn strangers_are_refused_and_the_nameless_only_where_a_name_is_required() {
        let ca = Ca::generate("test-ca").unwrap();
        let other = Ca::generate("other-ca").unwrap();
        let pair = ca.server("wharf", &["127.0.0.1"]).unwrap();
        let stranger = other.client("kubernetes-admin", &["system:masters"]).unwrap();
        let optional = server_config(&pair, ClientAuth::Optional(ca.cert_pem()), ALPN_HTTP).unwrap();
        let required = server_config(&pair, ClientAuth::Required(ca.cert_pem()), ALPN_HTTP).unwrap();
        let anonymous = client_config(ca.cert_pem(), None, ALPN_HTTP).unwrap();
        let foreign = client_config(ca.cert_pem(), Some(&stranger), ALPN_HTTP).unwrap();
        assert_eq!(meet(optional.clone(), anonymous.clone()).await, Ok(None));
        assert!(meet(required.clone(), anonymous).await.is_err());
        assert!(meet(required, foreign.clone()).await.is_err());
        assert!(meet(optional.clone(), foreign).await.unwrap().is_some(), "what it proves is asked later");
        // A certificate without its key is nobody's.
        let none: [&str; 0] = [];
        let jane = certified(&ca.client("jane", &none).unwrap()).unwrap();
        let joe = certified(&ca.client("joe", &none).unwrap()).unwrap();
        let mut thief = Arc::unwrap_or_clone(client_config(ca.cert_pem(), None, ALPN_HTTP).unwrap());
        let shown = rustls::sign::CertifiedKey::new(jane.cert, joe.key);
        thief.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(shown));
        assert!(meet(optional.clone(), Arc::new(thief)).await.is_err());
        let distrusting = client_config(other.cert_pem(), None, ALPN_HTTP).unwrap();
        assert!(meet(optional, distrusting).await.is_err());
    }

    #[tokio::test]
    async fn a_signed_request_is_a_certificate_of_its_key_and_one_that_was_changed_is_none() {
        let ca = Ca::generate("test-ca").unwrap();
        let serving = ca.server("wharf", &["127.0.0.1"]).unwrap();
        let server = server_config(&serving, ClientAuth::Required(ca.cert_pem()), ALPN_HTTP).unwrap();
        let none: [&str; 0] = [];
        let (key_pem, pem) = Request::make("system:node:n1", &["system:nodes", "other"], &none).unwrap();
        let request = Request::read(&pem).unwrap();
        assert_eq!((&*request.user, request.groups.len()), ("system:node:n1", 2));
        let cert_pem = ca.sign(&request, Purpose::Client, DAY).unwrap();
        let pair = Pair { cert_pem, key_pem };
        assert!(pair.remaining().unwrap() <= DAY);
        let client = client_config(ca.cert_pem(), Some(&pair), ALPN_HTTP).unwrap();
        let peer = meet(server.clone(), client).await.unwrap().expect("shown");
        assert_eq!(
            (&*peer.user, &*peer.groups),
            ("system:node:n1", &["system:nodes".to_owned(), "other".to_owned()][..])
        );
        // A certificate for one purpose is good for no other.
        let (key_pem, pem) = Request::make("n1", &[], &["127.0.0.1", "n1"]).unwrap();
        let request = Request::read(&pem).unwrap();
        assert_eq!((request.dns_names.len(), request.addresses.len()), (1, 1));
        let cert_pem = ca.sign(&request, Purpose::Server, DAY).unwrap();
        let client = client_config(ca.cert_pem(), Some(&Pair { cert_pem, key_pem }), ALPN_HTTP).unwrap();
        assert!(meet(server, client).await.is_err());

        use base64::prelude::{BASE64_STANDARD, Engine as _};
        let encoded = |der: &[u8]| {
            let text = BASE64_STANDARD.encode(der);
            format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
        };
        let mut der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        assert!(Request::read(&encoded(&der)).is_ok());
        let at = der.windows(2).position(|two| two == b"n1").unwrap();
        der[at + 1] = b'2'; // another name than the key's holder signed
        assert!(matches!(Request::read(&encoded(&der)), Err(Error::BadRequest(_))));
    }

    #[test]
    fn saved_keys_are_for_their_owner_alone_and_load_again() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("ca.crt"), folder.path().join("ca.key"));
        let made = Ca::load_or_generate(&cert, &key, "test-ca").unwrap();
        let loaded = Ca::load_or_generate(&cert, &key, "test-ca").unwrap();
        assert_eq!((made.cert_pem(), made.key_pem()), (loaded.cert_pem(), loaded.key_pem()));
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
    }
}
