//! Serves a `wasi:http` component: a listener on the I/O runtime, an instance per request on the executors.

use super::{
    container::{Container, KILLED},
    guest::Guest,
    memory::Grant,
    stdio::Stdio,
};
use crate::{
    model::{ContainerSpec, Reason},
    protocol::Failure,
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use wasmtime::PoolConcurrencyLimitError;
use wasmtime_wasi_http::{
    Error as HttpError,
    p2::{
        bindings::{
            ProxyPre,
            http::types::{ErrorCode, Scheme},
        },
        body::HyperOutgoingBody,
    },
};

/// Of a service for which neither `PORT` nor the pod says another.
const DEFAULT_PORT: u16 = 8080;
/// Connections that wait to be accepted; the kernel cuts it to its own bound.
const BACKLOG: u32 = 1024;
/// Of one container, so that one cannot use up the host's.
const CONNECTIONS: usize = 2_000;
/// For the first byte of a connection, and for the headers of each request; so also how long an idle one is kept.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
const HEADER_BYTES: usize = 64 << 10;
const HEADERS: usize = 128;
/// Streamed, so this bounds no memory, only what a client may keep a guest busy with.
const BODY_BYTES: u64 = 1 << 30;
/// How long a request waits for memory or an instance before it gets 503.
const ADMISSION: Duration = Duration::from_secs(5);
/// What such a client is told to wait.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");
/// Between attempts to accept when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the service listens: what `PORT` says, else the pod, else 8080.
pub(crate) fn port(spec: &ContainerSpec) -> Result<u16, Failure> {
    match spec.env.iter().rev().find(|(name, _)| name == "PORT") {
        Some((_, port)) => {
            port.parse().map_err(|_| Failure::Spec { why: format!("PORT={port:?} is not a port") })
        }
        None => Ok(spec.port.unwrap_or(DEFAULT_PORT)),
    }
}

/// The socket of a service: one that was made for it in its pod's own namespace, or one at the pod's own address in
/// the host's.
pub(crate) fn listen(spec: &ContainerSpec, socket: Option<OwnedFd>) -> Result<TcpListener, Failure> {
    let refuse = |why: String| Failure::Spec { why };
    if let Some(socket) = socket {
        let listener = std::net::TcpListener::from(socket);
        let listening = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
        return listening.map_err(|cause| refuse(format!("the socket of the service: {cause}")));
    }
    let port = port(spec)?;
    let address = spec.address.ok_or_else(|| refuse("a service needs the pod's address".to_owned()))?;
    let at = SocketAddr::new(address, port);
    let listening = || -> io::Result<TcpListener> {
        let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(at)?;
        socket.listen(BACKLOG)
    };
    listening().map_err(|cause| refuse(format!("could not listen at {at}: {cause}")))
}

/// Runs until the container is drained or cancelled, and ends it.
pub(crate) async fn serve(container: Arc<Container>, proxy: ProxyPre<Guest>, listener: TcpListener) {
    let service = Arc::new(Service { container, proxy, tasks: TaskTracker::new() });
    let container = &service.container;
    let own = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            () = container.cancel.cancelled() => break,
            () = container.drain.cancelled() => break,
            accepted = accept(&listener, &own, &container.common.connections) => accepted,
        };
        match accepted {
            Ok((stream, places)) => {
                let service = service.clone();
                service.tasks.clone().spawn(async move {
                    service.connection(stream).await;
                    drop(places);
                });
            }
            Err(cause) => {
                tracing::warn!(id = container.spec.id, %cause, "could not accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    service.tasks.close();
    let drained = tokio::select! {
        biased;
        () = container.cancel.cancelled() => false,
        () = service.tasks.wait() => true,
    };
    if drained {
        container.finish(0, Reason::Completed, String::new());
    } else {
        service.tasks.wait().await; // they saw the same token
        container.finish(KILLED, Reason::Error, "killed".to_owned());
    }
}

type Places = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// Takes one connection, when there is place for it. Of an idle service it holds nothing of what all share.
async fn accept(
    listener: &TcpListener,
    own: &Arc<Semaphore>,
    all: &Arc<Semaphore>,
) -> io::Result<(TcpStream, Places)> {
    let own = own.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    let all = all.clone().acquire_owned().await.map_err(io::Error::other)?;
    Ok((stream, (own, all)))
}

struct Service {
    container: Arc<Container>,
    proxy: ProxyPre<Guest>,
    /// Connections, and instances, which may outlive theirs.
    tasks: TaskTracker,
}

impl Service {
    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true); // a hint
        let mut first = [0; 4];
        let peeked = tokio::select! {
            biased;
            () = self.container.cancel.cancelled() => return,
            () = self.container.drain.cancelled() => return, // nothing was asked on it
            peeked = tokio::time::timeout(HEADER_TIMEOUT, stream.peek(&mut first)) => peeked,
        };
        let Ok(Ok(1..)) = peeked else { return };
        let this = self.clone();
        let service = service_fn(move |request| {
            let this = this.clone();
            async move { Ok::<_, Infallible>(this.answer(request).await) }
        });
        let io = TokioIo::new(stream);
        if &first == b"PRI " {
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).keep_alive_interval(HEADER_TIMEOUT);
            builder.max_header_list_size(HEADER_BYTES as u32);
            self.drive(builder.serve_connection(io, service)).await;
        } else {
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            builder.max_buf_size(HEADER_BYTES).max_headers(HEADERS).pipeline_flush(true);
            self.drive(builder.serve_connection(io, service)).await;
        }
    }

    async fn drive(&self, connection: impl GracefulConnection) {
        let mut connection = pin!(connection);
        tokio::select! {
            biased;
            () = self.container.cancel.cancelled() => return,
            _ = connection.as_mut() => return, // what a client did wrong is its own matter
            () = self.container.drain.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            biased;
            () = self.container.cancel.cancelled() => {}
            _ = connection => {}
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Answer> {
        let container = &self.container;
        container.counters.requests.fetch_add(1, Ordering::Relaxed);
        if request.body().size_hint().lower() > BODY_BYTES {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n");
        }
        let known_host = request.uri().authority().is_some()
            || request.headers().get(header::HOST).is_some_and(|host| host.to_str().is_ok());
        if !known_host {
            return plain(StatusCode::BAD_REQUEST, "the request names no host\n");
        }
        let Ok(Ok(admission)) = tokio::time::timeout(ADMISSION, self.admit()).await else {
            container.counters.refused.fetch_add(1, Ordering::Relaxed);
            return busy();
        };
        // Dropped with this future, or with the answer's body: when the client goes away, the instance ends.
        let cancel = container.cancel.child_token();
        let guard = cancel.clone().drop_guard();
        let head = request.method() == Method::HEAD;
        let (tell, told) = oneshot::channel();
        let run = self.clone().run(request, admission, tell, cancel);
        container.queue.spawn(self.tasks.track_future(run));
        match told.await {
            Ok(Told::Response(response)) => {
                let (parts, body) = response.into_parts();
                let expected = parts.headers.get(header::CONTENT_LENGTH);
                let expected = expected.and_then(|length| length.to_str().ok()?.parse().ok());
                let mut body = Answer { body: Some(body), text: None, guard: Some(guard), expected, sent: 0 };
                if head || body.is_end_stream() {
                    body.release();
                }
                Response::from_parts(parts, body)
            }
            Ok(Told::Refused(code)) => {
                tracing::debug!(id = container.spec.id, ?code, "a component answered with an error");
                plain(StatusCode::BAD_GATEWAY, "the component answered with an error\n")
            }
            Ok(Told::Busy) => {
                container.counters.refused.fetch_add(1, Ordering::Relaxed);
                busy()
            }
            // What went wrong is in the container's log, not for the client.
            Ok(Told::Failed) | Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the component failed\n"),
        }
    }

    /// Waits for place for one more instance.
    async fn admit(&self) -> Result<Admission, ()> {
        let grant = self.container.budget.reserve(self.container.typical()).await.map_err(|_| ())?;
        let place = self.container.common.instances.clone().acquire_owned().await.map_err(|_| ())?;
        Ok(Admission { grant, place })
    }

    /// On the executors: one request, in an instance of its own.
    async fn run(
        self: Arc<Self>,
        request: Request<Incoming>,
        admission: Admission,
        tell: oneshot::Sender<Told>,
        cancel: CancellationToken,
    ) {
        let tell = Teller(Arc::new(Mutex::new(Some(tell))));
        let handled = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            handled = self.handle(request, admission, tell.clone()) => handled,
        };
        match handled {
            Ok(()) if tell.tell(Told::Failed) => {
                self.container.trapped("the component returned without an answer")
            }
            Ok(()) => {}
            Err(error) if error.is::<PoolConcurrencyLimitError>() => {
                tell.tell(Told::Busy);
            }
            Err(error) => {
                // First the words, so that whoever sees the answer finds them.
                self.container.trapped(&format!("{error:?}"));
                tell.tell(Told::Failed);
            }
        }
    }

    async fn handle(
        &self,
        request: Request<Incoming>,
        admission: Admission,
        tell: Teller,
    ) -> wasmtime::Result<()> {
        use wasmtime_wasi_http::WasiHttpView;
        let Admission { grant, place } = admission;
        let stdio = Stdio::logged(&self.container.log, false);
        let mut store = Guest::store(&self.container, grant, &self.container.spec.args, stdio)?;
        let request = request.map(|body| {
            // The only errors of a body: the connection's, and its length.
            Limited::new(body, BODY_BYTES as usize).map_err(|error| match error.downcast::<hyper::Error>() {
                Ok(error) => HttpError::Hyper(*error),
                Err(_) => HttpError::HttpRequestBodySize(Some(BODY_BYTES)),
            })
        });
        let mut view = store.data_mut().http();
        let request = view.new_incoming_request(Scheme::Http, request)?;
        let out = view.new_response_outparam_from_callback(move |result| {
            tell.tell(result.map_or_else(Told::Refused, Told::Response));
        })?;
        let instance = self.proxy.instantiate_async(&mut store).await?;
        instance.wasi_http_incoming_handler().call_handle(&mut store, request, out).await?;
        drop(store);
        drop(place);
        Ok(())
    }
}

struct Admission {
    grant: Grant,
    place: OwnedSemaphorePermit,
}

/// What the connection is told of its request, once.
enum Told {
    Response(Response<HyperOutgoingBody>),
    Refused(ErrorCode),
    Busy,
    Failed,
}

#[derive(Clone)]
struct Teller(Arc<Mutex<Option<oneshot::Sender<Told>>>>);

impl Teller {
    /// Whether this was the first word.
    fn tell(&self, what: Told) -> bool {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        sender.is_some_and(|sender| {
            let _ = sender.send(what); // a client that left is told nothing
            true
        })
    }
}

/// The body of an answer; ends the instance when it is dropped before its end.
struct Answer {
    body: Option<HyperOutgoingBody>,
    text: Option<&'static str>,
    guard: Option<DropGuard>,
    expected: Option<u64>,
    sent: u64,
}

impl Answer {
    /// The client has it all: the instance may go on until it returns.
    fn release(&mut self) {
        self.guard.take().map(DropGuard::disarm);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // With a length, nobody asks for the end after the last byte.
        if self.expected.is_some_and(|expected| self.sent >= expected) {
            self.release();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Some(text) = self.text.take() {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(text.as_bytes())))));
        }
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(context));
        match &frame {
            None => self.release(),
            Some(Ok(frame)) => self.sent += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.text.is_none() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.text, &self.body) {
            (Some(text), _) => SizeHint::with_exact(text.len() as u64),
            (None, Some(body)) => body.size_hint(),
            (None, None) => SizeHint::with_exact(0),
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Answer> {
    let mut response =
        Response::new(Answer { body: None, text: Some(text), guard: None, expected: None, sent: 0 });
    *response.status_mut() = status;
    response
}

fn busy() -> Response<Answer> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "the service is at its limit\n");
    response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    response
}
