//! `/portForward/NS/POD`: the runtime's own streaming server does the work. The client's upgrade request is replayed to
//! it, and from then on bytes go both ways as they are: SPDY, WebSocket or a tunnel of one in the other.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tracing::debug;
use wharf_cri::v1;
use wharf_kit::chain;
use wharf_kit::view::Key;

use super::{Body, text};
use crate::pod::Shared;

pub async fn serve(
    shared: &Arc<Shared>,
    namespace: &str,
    pod: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(found) = shared.directory.find(&Key::new(namespace, pod)) else {
        return text(StatusCode::NOT_FOUND, format!("pod does not exist: {namespace}/{pod}\n"));
    };
    let Some(sandbox) = found.borrow().sandbox.clone() else {
        return text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("pod {namespace}/{pod} has no running sandbox\n"),
        );
    };
    if !request.headers().contains_key(header::UPGRADE) {
        return text(StatusCode::BAD_REQUEST, "you must specify at least 1 'Upgrade' header\n".to_owned());
    }
    let port = ports(request.uri().query().unwrap_or_default());
    let asked = shared
        .runtime
        .runtime
        .clone()
        .port_forward(v1::PortForwardRequest { pod_sandbox_id: sandbox, port })
        .await;
    let url = match asked {
        Ok(answer) => answer.into_inner().url,
        Err(status) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", status.message())),
    };
    match replay(&url, request).await {
        Ok(response) => response,
        Err(words) => {
            text(StatusCode::BAD_GATEWAY, format!("the runtime's streaming server at {url}: {words}\n"))
        }
    }
}

/// The ports that older clients name in the query.
fn ports(query: &str) -> Vec<i32> {
    let values = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("ports=").or_else(|| pair.strip_prefix("port=")));
    values
        .flat_map(|value| value.split(',').flat_map(|part| part.split("%2C")))
        .filter_map(|port| port.parse().ok())
        .collect()
}

/// Sends the request to `url` and, once that side switched protocols, joins the two connections.
async fn replay(url: &str, mut request: Request<Incoming>) -> Result<Response<Body>, String> {
    let uri: http::Uri = url.parse().map_err(|_| "its address is not understood".to_owned())?;
    let authority = uri.authority().ok_or("its address has no host")?.clone();
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let stream = TcpStream::connect((host.as_str(), authority.port_u16().unwrap_or(80)))
        .await
        .map_err(|error| error.to_string())?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(error = %chain(&error), "the connection to the runtime's streaming server broke");
        }
    });
    let mut onward = Request::builder()
        .method(request.method())
        .uri(path)
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    copy_headers(request.headers(), onward.headers_mut());
    onward
        .headers_mut()
        .insert(header::HOST, authority.as_str().parse().map_err(|_| "its address is no host header")?);
    let mut answer = sender.send_request(onward).await.map_err(|error| error.to_string())?;

    let mut response = Response::new(Body::default());
    *response.status_mut() = answer.status();
    copy_headers(answer.headers(), response.headers_mut());
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        // It refused: its own words are the best answer.
        *response.body_mut() = answer.into_body().map_err(std::io::Error::other).boxed_unsync();
        return Ok(response);
    }
    let (client, runtime) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut answer));
    tokio::spawn(async move {
        let (client, runtime) = match tokio::try_join!(client, runtime) {
            Ok(both) => both,
            Err(error) => return debug!(error = %chain(&error), "a port-forward was not upgraded"),
        };
        let joined =
            tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(runtime)).await;
        if let Err(error) = joined {
            debug!(%error, "a port-forward ended"); // clients go without a word, as a rule
        }
    });
    Ok(response)
}

/// All but what belongs to one hop's body and name; the upgrade headers are the point.
fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        if !matches!(
            *name,
            header::HOST | header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::AUTHORIZATION
        ) {
            to.append(name, value.clone());
        }
    }
}
