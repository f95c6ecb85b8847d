//! `wctl up`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use wharf_local::Phase;

use crate::api::Api;
use crate::command::duration;
use crate::resource::name_of;
use crate::{Global, output, rollout};

#[derive(clap::Args)]
pub struct Options {
    /// Name of the cluster
    #[arg(default_value = "dev")]
    name: String,
    /// Port of 127.0.0.1 for the API; the one of the last time, or a free one, if none is given
    #[arg(long)]
    port: Option<u16>,
    /// Give the cluster no way out of its own network
    #[arg(long)]
    isolated: bool,
    /// How many nodes; as many as the last time, or one, if none is given
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=wharf_local::MAX_NODES as i64))]
    nodes: Option<u8>,
    /// Where objects are kept: redb, or etcd://HOST:PORT[,HOST:PORT...][/PREFIX]; as the last time, or redb, if it is
    /// not given. An etcd on this machine's loopback is reached too
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    #[command(flatten)]
    etcd: EtcdOptions,
    /// A node silent for this long is taken for unreachable [default: 40s]
    #[arg(long, value_parser = duration)]
    node_monitor_grace_period: Option<Duration>,
    /// What the certificates of those who ask for one live at most [default: a year]
    #[arg(long, value_parser = duration)]
    cluster_signing_duration: Option<Duration>,
    /// The `wharf` program to run
    #[arg(long, env = "WHARF_BIN")]
    wharf: Option<PathBuf>,
    /// How long to wait for the nodes
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

/// How to reach an etcd that asks for more than an address: the options of `wharf server`.
#[derive(clap::Args)]
struct EtcdOptions {
    /// The CA of etcd's certificates; with it, etcd is spoken to by TLS
    #[arg(long, value_name = "FILE", requires = "store")]
    etcd_cafile: Option<PathBuf>,
    /// The certificate to show to etcd
    #[arg(long, value_name = "FILE", requires_all = ["etcd_keyfile", "etcd_cafile"])]
    etcd_certfile: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
    /// A file with etcd's user as USER:PASSWORD
    #[arg(long, value_name = "FILE", requires = "store")]
    etcd_userfile: Option<PathBuf>,
}

impl Options {
    /// What the server is told of its store.
    fn store(&self) -> anyhow::Result<Vec<String>> {
        let mut arguments: Vec<String> = self.store.iter().map(|store| format!("--store={store}")).collect();
        for (name, file) in [
            ("cafile", &self.etcd.etcd_cafile),
            ("certfile", &self.etcd.etcd_certfile),
            ("keyfile", &self.etcd.etcd_keyfile),
            ("userfile", &self.etcd.etcd_userfile),
        ] {
            if let Some(file) = file {
                // The server has another working directory.
                let whole = std::fs::canonicalize(file).with_context(|| file.display().to_string())?;
                arguments.push(format!("--etcd-{name}={}", whole.display()));
            }
        }
        Ok(arguments)
    }
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let cluster = global.layout().cluster(&options.name)?;
    let store = options.store()?;
    let (start, since) = (Instant::now(), Timestamp::now());
    let bar = output::spinner("starting");
    let how = wharf_local::Options {
        port: options.port,
        isolated: options.isolated,
        nodes: options.nodes,
        store,
        node_grace: options.node_monitor_grace_period,
        signing_duration: options.cluster_signing_duration,
        wharf: options.wharf,
    };
    let started = wharf_local::up(&cluster, &how, |phase| {
        bar.set_message(match phase {
            Phase::Namespaces => "making the cluster's network",
            Phase::Shim => "starting the container runtime",
            Phase::Server => "starting the control plane",
        });
    });
    bar.finish_and_clear();
    started?;
    let api_after = start.elapsed();
    let kubeconfig = wharf_local::merge(&cluster)?;
    let global = Global { context: Some(cluster.context()), ..global.clone() };
    let api = Api::connect(&global).await?;
    let names: Vec<String> = cluster.nodes().into_iter().map(wharf_local::node_name).collect();
    wait_for_nodes(&api, &names, since, options.timeout).await?;
    let ready_after = start.elapsed();
    let name = &cluster.name;
    output::line(&format!(
        "cluster {name:?} is ready after {:.2} s (its API after {:.2} s)\n\n\
         {:<12} {}\n\
         API          {}\n\
         kubeconfig   {}, context {}\n\
         data         {}\n\
         logs         {}\n\n\
         next:  wctl image push app.wasm app:1     makes registry.wharf/app:1 of a component\n\
         \x20      wctl apply -f FILE|FOLDER --wait   runs what it says\n\
         \x20      wctl get pods -A                   shows what runs (as does kubectl)\n\
         \x20      wctl down{}  ends it; `wctl up {name}` goes on with its data",
        ready_after.as_secs_f64(),
        api_after.as_secs_f64(),
        if names.len() == 1 { "node" } else { "nodes" },
        names.join(", "),
        cluster.url().unwrap_or_default(),
        kubeconfig.display(),
        cluster.context(),
        cluster.data.display(),
        cluster.logs().display(),
        format_args!("{:width$}", format!(" {name}"), width = 24),
    ));
    Ok(())
}

/// Waits until these nodes are Ready in this run of the cluster, and until the first pod could be made.
async fn wait_for_nodes(
    api: &Api,
    names: &[String],
    since: Timestamp,
    timeout: Duration,
) -> anyhow::Result<()> {
    let bar = output::spinner("waiting for the nodes");
    let wait = async {
        // What the store says of a node may be from the last run; its lease tells that it lives.
        let mut silent: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        rollout::until(api, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", |lease| {
            let renewed = lease["spec"]["renewTime"].as_str()?.parse::<Timestamp>().ok()?;
            if renewed >= since {
                silent.remove(name_of(lease));
            }
            silent.is_empty().then_some(())
        })
        .await?;
        let mut unready: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        rollout::until(api, "/api/v1/nodes", |node| {
            let conditions = node["status"]["conditions"].as_array()?;
            let ready = conditions.iter().find(|c| c["type"] == "Ready")?;
            if ready["status"] == "True" {
                unready.remove(name_of(node));
            } else if let Some(why) = ready["message"].as_str() {
                bar.set_message(format!("waiting for {}: {why}", name_of(node)));
            }
            unready.is_empty().then_some(())
        })
        .await?;
        rollout::until(api, "/api/v1/namespaces/default/serviceaccounts", |account| {
            (name_of(account) == "default").then_some(())
        })
        .await
    };
    let done = tokio::time::timeout(timeout, wait).await;
    bar.finish_and_clear();
    done.unwrap_or_else(|_| {
        let nodes = if names.len() == 1 { "the node was" } else { "the nodes were" };
        bail!("{nodes} not ready after {} s; see the logs that `wctl status` names", timeout.as_secs())
    })
}
