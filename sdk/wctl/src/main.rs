//! `wctl`: the command line of a Wharf cluster.
//!
//! `up`, `down` and `status` handle clusters on this machine through `wharf-local`; all else speaks the Kubernetes
//! API through `kube` and the kubeconfig, so it works against any cluster, and any client works against ours.
//!
//! Standard output carries results, one a line where programs may read them; standard error carries progress and
//! errors. Every failure says what, where and what to do, and exits with 1 (2 for a wrong command line).

mod api;
mod apply;
mod command;
mod events;
mod history;
mod image;
mod manifest;
mod output;
mod progress;
mod remote;
mod resource;
mod rollout;
mod uri;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use command::{
    apply as apply_command, attach, certificate, cp, create, delete, describe, diff, down, edit,
    events as events_command, exec, explain, get, image as image_command, logs, node, port_forward,
    rollout as rollout_command, scale, status, token, top, up, version, wait,
};

/// Run wasm microservices and OCI containers on one cluster.
#[derive(Parser)]
#[command(name = "wctl", version, propagate_version = true, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

/// What every command takes.
#[derive(clap::Args, Clone)]
pub struct Global {
    /// Namespace of the objects
    #[arg(short, long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Keep clusters' files below this directory instead of the system's
    #[arg(long, global = true, value_name = "DIR", env = "WHARF_DIR")]
    dir: Option<PathBuf>,
}

impl Global {
    fn layout(&self) -> wharf_local::Layout {
        self.dir.as_deref().map_or_else(wharf_local::Layout::default, wharf_local::Layout::below)
    }
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster on this machine
    Up(up::Options),
    /// End a cluster of this machine
    Down(down::Options),
    /// Show the clusters of this machine, and how the current one is
    Status(status::Options),
    /// Create or change objects as files say
    Apply(apply_command::Options),
    /// Make an object without a file
    Create(create::Options),
    /// Show what an apply would change
    Diff(diff::Options),
    /// Change an object in an editor
    Edit(edit::Options),
    /// Show objects
    Get(get::Options),
    /// Show what nodes and pods use
    Top(top::Options),
    /// Tell an object to people, with its events
    Describe(describe::Options),
    /// Tell what the fields of a type are for
    Explain(explain::Options),
    /// Show what happened
    Events(events_command::Options),
    /// Wait until objects are as asked
    Wait(wait::Options),
    /// Delete objects
    Delete(delete::Options),
    /// Print what a container logged
    Logs(logs::Options),
    /// Run a command in a container
    Exec(exec::Options),
    /// Join the streams of a container's own process
    Attach(attach::Options),
    /// Copy files and folders from and to a container
    Cp(cp::Options),
    /// Forward local ports to a pod
    PortForward(port_forward::Options),
    /// Set the number of replicas
    Scale(scale::Options),
    /// Follow, stop or undo the rollout of a workload
    Rollout(rollout_command::Options),
    /// Let no new pods onto nodes
    Cordon(node::Named),
    /// Let pods onto nodes again
    Uncordon(node::Named),
    /// Move the pods of nodes elsewhere
    Drain(node::DrainOptions),
    /// Work with nodes
    Node(node::Options),
    /// Work with the tokens by which machines join
    Token(token::Options),
    /// Approve or deny certificate requests
    Certificate(certificate::Options),
    /// Work with images
    Image(image_command::Options),
    /// Print the versions of wctl and of the cluster
    Version(version::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::fail(&error.into()),
    };
    let done = runtime.block_on(run(arguments));
    // A read of standard input may still block a thread.
    runtime.shutdown_background();
    match done {
        Ok(code) => code,
        Err(error) => match error.downcast_ref::<Exited>() {
            Some(Exited(code)) => ExitCode::from(*code),
            None => output::fail(&error),
        },
    }
}

/// A process that was run elsewhere ended with this code, not 0: so does this one, and says nothing of its own.
#[derive(Debug, thiserror::Error)]
#[error("command terminated with exit code {0}")]
pub struct Exited(pub u8);

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let global = arguments.global;
    let done = match arguments.command {
        Command::Diff(options) => return Ok(diff::run(options, &global).await),
        Command::Up(options) => up::run(options, &global).await,
        Command::Down(options) => down::run(options, &global),
        Command::Status(options) => status::run(options, &global).await,
        Command::Apply(options) => apply_command::run(options, &global).await,
        Command::Create(options) => create::run(options, &global).await,
        Command::Edit(options) => edit::run(options, &global).await,
        Command::Describe(options) => describe::run(options, &global).await,
        Command::Explain(options) => explain::run(options, &global).await,
        Command::Events(options) => events_command::run(options, &global).await,
        Command::Wait(options) => wait::run(options, &global).await,
        Command::Get(options) => get::run(options, &global).await,
        Command::Delete(options) => delete::run(options, &global).await,
        Command::Logs(options) => logs::run(options, &global).await,
        Command::Exec(options) => exec::run(options, &global).await,
        Command::Attach(options) => attach::run(options, &global).await,
        Command::Cp(options) => cp::run(options, &global).await,
        Command::PortForward(options) => port_forward::run(options, &global).await,
        Command::Scale(options) => scale::run(options, &global).await,
        Command::Rollout(options) => rollout_command::run(options, &global).await,
        Command::Cordon(nodes) => node::cordon(nodes, true, &global).await,
        Command::Uncordon(nodes) => node::cordon(nodes, false, &global).await,
        Command::Drain(options) => node::drain(options, &global).await,
        Command::Node(options) => node::run(options, &global).await,
        Command::Top(options) => top::run(options, &global).await,
        Command::Token(options) => token::run(options, &global).await,
        Command::Certificate(options) => certificate::run(options, &global).await,
        Command::Image(options) => image_command::run(options, &global).await,
        Command::Version(options) => version::run(options, &global).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}
