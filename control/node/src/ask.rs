//! Asking a container something, as probes and lifecycle hooks do: by HTTP, TCP or gRPC at the pod's address, or by a
//! command in it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, ExecAction, GRPCAction, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use wharf_cri::v1;

use crate::runtime::Runtime;

/// Where and how to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Tcp { host: Option<String>, port: u16 },
    Http { tls: bool, host: Option<String>, port: u16, path: String, headers: Vec<(String, String)> },
    Grpc { port: u16, service: String },
    Exec { command: Vec<String> },
}

/// The container that is asked.
#[derive(Clone)]
pub struct Asked {
    /// The pod's; none yet: only commands can be asked.
    pub address: Option<IpAddr>,
    pub container: String,
    pub runtime: Runtime,
}

/// The port's name is none of the container's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it names a port \"{0}\" that the container does not have")]
pub struct PortError(pub String);

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Good,
    /// In words for an event.
    Bad(String),
    /// Nothing listens there (yet).
    Refused(String),
    /// It could not be asked: this says nothing of the container.
    Unknown(String),
}

/// How much of a command's or a server's words an event shows, in bytes; the kubelet's figure.
const WORDS: usize = 10 << 10;

pub fn http(get: &HTTPGetAction, container: &Container) -> Result<Target, PortError> {
    let path = get.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
    let headers = get.http_headers.iter().flatten();
    Ok(Target::Http {
        tls: get.scheme.as_deref() == Some("HTTPS"),
        host: get.host.clone().filter(|host| !host.is_empty()),
        port: port(&get.port, container)?,
        path: if path.starts_with('/') { path } else { format!("/{path}") },
        headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
    })
}

pub fn tcp(socket: &TCPSocketAction, container: &Container) -> Result<Target, PortError> {
    let host = socket.host.clone().filter(|host| !host.is_empty());
    Ok(Target::Tcp { host, port: port(&socket.port, container)? })
}

pub fn exec(action: &ExecAction) -> Target {
    Target::Exec { command: action.command.clone().unwrap_or_default() }
}

pub fn grpc(action: &GRPCAction) -> Result<Target, PortError> {
    let port = u16::try_from(action.port).map_err(|_| PortError(action.port.to_string()))?;
    Ok(Target::Grpc { port, service: action.service.clone().unwrap_or_default() })
}

fn port(port: &IntOrString, container: &Container) -> Result<u16, PortError> {
    let unknown = |name: String| PortError(name);
    match port {
        IntOrString::Int(number) => u16::try_from(*number).map_err(|_| unknown(number.to_string())),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            let number = named.map(|port| port.container_port).or_else(|| name.parse().ok());
            number.and_then(|number| u16::try_from(number).ok()).ok_or_else(|| unknown(name.clone()))
        }
    }
}

/// Asks once. `limit`: how long the answer may take; none is for commands that end when the container does.
pub async fn ask(target: &Target, asked: &Asked, limit: Option<Duration>) -> Answer {
    if let Target::Exec { command } = target {
        return run(command, asked, limit).await;
    }
    let Some(limit) = limit else { return ask_now(target, asked).await };
    match tokio::time::timeout(limit, ask_now(target, asked)).await {
        Ok(answer) => answer,
        Err(_) => Answer::Bad(format!("no answer within {} s", limit.as_secs())),
    }
}

/// Runs a command in the container. The runtime ends it when its time is over.
async fn run(command: &[String], asked: &Asked, limit: Option<Duration>) -> Answer {
    /// The runtime's own way takes a moment.
    const MARGIN: Duration = Duration::from_secs(2);
    let seconds = limit.map_or(0, |limit| i64::try_from(limit.as_secs()).unwrap_or(i64::MAX));
    let request = v1::ExecSyncRequest {
        container_id: asked.container.clone(),
        cmd: command.to_vec(),
        timeout: seconds,
    };
    let mut client = asked.runtime.runtime.clone();
    let call = client.exec_sync(request);
    let result = match limit {
        Some(limit) => tokio::time::timeout(limit + MARGIN, call)
            .await
            .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("the runtime does not answer"))),
        None => call.await,
    };
    match result.map(tonic::Response::into_inner) {
        Ok(output) if output.exit_code == 0 => Answer::Good,
        Ok(output) => {
            let words = [output.stdout, output.stderr].concat();
            let words = String::from_utf8_lossy(&words[..words.len().min(WORDS)]).into_owned();
            Answer::Bad(if words.is_empty() { format!("exit code {}", output.exit_code) } else { words })
        }
        Err(status) if status.code() == Code::DeadlineExceeded => {
            Answer::Bad(format!("command timed out: {:?} timed out after {seconds}s", command.join(" ")))
        }
        Err(status) => Answer::Unknown(status.message().to_owned()),
    }
}

async fn ask_now(target: &Target, asked: &Asked) -> Answer {
    let (host, port) = match target {
        Target::Tcp { host, port } | Target::Http { host, port, .. } => (host.clone(), *port),
        Target::Grpc { port, .. } => (None, *port),
        Target::Exec { .. } => return Answer::Unknown("a command is not asked at an address".to_owned()),
    };
    let connected = match (&host, asked.address) {
        (Some(host), _) => TcpStream::connect((host.as_str(), port)).await,
        (None, Some(address)) => TcpStream::connect(SocketAddr::new(address, port)).await,
        (None, None) => return Answer::Unknown("the pod has no address".to_owned()),
    };
    let name = host.or(asked.address.map(|address| address.to_string())).unwrap_or_default();
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) => {
            let words = format!("dial tcp {name}:{port}: {error}");
            return if error.kind() == std::io::ErrorKind::ConnectionRefused {
                Answer::Refused(words)
            } else {
                Answer::Bad(words)
            };
        }
    };
    let _ = stream.set_nodelay(true); // a hint
    match target {
        Target::Grpc { service, .. } => health(stream, &name, port, service).await,
        Target::Http { tls: false, path, headers, .. } => {
            get(stream, "http", &name, port, path, headers).await
        }
        Target::Http { path, headers, .. } => {
            let Ok(server) = rustls::pki_types::ServerName::try_from(name.clone()) else {
                return Answer::Bad(format!("{name} is not a host name"));
            };
            match TlsConnector::from(unverified()).connect(server, stream).await {
                Ok(stream) => get(stream, "https", &name, port, path, headers).await,
                Err(error) => Answer::Bad(format!("TLS with {name}:{port}: {error}")),
            }
        }
        Target::Tcp { .. } | Target::Exec { .. } => Answer::Good,
    }
}

/// `grpc.health.v1.Health/Check` over a connection that stands.
async fn health(stream: TcpStream, host: &str, port: u16, service: &str) -> Answer {
    let uri =
        if host.contains(':') { format!("http://[{host}]:{port}") } else { format!("http://{host}:{port}") };
    let endpoint = tonic::transport::Endpoint::from_shared(uri).and_then(|one| one.user_agent(AGENT));
    let endpoint = match endpoint {
        Ok(endpoint) => endpoint,
        Err(error) => return Answer::Unknown(error.to_string()),
    };
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("the connection is used up"));
        std::future::ready(stream)
    });
    let channel = match endpoint.connect_with_connector(connector).await {
        Ok(channel) => channel,
        Err(error) => {
            return Answer::Bad(format!("failed to connect to {host}:{port}: {}", wharf_kit::chain(&error)));
        }
    };
    let request = HealthCheckRequest { service: service.to_owned() };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Answer::Good,
            other => Answer::Bad(format!("service unhealthy (responded with {:?})", other.as_str_name())),
        },
        Err(status) if status.code() == Code::Unimplemented => Answer::Bad(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                .to_owned(),
        ),
        Err(status) => {
            Answer::Bad(format!("error: health rpc probe failed: {:?}: {}", status.code(), status.message()))
        }
    }
}

/// As the kubelet calls itself.
const AGENT: &str = "kube-probe/1.36";

async fn get(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    scheme: &str,
    host: &str,
    port: u16,
    path: &str,
    headers: &[(String, String)],
) -> Answer {
    let bad = |error: &dyn std::fmt::Display| {
        Answer::Bad(format!("Get \"{scheme}://{host}:{port}{path}\": {error}"))
    };
    let (mut sender, connection) = match hyper::client::conn::http1::handshake(TokioIo::new(stream)).await {
        Ok(pair) => pair,
        Err(error) => return bad(&error),
    };
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = http::Request::get(path)
        .header("user-agent", AGENT)
        .header("accept", "*/*")
        .header("connection", "close");
    let own_host =
        headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host")).map(|(_, value)| value.as_str());
    request = request.header("host", own_host.unwrap_or(&authority));
    for (name, value) in headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        request = request.header(name, value);
    }
    let request = match request.body(Empty::<bytes::Bytes>::new()) {
        Ok(request) => request,
        Err(error) => return bad(&error),
    };
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| bad(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), WORDS).collect().await;
        drop(body); // read so that the server sees an orderly end; its content does not matter
        Ok(if status.as_u16() >= 200 && status.as_u16() < 400 {
            Answer::Good
        } else {
            Answer::Bad(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
        })
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = connection => match ended {
            Ok(()) => exchange.await, // the answer came together with the end
            Err(error) => Err(bad(&error)),
        },
    }
    .unwrap_or_else(|answer| answer)
}

/// A probe asks whether somebody answers, not who: certificates are not verified, as in Kubernetes.
fn unverified() -> Arc<rustls::ClientConfig> {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    #[derive(Debug)]
    struct Anybody(Vec<rustls::SignatureScheme>);
    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.clone()
        }
    }
    static CONFIG: std::sync::LazyLock<Arc<rustls::ClientConfig>> = std::sync::LazyLock::new(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has suites for the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(schemes)))
            .with_no_client_auth();
        Arc::new(config)
    });
    CONFIG.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const LIMIT: Option<Duration> = Some(Duration::from_secs(5));

    fn at(address: IpAddr) -> Asked {
        crate::pod::asked_at(address)
    }

    async fn server(answer: &'static str) -> (IpAddr, u16) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 1024];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (address.ip(), address.port())
    }

    #[tokio::test]
    async fn http_answers_are_judged_by_their_status() {
        for (answer, good) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
            ("HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", false),
            ("", false),
        ] {
            let (ip, port) = server(answer).await;
            let get = Target::Http { tls: false, host: None, port, path: "/".into(), headers: vec![] };
            assert_eq!(ask(&get, &at(ip), LIMIT).await == Answer::Good, good, "{answer}");
            assert_eq!(ask(&Target::Tcp { host: None, port }, &at(ip), LIMIT).await, Answer::Good);
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for target in [
            Target::Tcp { host: None, port: free.port() },
            Target::Grpc { port: free.port(), service: String::new() },
        ] {
            assert!(matches!(ask(&target, &at(free.ip()), LIMIT).await, Answer::Refused(_)));
        }
    }

    #[tokio::test]
    async fn a_grpc_server_is_asked_for_its_health() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (health, service) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        health.set_service_status("cart", tonic_health::ServingStatus::NotServing).await;
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(service);
        let server = tokio::spawn(server.serve_with_incoming(incoming));
        for (service, want) in [
            ("", Answer::Good),
            ("cart", Answer::Bad("service unhealthy (responded with \"NOT_SERVING\")".into())),
            ("none", Answer::Bad("error: health rpc probe failed: NotFound: service not registered".into())),
        ] {
            let target = Target::Grpc { port: address.port(), service: service.into() };
            assert_eq!(ask(&target, &at(address.ip()), LIMIT).await, want, "{service}");
        }
        server.abort();
    }
}
