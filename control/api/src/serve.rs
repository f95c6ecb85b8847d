//! HTTPS: connections, their peers, and how they end.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::authn::{self, Peer};
use crate::server::{Drain, Inner, Origin};
use crate::{ApiServer, Body, Error, UserInfo};

/// A peer that does not finish its handshake or its request's head in this time is cut off.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(30);
/// Requests in hand at shutdown may take this long.
const GRACE: Duration = Duration::from_secs(10);
/// See [`lasts`].
const MARGIN: Duration = Duration::from_secs(2);
/// All headers of one request together.
const HEADERS_MAX: usize = 64 << 10;
/// A client has as many watches on one connection as it has kinds and namespaces to look at.
const STREAMS_MAX: u32 = 1000;
/// An accept that fails for want of descriptors is tried again after this.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Calls the server in this process, as one user.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
    user: Arc<UserInfo>,
}

impl tower::Service<Request<kube::client::Body>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let inner = self.inner.clone();
        let origin = Origin::User(self.user.clone());
        Box::pin(async move { Ok(inner.handle(request.map(Body::new), origin).await) })
    }
}

impl ApiServer {
    /// A tower service that does everything as `user`.
    pub fn service(&self, user: UserInfo) -> Service {
        Service { inner: self.inner.clone(), user: Arc::new(user) }
    }

    /// A client that calls this server without a socket, as `user`: the same authorization and admission as for
    /// any other client. Upgrades (port-forward) need a socket.
    pub fn client(&self, user: UserInfo) -> kube::Client {
        kube::Client::new(self.service(user), "default")
    }

    /// Serves HTTPS on `listener` until `stop` is cancelled; then watches end, and requests in hand may finish
    /// within 10 s.
    ///
    /// # Errors
    /// [`Error::NoTls`] if the configuration has no TLS.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) -> Result<(), Error> {
        let mut tls = (**self.inner.tls.as_ref().ok_or(Error::NoTls)?).clone();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEADERS_MAX);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(30))
            .max_header_list_size(HEADERS_MAX as u32)
            .max_concurrent_streams(STREAMS_MAX);
        let http = Arc::new(http);
        let address = listener.local_addr().map_err(Error::Listen)?;
        info!(%address, "serving the API");
        let pending = tokio_util::task::TaskTracker::new();
        loop {
            let stream = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        warn!(%error, "could not accept a connection");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                        continue;
                    }
                },
            };
            let connection = Connection {
                inner: self.inner.clone(),
                acceptor: acceptor.clone(),
                http: http.clone(),
                stop: stop.clone(),
            };
            pending.spawn(connection.run(stream));
        }
        drop(listener);
        pending.close();
        match tokio::time::timeout(GRACE, pending.wait()).await {
            Ok(()) => info!(%address, "the API is no longer served"),
            Err(_) => warn!(%address, "requests were cut off at the end of the grace period"),
        }
        Ok(())
    }
}

struct Connection {
    inner: Arc<Inner>,
    acceptor: TlsAcceptor,
    http: Arc<auto::Builder<TokioExecutor>>,
    stop: CancellationToken,
}

impl Connection {
    async fn run(self, stream: TcpStream) {
        // Small answers are the rule here, and each is waited for.
        let _ = stream.set_nodelay(true);
        let accepted = tokio::select! {
            () = self.stop.cancelled() => return,
            accepted = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)) => accepted,
        };
        let stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%error, "a TLS handshake failed"),
            Err(_) => return debug!("a TLS handshake took too long"),
        };
        let shown = stream.get_ref().1.peer_certificates();
        let certificate = shown.map(|chain| authn::certified(self.inner.client_ca.as_ref(), chain));
        let last = certificate.as_ref().and_then(|proof| proof.as_ref().ok()).map(|proof| lasts(proof.until));
        let peer = Peer { certificate };
        let (inner, drain) = (self.inner, Drain(self.stop.clone()));
        let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
            let (inner, peer) = (inner.clone(), peer.clone());
            request.extensions_mut().insert(drain.clone());
            async move { Ok::<_, Infallible>(inner.handle(request.map(Body::new), Origin::Peer(peer)).await) }
        });
        let mut connection =
            pin!(self.http.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned());
        let proven = async {
            match last {
                Some(last) => tokio::time::sleep(last).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            _ = self.stop.run_until_cancelled(proven) => {
                // Requests in hand are answered; new ones take a new connection, and show a new certificate.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(error = %error, "a connection ended early");
        }
    }
}

/// How long a connection takes new requests whose client's certificate ends then: a little less than that, so that no
/// request of a client that has renewed it meets the end.
fn lasts(until: SystemTime) -> Duration {
    let left = until.duration_since(SystemTime::now()).unwrap_or_default();
    left - MARGIN.min(left / 2)
}
