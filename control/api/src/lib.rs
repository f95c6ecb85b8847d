//! The API server: Kubernetes' API over the store, for clients on a socket and in this process.
//!
//! Enter at [`ApiServer::start`]. The handle is cheap to clone; it gives
//! - [`ApiServer::serve`]: HTTPS on a listener, HTTP/1.1 with upgrades and HTTP/2;
//! - [`ApiServer::client`]: a `kube::Client` that calls the same service in this process, as a given user.
//!
//! Every request takes one way, in `server`: authentication (`authn`), which kind and verb is meant (`request`),
//! authorization (`authz`), then a verb of `verbs` or one of the `subresources`. Writes are decoded and defaulted by
//! `schema`, pass `admission`, are checked by the kind's strategy and committed under a compare-and-swap. Reads are
//! answered from the watch cache and touch no disk. A kind is one [`Kind`] row of the table in `kinds` and, where it
//! has rules of its own, one [`Strategy`] file beside it.
//!
//! Objects are stored as encoded JSON without their resourceVersion, which is the revision of the write and is
//! spliced in at read (`encode`); what goes out is put together from those bytes (`represent`). Clients that speak
//! `protobuf` are answered in it, and their bodies become JSON values before anything looks at them.
//!
//! One task lives here beside the connections: it watches roles and bindings and keeps their index
//! (`authz::rbac`). It ends, and the cache with it, when the last handle is dropped.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use wharf_kit::client_ca::ClientCa;

mod admission;
mod authn;
mod authz;
mod discovery;
mod encode;
mod eviction;
mod kinds;
mod metrics;
mod nodes;
mod object;
mod openapi;
pub mod protobuf;
mod proxy;
mod quota;
mod represent;
mod request;
mod reviews;
pub mod schema;
mod select;
mod serve;
mod server;
mod status;
mod storage;
mod subresources;
mod tokens;
mod usage;
mod user;
mod validate;
mod verbs;

pub use authn::TokenKeys;
pub use authn::keys::Error as TokenKeysError;
pub use kinds::{Column, Kind, Plain, Priority, Strategy, Subresource};
pub use serve::Service;
pub use status::FieldError;
pub use user::UserInfo;

/// A request or response body: bytes in frames, in memory or streamed.
pub type Body = axum::body::Body;

/// A service mounted beside the API: it is called after authentication and authorization, with the [`UserInfo`]
/// in the request's extensions. An `axum::Router` becomes one with `Extra::new(router)`.
pub type Extra =
    tower::util::BoxCloneSyncService<http::Request<Body>, http::Response<Body>, std::convert::Infallible>;

/// The API server of one cluster. Clones are handles on the same server.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<server::Inner>,
}

/// What the server needs besides its store.
pub struct Config {
    /// For [`ApiServer::serve`]: certificate, key, and that clients are asked for certificates. The application
    /// protocols are set by the server. `None` if it is used in this process only.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Whose certificates tell users. `None`: a client's certificate is never good.
    pub client_ca: Option<ClientCa>,
    /// How the server speaks to node servers (logs, port-forward): the kubelet client identity, and the cluster's
    /// CA to trust. `None`: those subresources answer 503.
    pub kubelet_client: Option<Arc<rustls::ClientConfig>>,
    /// What `/version` tells as gitVersion, for example `v1.36.0+wharf-0.1.0`.
    pub version: String,
    /// Services mounted under path prefixes such as `/v2/`, in order. Non-resource rules of RBAC decide who may
    /// call them with which method; their bodies are neither limited nor timed.
    pub extra: Vec<(String, Extra)>,
    /// Kinds beside the built-in ones.
    pub kinds: Vec<Kind>,
    /// With which keys and in whose name service accounts' tokens are issued.
    pub service_account_tokens: TokenIssuer,
    /// Names of admission plugins that are not to run, for example `DefaultTolerationSeconds`.
    pub disabled_admission: BTreeSet<String>,
    /// Requests that do not stream, served at one time for users outside of `system:masters`; more get 429 with
    /// Retry-After.
    pub max_in_flight: usize,
    /// A request that does not stream is answered 504 after this.
    pub request_timeout: Duration,
}

impl Default for Config {
    /// In this process only, nothing mounted, and kube-apiserver's limits: 400 requests, 60 s.
    fn default() -> Self {
        Self {
            tls: None,
            client_ca: None,
            kubelet_client: None,
            version: format!("v1.36.0+wharf-{}", env!("CARGO_PKG_VERSION")),
            extra: Vec::new(),
            kinds: Vec::new(),
            service_account_tokens: TokenIssuer::default(),
            disabled_admission: BTreeSet::new(),
            max_in_flight: 400,
            request_timeout: Duration::from_secs(60),
        }
    }
}

/// The issuer of service accounts' tokens.
#[derive(Clone, Debug)]
pub struct TokenIssuer {
    pub keys: TokenKeys,
    /// The URL in the tokens' `iss` claim; it is the audience of the API server too.
    pub issuer: String,
    /// Where OIDC discovery says the public keys are; `None`: at `/openid/v1/jwks` below the issuer.
    pub jwks_uri: Option<String>,
}

impl Default for TokenIssuer {
    /// The name of every Kubernetes cluster, and a key that nobody has after a restart.
    fn default() -> Self {
        Self {
            keys: TokenKeys::ephemeral(),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            jwks_uri: None,
        }
    }
}

/// Why the server did not start or does not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store cannot be read")]
    Store(#[source] wharf_store::Error),
    #[error("could not make the objects that every cluster has")]
    Bootstrap(#[source] status::Status),
    #[error("there is no schema of {0}")]
    NoSchema(String),
    #[error("two kinds are served at {0}")]
    Duplicate(String),
    #[error("the configuration has no TLS to serve with")]
    NoTls,
    #[error("the listener does not know its address")]
    Listen(#[source] std::io::Error),
}

impl ApiServer {
    /// Loads the store into the cache and makes what every cluster has: the system namespaces, the default roles,
    /// the runtime classes `wasm` and `oci`. A dropped future leaves some of them made; the next start goes on.
    pub async fn start<S: wharf_store::Store>(config: Config, store: Arc<S>) -> Result<Self, Error> {
        Ok(Self { inner: server::Inner::start(config, store).await? })
    }
}
