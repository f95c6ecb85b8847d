//! The node server: the kubelet's URLs over mutual TLS, for the API server.

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

use self::streams::Process;
use crate::pod::Shared;
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
            ClientAuth::Required(&serving.client_ca),
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
            let (shared, tls, stop) = (shared.clone(), self.tls.clone(), stop.clone());
            tracker.spawn(async move {
                let _place = place;
                stop.run_until_cancelled(connection(stream, tls, shared, stop.clone())).await;
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

async fn connection(stream: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "a client of the node server failed the TLS handshake"),
        Err(_) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = certificate.and_then(|der| identity::peer_identity(der).ok());
    let service = service_fn(move |request| {
        let (shared, peer, stop) = (shared.clone(), peer.clone(), stop.clone());
        async move { Ok::<_, Infallible>(answer(&shared, peer.as_ref(), request, stop).await) }
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

/// The API server, and who may do everything.
fn allowed(peer: Option<&Peer>) -> bool {
    peer.is_some_and(|peer| {
        peer.user == "kube-apiserver-kubelet-client"
            || peer.groups.iter().any(|group| group == "system:masters")
    })
}

async fn answer(
    shared: &Arc<Shared>,
    peer: Option<&Peer>,
    request: Request<Incoming>,
    stop: CancellationToken,
) -> Response<Body> {
    if !allowed(peer) {
        let user = peer.map_or("", |peer| &peer.user);
        return text(
            StatusCode::FORBIDDEN,
            format!(
                "Forbidden (user={user}, verb={}, resource=nodes)\n",
                request.method().as_str().to_lowercase()
            ),
        );
    }
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let read = request.method() == Method::GET;
    match parts.as_slice() {
        ["healthz"] if read => text(StatusCode::OK, "ok".to_owned()),
        ["pods"] if read => pods(shared),
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
    let mut response = Response::new(whole(Bytes::from(body)));
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_api_server_and_masters_are_let_in() {
        let peer = |user: &str, groups: &[&str]| Peer {
            user: user.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        };
        assert!(allowed(Some(&peer("kube-apiserver-kubelet-client", &[]))));
        assert!(allowed(Some(&peer("kubernetes-admin", &["x", "system:masters"]))));
        assert!(!allowed(Some(&peer("system:node:n1", &["system:nodes"]))));
        assert!(!allowed(None));
    }
}
