//! The wasm host process.
//!
//! Two sides. The *I/O side* is a tokio runtime: it accepts connections, parses HTTP, keeps time and answers the shim;
//! it never polls guest code. The *executors* are threads of their own that do nothing else ([`executor`]). Between
//! them go requests one way and answers the other, each through a one-shot channel, and bodies through the channels of
//! `wasmtime-wasi-http`.

mod attach;
mod channel;
mod command;
mod container;
mod exec;
mod executor;
mod guest;
mod http;
mod loader;
mod log;
mod memory;
mod outbox;
mod program;
mod server;
mod stdio;
mod tar;

use crate::{
    cache::Cache,
    engine,
    launch::{Orders, READY},
    protocol::SOCKET,
};
use container::Common;
use executor::Pool;
use loader::Loader;
use nix::sched::{CloneFlags, setns};
use outbox::Outbox;
use server::Server;
use std::{ffi::OsString, fs::File, io::Write, process::ExitCode, sync::Arc, thread::available_parallelism};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use wharf_link::Listener;

/// Threads of the I/O side: it parses and passes on, so two keep any number of executors busy.
const IO_THREADS: usize = 2;
/// Threads for what blocks: loading components, and guests' files.
const BLOCKING_THREADS: usize = 32;

/// Programs in containers and attached clients at once: three descriptors each, of the some 10,000 that services and
/// connections leave.
const STREAMS: usize = 1_000;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// The entry of the wasm host process. Call it before any thread or runtime exists; `args` are those after the ones of
/// [`crate::Config::host_args`]. Returns when it is shut down.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let orders = args.into_iter().next().and_then(|orders| serde_json::from_str(orders.to_str()?).ok());
    let Some(orders) = orders else {
        eprintln!("this is started by `wharf shim` alone");
        return ExitCode::from(2);
    };
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::from_default_env().add_directive(tracing::Level::INFO.into()),
        )
        .try_init();
    match run(orders) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The starter reads this; the log has it too.
            print!("{error}");
            tracing::error!(%error, "could not start");
            ExitCode::FAILURE
        }
    }
}

fn run(orders: Orders) -> Fallible<()> {
    // A session of its own: signals to the starter's terminal are not for it. Fails only for a group's leader,
    // which has one already.
    let _ = nix::unistd::setsid();
    if let Some(path) = &orders.netns {
        let namespace = File::open(path).map_err(|cause| format!("{}: {cause}", path.display()))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|cause| format!("{}: {cause}", path.display()))?;
    }
    let engine = engine::running(&orders.limits).map_err(|error| format!("{error:#}"))?;
    let cache = Cache::open(orders.cache_dir, orders.compile_args, &orders.limits)?;
    let loader = Loader::new(engine.clone(), cache).map_err(|error| format!("{error:#}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("io")
        .enable_all()
        .build()?;
    let executors = match orders.limits.executors {
        0 => available_parallelism().map_or(1, usize::from),
        count => count,
    };
    let pool = Pool::start(engine.clone(), executors, runtime.handle())?;
    let common = Common {
        engine,
        outbox: Arc::new(Outbox::default()),
        instances: Arc::new(Semaphore::new(orders.limits.instances as usize)),
        connections: Arc::new(Semaphore::new(orders.limits.connections)),
        streams: Arc::new(Semaphore::new(STREAMS)),
    };
    let server = Server {
        pool,
        loader,
        common: Arc::new(common),
        containers: Default::default(),
        shutdown: CancellationToken::new(),
    };
    let socket = orders.state_dir.join(SOCKET);
    runtime.block_on(async {
        let listener = Listener::bind(&socket)?;
        std::io::stdout().write_all(READY.as_bytes())?;
        // Its end tells the starter that there is no more to read.
        nix::unistd::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        tracing::info!(executors, instances = orders.limits.instances, "wasm host listens");
        let server = Arc::new(server);
        server.clone().run(listener).await;
        tracing::info!("wasm host shuts down");
        std::fs::remove_file(&socket)?;
        // Guests hold nothing that outlives the process, so none is waited for.
        std::process::exit(0)
    })
}
