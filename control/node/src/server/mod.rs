//! The node server: the kubelet's URLs over TLS, for the API server and for whom that lets in ([`access`]).

mod access;
mod logs;
mod streams;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use wharf_kit::chain;
use wharf_kit::identity::{self, ALPN_HTTP1, ClientAuth, Peer};
use wharf_kit::view::Key;

use self::access::Access;
use self::streams::Process;
use crate::pod::Shared;
use crate::stats::{self, Scope, Stats};
use crate::{Error, Listen, Serving};

/// A body that is whole or streamed.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A bound node server.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: TlsAcceptor,
}

/// Who does not finish the TLS handshake in this time is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that can be open at once, handshakes included.
const CONNECTIONS: usize = 1000;

impl Server {
    /// Binds the socket and reads the certificates.
    pub async fn bind(serving: Serving) -> Result<Self, Error> {
        let tls = identity::renewing_server_config(
            &serving.identity,
            ClientAuth::Optional(&serving.client_ca),
            ALPN_HTTP1,
        )
        .map_err(Error::Tls)?;
        let listener = match serving.listen {
            Listen::Address(address) => {
                TcpListener::bind(address).await.map_err(|cause| Error::Listen { address, cause })?
            }
            Listen::Socket(socket) => {
                socket.set_nonblocking(true).map_err(Error::Socket)?;
                TcpListener::from_std(socket).map_err(Error::Socket)?
            }
        };
        let address = listener.local_addr().map_err(Error::Socket)?;
        Ok(Self { listener, address, tls: TlsAcceptor::from(tls) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; open streams end with it.
    pub async fn run(self, shared: Arc<Shared>, stop: CancellationToken) {
        let tracker = TaskTracker::new();
        let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
        let (name, root) = (shared.name.clone(), shared.root.clone());
        let asked = Arc::new(Asked {
            access: Access::new(shared.rest.clone(), name.clone()),
            stats: Stats::new(name, root, shared.runtime.clone()),
            shared,
        });
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&self.listener, &places) => accepted,
            };
            let (stream, place) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "could not accept a connection to the node server");
                    tokio::time::sleep(Duration::from_millis(100)).await; // out of descriptors, most likely
                    continue;
                }
            };
            let (asked, tls, stop) = (asked.clone(), self.tls.clone(), stop.clone());
            tracker.spawn(async move {
                let _place = place;
                stop.run_until_cancelled(connection(stream, tls, asked, stop.clone())).await;
            });
        }
        tracker.close();
        tracker.wait().await;
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<tokio::sync::Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

/// What requests are answered from.
struct Asked {
    shared: Arc<Shared>,
    access: Access,
    stats: Stats,
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, asked: Arc<Asked>, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "a client of the node server failed the TLS handshake"),
        Err(_) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = certificate.and_then(|der| identity::peer_identity(der).ok());
    let service = service_fn(move |request| {
        let (asked, peer, stop) = (asked.clone(), peer.clone(), stop.clone());
        async move { Ok::<_, Infallible>(answer(&asked, peer.as_ref(), request, stop).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        debug!(error = %chain(&error), "a connection to the node server broke");
    }
}

async fn answer(
    asked: &Asked,
    peer: Option<&Peer>,
    request: Request<Incoming>,
    stop: CancellationToken,
) -> Response<Body> {
    let allowed = asked.access.check(peer, request.headers(), request.method(), request.uri().path()).await;
    if let Err(refusal) = allowed {
        return text(refusal.status, refusal.words);
    }
    let shared = &asked.shared;
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let read = request.method() == Method::GET;
    match parts.as_slice() {
        ["healthz"] if read => text(StatusCode::OK, "ok".to_owned()),
        ["pods"] if read => pods(shared),
        ["stats", "summary"] if read => {
            summary(&asked.stats, request.uri().query().unwrap_or_default()).await
        }
        ["metrics", "resource"] if read => resource_metrics(&asked.stats).await,
        ["containerLogs", namespace, pod, container] if read => {
            logs::serve(shared, namespace, pod, container, request.uri().query().unwrap_or_default()).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            streams::port_forward(shared, &Key::new(*namespace, *pod), request, stop).await
        }
        ["exec", namespace, pod, container] => {
            streams::process(shared, &Key::new(*namespace, *pod), container, Process::Command, request, stop)
                .await
        }
        ["attach", namespace, pod, container] => {
            streams::process(shared, &Key::new(*namespace, *pod), container, Process::Own, request, stop)
                .await
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    }
}

/// A short answer.
pub fn text(status: StatusCode, words: String) -> Response<Body> {
    let mut response = Response::new(whole(Bytes::from(words)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn typed(type_: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(whole(body.into()));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(type_));
    response
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A `PodList` of what runs here.
fn pods(shared: &Shared) -> Response<Body> {
    let mut body = Vec::from(&br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#[..]);
    for (index, pod) in shared.directory.all().iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&pod.raw);
    }
    body.extend_from_slice(b"]}");
    typed("application/json", body)
}

async fn summary(stats: &Stats, query: &str) -> Response<Body> {
    let only = form_urlencoded::parse(query.as_bytes())
        .any(|(name, value)| name == "only_cpu_and_memory" && matches!(&*value, "true" | "1"));
    let scope = if only { Scope::CpuAndMemory } else { Scope::All };
    let summary = stats.summary(scope).await.map_err(|status| status.message().to_owned());
    let body = summary.and_then(|summary| serde_json::to_vec(&summary).map_err(|error| error.to_string()));
    match body {
        Ok(body) => typed("application/json", body),
        Err(why) => {
            let words = format!("what runs here cannot be told: the runtime: {why}\n");
            text(StatusCode::INTERNAL_SERVER_ERROR, words)
        }
    }
}

/// A scraper is told in the text itself that the runtime does not answer, as the kubelet does it.
async fn resource_metrics(stats: &Stats) -> Response<Body> {
    let summary = stats.summary(Scope::CpuAndMemory).await;
    let summary = summary.inspect_err(|status| warn!(why = status.message(), "no usage to be told")).ok();
    typed(stats::TYPE, stats::metrics(summary.as_ref()))
}
