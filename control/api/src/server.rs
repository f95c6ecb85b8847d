//! The server itself: what it holds, how it starts, and the way of one request.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;
use tracing::{debug, error, warn};
use wharf_kit::client_ca::ClientCa;
use wharf_store::{Cache, Store};

use crate::authn::{
    self, Authenticator, BearerTokens, BootstrapTokens, ClientCertificates, Peer, ServiceAccountTokens,
};
use crate::authz::bootstrap::{self, Bootstrap};
use crate::authz::rbac::{self, Rbac};
use crate::authz::{self, Action, Attributes, Authorizer, node::NodeAuthorizer};
use crate::encode;
use crate::kinds::{Kind, Kinds, Subresource};
use crate::metrics::{Labels, Metrics};
use crate::quota::Charges;
use crate::represent::{self, Form, Offer, json_response, typed_response};
use crate::request::{Query, ResourcePath, Verb};
use crate::schema::Validation;
use crate::select::Selection;
use crate::status::{Result, Status};
use crate::storage::Storage;
use crate::usage::Meter;
use crate::user::MASTERS;
use crate::verbs::{Call, WriteOptions, store_failed, write::Track};
use crate::{Body, Config, Error, Extra, UserInfo, discovery, object, openapi};

/// Bodies of API requests; the value of kube-apiserver.
const BODY_MAX: usize = 3 << 20;
/// What is read of a body that is larger, and dropped, and for how long.
const DRAIN_MAX: usize = 64 << 20;
const DRAIN: Duration = Duration::from_secs(5);
/// How clients of mounted services are told to say who they are.
const CHALLENGE: &str = "Basic realm=\"wharf\"";

/// What all handles share.
pub struct Inner {
    pub kinds: Kinds,
    pub storage: Arc<dyn Storage>,
    pub rbac: Arc<Rbac>,
    pub authenticators: Vec<Arc<dyn Authenticator>>,
    /// Issues service accounts' tokens.
    pub tokens: ServiceAccountTokens,
    pub bearer: Arc<BearerTokens>,
    pub jwks_uri: String,
    pub authorizers: Vec<Arc<dyn Authorizer>>,
    pub admission_off: BTreeSet<String>,
    pub charges: Charges,
    pub metrics: Metrics,
    pub kubelet: Option<tokio_rustls::TlsConnector>,
    /// What the nodes told of usage.
    pub meter: Meter,
    /// Cancelled when the last handle is dropped.
    pub stop: CancellationToken,
    pub tls: Option<Arc<rustls::ServerConfig>>,
    pub client_ca: Option<ClientCa>,
    extra: Vec<(String, Extra)>,
    version: String,
    openapi: openapi::Shared,
    in_flight: Semaphore,
    request_timeout: Duration,
    _stop: DropGuard,
}

/// Whom a request comes from.
#[derive(Clone)]
pub enum Origin {
    /// A connection; the credentials are in it and in the headers.
    Peer(Peer),
    /// This process, which says who it is.
    User(Arc<UserInfo>),
}

/// Ends what streams on a connection; in the extensions of its requests.
#[derive(Clone)]
pub struct Drain(pub CancellationToken);

impl Inner {
    pub async fn start<S: Store>(config: Config, store: Arc<S>) -> Result<Arc<Self>, Error> {
        let kinds = Kinds::new(config.kinds)?;
        let stop = CancellationToken::new();
        let pointers: Vec<(String, Vec<String>)> =
            kinds.rows().iter().map(|kind| (kind.prefix(), kind.field_pointers())).collect();
        let decode = move |key: &wharf_store::Key, value: &Bytes| {
            let own = pointers.iter().find(|(prefix, _)| key.as_str().starts_with(prefix.as_str()));
            let own: Vec<&str> =
                own.map(|(_, own)| own.iter().map(String::as_str).collect()).unwrap_or_default();
            encode::facts(value, &own)
        };
        let guard = stop.clone().drop_guard();
        let cache = Cache::start(store, decode, stop.clone()).await.map_err(Error::Store)?;
        let storage: Arc<dyn Storage> = Arc::new(cache);
        let rbac = Arc::new(Rbac::default());
        let node: Arc<dyn Authorizer> = Arc::new(NodeAuthorizer { storage: storage.clone() });
        let tokens = config.service_account_tokens;
        let jwks_uri = tokens.jwks_uri.unwrap_or_else(|| format!("{}/openid/v1/jwks", tokens.issuer));
        let tokens = ServiceAccountTokens {
            storage: storage.clone(),
            keys: tokens.keys,
            audiences: vec![tokens.issuer.clone()],
            issuer: tokens.issuer,
        };
        let bootstrap = BootstrapTokens { storage: storage.clone(), audiences: tokens.audiences.clone() };
        let bearer = Arc::new(BearerTokens {
            audiences: tokens.audiences.clone(),
            sorts: vec![Box::new(tokens.clone()), Box::new(bootstrap)],
        });
        let inner = Arc::new(Self {
            kinds,
            storage: storage.clone(),
            authenticators: vec![Arc::new(ClientCertificates), Arc::new(bearer.clone())],
            bearer,
            tokens,
            jwks_uri,
            authorizers: vec![Arc::new(authz::Masters), node, rbac.clone()],
            rbac,
            admission_off: config.disabled_admission,
            charges: Charges::default(),
            metrics: Metrics::default(),
            kubelet: config.kubelet_client.map(tokio_rustls::TlsConnector::from),
            meter: Meter::default(),
            stop: stop.clone(),
            tls: config.tls,
            client_ca: config.client_ca,
            extra: config.extra,
            version: config.version,
            openapi: openapi::Shared::new(),
            in_flight: Semaphore::new(config.max_in_flight),
            request_timeout: config.request_timeout,
            _stop: guard,
        });
        inner.clone().make_initial_objects().await.map_err(Error::Bootstrap)?;
        let from = inner.rbac.refresh(&*storage).await.map_err(Error::Store)?;
        tokio::spawn(follow_rbac(inner.rbac.clone(), storage, from, stop));
        Ok(inner)
    }

    /// Makes what every cluster has from the start, and adds what a newer version brought to the default roles.
    /// All at once, so that the store commits them together.
    async fn make_initial_objects(self: Arc<Self>) -> Result<()> {
        let wanted = bootstrap::objects().into_iter().chain(bootstrap::rbac());
        futures::future::try_join_all(wanted.map(|wanted| self.clone().make_initial(wanted))).await?;
        Ok(())
    }

    async fn make_initial(self: Arc<Self>, wanted: Bootstrap) -> Result<()> {
        let options = WriteOptions {
            dry_run: false,
            manager: "wharf".to_owned(),
            validation: Validation::Strict,
            force: None,
        };
        let kind = self.kinds.builtin(wanted.group, wanted.plural).clone();
        let path = ResourcePath {
            group: kind.group.to_string(),
            version: kind.version.to_string(),
            resource: kind.plural.to_string(),
            name: object::name(&wanted.object).to_owned(),
            ..ResourcePath::default()
        };
        let mut call = Call {
            server: self.clone(),
            path,
            kind,
            query: Query::default(),
            raw_query: String::new(),
            headers: http::HeaderMap::new(),
            user: Arc::new(UserInfo::admin()),
            selection: Selection::default(),
            stop: self.stop.clone(),
            warnings: Vec::new(),
        };
        if self.storage.get(call.key().as_str()).is_none() {
            match call.create_object(wanted.object, &options, Track::Update).await {
                Err(status) if status.reason() != "AlreadyExists" => return Err(status),
                _ => {}
            }
        } else if !wanted.object["rules"].is_null() {
            call.complete_role(&wanted.object, &options).await?;
        }
        Ok(())
    }

    /// Answers any request; never fails and never panics.
    pub async fn handle(self: Arc<Self>, request: Request<Body>, origin: Origin) -> Response<Body> {
        let mut labels = Labels {
            user: String::new(),
            verb: request.method().as_str().to_ascii_lowercase(),
            group: String::new(),
            resource: String::new(),
            subresource: String::new(),
            code: 0,
        };
        // What goes wrong is told in the form in which the answer would have come.
        let form = represent::negotiate(request.headers(), None, Offer::Answer).unwrap_or(Form::Json);
        let answer = AssertUnwindSafe(self.clone().answer(request, origin, &mut labels)).catch_unwind().await;
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => represent::status(form, &status),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
                error!(panic = text, verb = labels.verb, resource = labels.resource, "a request panicked");
                represent::status(form, &Status::internal("the request could not be handled"))
            }
        };
        labels.code = response.status().as_u16();
        self.metrics.count(labels);
        response
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Body>,
        origin: Origin,
        labels: &mut Labels,
    ) -> Result<Response<Body>> {
        let user = match &origin {
            Origin::User(user) => user.clone(),
            Origin::Peer(peer) => match self.authenticate(peer, request.headers()) {
                Err(_) if self.mounted(request.uri().path()).is_some() => {
                    return Err(Status::challenge(CHALLENGE));
                }
                known => known?,
            },
        };
        let mut request = request;
        let user = authn::impersonated(user, request.headers_mut(), &self.authorizers)?;
        labels.user.clone_from(&user.name);
        let path = request.uri().path().to_owned();
        if let Some(service) = self.mounted(&path) {
            if user.is_anonymous() {
                return Err(Status::challenge(CHALLENGE));
            }
            let verb = request.method().as_str().to_ascii_lowercase();
            authz::check(
                &self.authorizers,
                &Attributes { user: &user, verb: &verb, action: Action::Path(&path) },
            )?;
            request.extensions_mut().insert((*user).clone());
            let Ok(response) = service.oneshot(request).await;
            return Ok(response);
        }
        match ResourcePath::parse(&path)? {
            Some(resource) if !resource.resource.is_empty() => {
                self.resource(request, user, resource, labels).await
            }
            other => {
                let verb = request.method().as_str().to_ascii_lowercase();
                authz::check(
                    &self.authorizers,
                    &Attributes { user: &user, verb: &verb, action: Action::Path(&path) },
                )?;
                if path.starts_with("/openapi/") {
                    let query = Query::parse(request.uri())?;
                    return self.openapi().await?.answer(request.method(), &path, &query, request.headers());
                }
                self.other(&request, &path, other)
            }
        }
    }

    /// The service mounted at this path.
    fn mounted(&self, path: &str) -> Option<Extra> {
        let at = |prefix: &str| path.starts_with(prefix) || path == prefix.trim_end_matches('/');
        self.extra.iter().find(|(prefix, _)| at(prefix)).map(|(_, service)| service.clone())
    }

    fn authenticate(&self, peer: &Peer, headers: &http::HeaderMap) -> Result<Arc<UserInfo>> {
        let mut refused = false;
        for authenticator in &self.authenticators {
            match authenticator.authenticate(peer, headers) {
                Ok(Some(user)) => return Ok(user),
                Ok(None) => {}
                Err(why) => {
                    debug!(%why, "a credential was refused");
                    refused = true;
                }
            }
        }
        if refused { Err(Status::unauthorized()) } else { Ok(Arc::new(UserInfo::anonymous())) }
    }

    /// Made once, off the threads that serve.
    async fn openapi(self: &Arc<Self>) -> Result<Arc<openapi::Documents>> {
        let make = || async {
            let server = self.clone();
            let made = move || Arc::new(openapi::Documents::make(&server.kinds, &server.version));
            tokio::task::spawn_blocking(made).await.map_err(Status::internal)
        };
        self.openapi.get_or_try_init(make).await.cloned()
    }

    /// Paths of no resource.
    fn other(
        &self,
        request: &Request<Body>,
        path: &str,
        resource: Option<ResourcePath>,
    ) -> Result<Response<Body>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Status::method_not_allowed());
        }
        // Discovery is for everybody: who accepts none of its forms gets JSON.
        let form = || represent::negotiate(request.headers(), None, Offer::Answer).unwrap_or(Form::Json);
        if let Some(resource) = resource {
            let found = discovery::resources(&self.kinds, &resource.group, &resource.version)?;
            return represent::value(form(), 200, &found);
        }
        match path.strip_suffix('/').unwrap_or(path) {
            "/healthz" | "/livez" | "/readyz" => Ok(typed_response(200, "text/plain; charset=utf-8", "ok")),
            "/.well-known/openid-configuration" => Ok(self.openid_configuration()),
            "/openid/v1/jwks" => Ok(self.openid_keys()),
            "/version" => Ok(json_response(200, self.version().to_string())),
            "/metrics" => {
                let text = self.metrics.text(self.storage.revision().0);
                Ok(typed_response(200, "application/openmetrics-text; version=1.0.0; charset=utf-8", text))
            }
            "/api" => discovery::roots(&self.kinds, request.headers(), form(), true),
            "/apis" => discovery::roots(&self.kinds, request.headers(), form(), false),
            "" => {
                let groups = self.kinds.rows().iter().map(|kind| match kind.group.is_empty() {
                    true => "/api/v1".to_owned(),
                    false => format!("/apis/{}", kind.api_version()),
                });
                let own = [
                    "/api",
                    "/apis",
                    "/healthz",
                    "/livez",
                    "/metrics",
                    "/openapi/v2",
                    "/openapi/v3",
                    "/readyz",
                    "/version",
                ];
                let paths: BTreeSet<String> = groups.chain(own.map(str::to_owned)).collect();
                Ok(json_response(200, json!({"paths": paths}).to_string()))
            }
            other => match other.strip_prefix("/apis/") {
                Some(group) if !group.contains('/') => {
                    represent::value(form(), 200, &discovery::one_group(&self.kinds, group)?)
                }
                _ => Err(Status::no_route()),
            },
        }
    }

    fn version(&self) -> Value {
        let mut numbers = self.version.trim_start_matches('v').split(['.', '-', '+']);
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        json!({
            "major": major, "minor": minor, "gitVersion": self.version, "gitCommit": "", "gitTreeState": "",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
            "platform": format!("{}/{}", std::env::consts::OS, go_arch()),
        })
    }

    async fn resource(
        self: Arc<Self>,
        request: Request<Body>,
        user: Arc<UserInfo>,
        path: ResourcePath,
        labels: &mut Labels,
    ) -> Result<Response<Body>> {
        let query = Query::parse(request.uri())?;
        let verb = Verb::of(request.method(), &path, &query)?.ok_or_else(Status::method_not_allowed)?;
        labels.verb = verb.as_str().to_owned();
        let kind = self.kinds.get(&path.group, &path.version, &path.resource).cloned();
        if let Some(kind) = &kind {
            // Only names that exist become labels.
            labels.group = kind.group.to_string();
            labels.resource = kind.plural.to_string();
            labels.subresource =
                Subresource::parse(&path.subresource).map_or("", Subresource::as_str).to_owned();
        }
        let selection = match &kind {
            Some(kind) if path.name.is_empty() => Selection::parse(kind, &query)?,
            _ => Selection::default(),
        };
        let whole_namespace = path.group.is_empty() && path.resource == "namespaces";
        let action = Action::Resource {
            group: &path.group,
            resource: &path.resource,
            subresource: &path.subresource,
            // A Role in a namespace can allow to read that namespace.
            namespace: if whole_namespace { &path.name } else { &path.namespace },
            name: match verb {
                Verb::List | Verb::Watch => selection.name().unwrap_or_default(),
                _ => &path.name,
            },
            fields: selection.exact(),
        };
        authz::check(&self.authorizers, &Attributes { user: &user, verb: verb.as_str(), action })?;
        let upgrades = request.headers().contains_key(http::header::UPGRADE);
        let connects = |sub: Subresource| sub.connects() || (sub == Subresource::Proxy && upgrades);
        if verb == Verb::Get && Subresource::parse(&path.subresource).is_some_and(connects) {
            // A WebSocket begins with GET and does what POST does: since 1.35 it takes the same permission.
            let verb = Verb::Create.as_str();
            authz::check(&self.authorizers, &Attributes { user: &user, verb, action })?;
        }
        let kind = kind.ok_or_else(Status::no_route)?;
        check_scope(&kind, &path, verb)?;
        if kind.review.is_some() && (verb != Verb::Create || !path.name.is_empty()) {
            return Err(Status::method_not_allowed());
        }
        if kind.usage.is_some() && !matches!(verb, Verb::Get | Verb::List) {
            return Err(Status::method_not_allowed());
        }
        let (parts, body) = request.into_parts();
        let stop =
            parts.extensions.get::<Drain>().map_or_else(CancellationToken::new, |drain| drain.0.clone());
        let mut call = Call {
            server: self.clone(),
            kind,
            path,
            query,
            raw_query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers.clone(),
            user,
            selection,
            stop,
            warnings: Vec::new(),
        };
        let subresource = match call.path.subresource.as_str() {
            "" => None,
            name => Some(
                Subresource::parse(name)
                    .filter(|sub| call.kind.has(*sub))
                    .filter(|sub| call.path.rest.is_empty() || *sub == Subresource::Proxy)
                    .ok_or_else(Status::no_route)?,
            ),
        };
        match subresource {
            Some(Subresource::Log) if verb == Verb::Get => {
                call.see_others_writes(verb).await?;
                return call.log().await;
            }
            Some(what) if what.connects() && matches!(verb, Verb::Get | Verb::Create) => {
                call.see_others_writes(verb).await?;
                return call.connect(what, Request::from_parts(parts, body)).await;
            }
            Some(Subresource::Proxy) => {
                call.see_others_writes(verb).await?;
                return call.proxy(Request::from_parts(parts, body)).await;
            }
            None if verb == Verb::Watch => {
                call.see_others_writes(verb).await?;
                return call.watch().await;
            }
            _ => {}
        }
        let _permit = match call.user.in_group(MASTERS) {
            true => None,
            false => Some(self.in_flight.try_acquire().map_err(|_| Status::too_many_requests())?),
        };
        let work = async {
            call.see_others_writes(verb).await?;
            let body = read_body(body).await?;
            let response = call.run(verb, subresource, body).await?;
            Ok(call.warn(response))
        };
        tokio::time::timeout(self.request_timeout, work).await.unwrap_or_else(|_| Err(Status::timeout()))
    }
}

fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn check_scope(kind: &Kind, path: &ResourcePath, verb: Verb) -> Result<()> {
    if !kind.namespaced && !path.namespace.is_empty() {
        return Err(Status::no_route());
    }
    if kind.namespaced && path.namespace.is_empty() {
        return match verb {
            Verb::List | Verb::Watch => Ok(()),
            Verb::Create | Verb::DeleteCollection if path.name.is_empty() => {
                Err(Status::method_not_allowed())
            }
            _ => Err(Status::no_route()),
        };
    }
    match verb {
        // A PUT or PATCH needs a name; a POST has one only with a subresource.
        Verb::Update | Verb::Patch if path.name.is_empty() => Err(Status::method_not_allowed()),
        Verb::Create if !path.name.is_empty() && path.subresource.is_empty() => {
            Err(Status::method_not_allowed())
        }
        Verb::DeleteCollection if kind.group.is_empty() && kind.plural == "namespaces" => {
            Err(Status::method_not_allowed())
        }
        _ => Ok(()),
    }
}

async fn read_body(mut body: Body) -> Result<Bytes> {
    match Limited::new(&mut body, BODY_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            let _ = tokio::time::timeout(DRAIN, drain(body)).await;
            Err(Status::too_large_body(BODY_MAX))
        }
        Err(error) => Err(Status::bad_request(format!("the body could not be read: {error}"))),
    }
}

/// Reads on: a client that still sends when its connection is closed does not see the answer.
async fn drain(mut body: Body) {
    let mut left = DRAIN_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(less) => left = less,
            None => return,
        }
    }
}

impl Call {
    /// Waits until reads show what other servers over the same store have written, unless the client says
    /// that an older state will do. With a store of this server's own there is nothing to wait for.
    async fn see_others_writes(&self, verb: Verb) -> Result<()> {
        let reads = matches!(verb, Verb::Get | Verb::List | Verb::Watch);
        let named = |what| self.query.text(what).is_some();
        if reads && (named("resourceVersion") || named("continue")) {
            return Ok(());
        }
        match tokio::time::timeout(self.server.request_timeout, self.storage().sync()).await {
            Ok(synced) => synced.map(drop).map_err(store_failed),
            Err(_) => Err(Status::timeout()),
        }
    }

    /// What is answered at once.
    async fn run(
        &mut self,
        verb: Verb,
        subresource: Option<Subresource>,
        body: Bytes,
    ) -> Result<Response<Body>> {
        match (subresource, verb) {
            (None, Verb::Create) if let Some(review) = self.kind.review => self.review(body, review),
            (None, Verb::Get | Verb::List) if let Some(of) = self.kind.usage => self.usage(of).await,
            (None, Verb::Create) => self.create(body).await,
            (None, Verb::List) => self.list().await,
            (None, Verb::Delete) => self.delete(body).await,
            (None, Verb::DeleteCollection) => self.delete_collection(body).await,
            (part, Verb::Get) if part.is_none_or(Subresource::is_part) => self.get().await,
            (part, Verb::Update) if part.is_none_or(Subresource::is_part) => self.update(body, part).await,
            (part, Verb::Patch) if part.is_none_or(Subresource::is_part) => self.patch(body, part).await,
            (Some(Subresource::Scale), Verb::Get) => self.get_scale(),
            (Some(Subresource::Scale), Verb::Update | Verb::Patch) => self.set_scale(verb, body).await,
            (Some(Subresource::Binding), Verb::Create) => self.bind(body).await,
            (Some(Subresource::Eviction), Verb::Create) => self.evict(body).await,
            (Some(Subresource::Token), Verb::Create) => self.token_request(body),
            (Some(Subresource::Finalize), Verb::Update) => self.finalize(body).await,
            _ => Err(Status::method_not_allowed()),
        }
    }
}

/// Keeps the role index up to date until `stop`.
async fn follow_rbac(
    rbac: Arc<Rbac>,
    storage: Arc<dyn Storage>,
    mut from: wharf_store::Revision,
    stop: CancellationToken,
) {
    loop {
        let followed = tokio::select! {
            () = stop.cancelled() => return,
            followed = follow_rbac_once(&rbac, &*storage, &mut from) => followed,
        };
        if let Err(error) = followed {
            match error {
                wharf_store::Error::Closed => return,
                error => {
                    warn!(error = %wharf_kit::chain(&error), "the watch on roles failed and begins anew")
                }
            }
            match rbac.refresh(&*storage).await {
                Ok(revision) => from = revision,
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }
}

async fn follow_rbac_once(
    rbac: &Rbac,
    storage: &dyn Storage,
    from: &mut wharf_store::Revision,
) -> Result<(), wharf_store::Error> {
    let mut watcher = storage.watch(rbac::PREFIX, *from).await?;
    loop {
        watcher.next().await?;
        // One refresh for all changes that are there.
        while let Some(more) = watcher.try_next() {
            more?;
        }
        *from = rbac.refresh(storage).await?;
    }
}
