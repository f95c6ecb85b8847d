//! The streaming server: where a caller takes up the streams that a CRI call promised it.
//!
//! CRI answers `Exec`, `Attach` and `PortForward` with a URL on this server, on 127.0.0.1, that holds a token:
//! random, good for one use within a minute. The protocols live here alone; node agent and API server pipe bytes.
//!
//! - `handshake` agrees on a protocol: WebSocket or SPDY/3.1;
//! - `channels` (WebSocket) and `remote` over `spdy` make a [`Session`] of exec and attach of it; `process` joins
//!   that to a process; `port_forward` has the ports of a pod over either;
//! - a client that breaks its protocol, or stops reading, holds up and ends nothing but its own connection, and has
//!   at most a few pieces of each stream waiting for it.

mod channels;
mod handshake;
mod port_forward;
pub mod process;
mod remote;
mod spdy;
mod streams;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::RngExt as _;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

use handshake::Agreed;
pub use port_forward::{MOST_PORTS, Target};
pub use streams::{Session, Wants};

/// How long a token waits for its caller (the kubelet's figure).
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// How many calls may wait at once (the kubelet's figure).
const TOKENS: usize = 1000;

/// How long a client may take to close a connection whose streams have ended.
const LINGER: Duration = Duration::from_secs(5);
/// Connections at a time.
const CONNECTIONS: usize = 1000;

/// What joins a client's streams to those of a process, until either is gone.
pub type Join = Box<dyn FnOnce(Session) -> BoxFuture<'static, ()> + Send>;

/// The end of a WebSocket that is as it should be: kubectl takes one without RFC 6455's code 1000 for a broken stream.
fn farewell() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() }))
}

/// What a token stands for.
pub enum Call {
    Exec(Wants, Join),
    Attach(Wants, Join),
    /// Connections to these ports of a pod; without any, to those that the URL's query names.
    PortForward(Target, Vec<u16>),
}

/// Hands out tokens and serves those who bring them back.
pub struct Streaming {
    address: SocketAddr,
    waiting: Mutex<HashMap<String, (Call, Instant)>>,
    stop: CancellationToken,
}

impl Call {
    fn path(&self) -> &'static str {
        match self {
            Self::Exec(..) => "exec",
            Self::Attach(..) => "attach",
            Self::PortForward(..) => "portforward",
        }
    }
}

/// Too many calls wait for their callers.
#[derive(Debug, thiserror::Error)]
#[error("{TOKENS} streaming calls wait for their callers already")]
pub struct Busy;

impl Streaming {
    /// Starts the server; it ends with `stop`.
    ///
    /// # Errors
    /// That of binding a port of 127.0.0.1.
    pub async fn start(stop: CancellationToken) -> std::io::Result<Arc<Self>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let this = Arc::new(Self { address, waiting: Mutex::default(), stop });
        tokio::spawn(this.clone().accept(listener));
        Ok(this)
    }

    /// A URL good for one use within a minute.
    ///
    /// # Errors
    /// [`Busy`] if too many are out.
    pub fn url(&self, call: Call) -> Result<String, Busy> {
        let path = call.path();
        let token: String =
            rand::rng().sample_iter(rand::distr::Alphanumeric).take(32).map(char::from).collect();
        let mut waiting = self.waiting.lock().expect("no holder of this lock panics");
        waiting.retain(|_, (_, until)| *until > Instant::now());
        if waiting.len() >= TOKENS {
            return Err(Busy);
        }
        let url = format!("http://{}/{path}/{token}", self.address);
        waiting.insert(token, (call, Instant::now() + TOKEN_LIFE));
        Ok(url)
    }

    fn take(&self, path: &str) -> Option<Call> {
        let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
        let mut waiting = self.waiting.lock().expect("no holder of this lock panics");
        let (call, until) = waiting.remove(token)?;
        (kind == call.path() && until > Instant::now()).then_some(call)
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = places.clone().acquire_owned().await.expect("nobody closes the semaphore");
            let stream = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "streaming server cannot accept");
                        tokio::time::sleep(Duration::from_millis(100)).await; // out of descriptors: let some close
                        continue;
                    }
                },
            };
            let _ = stream.set_nodelay(true); // frames are small and answered
            let this = self.clone();
            let place = Arc::new(place); // of the connection while it is HTTP, and of the streams that it becomes
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let (this, place) = (this.clone(), place.clone());
                    async move { Ok::<_, std::convert::Infallible>(this.answer(request, place)) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "streaming connection ended");
                }
            });
        }
    }

    fn answer(&self, request: Request<Incoming>, place: Arc<OwnedSemaphorePermit>) -> Response<Full<Bytes>> {
        let Some(call) = self.take(request.uri().path()) else {
            return refuse(StatusCode::NOT_FOUND, "the token is unknown, used or older than a minute");
        };
        let headers = request.headers();
        let agreed = match &call {
            Call::Exec(..) | Call::Attach(..) => {
                handshake::agree(headers, &channels::PROTOCOLS, &remote::PROTOCOLS)
            }
            Call::PortForward(..) => {
                handshake::agree(headers, &port_forward::PROTOCOLS, &[port_forward::SPDY])
            }
        };
        let agreed = match agreed {
            Ok(agreed) => agreed,
            Err(response) => return *response,
        };
        let response = agreed.response();
        let carry = match call {
            Call::Exec(wants, join) | Call::Attach(wants, join) => {
                session(request, agreed, wants, join).boxed()
            }
            Call::PortForward(target, given) => match port_forward::carry(request, agreed, target, given) {
                Ok(carry) => carry,
                Err(why) => return refuse(StatusCode::BAD_REQUEST, &why),
            },
        };
        let stop = self.stop.clone();
        tokio::spawn(async move {
            stop.run_until_cancelled(carry).await;
            drop(place);
        });
        response
    }
}

/// Serves an exec or attach from its upgrade to its end.
async fn session(request: Request<Incoming>, agreed: Agreed, wants: Wants, join: Join) {
    let Some(io) = upgraded(request).await else { return };
    match agreed {
        Agreed::WebSocket { protocol, .. } => {
            let (session, carrying) = channels::serve(io, protocol, wants).await;
            tokio::join!(join(session), carrying);
        }
        Agreed::Spdy { protocol } => {
            let (mut incoming, carrying) = spdy::serve(io);
            let joined = async move {
                let session = remote::collect(&mut incoming, wants, protocol).await;
                drop(incoming); // what is opened from now on is nobody's
                if let Some(session) = session {
                    join(session).await;
                }
            };
            tokio::join!(joined, carrying);
        }
    }
}

async fn upgraded(request: Request<Incoming>) -> Option<TokioIo<hyper::upgrade::Upgraded>> {
    match hyper::upgrade::on(request).await {
        Ok(upgraded) => Some(TokioIo::new(upgraded)),
        Err(error) => {
            tracing::debug!(%error, "a stream was not upgraded");
            None
        }
    }
}

/// An answer that says why there will be no streams.
fn refuse(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(why.to_owned()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests;
