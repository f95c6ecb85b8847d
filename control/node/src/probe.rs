//! Probes: HTTP and TCP, from the node to the pod's address. One task a probe, and none without one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Startup,
    Readiness,
    Liveness,
}

impl Purpose {
    /// As events begin.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }

    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// Where and how to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Tcp { host: Option<String>, port: u16 },
    Http { tls: bool, host: Option<String>, port: u16, path: String, headers: Vec<(String, String)> },
}

/// A probe as it is run.
#[derive(Debug, Clone)]
pub struct Settings {
    pub target: Target,
    pub initial: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub successes: u32,
    pub failures: u32,
}

/// Why a probe cannot be run by this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "{0} probes are not offered by this version of Wharf's node agent: the probe is taken as succeeding"
    )]
    Unsupported(&'static str),
    #[error("the probe names a port \"{0}\" that the container does not have")]
    Port(String),
}

/// Reads a probe of the API, with Kubernetes' defaults.
///
/// # Errors
/// Another kind than HTTP and TCP, or an unknown port name.
pub fn settings(probe: &Probe, container: &Container) -> Result<Settings, Error> {
    let target = if let Some(get) = &probe.http_get {
        let path = get.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
        Target::Http {
            tls: get.scheme.as_deref() == Some("HTTPS"),
            host: get.host.clone().filter(|host| !host.is_empty()),
            port: port(&get.port, container)?,
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            headers: get
                .http_headers
                .iter()
                .flatten()
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        }
    } else if let Some(tcp) = &probe.tcp_socket {
        Target::Tcp {
            host: tcp.host.clone().filter(|host| !host.is_empty()),
            port: port(&tcp.port, container)?,
        }
    } else if probe.grpc.is_some() {
        return Err(Error::Unsupported("gRPC"));
    } else {
        return Err(Error::Unsupported("exec"));
    };
    let at_least_one = |value: Option<i32>, default: u32| {
        value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
    };
    let seconds =
        |value: Option<i32>, default: u32| Duration::from_secs(u64::from(at_least_one(value, default)));
    Ok(Settings {
        target,
        initial: Duration::from_secs(
            probe.initial_delay_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0),
        ),
        period: seconds(probe.period_seconds, 10),
        timeout: seconds(probe.timeout_seconds, 1),
        successes: at_least_one(probe.success_threshold, 1),
        failures: at_least_one(probe.failure_threshold, 3),
    })
}

fn port(port: &IntOrString, container: &Container) -> Result<u16, Error> {
    let unknown = |name: String| Error::Port(name);
    match port {
        IntOrString::Int(number) => u16::try_from(*number).map_err(|_| unknown(number.to_string())),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            let number = named.map(|port| port.container_port).or_else(|| name.parse().ok());
            number.and_then(|number| u16::try_from(number).ok()).ok_or_else(|| unknown(name.clone()))
        }
    }
}

/// Counts answers in a row; says when the verdict turns.
#[derive(Debug, Clone)]
pub struct Threshold {
    successes: u32,
    failures: u32,
    run: u32,
    last: Option<bool>,
    verdict: Option<bool>,
}

impl Threshold {
    pub fn new(settings: &Settings) -> Self {
        Self { successes: settings.successes, failures: settings.failures, run: 0, last: None, verdict: None }
    }

    /// Notes an answer. `Some` when the verdict is a new one.
    pub fn note(&mut self, good: bool) -> Option<bool> {
        self.run = if self.last == Some(good) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(good);
        let needed = if good { self.successes } else { self.failures };
        if self.run < needed || self.verdict == Some(good) {
            return None;
        }
        self.verdict = Some(good);
        Some(good)
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Good,
    /// In words for an event.
    Bad(String),
    /// Nothing listens there (yet).
    Refused(String),
}

/// Runs until dropped. `turned` is told each new verdict, `failed` each failure in words.
pub async fn run<F: Future<Output = ()> + Send>(
    settings: Settings,
    purpose: Purpose,
    pod: IpAddr,
    turned: impl Fn(bool) -> F + Send,
    failed: impl Fn(&str) + Send,
) {
    tokio::time::sleep(settings.initial).await;
    let mut threshold = Threshold::new(&settings);
    // A server that has just been started listens a moment later. Where no delay is asked for, and for as long as nothing
    // listens at all (so that nobody can notice), ask again soon instead of a whole period later; such answers count not.
    let mut early = Duration::from_millis(5);
    let eager = settings.initial.is_zero() && purpose != Purpose::Liveness;
    let mut begun = !eager;
    loop {
        let answer = ask(&settings, pod).await;
        let refused = matches!(answer, Answer::Refused(_));
        if !begun && refused && early < settings.period {
            tokio::time::sleep(early).await;
            early *= 2;
            continue;
        }
        begun = true;
        let good = match answer {
            Answer::Good => true,
            Answer::Bad(words) | Answer::Refused(words) => {
                failed(&words);
                false
            }
        };
        if let Some(verdict) = threshold.note(good) {
            turned(verdict).await;
            // A startup probe has done its work with its first verdict.
            if purpose == Purpose::Startup {
                return;
            }
        }
        tokio::time::sleep(settings.period).await;
    }
}

/// Asks once.
pub async fn ask(settings: &Settings, pod: IpAddr) -> Answer {
    match tokio::time::timeout(settings.timeout, ask_now(&settings.target, pod)).await {
        Ok(answer) => answer,
        Err(_) => Answer::Bad(format!("no answer within {} s", settings.timeout.as_secs())),
    }
}

async fn ask_now(target: &Target, pod: IpAddr) -> Answer {
    let (host, port) = match target {
        Target::Tcp { host, port } | Target::Http { host, port, .. } => (host, *port),
    };
    let connected = match host {
        Some(host) => TcpStream::connect((host.as_str(), port)).await,
        None => TcpStream::connect(SocketAddr::new(pod, port)).await,
    };
    let name = host.clone().unwrap_or_else(|| pod.to_string());
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
    let Target::Http { tls, path, headers, .. } = target else { return Answer::Good };
    let _ = stream.set_nodelay(true);
    if !*tls {
        return get(stream, &name, port, path, headers).await;
    }
    let Ok(server) = rustls::pki_types::ServerName::try_from(name.clone()) else {
        return Answer::Bad(format!("{name} is not a host name"));
    };
    match TlsConnector::from(unverified()).connect(server, stream).await {
        Ok(stream) => get(stream, &name, port, path, headers).await,
        Err(error) => Answer::Bad(format!("TLS with {name}:{port}: {error}")),
    }
}

async fn get(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    host: &str,
    port: u16,
    path: &str,
    headers: &[(String, String)],
) -> Answer {
    /// A probe's answer is not read beyond this.
    const BODY: usize = 10 << 10;
    let bad =
        |error: &dyn std::fmt::Display| Answer::Bad(format!("Get \"http://{host}:{port}{path}\": {error}"));
    let (mut sender, connection) = match hyper::client::conn::http1::handshake(TokioIo::new(stream)).await {
        Ok(pair) => pair,
        Err(error) => return bad(&error),
    };
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = http::Request::get(path)
        .header("user-agent", "kube-probe/1.36")
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
        let body = Limited::new(response.into_body(), BODY).collect().await;
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
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn container() -> Container {
        serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8081}]}))
            .unwrap()
    }

    fn read(probe: serde_json::Value) -> Result<Settings, Error> {
        settings(&serde_json::from_value(probe).unwrap(), &container())
    }

    #[test]
    fn probes_are_read_with_kubernetes_defaults() {
        let http = read(json!({"httpGet": {"path": "ok", "port": "web"}})).unwrap();
        assert_eq!(
            http.target,
            Target::Http { tls: false, host: None, port: 8081, path: "/ok".into(), headers: vec![] }
        );
        assert_eq!(
            (http.period.as_secs(), http.timeout.as_secs(), http.successes, http.failures),
            (10, 1, 1, 3)
        );
        assert_eq!(read(json!({"tcpSocket": {"port": 1}, "failureThreshold": 7})).unwrap().failures, 7);
        assert_eq!(read(json!({"tcpSocket": {"port": "no"}})).unwrap_err(), Error::Port("no".into()));
        assert!(read(json!({"exec": {"command": ["x"]}})).is_err());
    }

    #[test]
    fn verdicts_turn_at_their_thresholds() {
        let settings =
            read(json!({"tcpSocket": {"port": 1}, "failureThreshold": 3, "successThreshold": 2})).unwrap();
        let mut threshold = Threshold::new(&settings);
        let answers = [true, true, true, false, false, true, false, false, false, false, true, true];
        let verdicts: Vec<_> = answers.iter().map(|good| threshold.note(*good)).collect();
        let mut want = [None; 12];
        want[1] = Some(true);
        want[8] = Some(false);
        want[11] = Some(true);
        assert_eq!(verdicts, want);
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
            let settings = read(json!({"httpGet": {"port": port}})).unwrap();
            assert_eq!(ask(&settings, ip).await == Answer::Good, good, "{answer}");
            let tcp = read(json!({"tcpSocket": {"port": port}})).unwrap();
            assert_eq!(ask(&tcp, ip).await, Answer::Good);
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let settings = read(json!({"tcpSocket": {"port": free.port()}})).unwrap();
        assert!(matches!(ask(&settings, free.ip()).await, Answer::Refused(_)));
    }

    #[tokio::test]
    async fn a_server_that_comes_a_moment_later_is_found_at_once() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let settings = read(json!({"tcpSocket": {"port": free.port()}, "periodSeconds": 60})).unwrap();
        let (tx, mut rx) = tokio::sync::mpsc::channel(1);
        let task = tokio::spawn(run(
            settings,
            Purpose::Readiness,
            free.ip(),
            move |good| {
                let tx = tx.clone();
                async move { tx.send(good).await.unwrap() }
            },
            |_: &str| {},
        ));
        tokio::time::sleep(Duration::from_millis(30)).await;
        let _listener = tokio::net::TcpListener::bind(free).await.unwrap();
        let verdict = tokio::time::timeout(Duration::from_secs(5), rx.recv()).await.unwrap();
        assert_eq!(verdict, Some(true));
        task.abort();
    }
}
