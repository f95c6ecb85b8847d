//! log, exec, attach and portforward: requests that the node server of a pod's node answers.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;
use tracing::debug;

use crate::Body;
use crate::kinds::Subresource;
use crate::object::{list, number, text};
use crate::status::{Result, Status};
use crate::verbs::Call;

/// A node that does not take a connection in this time is away.
const CONNECT: Duration = Duration::from_secs(10);
/// Of a node's error only so much is told.
const ERROR_MAX: usize = 64 << 10;
const KUBELET_PORT: i64 = 10250;

impl Call {
    fn pod(&self) -> Result<Value> {
        let stored = self.storage().get(self.key().as_str()).ok_or_else(|| self.not_found())?;
        serde_json::from_slice(&stored.value).map_err(Status::internal)
    }

    /// The address of the node server that has the pod.
    fn node_of(&self, pod: &Value) -> Result<(String, u16)> {
        let node_name = text(pod, "/spec/nodeName");
        if node_name.is_empty() {
            return Err(Status::bad_request(format!("pod {} does not have a host assigned", self.path.name)));
        }
        let kind = self.server.kinds.builtin("", "nodes");
        let stored = self
            .storage()
            .get(kind.key("", node_name).as_str())
            .ok_or_else(|| Status::not_found(kind, node_name))?;
        let node: Value = serde_json::from_slice(&stored.value).map_err(Status::internal)?;
        let address = |type_: &str| {
            let found =
                list(&node, "/status/addresses").iter().find(|address| text(address, "/type") == type_);
            found.map(|address| text(address, "/address").to_owned())
        };
        let host = address("InternalIP")
            .or_else(|| address("Hostname"))
            .ok_or_else(|| Status::unavailable(format!("node {node_name} has no address")))?;
        let port = number(&node, "/status/daemonEndpoints/kubeletEndpoint/Port").filter(|port| *port > 0);
        let port = u16::try_from(port.unwrap_or(KUBELET_PORT)).map_err(Status::internal)?;
        Ok((host, port))
    }

    /// Sends one request to the pod's node over a connection of its own, which ends with the answer.
    async fn ask_node(
        &self,
        pod: &Value,
        mut request: Request<Body>,
    ) -> Result<Response<hyper::body::Incoming>> {
        let Some(connector) = &self.server.kubelet else {
            return Err(Status::unavailable("this server has no identity to speak to nodes with"));
        };
        let (host, port) = self.node_of(pod)?;
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Status::unavailable(format!("could not {what} the node server at {host}:{port}: {error}"))
        };
        let name = match host.parse::<IpAddr>() {
            Ok(address) => ServerName::from(address),
            Err(_) => ServerName::try_from(host.clone()).map_err(|error| failed("name", &error))?,
        };
        let connect = async {
            let stream =
                TcpStream::connect((host.as_str(), port)).await.map_err(|error| failed("reach", &error))?;
            let _ = stream.set_nodelay(true);
            connector.connect(name, stream).await.map_err(|error| failed("trust", &error))
        };
        let stream = tokio::time::timeout(CONNECT, connect)
            .await
            .unwrap_or_else(|_| Err(failed("reach", &"it does not answer")))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed("speak to", &error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "a connection to a node server ended early");
            }
        });
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let value = HeaderValue::from_str(&authority).map_err(Status::internal)?;
        request.headers_mut().insert(header::HOST, value);
        sender.send_request(request).await.map_err(|error| failed("ask", &error))
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
        let node = hyper::upgrade::on(&mut response);
        let client = hyper::upgrade::on(&mut request);
        let stop = self.stop.clone();
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
        let (parts, _) = response.into_parts();
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = parts.status;
        *answer.headers_mut() = parts.headers;
        Ok(answer)
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
async fn node_refused(response: Response<hyper::body::Incoming>) -> Status {
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
