//! `/exec`, `/attach` and `/portForward`: the runtime's own streaming server does the work. The client's upgrade request is
//! replayed to it, and from then on bytes go both ways as they are: SPDY, WebSocket or a tunnel of one in the other.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use wharf_cri::v1;
use wharf_kit::chain;
use wharf_kit::view::Key;

use super::{Body, text};
use crate::pod::Shared;

/// What is said of a pod that is not here, or of its container: the kubelet's words and codes.
type Refused = Response<Body>;

/// The ports of a pod.
pub async fn port_forward(
    shared: &Arc<Shared>,
    pod: &Key,
    request: Request<Incoming>,
    stop: CancellationToken,
) -> Response<Body> {
    let Some(found) = shared.directory.find(pod) else { return no_pod(pod) };
    let Some(sandbox) = found.borrow().sandbox.clone() else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("pod {pod} has no running sandbox\n"));
    };
    if let Some(refused) = not_upgradable(&request) {
        return refused;
    }
    let port = ports(request.uri().query().unwrap_or_default());
    let asked = v1::PortForwardRequest { pod_sandbox_id: sandbox, port };
    let url = shared.runtime.runtime.clone().port_forward(asked).await;
    pipe(url.map(|answer| answer.into_inner().url), request, stop).await
}

/// Whose streams are meant.
#[derive(Clone, Copy)]
pub enum Process {
    /// A command's, which is started for it.
    Command,
    /// The container's own.
    Own,
}

/// The streams of a process in a container.
pub async fn process(
    shared: &Arc<Shared>,
    pod: &Key,
    container: &str,
    which: Process,
    request: Request<Incoming>,
    stop: CancellationToken,
) -> Response<Body> {
    let (container_id, asked) = match asked(shared, pod, container, &request) {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    let Asked { command: cmd, stdin, stdout, stderr, tty } = asked;
    let mut runtime = shared.runtime.runtime.clone();
    let url = match which {
        Process::Command if cmd.is_empty() => {
            let words = "you must specify at least 1 command for the container\n";
            return text(StatusCode::BAD_REQUEST, words.to_owned());
        }
        Process::Command => {
            let asked = v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr };
            runtime.exec(asked).await.map(|answer| answer.into_inner().url)
        }
        Process::Own => {
            let asked = v1::AttachRequest { container_id, stdin, tty, stdout, stderr };
            runtime.attach(asked).await.map(|answer| answer.into_inner().url)
        }
    };
    pipe(url, request, stop).await
}

fn no_pod(pod: &Key) -> Refused {
    text(StatusCode::NOT_FOUND, format!("pod does not exist: {pod}\n"))
}

fn not_upgradable(request: &Request<Incoming>) -> Option<Refused> {
    let upgrade = request.headers().contains_key(header::UPGRADE);
    let words = "you must specify at least 1 'Upgrade' header\n";
    (!upgrade).then(|| text(StatusCode::BAD_REQUEST, words.to_owned()))
}

/// What a query asks for, in the kubelet's names.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Asked {
    fn parse(query: &str) -> Self {
        let mut asked = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let yes = matches!(value.as_ref(), "1" | "true");
            match name.as_ref() {
                "command" => asked.command.push(value.into_owned()),
                "input" => asked.stdin = yes,
                "output" => asked.stdout = yes,
                "error" => asked.stderr = yes,
                "tty" => asked.tty = yes,
                _ => {}
            }
        }
        asked.stderr &= !asked.tty; // a terminal has one output
        asked
    }
}

/// The runtime's id of the container, and what is wanted of it.
fn asked(
    shared: &Shared,
    pod: &Key,
    container: &str,
    request: &Request<Incoming>,
) -> Result<(String, Asked), Box<Refused>> {
    let found = shared.directory.find(pod).ok_or_else(|| Box::new(no_pod(pod)))?;
    let running = |name: &str| {
        let snapshot = found.borrow();
        snapshot.containers.iter().find(|brief| brief.name == name).and_then(|brief| brief.id.clone())
    };
    let Some(id) = running(container) else {
        return Err(Box::new(text(
            StatusCode::NOT_FOUND,
            format!("container not found (\"{container}\")\n"),
        )));
    };
    if let Some(refused) = not_upgradable(request) {
        return Err(Box::new(refused));
    }
    let asked = Asked::parse(request.uri().query().unwrap_or_default());
    if !asked.stdin && !asked.stdout && !asked.stderr {
        let words = "you must specify at least 1 of stdin, stdout, stderr\n";
        return Err(Box::new(text(StatusCode::BAD_REQUEST, words.to_owned())));
    }
    Ok((id, asked))
}

/// Joins the client to the streaming server's URL.
async fn pipe(
    url: Result<String, tonic::Status>,
    request: Request<Incoming>,
    stop: CancellationToken,
) -> Response<Body> {
    let url = match url {
        Ok(url) => url,
        Err(status) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", status.message())),
    };
    match replay(&url, request, stop).await {
        Ok(response) => response,
        Err(words) => {
            text(StatusCode::BAD_GATEWAY, format!("the runtime's streaming server at {url}: {words}\n"))
        }
    }
}

/// The ports that older clients name in the query, each by itself or several in one.
fn ports(query: &str) -> Vec<i32> {
    let pairs = form_urlencoded::parse(query.as_bytes());
    let lists = pairs.filter(|(name, _)| matches!(name.as_ref(), "ports" | "port"));
    lists
        .flat_map(|(_, list)| list.split(',').filter_map(|port| port.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Sends the request to `url` and, once that side switched protocols, joins the two connections.
async fn replay(
    url: &str,
    mut request: Request<Incoming>,
    stop: CancellationToken,
) -> Result<Response<Body>, String> {
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
            Err(error) => return debug!(error = %chain(&error), "a stream was not upgraded"),
        };
        let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
        let joined = tokio::io::copy_bidirectional(&mut client, &mut runtime);
        if let Some(Err(error)) = stop.run_until_cancelled(joined).await {
            debug!(%error, "a stream ended"); // clients go without a word, as a rule
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_what_is_wanted() {
        let asked =
            Asked::parse("command=sh&command=-c&command=echo%20a%26b&input=1&output=1&error=true&x=1");
        let command = ["sh", "-c", "echo a&b"].map(str::to_owned).to_vec();
        assert_eq!(asked, Asked { command, stdin: true, stdout: true, stderr: true, tty: false });
        let terminal = Asked::parse("output=1&error=1&tty=1&input=0");
        assert_eq!(terminal, Asked { stdout: true, tty: true, ..Asked::default() });
        assert_eq!(ports("ports=80%2C443&ports=8080&port=1&x=2"), [80, 443, 8080, 1]);
    }
}
