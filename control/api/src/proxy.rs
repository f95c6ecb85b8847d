//! log, exec, attach and portforward: requests that the node server of a pod's node answers. And a Node's proxy: whatever
//! its server answers.

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::Body;
use crate::kinds::Subresource;
use crate::object::{list, text};
use crate::status::{Result, Status};
use crate::verbs::Call;

/// Of a node's error only so much is told.
const ERROR_MAX: usize = 64 << 10;

impl Call {
    fn pod(&self) -> Result<Value> {
        let stored = self.storage().get(self.key().as_str()).ok_or_else(|| self.not_found())?;
        serde_json::from_slice(&stored.value).map_err(Status::internal)
    }

    /// Asks the server of the pod's node.
    async fn ask_node(&self, pod: &Value, request: Request<Body>) -> Result<Response<Incoming>> {
        let node = text(pod, "/spec/nodeName");
        if node.is_empty() {
            return Err(Status::bad_request(format!("pod {} does not have a host assigned", self.path.name)));
        }
        self.server.ask_node(node, request).await
    }

    pub async fn log(&self) -> Result<Response<Body>> {
        let pod = self.pod()?;
        let container = self.container_of(&pod)?;
        let path = format!("/containerLogs/{}/{}/{container}", self.path.namespace, self.path.name);
        let uri = with_query(&path, &self.query_text("container"));
        let request =
            Request::builder().method(Method::GET).uri(uri).body(Body::empty()).map_err(Status::internal)?;
        let response = self.ask_node(&pod, request).await?;
        if !response.status().is_success() {
            return Err(node_refused(response).await);
        }
        let (parts, body) = response.into_parts();
        let mut answer = Response::new(Body::new(body));
        let type_ = parts.headers.get(header::CONTENT_TYPE).cloned();
        answer.headers_mut().insert(
            header::CONTENT_TYPE,
            type_.unwrap_or_else(|| HeaderValue::from_static("text/plain; charset=utf-8")),
        );
        Ok(answer)
    }

    /// Which container is meant.
    fn container_of(&self, pod: &Value) -> Result<String> {
        let all = ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"];
        let names: Vec<&str> = all.iter().flat_map(|at| list(pod, at)).map(|c| text(c, "/name")).collect();
        let main: Vec<&str> = list(pod, "/spec/containers").iter().map(|c| text(c, "/name")).collect();
        let name = &self.path.name;
        match (self.query.text("container"), main.as_slice()) {
            (Some(wanted), _) if names.contains(&wanted) => Ok(wanted.to_owned()),
            (Some(wanted), _) => {
                Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}")))
            }
            (None, [only]) if names.len() == 1 => Ok((*only).to_owned()),
            (None, _) => {
                let marked = pod
                    .pointer("/metadata/annotations")
                    .and_then(|annotations| annotations.get("kubectl.kubernetes.io/default-container"))
                    .and_then(Value::as_str)
                    .filter(|marked| main.contains(marked));
                match (marked, main.as_slice()) {
                    (Some(marked), _) => Ok(marked.to_owned()),
                    // Init containers do not make the one main container ambiguous.
                    (None, [only]) => Ok((*only).to_owned()),
                    _ => Err(Status::bad_request(format!(
                        "a container name must be specified for pod {name}, choose one of: [{}]",
                        main.join(" ")
                    ))),
                }
            }
        }
    }

    /// The query of an exec or attach in a node server's names.
    fn streams(&self, what: Subresource) -> Result<String> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let mut any = false;
        for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error")] {
            if self.query.flag(ours)? {
                any = true;
                query.append_pair(theirs, "1");
            }
        }
        if !any {
            return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        if self.query.flag("tty")? {
            query.append_pair("tty", "1");
        }
        if what == Subresource::Exec {
            if self.query.all("command").next().is_none() {
                return Err(Status::bad_request("you must specify at least 1 command for the container"));
            }
            query.extend_pairs(self.query.all("command").map(|word| ("command", word)));
        }
        Ok(query.finish())
    }

    /// The query as it came, without `drop`.
    fn query_text(&self, drop: &str) -> String {
        let kept =
            self.raw_query.split('&').filter(|pair| pair.split('=').next() != Some(drop) && !pair.is_empty());
        kept.collect::<Vec<_>>().join("&")
    }

    /// Joins the client's upgraded connection to one of the node; what goes through is theirs.
    pub async fn connect(&self, what: Subresource, mut request: Request<Body>) -> Result<Response<Body>> {
        let pod = self.pod()?;
        let (namespace, name) = (&self.path.namespace, &self.path.name);
        let phase = text(&pod, "/status/phase");
        let over = matches!(phase, "Succeeded" | "Failed");
        let uri = match what {
            Subresource::Exec | Subresource::Attach => {
                if over {
                    return Err(Status::bad_request(format!(
                        "cannot {} into a container in a completed pod; current phase is {phase}",
                        what.as_str()
                    )));
                }
                let container = self.container_of(&pod)?;
                let path = format!("/{}/{namespace}/{name}/{container}", what.as_str());
                with_query(&path, &self.streams(what)?)
            }
            _ => {
                if over {
                    let why = format!("pod {name} is not running, its phase is {phase}");
                    return Err(Status::bad_request(why));
                }
                with_query(&format!("/portForward/{namespace}/{name}"), &self.query_text(""))
            }
        };
        let upgrade = request.headers().get(header::UPGRADE).cloned();
        if upgrade.is_none() || request.extensions().get::<hyper::upgrade::OnUpgrade>().is_none() {
            return Err(Status::bad_request(
                "you must specify an upgradable connection: Upgrade request required",
            ));
        }
        let mut onward = Request::builder()
            .method(request.method().clone())
            .uri(uri)
            .body(Body::empty())
            .map_err(Status::internal)?;
        *onward.headers_mut() = onward_headers(request.headers());
        let mut response = self.ask_node(&pod, onward).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(node_refused(response).await);
        }
        join(hyper::upgrade::on(&mut response), hyper::upgrade::on(&mut request), self.stop.clone());
        let (parts, _) = response.into_parts();
        Ok(Response::from_parts(parts, Body::empty()))
    }

    /// Passes a request on to a Node's own server as it is, and the answer back: `nodes/NAME/proxy/healthz`.
    pub async fn proxy(&self, mut request: Request<Body>) -> Result<Response<Body>> {
        let node = self.node_meant()?;
        // As it came, with its escapes: /api/v1/nodes/NAME/proxy and then what is meant.
        let path = request.uri().path();
        let after = path.match_indices('/').nth(PROXY_DEPTH).map_or("", |(at, _)| &path[at..]);
        if after.is_empty() && matches!(*request.method(), Method::GET | Method::HEAD) {
            // Relative links of the page there would lead elsewhere.
            let mut answer = Response::new(Body::empty());
            *answer.status_mut() = StatusCode::MOVED_PERMANENTLY;
            let to = HeaderValue::from_str(&with_query(&format!("{path}/"), &self.raw_query));
            answer.headers_mut().insert(header::LOCATION, to.map_err(Status::internal)?);
            return Ok(answer);
        }
        let uri = with_query(if after.is_empty() { "/" } else { after }, &self.raw_query);
        let upgrades = request.headers().contains_key(header::UPGRADE);
        let client = upgrades.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let mut onward =
            Request::builder().method(parts.method).uri(uri).body(body).map_err(Status::internal)?;
        *onward.headers_mut() = onward_headers(&parts.headers);
        if !upgrades {
            drop_connections_own(onward.headers_mut());
        }
        let mut response = self.server.ask_node(&node, onward).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = client else {
                return Err(Status::relayed(
                    502,
                    "the node server upgraded what nobody wanted upgraded".to_owned(),
                ));
            };
            join(hyper::upgrade::on(&mut response), client, self.stop.clone());
            let (parts, _) = response.into_parts();
            return Ok(Response::from_parts(parts, Body::empty()));
        }
        let (mut parts, body) = response.into_parts();
        drop_connections_own(&mut parts.headers);
        Ok(Response::from_parts(parts, Body::new(body)))
    }

    /// The Node of a proxy path: `NAME`, `NAME:PORT` or `https:NAME:PORT`, where the port is that of its server.
    fn node_meant(&self) -> Result<String> {
        let name = &self.path.name;
        let parts: Vec<&str> = name.split(':').collect();
        let (scheme, node, port) = match parts.as_slice() {
            [node] => ("", *node, ""),
            [node, port] => ("", *node, *port),
            [scheme, node, port] => (*scheme, *node, *port),
            _ => return Err(Status::bad_request(format!("invalid node request {name:?}"))),
        };
        // Elsewhere on a node the API server's credentials have no business.
        if !matches!(scheme, "" | "https")
            || !(port.is_empty() || self.server.node_server(node)?.1.to_string() == port)
        {
            return Err(Status::bad_request(format!(
                "invalid node request {name:?}: only the node server is proxied, over https at its own port"
            )));
        }
        Ok(node.to_owned())
    }
}

/// The slash after `/api/v1/nodes/NAME/proxy`, counted from 0.
const PROXY_DEPTH: usize = 5;

/// Lets two upgraded connections flow into each other until one ends or the server stops.
fn join(node: OnUpgrade, client: OnUpgrade, stop: CancellationToken) {
    tokio::spawn(async move {
        let (node, client) = match tokio::try_join!(node, client) {
            Ok(both) => both,
            Err(error) => return debug!(%error, "a stream was not upgraded"),
        };
        let (mut node, mut client) = (TokioIo::new(node), TokioIo::new(client));
        tokio::select! {
            () = stop.cancelled() => {}
            ended = tokio::io::copy_bidirectional(&mut node, &mut client) => {
                if let Err(error) = ended {
                    debug!(%error, "a stream broke");
                }
            }
        }
    });
}

/// Removes what is about one connection alone and not the next (RFC 9110, section 7.6.1).
fn drop_connections_own(headers: &mut HeaderMap) {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_owned())
        .collect();
    let known =
        ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];
    for name in named.iter().map(String::as_str).chain(known) {
        headers.remove(name);
    }
}

fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// A client's headers without its credentials and its host.
fn onward_headers(headers: &HeaderMap) -> HeaderMap {
    let mut onward = headers.clone();
    for name in [header::AUTHORIZATION, header::COOKIE, header::HOST, header::CONTENT_LENGTH] {
        onward.remove(name);
    }
    onward
}

/// The node's error as a Status in the node's words.
async fn node_refused(response: Response<Incoming>) -> Status {
    let code = response.status().as_u16();
    let body = Limited::new(response.into_body(), ERROR_MAX).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let message = match serde_json::from_slice::<Value>(&body) {
        Ok(status) if !text(&status, "/message").is_empty() => text(&status, "/message").to_owned(),
        _ => String::from_utf8_lossy(&body).trim().to_owned(),
    };
    let message = if message.is_empty() { format!("the node server answered {code}") } else { message };
    Status::relayed(if code < 400 { 502 } else { code }, message)
}
