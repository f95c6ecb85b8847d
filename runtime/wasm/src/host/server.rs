//! Answers the shim.

use super::{
    attach,
    channel::Channel,
    container::{Common, Container},
    exec,
    executor::Pool,
    loader::Loader,
};
use crate::{
    model::{ContainerSpec, State},
    protocol::{Failure, LIST_PAGE, Listed, Notice, Reply, Request, Streamed, VERSION, Work},
};
use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio_util::sync::CancellationToken;
use wharf_link::{Answer, Call, Emitter, Listener, Socket, serve};

/// Everything the host has.
pub(crate) struct Server {
    pub pool: Pool,
    pub loader: Loader,
    pub common: Arc<Common>,
    pub containers: Mutex<BTreeMap<String, Arc<Container>>>,
    pub shutdown: CancellationToken,
}

impl Server {
    /// Takes connections until it is told to shut down.
    pub async fn run(self: Arc<Self>, listener: Listener) {
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(socket) => drop(tokio::spawn(self.clone().connection(socket))),
                Err(cause) => {
                    tracing::warn!(%cause, "could not accept a connection of the shim");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, socket: Socket) {
        let (mut calls, emitter) = serve::<Request, Reply, Notice>(socket);
        // What streams over this connection ends with it.
        let streams = CancellationToken::new();
        let _end = streams.clone().drop_guard();
        let mut interrupts: HashMap<u64, CancellationToken> = HashMap::new();
        while let Some(call) = calls.next().await {
            let call = match call {
                Ok(call) => call,
                Err(cause) => {
                    tracing::warn!(%cause, "a connection of the shim broke");
                    return;
                }
            };
            // In the order of the calls: what is told before the answer to `Subscribe` is told on this connection.
            match &call.request {
                Request::Subscribe => self.subscribe(&emitter),
                Request::Interrupt { call } => {
                    interrupts.remove(call).inspect(CancellationToken::cancel);
                }
                _ => {}
            }
            let Call { request, fds, answer } = call;
            if let Request::Stream(request) = request {
                let cancel = streams.child_token();
                interrupts.retain(|_, cancel| !cancel.is_cancelled());
                interrupts.insert(request.call, cancel.clone());
                tokio::spawn(self.clone().stream(*request, fds, cancel, answer));
            } else {
                tokio::spawn(self.clone().answer(request, fds, answer));
            }
        }
    }

    fn subscribe(&self, emitter: &Emitter<Reply, Notice>) {
        let mut notices = self.common.outbox.subscribe();
        let emitter = emitter.clone();
        tokio::spawn(async move {
            loop {
                let notice = tokio::select! {
                    () = emitter.closed() => return,
                    notice = notices.recv() => notice,
                };
                let Some(notice) = notice else { return }; // another connection took over
                if emitter.emit(notice, Vec::new()).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Work over descriptors, until it ends or `cancel` is cancelled.
    async fn stream(
        self: Arc<Self>,
        request: Streamed,
        fds: Vec<OwnedFd>,
        cancel: CancellationToken,
        answer: Answer<Reply, Notice>,
    ) {
        let work = async {
            let container = self.find(&request.id)?;
            container.check_running()?;
            let _place = container.common.streams.clone().try_acquire_owned().map_err(|_| {
                let why = "too many programs and clients are in the node's wasm containers already";
                Failure::Exec { why: why.to_owned() }
            })?;
            let channels = channels(request.stdio, fds)?;
            match request.what {
                Work::Exec(exec) => exec::run(&container, exec, channels, cancel.clone()).await,
                Work::Attach => attach::run(&container, channels).await,
            }
        };
        let ended = tokio::select! {
            biased;
            () = cancel.cancelled() => return, // nobody waits for an answer
            ended = work => ended,
        };
        cancel.cancel(); // the connection forgets it
        let reply = ended.map_or_else(Reply::Failed, |code| Reply::Ended { code });
        let _ = answer.reply(reply, Vec::new()).await;
    }

    async fn answer(self: Arc<Self>, request: Request, fds: Vec<OwnedFd>, answer: Answer<Reply, Notice>) {
        let last = matches!(request, Request::Shutdown);
        let reply = self.act(request, fds).await.unwrap_or_else(Reply::Failed);
        let _ = answer.reply(reply, Vec::new()).await; // a caller who left does not matter
        if last {
            self.shutdown.cancel();
        }
    }

    async fn act(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Reply, Failure> {
        match request {
            Request::Hello => return Ok(Reply::Hello { version: VERSION, pid: std::process::id() }),
            // These are the connection's, which has done what there is to do.
            Request::Subscribe | Request::Shutdown | Request::Stream(_) | Request::Interrupt { .. } => {}
            Request::Acknowledge { id } => self.common.outbox.forget(&id),
            Request::Precompile { module, digest } => drop(self.loader.load(&module, &digest).await?),
            Request::Create(spec) => self.create(*spec).await?,
            Request::Start { id } => self.find(&id)?.start(fds.into_iter().next())?,
            Request::Stop { id, grace } => return Ok(Reply::Exit(self.find(&id)?.stop(grace).await)),
            Request::Kill { id } => return Ok(Reply::Exit(self.find(&id)?.kill().await)),
            Request::Remove { id } => self.remove(&id),
            Request::ReopenLog { id } => {
                let container = self.find(&id)?;
                container.log.touch().map_err(|cause| Failure::Spec {
                    why: format!("could not open the log {:?}: {cause}", container.log.path()),
                })?;
            }
            Request::Status { id } => return Ok(Reply::Status(self.find(&id)?.status())),
            Request::Stats { id } => return Ok(Reply::Stats(self.find(&id)?.stats())),
            Request::List { after } => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                let containers = self.lock();
                let page = containers.range((from, Bound::Unbounded)).take(LIST_PAGE);
                return Ok(Reply::List(page.map(|(_, container)| self.list_one(container)).collect()));
            }
        }
        Ok(Reply::Done)
    }

    fn list_one(&self, container: &Container) -> Listed {
        let status = container.status();
        let untold = match status.state {
            State::Created | State::Running { .. } => true,
            State::Exited { .. } => self.common.outbox.holds(&status.id),
        };
        Listed { status, untold }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Result<Arc<Container>, Failure> {
        self.lock().get(id).cloned().ok_or_else(|| Failure::Unknown { id: id.to_owned() })
    }

    async fn create(&self, spec: ContainerSpec) -> Result<(), Failure> {
        let exists = |id: &str| Failure::Exists { id: id.to_owned() };
        if self.lock().contains_key(&spec.id) {
            return Err(exists(&spec.id));
        }
        check_mounts(&spec)?;
        let program = self.loader.load(&spec.module, &spec.digest).await?;
        let queue = self.pool.queue(spec.cpu);
        let id = spec.id.clone();
        let container = Container::new(spec, program, self.common.clone(), queue);
        let mut containers = self.lock();
        if containers.contains_key(&id) {
            return Err(exists(&id)); // made by another call while this one loaded
        }
        containers.insert(id, container);
        Ok(())
    }

    fn remove(&self, id: &str) {
        let container = self.lock().remove(id);
        if let Some(container) = container {
            container.remove();
        }
        self.common.outbox.forget(id);
    }
}

/// The descriptors of a call, at their places.
fn channels(there: [bool; 3], fds: Vec<OwnedFd>) -> Result<[Option<Arc<Channel>>; 3], Failure> {
    let mut fds = fds.into_iter();
    let mut channels = [const { None }; 3];
    for (place, _) in channels.iter_mut().zip(there).filter(|(_, there)| *there) {
        let fd = fds.next().ok_or_else(|| Failure::Internal { why: "a descriptor is missing".to_owned() })?;
        let channel = Channel::new(fd)
            .map_err(|cause| Failure::Exec { why: format!("a standard stream cannot be used: {cause}") })?;
        *place = Some(Arc::new(channel));
    }
    Ok(channels)
}

/// A guest is given directories: WASI opens nothing else.
fn check_mounts(spec: &ContainerSpec) -> Result<(), Failure> {
    match spec.mounts.iter().find(|mount| !mount.host.is_dir()) {
        Some(mount) => Err(Failure::Spec { why: format!("{} is no directory", mount.host.display()) }),
        None => Ok(()),
    }
}
