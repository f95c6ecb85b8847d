//! The streaming server: where a caller takes up the streams that a CRI call promised it.
//!
//! CRI answers `PortForward` with a URL on this server, on 127.0.0.1, that holds a token: random, good for
//! one use within a minute. The protocols live here alone; node agent and API server pipe bytes.

mod port_forward;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::RngExt as _;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use port_forward::{MOST_PORTS, Target};

/// How long a token waits for its caller (the kubelet's figure).
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// How many calls may wait at once (the kubelet's figure).
const TOKENS: usize = 1000;

/// What a token stands for.
#[derive(Clone, Debug)]
pub enum Call {
    /// Connections to these ports of a pod; without any, to those that the URL's query names.
    PortForward(Target, Vec<u16>),
}

/// Hands out tokens and serves those who bring them back.
pub struct Streaming {
    address: SocketAddr,
    waiting: Mutex<HashMap<String, (Call, Instant)>>,
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
        let this = Arc::new(Self { address: listener.local_addr()?, waiting: Mutex::default() });
        tokio::spawn(this.clone().accept(listener, stop));
        Ok(this)
    }

    /// A URL good for one use within a minute.
    ///
    /// # Errors
    /// [`Busy`] if too many are out.
    pub fn url(&self, call: Call) -> Result<String, Busy> {
        let path = match call {
            Call::PortForward(..) => "portforward",
        };
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
        let fits = match call {
            Call::PortForward(..) => kind == "portforward",
        };
        (fits && until > Instant::now()).then_some(call)
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => return,
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
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let this = this.clone();
                    async move { Ok::<_, std::convert::Infallible>(this.answer(request)) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "streaming connection ended");
                }
            });
        }
    }

    fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match self.take(request.uri().path()) {
            Some(Call::PortForward(target, ports)) => port_forward::answer(request, target, ports),
            None => refuse(StatusCode::NOT_FOUND, "the token is unknown, used or older than a minute"),
        }
    }
}

/// An answer that says why there will be no streams.
fn refuse(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(why.to_owned()));
    *response.status_mut() = status;
    response
}
