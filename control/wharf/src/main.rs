//! `wharf`: the parts of a cluster, put together into processes.
//!
//! | command | process |
//! |---|---|
//! | `wharf server` | API server, scheduler, controllers; with `--with-node` the node agent too |
//! | `wharf node` | the node agent of a further node |
//! | `wharf store` | none: copies the objects of a cluster to a file, from it, or to another engine |
//! | `wharf shim` | the CRI runtime of a node |
//! | `wharf keeper` | starts and restarts the others in a development cluster |
//! | `wharf zygote`, `wasm-host`, `compile` | what the shim re-executes this program as; not for people |

mod client;
mod join;
mod keeper;
mod node;
mod pki;
mod relay;
mod routes;
mod server;
mod shim;
mod store;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// One cluster for WebAssembly and OCI containers that speaks the Kubernetes API.
#[derive(Parser)]
#[command(name = "wharf", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane: API server, scheduler, controllers, registry
    Server(Box<server::Options>),
    /// Run the agent of a node that is not the server's
    Node(node::Options),
    /// Copy the store of a cluster: snapshot, restore, migrate
    Store(store::tool::Options),
    /// Run the CRI runtime of a node
    Shim(shim::Options),
    /// Keep the processes of a development cluster (`wctl up` starts this)
    Keeper(keeper::Options),
}

fn main() -> ExitCode {
    // These must have the process as it is, before any thread, runtime or parser.
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match arguments.get(1).and_then(|first| first.to_str()) {
        Some("zygote") => return wharf_oci::zygote::main(),
        Some("wasm-host") => return wharf_wasm::host::main(arguments.into_iter().skip(2)),
        Some("compile") => return wharf_wasm::compile::main(arguments.into_iter().skip(2)),
        _ => {}
    }
    let command = Arguments::parse().command;
    let filter = EnvFilter::try_from_env("WHARF_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match command {
        Command::Server(options) => run(server::run(*options)),
        Command::Node(options) => run(node::run(options)),
        Command::Store(options) => run(store::tool::run(options)),
        Command::Shim(options) => run(shim::run(options)),
        Command::Keeper(options) => keeper::run(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "ended");
            ExitCode::FAILURE
        }
    }
}

/// Runs one of the servers on a runtime for it.
fn run(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    // What still runs on blocking threads is of no use to anybody now.
    runtime.shutdown_background();
    done
}

/// A token that SIGTERM and SIGINT cancel.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tracing::info!("asked to stop");
        token.cancel();
    });
    Ok(stop)
}
