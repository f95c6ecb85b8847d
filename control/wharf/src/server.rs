//! `wharf server`: the control plane in one process, and with `--with-node` the node agent too.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use jiff::SignedDuration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use wharf_api::{ApiServer, TokenIssuer, TokenKeys, UserInfo};
use wharf_image::registry::{self, Registry};
use wharf_kit::api::{self, Kind, Object, Rest};
use wharf_kit::client_ca::ClientCa;
use wharf_kit::identity::{self, Ca, ClientAuth, Pair};
use wharf_kit::leader::{Candidate, Timing};
use wharf_kit::view::Key;
use wharf_scheduler::Scheduler;
use wharf_store::{Store, compactor};

use crate::node::{self, NodeOptions};
use crate::pki::{self, Pki};
use crate::store::{EtcdOptions, Location, Opened};

/// How long lists go on and watches start from the past: what Kubernetes' clients are used to.
const HISTORY: Duration = Duration::from_secs(5 * 60);

/// Kubernetes' default.
pub const NODE_GRACE: &str = "40s";
pub const SIGNING_DURATION: &str = "8760h";
/// Less is over before its holder has asked for the next one.
const SHORTEST: Duration = Duration::from_secs(5);

/// Where a server keeps what is its own, unless it is told.
pub const ROOT: &str = "/var/lib/wharf/server";

/// The store of a server that names no other.
pub fn store_file(root: &Path) -> PathBuf {
    root.join("store.redb")
}

#[derive(Args)]
pub struct Options {
    /// Directory for the store, certificates and the registry
    #[arg(long, default_value = ROOT)]
    root: PathBuf,
    /// Where objects are kept: redb (a file under --root), redb:FILE, or etcd://HOST:PORT[,HOST:PORT...][/PREFIX]
    #[arg(long, default_value = "redb")]
    store: Location,
    #[command(flatten)]
    etcd: EtcdOptions,
    /// Address to serve the API on
    #[arg(long, default_value = "0.0.0.0:6443")]
    listen: SocketAddr,
    /// A listening socket handed down by the parent process, served beside --listen
    #[arg(long)]
    listen_fd: Option<RawFd>,
    /// The URL that the administrator's kubeconfig names
    #[arg(long, default_value = "https://127.0.0.1:6443")]
    public_url: String,
    /// Address at which members of the cluster reach this server, at --listen's port; --listen's or the node's own if
    /// none is given
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Further names or addresses of the API server's certificate
    #[arg(long)]
    san: Vec<String>,
    /// A descriptor that gets a byte when the API is served
    #[arg(long)]
    ready_fd: Option<RawFd>,
    /// Run the node agent too
    #[arg(long)]
    with_node: bool,
    /// A node silent for this long is taken for unreachable
    #[arg(long, default_value = NODE_GRACE)]
    node_monitor_grace_period: SignedDuration,
    /// What the certificates of those who ask for one live at most
    #[arg(long, default_value = SIGNING_DURATION)]
    cluster_signing_duration: SignedDuration,
    #[command(flatten)]
    node: NodeOptions,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let stop = crate::stop_on_signal()?;
    let pki = Arc::new(Pki::open(&options.root.join("pki"))?);
    let listener =
        TcpListener::bind(options.listen).await.with_context(|| format!("listen on {}", options.listen))?;
    let listeners = [Some(listener), options.listen_fd.map(inherited_listener).transpose()?];
    let api = match options.store.open(&store_file(&options.root), &options.etcd).await? {
        Opened::Redb(store) => start_api(&options, &pki, store, &stop).await?,
        Opened::Etcd(store) => start_api(&options, &pki, store, &stop).await?,
    };
    if let Some(url) = options.advertised() {
        tell_members(&api, &url, pki.ca.cert_pem()).await.context("tell where the API server is")?;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners.into_iter().flatten() {
        let (api, stop) = (api.clone(), stop.clone());
        tasks.spawn(async move { api.serve(listener, stop).await.map_err(anyhow::Error::from) });
    }
    if let Some(fd) = options.ready_fd {
        tell_ready(fd)?;
    }
    // A file is one server's own; over an etcd there may be others, and one of them leads.
    let identity = match &options.store {
        Location::Redb(_) => None,
        Location::Etcd { .. } => Some(own_identity(&options.root)?),
    };
    let led = |name: &str, start: Box<dyn Fn(CancellationToken) -> JoinHandle<()> + Send + Sync>| {
        let Some(identity) = &identity else { return start(stop.clone()) };
        let candidate = Candidate {
            rest: Rest::new(api.client(UserInfo::system(name))),
            lease: Key::new("kube-system", name),
            identity: identity.clone(),
            timing: Timing::default(),
        };
        tokio::spawn(candidate.run(stop.clone(), move |stop| {
            let work = start(stop);
            async move { drop(work.await) }
        }))
    };
    let client = api.client(UserInfo::system("kube-scheduler"));
    let start = move |stop| Scheduler::start(client.clone(), stop);
    let scheduler = led("kube-scheduler", Box::new(start));
    let client = api.client(UserInfo::system("kube-controller-manager"));
    let mut config = wharf_controllers::Config::new(pki.ca.cert_pem());
    config.node_grace =
        options.node_monitor_grace_period.try_into().context("--node-monitor-grace-period")?;
    config.signing_duration = options.signing_duration()?;
    config.signer = Some(Arc::new(Ca::load(pki.ca.cert_pem(), pki.ca.key_pem())?));
    let start = move |stop| wharf_controllers::start(client.clone(), config.clone(), stop);
    let controllers = led("kube-controller-manager", Box::new(start));
    let node = match options.with_node {
        true => {
            let client = api.client(UserInfo::node(&options.node.node_name));
            let identity = node::kept_identity(&pki, &options.node, &stop)?;
            let server = SocketAddr::new(options.node.node_address, options.listen.port());
            let (server, ca) = (format!("https://{server}"), pki.ca.cert_pem());
            Some(node::start(&options.node, &server, client, identity, ca, stop.clone()).await?)
        }
        false => None,
    };
    stop.cancelled().await;
    if let Some(node) = node {
        node.stopped().await;
    }
    let _ = (scheduler.await, controllers.await);
    while let Some(served) = tasks.join_next().await {
        served??;
    }
    tracing::info!("stopped");
    Ok(())
}

impl Options {
    fn signing_duration(&self) -> anyhow::Result<Duration> {
        let wanted = self.cluster_signing_duration.try_into().context("--cluster-signing-duration")?;
        anyhow::ensure!(
            (SHORTEST..=identity::LEAF_VALIDITY).contains(&wanted),
            "--cluster-signing-duration is {} s to a year",
            SHORTEST.as_secs()
        );
        Ok(wanted)
    }

    /// The URL by which members of the cluster reach this server, if it has an address that others do.
    fn advertised(&self) -> Option<String> {
        let reached = |address: &IpAddr| !address.is_unspecified() && !address.is_loopback();
        let own = || [self.listen.ip(), self.node.node_address].into_iter().find(reached);
        let address = self.advertise_address.or_else(own)?;
        Some(format!("https://{}", SocketAddr::new(address, self.listen.port())))
    }
}

/// Writes where the API server is and whom to trust into the ConfigMap `kube-public/cluster-info`, as kubeadm does.
async fn tell_members(api: &ApiServer, url: &str, ca_pem: &str) -> Result<(), api::Error> {
    let (map, key) = (Kind::core("ConfigMap", "configmaps"), Key::new("kube-public", "cluster-info"));
    let told = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cluster-info"},
        "data": {"kubeconfig": pki::cluster_info(url, ca_pem)},
    });
    let rest = Rest::new(api.client(UserInfo::admin()));
    rest.apply::<Object>(map, &key, "", "wharf", true, &told).await.map(drop)
}

/// What this server is called in elections: the same at each start, and no other's.
fn own_identity(root: &Path) -> anyhow::Result<String> {
    let path = root.join("identity");
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("read {}", path.display()))
        }
        _ => {
            let host = nix::unistd::gethostname().context("ask for the name of this machine")?;
            let identity = format!("{}_{}", host.to_string_lossy(), uuid::Uuid::new_v4());
            std::fs::write(&path, &identity).with_context(|| format!("write {}", path.display()))?;
            Ok(identity)
        }
    }
}

async fn start_api(
    options: &Options,
    pki: &Arc<Pki>,
    store: impl Store,
    stop: &CancellationToken,
) -> anyhow::Result<ApiServer> {
    let mut names: Vec<String> =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1"]
            .map(str::to_owned)
            .into();
    names.push(options.node.node_address.to_string());
    names.extend(options.advertise_address.map(|address| address.to_string()));
    names.extend(options.san.iter().cloned());
    names.sort_unstable();
    names.dedup();
    // The CA goes with it, so that who knows the hash of its key can find it: kubeadm's way to join.
    let purpose = format!("{},chain", names.join(","));
    let issue = move |ca: &Ca| {
        let pair = ca.server("kube-apiserver", &names)?;
        Ok(Pair { cert_pem: format!("{}{}", pair.cert_pem, ca.cert_pem()), ..pair })
    };
    let serving = pki.kept("apiserver", &purpose, issue, stop)?;
    let issue = |ca: &Ca| ca.client("kube-apiserver-kubelet-client", &["system:masters"]);
    let kubelet = pki.kept("apiserver-kubelet-client", "v1", issue, stop)?;
    let admin = pki.pair("admin", "v1", |ca| ca.client("kubernetes-admin", &["system:masters"]))?;
    pki.kubeconfig(&options.root.join("admin.kubeconfig"), &options.public_url, &admin)?;
    let store = Arc::new(store);
    tokio::spawn(compactor(store.clone(), HISTORY, stop.clone()));
    let registry = registry::Config::new(options.root.join("registry"));
    let registry = Registry::open(registry).context("open the registry")?.service();
    let registry = ServiceExt::<http::Request<wharf_api::Body>>::map_response(registry, |answer| {
        answer.map(wharf_api::Body::new)
    });
    let keys = TokenKeys::new(&pki.token_keys()?).context("load the keys that sign tokens")?;
    reload_keys_on_hangup(keys.clone(), pki.clone(), stop.clone())?;
    let config = wharf_api::Config {
        tls: Some(identity::renewing_server_config(
            &serving,
            ClientAuth::Optional(pki.ca.cert_pem()),
            &[b"h2", b"http/1.1"],
        )?),
        client_ca: Some(ClientCa::new(pki.ca.cert_pem())?),
        kubelet_client: Some(identity::renewing_client_config(pki.ca.cert_pem(), &kubelet, &[b"http/1.1"])?),
        service_account_tokens: TokenIssuer { keys, ..TokenIssuer::default() },
        extra: vec![("/v2/".to_owned(), wharf_api::Extra::new(registry))],
        ..wharf_api::Config::default()
    };
    ApiServer::start(config, store).await.context("start the API server")
}

/// On SIGHUP the token keys are read again, so that they can be changed while the server runs.
fn reload_keys_on_hangup(keys: TokenKeys, pki: Arc<Pki>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
    tokio::spawn(async move {
        while let Some(Some(())) = stop.run_until_cancelled(hangup.recv()).await {
            match pki.token_keys().and_then(|pems| Ok(keys.replace(&pems)?)) {
                Ok(()) => tracing::info!(?keys, "the keys that sign tokens were read again"),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "the old token keys stay"),
            }
        }
    });
    Ok(())
}

fn inherited_listener(fd: RawFd) -> anyhow::Result<TcpListener> {
    let listener = std::net::TcpListener::from(inherited(fd)?);
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

/// Tells the parent process by the descriptor that it named.
pub fn tell_ready(fd: RawFd) -> anyhow::Result<()> {
    use std::io::Write as _;
    // The parent may have stopped listening: that is its affair.
    let _ = std::fs::File::from(inherited(fd)?).write_all(b"\n");
    Ok(())
}

/// Takes a descriptor that the parent process named on the command line.
fn inherited(fd: RawFd) -> anyhow::Result<OwnedFd> {
    nix::fcntl::fcntl(borrow(fd), nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
        .with_context(|| format!("descriptor {fd} was not handed down"))?;
    // SAFETY: the call above showed that it is open; the parent handed it down to be owned here, and each
    // option's descriptor is taken once.
    #[expect(unsafe_code, reason = "the only way to own a descriptor by its number")]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn borrow(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: it is used for one fcntl, which reports a descriptor that is not open.
    #[expect(unsafe_code, reason = "fcntl takes a borrowed descriptor")]
    unsafe {
        std::os::fd::BorrowedFd::borrow_raw(fd)
    }
}
