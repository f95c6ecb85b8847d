//! The way to node servers: logs, streams, the node proxy and usage all go by it.

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tracing::debug;

use crate::Body;
use crate::object::{list, number, text};
use crate::server::Inner;
use crate::status::{Result, Status};

/// A node that does not take a connection in this time is away.
const CONNECT: Duration = Duration::from_secs(10);
/// The kubelet's, for Nodes that do not tell theirs.
const PORT: i64 = 10250;

impl Inner {
    /// Host and port of a node's server.
    ///
    /// # Errors
    /// 404 if there is no such Node, 503 if it tells no address.
    pub fn node_server(&self, name: &str) -> Result<(String, u16)> {
        let kind = self.kinds.builtin("", "nodes");
        let stored =
            self.storage.get(kind.key("", name).as_str()).ok_or_else(|| Status::not_found(kind, name))?;
        let node: Value = serde_json::from_slice(&stored.value).map_err(Status::internal)?;
        let address = |type_: &str| {
            let found =
                list(&node, "/status/addresses").iter().find(|address| text(address, "/type") == type_);
            found.map(|address| text(address, "/address").to_owned())
        };
        let host = address("InternalIP")
            .or_else(|| address("Hostname"))
            .ok_or_else(|| Status::unavailable(format!("node {name} has no address")))?;
        let port = number(&node, "/status/daemonEndpoints/kubeletEndpoint/Port").filter(|port| *port > 0);
        let port = u16::try_from(port.unwrap_or(PORT)).map_err(Status::internal)?;
        Ok((host, port))
    }

    /// Sends one request to a node's server over a connection of its own, which ends with the answer.
    ///
    /// # Errors
    /// Those of [`Self::node_server`]; 503 if the node cannot be reached or trusted.
    pub async fn ask_node(&self, name: &str, mut request: Request<Body>) -> Result<Response<Incoming>> {
        let Some(connector) = &self.kubelet else {
            return Err(Status::unavailable("this server has no identity to speak to nodes with"));
        };
        let (host, port) = self.node_server(name)?;
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
}
