//! Clients of the API server whose certificate is renewed while they are in use.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use http::Request;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, ResponseFuture};
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use tower::{Service, ServiceBuilder};
use wharf_kit::identity;
use wharf_kit::renew::{Current, Shown};

/// A client of the API server at `url`, which must show a certificate of `ca`: with the newest of `current`, or with
/// a token. A connection whose other end is not heard of for `patience` is given up: a watch would wait for ever on
/// one that was cut.
pub fn client(
    url: &str,
    ca: &str,
    current: &Current,
    token: Option<String>,
    patience: Duration,
) -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::new(url.parse().with_context(|| format!("{url:?} is no URL"))?);
    config.auth_info.token = token.map(Into::into);
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(patience));
    tcp.set_keepalive(Some(patience / 2));
    tcp.set_keepalive_interval(Some(patience / 2));
    tcp.set_tcp_user_timeout(Some(patience));
    let tls = identity::renewing_client_config(ca, current, &[])?;
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(Arc::unwrap_or_clone(tls))
        .https_only()
        .enable_http1()
        .wrap_connector(tcp);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().context("use the token")?)
        .map_err(tower::BoxError::from)
        .service(Newest::new(https, current.clone()));
    Ok(kube::Client::new(service, config.default_namespace))
}

type Sender = legacy::Client<HttpsConnector<HttpConnector>, Body>;

/// Sends requests by connections that showed the newest certificate: the server asks at each request whether it is
/// still good. What is under way by an older one is finished.
#[derive(Clone)]
struct Newest {
    current: Current,
    shown: Shown,
    https: HttpsConnector<HttpConnector>,
    sender: Sender,
}

impl Newest {
    fn new(https: HttpsConnector<HttpConnector>, current: Current) -> Self {
        Self { shown: current.shown(), sender: sender(&https), current, https }
    }
}

fn sender(https: &HttpsConnector<HttpConnector>) -> Sender {
    legacy::Client::builder(TokioExecutor::new()).build(https.clone())
}

impl Service<Request<Body>> for Newest {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = legacy::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let newest = self.current.shown();
        if newest != self.shown {
            (self.shown, self.sender) = (newest, sender(&self.https));
        }
        self.sender.request(request)
    }
}
