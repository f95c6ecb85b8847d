//! One container: what it is made of, and its way from created to exited.

use super::{
    channel::Channel,
    command,
    executor::Queue,
    http,
    log::Log,
    memory::{Budget, HOST_BYTES},
    outbox::Outbox,
    program::Program,
    stdio::{Input, Stdio},
};
use crate::{
    model::{ContainerSpec, Exit, Reason, State, Stats, Status},
    protocol::Failure,
};
use jiff::Timestamp;
use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use wasmtime::Engine;

/// Exit code of a container that was killed, as of a process: 128 + SIGKILL.
pub(crate) const KILLED: i32 = 137;
/// Of a command that was stopped: 128 + SIGTERM.
pub(crate) const STOPPED: i32 = 143;
/// Of a command that trapped: 128 + SIGABRT.
pub(crate) const TRAPPED: i32 = 134;
/// Warnings about one container are no more frequent.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// A termination message is no longer, as in Kubernetes.
const LONGEST_MESSAGE: usize = 4096;

/// What all containers of the host share.
pub(crate) struct Common {
    pub engine: Engine,
    pub outbox: Arc<Outbox>,
    /// Live instances that the pool still has place for.
    pub instances: Arc<Semaphore>,
    /// HTTP connections that the host still takes.
    pub connections: Arc<Semaphore>,
    /// Executions and attachments that the host still takes.
    pub streams: Arc<Semaphore>,
}

/// A container's copies by `tar` at once: a few threads, and a few descriptors.
const COPIES: usize = 8;

pub(crate) struct Container {
    pub spec: ContainerSpec,
    pub program: Arc<Program>,
    pub common: Arc<Common>,
    pub log: Arc<Log>,
    pub queue: Arc<Queue>,
    pub budget: Arc<Budget>,
    pub counters: Counters,
    /// No new work; what runs may finish.
    pub drain: CancellationToken,
    /// Everything ends now.
    pub cancel: CancellationToken,
    /// Copies by `tar` that run in it at once; others wait.
    pub copies: Semaphore,
    /// What an instance of it took lately: how much is reserved for the next.
    typical: AtomicU64,
    created_at: Timestamp,
    /// The end of its standard input that attached clients write to; none when it has no input, or no more.
    stdin: Mutex<Option<Arc<Channel>>>,
    life: Mutex<Life>,
    ended: watch::Sender<bool>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub instances: AtomicU64,
    pub requests: AtomicU64,
    pub traps: AtomicU64,
    pub refused: AtomicU64,
}

#[derive(Debug)]
struct Life {
    state: State,
    /// Its end is nobody's business any more.
    removed: bool,
    warned: Option<Instant>,
    traps_warned: u64,
}

impl Container {
    pub fn new(
        spec: ContainerSpec,
        program: Arc<Program>,
        common: Arc<Common>,
        queue: Arc<Queue>,
    ) -> Arc<Self> {
        Arc::new(Self {
            log: Log::new(spec.log_path.clone()),
            budget: Budget::new(spec.memory_limit),
            typical: AtomicU64::new(program.initial_bytes + HOST_BYTES),
            counters: Counters::default(),
            drain: CancellationToken::new(),
            cancel: CancellationToken::new(),
            copies: Semaphore::new(COPIES),
            created_at: Timestamp::now(),
            stdin: Mutex::default(),
            life: Mutex::new(Life { state: State::Created, removed: false, warned: None, traps_warned: 0 }),
            ended: watch::Sender::new(false),
            spec,
            program,
            common,
            queue,
        })
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it; one that runs already stays as it is. A service listens on `socket`, or at the pod's address if there
    /// is none. Must be called in the I/O runtime.
    pub fn start(self: &Arc<Self>, socket: Option<OwnedFd>) -> Result<(), Failure> {
        let mut life = self.life();
        match life.state {
            State::Running { .. } => return Ok(()),
            State::Exited { .. } => return Err(Failure::Exited { id: self.spec.id.clone() }),
            State::Created => {}
        }
        // Quick: no await, so the lock may be held.
        if let Some(proxy) = &self.program.http {
            let listener = http::listen(&self.spec, socket)?;
            tokio::spawn(http::serve(self.clone(), proxy.clone(), listener));
        } else if let Some(command) = &self.program.command {
            let mut stdio = Stdio::logged(&self.log, self.spec.terminal);
            if self.spec.stdin {
                stdio.stdin = self.feed().map_err(|cause| Failure::Internal {
                    why: format!("could not make the standard input of {}: {cause}", self.spec.id),
                })?;
            }
            tokio::spawn(command::run(self.clone(), command.clone(), stdio));
        }
        life.state = State::Running { started_at: Timestamp::now() };
        Ok(())
    }

    /// Makes its standard input, whose other end attached clients write to.
    fn feed(&self) -> std::io::Result<Input> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        *self.input() = Some(Arc::new(Channel::new(write)?));
        Ok(Input::over(Arc::new(Channel::new(read)?), self.spec.terminal))
    }

    fn input(&self) -> MutexGuard<'_, Option<Arc<Channel>>> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where an attached client's input goes.
    pub fn stdin(&self) -> Option<Arc<Channel>> {
        self.input().clone()
    }

    /// A client has said all that it had to say.
    pub fn input_ended(&self) {
        if self.spec.stdin_once {
            drop(self.input().take());
        }
    }

    /// # Errors
    /// [`Failure::NotRunning`] if it does not run.
    pub fn check_running(&self) -> Result<(), Failure> {
        match self.life().state {
            State::Running { .. } => Ok(()),
            State::Created | State::Exited { .. } => Err(Failure::NotRunning { id: self.spec.id.clone() }),
        }
    }

    /// Ends it, giving a service until `grace` to answer what it has taken.
    pub async fn stop(self: &Arc<Self>, grace: Duration) -> Exit {
        self.end_if_created("stopped before it was started");
        self.drain.cancel();
        if tokio::time::timeout(grace, self.ended()).await.is_err() {
            self.cancel.cancel();
        }
        self.ended().await
    }

    pub async fn kill(self: &Arc<Self>) -> Exit {
        self.end_if_created("killed before it was started");
        self.cancel.cancel();
        self.ended().await
    }

    /// Ends it without telling anyone, without waiting.
    pub fn remove(&self) {
        self.life().removed = true;
        self.cancel.cancel();
    }

    fn end_if_created(&self, why: &str) {
        if self.life().state == State::Created {
            self.finish(KILLED, Reason::Error, why.to_owned());
        }
    }

    /// Notes how it ended, once.
    pub fn finish(&self, code: i32, reason: Reason, mut message: String) {
        if message.len() > LONGEST_MESSAGE {
            message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
        }
        let exit = Exit { code, reason, message, at: Timestamp::now() };
        {
            let mut life = self.life();
            let started_at = match &life.state {
                State::Created => None,
                State::Running { started_at } => Some(*started_at),
                State::Exited { .. } => return,
            };
            life.state = State::Exited { started_at, exit: exit.clone() };
            if !life.removed {
                // Under the same lock: who sees the state finds the notice.
                self.common.outbox.exited(&self.spec.id, exit);
            }
        }
        tracing::debug!(id = self.spec.id, code, %reason, "container ended");
        self.cancel.cancel();
        self.log.end();
        drop(self.input().take());
        self.ended.send_replace(true);
    }

    /// Returns when it has ended. Cancel-safe.
    pub async fn ended(&self) -> Exit {
        // The sender lives as long as this does, so waiting cannot fail.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
        match &self.life().state {
            State::Exited { exit, .. } => exit.clone(),
            State::Created | State::Running { .. } => unreachable!("`ended` is set after the state"),
        }
    }

    pub fn status(&self) -> Status {
        Status {
            id: self.spec.id.clone(),
            pod: self.spec.pod.clone(),
            kind: self.program.kind(),
            created_at: self.created_at,
            state: self.life().state.clone(),
            log_path: self.spec.log_path.clone(),
            port: self.program.http.is_some().then(|| http::port(&self.spec).ok()).flatten(),
        }
    }

    pub fn stats(&self) -> Stats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            cpu_nanos: self.queue.cpu_nanos(),
            memory_bytes: self.budget.used(),
            memory_peak_bytes: self.budget.peak(),
            memory_limit_bytes: self.budget.limit().unwrap_or(0),
            instances: load(&self.counters.instances),
            requests: load(&self.counters.requests),
            traps: load(&self.counters.traps),
            refused: load(&self.counters.refused),
        }
    }

    /// What to reserve for one more instance.
    pub fn typical(&self) -> u64 {
        self.typical.load(Ordering::Relaxed)
    }

    /// An instance ended that had needed this much: up at once, down slowly.
    pub fn learn(&self, needed: u64) {
        let least = self.program.initial_bytes + HOST_BYTES;
        let next = |typical: u64| {
            Some(if needed > typical { needed } else { (typical - (typical - needed) / 16).max(least) })
        };
        let _ = self.typical.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// A request ended in a trap: counted, logged, and told at most once a minute.
    pub fn trapped(&self, message: &str) {
        let traps = self.counters.traps.fetch_add(1, Ordering::Relaxed) + 1;
        self.log.say(message);
        let since = {
            let mut life = self.life();
            let now = Instant::now();
            if life.warned.is_some_and(|warned| now - warned < WARN_EVERY) {
                return;
            }
            life.warned = Some(now);
            let since = traps.saturating_sub(life.traps_warned);
            life.traps_warned = traps;
            since
        };
        let first = message.lines().take(2).collect::<Vec<_>>().join(" ");
        self.common.outbox.warning(&self.spec.id, first, since);
    }
}
