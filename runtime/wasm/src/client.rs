//! The shim's side: a handle to the host process, and the events that come from it.

use crate::{
    launch::{self, Config},
    model::{ContainerSpec, Event, Exec, Exit, Reason, Stats, Status, Stdio},
    protocol::{self, Failure, LIST_PAGE, Listed, Notice, Reply, Request, Streamed, Work},
};
use jiff::Timestamp;
use std::{
    collections::HashSet,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;
use wharf_link::{Peer, Socket};

type Link = Peer<Request, Reply, Notice>;
type Notices = wharf_link::Events<Notice>;

/// Why the wasm host did not do what was asked. Users of the crate write `wharf_wasm::Error`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's own answer. Also for a container whose host died: nothing knows it any more.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The host process could not be started.
    #[error("the wasm host did not start: {why}")]
    Start { why: String },
    /// The host died while it was asked. Its containers are reported as exited; a later call starts a new one.
    #[error("the wasm host died")]
    Died,
    #[error("connection to the wasm host")]
    Link(#[source] wharf_link::Error),
}

impl Error {
    /// Whether asking again may help, with nothing else changed.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Start { .. } | Self::Died | Self::Link(_) | Self::Refused(Failure::Internal { .. }) => true,
            Self::Refused(
                Failure::Unknown { .. }
                | Failure::Exists { .. }
                | Failure::Module { .. }
                | Failure::Spec { .. }
                | Failure::Exited { .. }
                | Failure::NotRunning { .. }
                | Failure::Exec { .. },
            ) => false,
        }
    }
}

/// A handle to the wasm host of one trust domain. Clones share the connection. Dropping the last one leaves the host
/// and its containers as they are; [`Host::start`] with the same configuration finds them again.
#[derive(Debug, Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    /// Held while a host is found or started, so that two callers do not start two.
    starting: tokio::sync::Mutex<()>,
    state: Mutex<Connection>,
    events: mpsc::UnboundedSender<Event>,
    /// Names the calls that can be interrupted.
    calls: AtomicU64,
}

#[derive(Debug, Default)]
struct Connection {
    link: Option<Link>,
    /// Containers whose end was not told yet.
    alive: HashSet<String>,
}

/// What happens to the containers of a [`Host`].
#[derive(Debug)]
pub struct Events {
    /// Not bounded: one exit a container at most, and a warning a minute.
    queue: mpsc::UnboundedReceiver<Event>,
    host: Weak<Inner>,
}

impl Events {
    /// The next event; `None` after every [`Host`] was dropped. Cancel-safe.
    ///
    /// An exit counts as told when this returns it. One that was not taken before this process ended is told again to
    /// the next; [`Host::status`] has it until the container is removed.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.queue.recv().await?;
        if let Event::Exited { id, .. } = &event
            && let Some(host) = self.host.upgrade()
            && let Some(link) = host.with(|connection| connection.link.clone())
        {
            let id = id.clone();
            // Beside this call, so that dropping its future does not lose the acknowledgement.
            tokio::spawn(async move { link.call(Request::Acknowledge { id }, Vec::new()).await });
        }
        Some(event)
    }
}

impl Inner {
    fn with<T>(&self, act: impl FnOnce(&mut Connection) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The connection, made anew if there is none: to a host that runs, or to a new one.
    async fn connect(self: &Arc<Self>) -> Result<Link, Error> {
        let _one = self.starting.lock().await;
        match self.with(|connection| connection.link.clone()) {
            Some(link) if !link.is_lost() => return Ok(link),
            Some(_) => {
                if let Some((link, notices)) = self.recover().await {
                    self.follow(notices);
                    return Ok(link);
                }
            }
            None => {}
        }
        let socket = match launch::find(&self.config.state_dir).await? {
            Some(socket) => socket,
            None => launch::start(&self.config).await?,
        };
        let (link, notices) = self.adopt(socket).await?;
        self.follow(notices);
        Ok(link)
    }

    /// Makes this the connection: learns what runs, and subscribes to its notices.
    async fn adopt(&self, socket: Socket) -> Result<(Link, Notices), Error> {
        let (link, notices) = Peer::over(socket);
        match call(&link, Request::Hello).await? {
            Reply::Hello { version: protocol::VERSION, .. } => {}
            Reply::Hello { version, .. } => {
                let why = format!("a running host speaks protocol {version}, not {}", protocol::VERSION);
                return Err(Error::Start { why });
            }
            other => return Err(unexpected(&other)),
        }
        let found =
            list(&link).await?.into_iter().filter(|status| status.untold).map(|status| status.status.id);
        let found: Vec<String> = found.collect();
        self.with(|connection| {
            connection.alive.extend(found);
            connection.link = Some(link.clone());
        });
        done(call(&link, Request::Subscribe).await?)?;
        Ok((link, notices))
    }

    /// Passes notices on until the connection ends for good.
    fn follow(self: &Arc<Self>, mut notices: Notices) {
        let host = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                while let Some(Ok(notice)) = notices.next().await {
                    let Some(host) = host.upgrade() else { return };
                    host.tell(notice.body);
                }
                let Some(host) = host.upgrade() else { return };
                let _one = host.starting.lock().await;
                if !host.with(|connection| connection.link.as_ref().is_some_and(Peer::is_lost)) {
                    return; // a call saw the loss first, and another task follows
                }
                match host.recover().await {
                    Some((_, new)) => notices = new,
                    None => return,
                }
            }
        });
    }

    /// The connection broke: either only that, or the host is gone, and its containers with it.
    async fn recover(&self) -> Option<(Link, Notices)> {
        self.with(|connection| connection.link = None);
        if let Ok(Some(socket)) = launch::find(&self.config.state_dir).await
            && let Ok(found) = self.adopt(socket).await
        {
            return Some(found);
        }
        let dead = self.with(|connection| {
            connection.link = None;
            std::mem::take(&mut connection.alive)
        });
        tracing::error!(containers = dead.len(), "wasm host died");
        let exit = Exit {
            code: 137, // as of a process that was killed
            reason: Reason::Error,
            message: "the wasm host process died".to_owned(),
            at: Timestamp::now(),
        };
        for id in dead {
            let _ = self.events.send(Event::Exited { id, exit: exit.clone() });
        }
        None
    }

    fn tell(&self, notice: Notice) {
        let event = match notice {
            // Told again after a reconnection: the first time counts.
            Notice::Exited { id, .. } if !self.with(|connection| connection.alive.remove(&id)) => return,
            Notice::Exited { id, exit } => Event::Exited { id, exit },
            Notice::Warning { id, message, traps, at } => Event::Warning { id, message, traps, at },
        };
        let _ = self.events.send(event); // nobody takes events: nobody misses them
    }
}

async fn call(link: &Link, request: Request) -> Result<Reply, Error> {
    call_with(link, request, Vec::new()).await
}

async fn call_with(link: &Link, request: Request, fds: Vec<OwnedFd>) -> Result<Reply, Error> {
    match link.call(request, fds).await {
        Ok(message) => match message.body {
            Reply::Failed(failure) => Err(failure.into()),
            reply => Ok(reply),
        },
        Err(wharf_link::Error::Closed) => Err(Error::Died),
        Err(wharf_link::Error::Remote(why)) => Err(Error::Refused(Failure::Internal { why })),
        Err(cause) => Err(Error::Link(cause)),
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::Refused(Failure::Internal { why: format!("unexpected answer {reply:?}") })
}

fn done(reply: Reply) -> Result<(), Error> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

async fn list(link: &Link) -> Result<Vec<Listed>, Error> {
    let mut all: Vec<Listed> = Vec::new();
    loop {
        let after = all.last().map(|listed| listed.status.id.clone());
        let Reply::List(page) = call(link, Request::List { after }).await? else {
            return Err(Error::Refused(Failure::Internal { why: "not a list".to_owned() }));
        };
        let last = page.len() < LIST_PAGE;
        all.extend(page);
        if last {
            return Ok(all);
        }
    }
}

/// Tells the host that nobody waits for a call any more.
struct Interrupt {
    /// None once it is answered.
    link: Option<Link>,
    call: u64,
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        if let (Some(link), Ok(runtime)) = (self.link.take(), tokio::runtime::Handle::try_current()) {
            let call = self.call;
            runtime.spawn(async move { link.call(Request::Interrupt { call }, Vec::new()).await });
        }
    }
}

impl Host {
    /// Finds the host that runs in `config.state_dir`, or starts one.
    ///
    /// A container that the caller knows and [`Host::list`] does not was lost with an earlier host process.
    pub async fn start(config: Config) -> Result<(Self, Events), Error> {
        let (events, queue) = mpsc::unbounded_channel();
        let inner = Inner {
            config,
            starting: Default::default(),
            state: Default::default(),
            events,
            calls: AtomicU64::new(0),
        };
        let inner = Arc::new(inner);
        inner.connect().await?;
        let host = Arc::downgrade(&inner);
        Ok((Self { inner }, Events { queue, host }))
    }

    /// Asks the host that runs.
    async fn ask(&self, id: &str, request: impl FnOnce(String) -> Request) -> Result<Reply, Error> {
        call(&self.link(id)?, request(id.to_owned())).await
    }

    /// Compiles a module into the cache, if it is not there, so that [`Host::create`] is quick. Also checks it.
    ///
    /// # Errors
    /// [`Error::Module`] with what is wrong with it.
    pub async fn precompile(&self, module: &Path, digest: &str) -> Result<(), Error> {
        let link = self.inner.connect().await?;
        let request = Request::Precompile { module: module.to_owned(), digest: digest.to_owned() };
        done(call(&link, request).await?)
    }

    /// Makes a container ready to start: its code is loaded (and compiled, if it never was).
    pub async fn create(&self, spec: ContainerSpec) -> Result<(), Error> {
        let link = self.inner.connect().await?;
        let id = spec.id.clone();
        // Before it is made, so that no death of the host falls between.
        let known = !self.inner.with(|connection| connection.alive.insert(id.clone()));
        let created = call(&link, Request::Create(Box::new(spec))).await.and_then(done);
        if created.is_err() && !known {
            self.inner.with(|connection| connection.alive.remove(&id));
        }
        created
    }

    /// A service listens when this returns: on `socket`, which somebody made for it in its pod's namespace, or at the
    /// address of its spec. One that runs already is no error.
    pub async fn start_container(&self, id: &str, socket: Option<OwnedFd>) -> Result<(), Error> {
        let link = self.link(id)?;
        let request = Request::Start { id: id.to_owned() };
        done(call_with(&link, request, socket.into_iter().collect()).await?)
    }

    /// Runs a program in a container that runs, with its environment, mounts and limits, and returns its exit code when
    /// it has ended. It ends with the container, 137, and when this future is dropped.
    ///
    /// # Errors
    /// [`Failure::NotRunning`]; [`Failure::Exec`] if the container's program answers requests alone.
    pub async fn exec(&self, id: &str, exec: Exec, stdio: Stdio) -> Result<i32, Error> {
        self.stream(id, Work::Exec(exec), stdio).await
    }

    /// Copies what the container writes from now on to the output descriptors, and the input to its standard input.
    /// Returns its exit code when it has ended. A dropped future leaves it alone again.
    ///
    /// # Errors
    /// [`Failure::NotRunning`]; [`Failure::Exec`] if the descriptors do not take what it writes.
    pub async fn attach(&self, id: &str, stdio: Stdio) -> Result<i32, Error> {
        self.stream(id, Work::Attach, stdio).await
    }

    async fn stream(&self, id: &str, what: Work, stdio: Stdio) -> Result<i32, Error> {
        let link = self.link(id)?;
        let call = self.inner.calls.fetch_add(1, Ordering::Relaxed);
        let Stdio { stdin, stdout, stderr } = stdio;
        let fds = [stdin, stdout, stderr];
        let stdio = fds.each_ref().map(Option::is_some);
        let request = Request::Stream(Box::new(Streamed { id: id.to_owned(), call, what, stdio }));
        let mut interrupt = Interrupt { link: Some(link.clone()), call };
        let answer = call_with(&link, request, fds.into_iter().flatten().collect()).await;
        interrupt.link = None;
        match answer? {
            Reply::Ended { code } => Ok(code),
            other => Err(unexpected(&other)),
        }
    }

    /// The host that runs; if none does, the container `id` is not there.
    fn link(&self, id: &str) -> Result<Link, Error> {
        let link = self.inner.with(|connection| connection.link.clone());
        link.ok_or_else(|| Error::Refused(Failure::Unknown { id: id.to_owned() }))
    }

    /// Ends a container: a service takes no new connection and ends when its requests are answered, at the latest
    /// after `grace`; a command ends at once. Returns when it has ended; one that exited before is no error.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<Exit, Error> {
        match self.ask(id, |id| Request::Stop { id, grace }).await? {
            Reply::Exit(exit) => Ok(exit),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends a container at once.
    pub async fn kill(&self, id: &str) -> Result<Exit, Error> {
        match self.ask(id, |id| Request::Kill { id }).await? {
            Reply::Exit(exit) => Ok(exit),
            other => Err(unexpected(&other)),
        }
    }

    /// Forgets a container, ending it if it runs, then without an event. One that is not there is no error.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        self.inner.with(|connection| connection.alive.remove(id));
        match self.ask(id, |id| Request::Remove { id }).await {
            Err(Error::Refused(Failure::Unknown { .. })) => Ok(()),
            other => done(other?),
        }
    }

    /// After the log file was moved away: makes it anew. Lines are never written to the old one from then on.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        done(self.ask(id, |id| Request::ReopenLog { id }).await?)
    }

    pub async fn status(&self, id: &str) -> Result<Status, Error> {
        match self.ask(id, |id| Request::Status { id }).await? {
            Reply::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn stats(&self, id: &str) -> Result<Stats, Error> {
        match self.ask(id, |id| Request::Stats { id }).await? {
            Reply::Stats(stats) => Ok(stats),
            other => Err(unexpected(&other)),
        }
    }

    /// Every container that was not removed, in order of id.
    pub async fn list(&self) -> Result<Vec<Status>, Error> {
        match self.inner.with(|connection| connection.link.clone()) {
            Some(link) => Ok(list(&link).await?.into_iter().map(|listed| listed.status).collect()),
            None => Ok(Vec::new()),
        }
    }

    /// The process id of the host; `None` when none runs.
    pub async fn pid(&self) -> Option<u32> {
        let link = self.inner.with(|connection| connection.link.clone())?;
        match call(&link, Request::Hello).await {
            Ok(Reply::Hello { pid, .. }) => Some(pid),
            _ => None,
        }
    }

    /// Ends the host process and every container in it, without events.
    pub async fn shutdown(self) -> Result<(), Error> {
        let Some(link) = self.inner.with(|connection| {
            connection.alive.clear();
            connection.link.clone()
        }) else {
            return Ok(());
        };
        match call(&link, Request::Shutdown).await {
            Ok(_) | Err(Error::Died) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
