//! The shim's side: what callers ask, and the tasks that follow each container.

use crate::{
    bundle, cgroup,
    details::{self, Details},
    end::{end_makers, remove_dir},
    error::{Error, at},
    overlay,
    pause::{Pause, PauseSpec, start_time},
    spec::{ContainerSpec, Resources, Rootfs},
    state::{self, Dir, Exit, Meta, Status},
    wire::{Fork, Nothing, PauseReady, Plan, Reply, Request},
    zygote::Zygote,
};
use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;
use wharf_link::{Peer, Socket};

/// Events that may wait for the shim: then the tasks that bring them wait.
const EVENTS: usize = 256;
/// A monitor answers everything but create and start from memory.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);
/// On top of the deadline that a monitor keeps itself.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct Config {
    /// Volatile and root's own, e.g. `/run/wharf/oci`; made if missing. One running [`Oci`] per directory.
    pub state_dir: PathBuf,
    /// What to execute as the zygote: a program that calls [`crate::zygote::main`] for these arguments.
    pub exe: PathBuf,
    pub exe_args: Vec<OsString>,
    /// Where containers' cgroups are made whose spec does not say.
    pub cgroup_parent: String,
    /// For each call into libcontainer; in seconds.
    pub deadline: u64,
}

impl Config {
    /// Re-executes this program with the argument `zygote`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            exe: PathBuf::from("/proc/self/exe"),
            exe_args: vec!["zygote".into()],
            cgroup_parent: "/wharf".to_owned(),
            deadline: 60,
        }
    }
}

/// News that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A container is over. Once per container, whichever shim ran when it happened.
    Exited { id: String, exit: Exit },
    /// A pause process died without being asked to. Its namespaces live on in those who joined them.
    PauseExited { id: String },
}

/// Where [`Event`]s come out.
#[derive(Debug)]
pub struct Events {
    queue: mpsc::Receiver<Event>,
    containers: PathBuf,
}

impl Events {
    /// The next event; `None` once every [`Oci`] handle is dropped. An exit counts as reported when it is returned.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.queue.recv().await?;
        if let Event::Exited { id, .. } = &event {
            // If its directory is gone, so is the need to remember.
            let _ = fs::write(Dir(self.containers.join(id)).reported(), "");
        }
        Some(event)
    }
}

pub(crate) type Link = Peer<Request, Reply, Nothing>;

/// A container that there is.
pub(crate) struct Entry {
    pub dir: Dir,
    pub meta: Meta,
    pub status: watch::Sender<Status>,
    /// None when there is no monitor (any more), or not yet.
    pub link: Mutex<Option<Link>>,
}

impl Entry {
    pub fn new(dir: Dir, meta: Meta, status: Status) -> Arc<Self> {
        Arc::new(Self { dir, meta, status: watch::Sender::new(status), link: Mutex::new(None) })
    }

    pub fn link(&self) -> Option<Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_link(&self, link: Option<Link>) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }
}

pub(crate) struct Inner {
    pub config: Config,
    pub parents: cgroup::Parents,
    pub containers: Mutex<HashMap<String, Arc<Entry>>>,
    pub pauses: Mutex<HashMap<String, Pause>>,
    pub events: mpsc::Sender<Event>,
    pub stop: CancellationToken,
    zygote: Zygote,
}

/// The containers of one node. Clones are handles to the same; when the last is dropped, the zygote ends and the
/// containers run on, to be found by the next [`Oci::start`].
///
/// A repeated call fails without changing anything; a dropped future's work is still finished.
#[derive(Clone)]
pub struct Oci {
    pub(crate) inner: Arc<Inner>,
    _stop: Arc<DropGuard>,
}

impl Oci {
    /// Starts the zygote and finds what an earlier run left. Exits that nobody was told of come first in the events.
    pub async fn start(config: Config) -> Result<(Self, Events), Error> {
        let containers = config.state_dir.join("containers");
        for dir in [&config.state_dir, &containers, &config.state_dir.join("pauses")] {
            let mut builder = fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.recursive(true).create(dir).map_err(at("make", dir))?;
        }
        let (events, queue) = mpsc::channel(EVENTS);
        let stop = CancellationToken::new();
        let inner = Arc::new(Inner {
            zygote: Zygote::start(&config, stop.clone())?,
            parents: cgroup::Parents::load(config.state_dir.join("cgroups.json")),
            containers: Mutex::default(),
            pauses: Mutex::default(),
            events,
            stop: stop.clone(),
            config,
        });
        let guard = Arc::new(stop.drop_guard());
        inner.clone().recover().await?;
        Ok((Self { inner, _stop: guard }, Events { queue, containers }))
    }

    /// Makes a container that waits for [`Oci::start_container`]; gives its first process's pid.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Invalid`]; [`Error::Refused`] with the reason of libcontainer or the kernel, and
    /// then nothing is left of it.
    pub async fn create(&self, spec: ContainerSpec) -> Result<i32, Error> {
        check_id(&spec.id)?;
        let parent = spec.cgroup_parent.as_deref().unwrap_or(&self.inner.config.cgroup_parent);
        let plain = parent.starts_with('/') && !parent.split('/').any(|part| part == "..");
        if !plain {
            return Err(Error::Invalid(format!("{parent} is no absolute cgroup path")));
        }
        let cgroup = format!("{}/{}", parent.trim_end_matches('/'), spec.id);
        let owned = match &spec.rootfs {
            Rootfs::Overlay { upper, work, .. } => vec![upper.clone(), work.clone()],
            Rootfs::Dir(_) => Vec::new(),
        };
        let dir = Dir(self.inner.config.state_dir.join("containers").join(&spec.id));
        let meta = Meta { id: spec.id.clone(), cgroup, owned };
        let entry = Entry::new(dir, meta, Status::Creating);
        self.inner.containers(|map| match map.entry(spec.id.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => Err(Error::Exists(spec.id.clone())),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(entry.clone());
                Ok(())
            }
        })?;
        let inner = self.inner.clone();
        finish(tokio::spawn(async move {
            let id = spec.id.clone();
            let created = inner.create(spec, &entry).await;
            if created.is_err() {
                if let Err(error) = inner.clean_up(&entry).await {
                    warn!(id, %error, "clean-up after a failed create failed");
                }
                inner.containers(|map| map.remove(&id));
            }
            created
        }))
        .await
    }

    /// Lets a created container run.
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let entry = self.inner.entry(id)?;
        self.expect(&entry, |status| matches!(status, Status::Created { .. }))?;
        let wait = Duration::from_secs(self.inner.config.deadline) + GRACE;
        let reply = self.inner.ask(&entry, Request::Start, wait).await?;
        if let Reply::Status(status) = reply {
            entry.advance(status);
        }
        Ok(())
    }

    /// Sends a signal to the container's first process.
    ///
    /// # Errors
    /// [`Error::State`] when it is over.
    pub async fn signal(&self, id: &str, signal: i32) -> Result<(), Error> {
        let entry = self.inner.entry(id)?;
        self.expect(&entry, |status| !matches!(status, Status::Exited(_)))?;
        match self.inner.ask(&entry, Request::Signal(signal), ANSWER).await {
            // Its monitor leaves with it, and may have while this was on its way.
            Err(Error::Link(wharf_link::Error::Closed)) => {
                Err(Error::State { id: id.to_owned(), is: "over" })
            }
            answer => answer.map(drop),
        }
    }

    /// Goes on with the log in a new file of the same name.
    ///
    /// # Errors
    /// [`Error::State`] when it is not running.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let entry = self.inner.entry(id)?;
        self.expect(&entry, |status| matches!(status, Status::Running { .. }))?;
        self.inner.ask(&entry, Request::ReopenLog, ANSWER).await.map(drop)
    }

    pub fn status(&self, id: &str) -> Result<Status, Error> {
        Ok(self.inner.entry(id)?.status.borrow().clone())
    }

    /// The OCI runtime spec that the container was made from, if it is there.
    pub fn spec(&self, id: &str) -> Option<serde_json::Value> {
        state::read(&self.inner.entry(id).ok()?.dir.bundle().join("config.json"))
    }

    /// A namespace (`pid`, `net`, as below `/proc/PID/ns`) of a container that runs, held open. Another container joins
    /// it by the path `/proc/PID/fd/N` of who holds it.
    ///
    /// # Errors
    /// [`Error::State`] when it does not run.
    pub async fn namespace(&self, id: &str, kind: &str) -> Result<OwnedFd, Error> {
        let entry = self.inner.entry(id)?;
        self.expect(&entry, |status| matches!(status, Status::Running { .. }))?;
        let Status::Running { pid, .. } = *entry.status.borrow() else {
            return Err(Error::State { id: id.to_owned(), is: "over" });
        };
        let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
        let opened = fs::File::open(&path).map_err(at("open", &path));
        // Its monitor is its parent: while that says that it runs, no other process had its number.
        match self.inner.ask(&entry, Request::Status, ANSWER).await? {
            Reply::Status(Status::Running { pid: still, .. }) if still == pid => Ok(opened?.into()),
            _ => Err(Error::State { id: id.to_owned(), is: "over" }),
        }
    }

    /// Every container, in no order.
    pub fn list(&self) -> Vec<(String, Status)> {
        self.inner.containers(|map| {
            map.iter().map(|(id, entry)| (id.clone(), entry.status.borrow().clone())).collect()
        })
    }

    /// Waits until the container is over; at once if it is. Beside the events, not instead. Cancel-safe.
    pub async fn wait(&self, id: &str) -> Result<Exit, Error> {
        let mut status = self.inner.entry(id)?.status.subscribe();
        let over = status.wait_for(|status| matches!(status, Status::Exited(_))).await;
        match over.as_deref() {
            Ok(Status::Exited(exit)) => Ok(exit.clone()),
            _ => Err(Error::Unknown(id.to_owned())), // removed
        }
    }

    /// What it uses. `None` when it has no cgroup (any more).
    pub async fn stats(&self, id: &str) -> Result<Option<cgroup::Stats>, Error> {
        let entry = self.inner.entry(id)?;
        blocking(move || Ok(cgroup::stats(&entry.meta.cgroup))).await
    }

    /// As [`Self::stats`], and all that costs more to find out.
    pub async fn details(&self, id: &str) -> Result<Option<Details>, Error> {
        let entry = self.inner.entry(id)?;
        blocking(move || Ok(details::details(&entry.meta.cgroup))).await
    }

    /// Changes limits of a container that is not over. What is `None` stays.
    pub async fn update(&self, id: &str, resources: Resources) -> Result<(), Error> {
        let entry = self.inner.entry(id)?;
        self.expect(&entry, |status| matches!(status, Status::Created { .. } | Status::Running { .. }))?;
        blocking(move || cgroup::update(&entry.meta.cgroup, &resources)).await
    }

    /// Removes the container and everything that was made for it, killing it first if it is not over. If that fails,
    /// the container is still known and this can be called again.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        let entry = self.inner.entry(id)?;
        let inner = self.inner.clone();
        finish(tokio::spawn(async move {
            if matches!(*entry.status.borrow(), Status::Creating) {
                return Err(Error::State { id: entry.meta.id.clone(), is: Status::Creating.name() });
            }
            inner.end(&entry).await?;
            // Whoever takes it out of the map cleans up; others are told that it is unknown.
            let id = &entry.meta.id;
            if inner.containers(|map| map.remove(id)).is_none() {
                return Err(Error::Unknown(id.clone()));
            }
            let cleaned = inner.clean_up(&entry).await;
            if cleaned.is_err() {
                inner.containers(|map| map.insert(id.clone(), entry.clone()));
            }
            cleaned
        }))
        .await
    }

    /// Starts a pause process.
    pub async fn pause(&self, spec: PauseSpec) -> Result<Pause, Error> {
        check_id(&spec.id)?;
        if self.inner.pauses(|map| map.contains_key(&spec.id)) {
            return Err(Error::Exists(spec.id));
        }
        let inner = self.inner.clone();
        finish(tokio::spawn(async move { inner.pause(spec).await })).await
    }

    /// Every pause process that is known.
    pub fn pauses(&self) -> Vec<Pause> {
        self.inner.pauses(|map| map.values().cloned().collect())
    }

    /// Kills a pause process, and with a process namespace everything in it.
    pub async fn remove_pause(&self, id: &str) -> Result<(), Error> {
        let Some(pause) = self.inner.pauses(|map| map.remove(id)) else {
            return Err(Error::Unknown(id.to_owned()));
        };
        let inner = self.inner.clone();
        finish(tokio::spawn(async move {
            if let Some(process) = open_process(&pause) {
                let _ = rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL);
                if let Some(process) = watch_process(process) {
                    let _ = timeout(ANSWER, process.readable()).await;
                }
            }
            let path = inner.pause_file(&pause.id);
            fs::remove_file(&path).map_err(at("remove", &path))
        }))
        .await
    }

    pub(crate) fn expect(&self, entry: &Entry, fits: impl FnOnce(&Status) -> bool) -> Result<(), Error> {
        let status = entry.status.borrow();
        if fits(&status) {
            Ok(())
        } else {
            Err(Error::State { id: entry.meta.id.clone(), is: status.name() })
        }
    }
}

impl std::fmt::Debug for Oci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Oci").field("state_dir", &self.inner.config.state_dir).finish_non_exhaustive()
    }
}

impl Entry {
    /// A container that is over stays over, whatever an older answer says.
    pub fn advance(&self, to: Status) {
        self.status.send_if_modified(|status| {
            let fresh = !matches!(status, Status::Exited(_)) && *status != to;
            if fresh {
                *status = to;
            }
            fresh
        });
    }
}

impl Inner {
    pub fn containers<T>(&self, act: impl FnOnce(&mut HashMap<String, Arc<Entry>>) -> T) -> T {
        act(&mut self.containers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn pauses<T>(&self, act: impl FnOnce(&mut HashMap<String, Pause>) -> T) -> T {
        act(&mut self.pauses.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn entry(&self, id: &str) -> Result<Arc<Entry>, Error> {
        self.containers(|map| map.get(id).cloned()).ok_or_else(|| Error::Unknown(id.to_owned()))
    }

    pub fn pause_file(&self, id: &str) -> PathBuf {
        self.config.state_dir.join("pauses").join(format!("{id}.json"))
    }

    pub async fn ask(&self, entry: &Entry, request: Request, wait: Duration) -> Result<Reply, Error> {
        let id = &entry.meta.id;
        let Some(link) = entry.link() else {
            return Err(Error::State { id: id.clone(), is: entry.status.borrow().name() });
        };
        let answer = timeout(wait, link.call(request, Vec::new())).await;
        let answer = answer.map_err(|_| Error::Deadline { id: id.clone(), seconds: wait.as_secs() })?;
        Ok(answer?.body)
    }

    async fn create(self: &Arc<Self>, spec: ContainerSpec, entry: &Arc<Entry>) -> Result<i32, Error> {
        let (inner, prepared) = (self.clone(), entry.clone());
        let (plan, listener) = blocking(move || inner.prepare(&spec, &prepared)).await?;
        let mut retried = false;
        loop {
            match self.create_by_monitor(&plan, &listener, entry).await {
                // The zygote died with the request in its hands; nothing was made.
                Err(Error::Link(wharf_link::Error::Closed)) if !retried => {
                    retried = true;
                    let entry = entry.clone();
                    blocking(move || {
                        end_makers(&entry)?;
                        remove_dir(&entry.dir.library())
                    })
                    .await?;
                }
                outcome => return outcome,
            }
        }
    }

    async fn create_by_monitor(
        self: &Arc<Self>,
        plan: &Plan,
        listener: &UnixListener,
        entry: &Arc<Entry>,
    ) -> Result<i32, Error> {
        let io = |cause| Error::Io { what: "connect to a monitor".to_owned(), cause };
        let (ours, theirs) = UnixStream::pair().map_err(io)?;
        let fds = vec![OwnedFd::from(theirs), listener.as_fd().try_clone_to_owned().map_err(io)?];
        self.zygote.fork(Fork::Monitor, fds).await?;
        let (link, events) = Peer::over(Socket::over(ours)?);
        entry.set_link(Some(link));
        let wait = Duration::from_secs(plan.deadline) + GRACE;
        let Reply::Status(Status::Created { pid }) =
            self.ask(entry, Request::Create(Box::new(plan.clone())), wait).await?
        else {
            return Err(Error::Refused("the monitor gave another answer than was asked for".to_owned()));
        };
        entry.advance(Status::Created { pid });
        self.clone().follow(entry.clone(), events);
        Ok(pid)
    }

    /// Everything on disk, and the socket that the monitor will listen on.
    fn prepare(&self, spec: &ContainerSpec, entry: &Entry) -> Result<(Plan, UnixListener), Error> {
        let (dir, meta) = (&entry.dir, &entry.meta);
        let (oci, laid) = bundle::build(spec, &meta.cgroup, dir)?;
        let root = overlay::root(dir, false);
        fs::create_dir_all(&root).map_err(at("make", &root))?;
        state::write(&dir.meta(), meta)?;
        state::write(&dir.bundle().join("config.json"), &oci)?;
        let (own_uid, own_gid) = bundle::owner(spec, 0, 0)?;
        for owned in &meta.owned {
            fs::create_dir_all(owned).map_err(at("make", owned))?;
            std::os::unix::fs::chown(owned, Some(own_uid), Some(own_gid)).map_err(at("give away", owned))?;
        }
        let (uid, gid) = bundle::owner(spec, spec.user.uid, spec.user.gid)?;
        self.parents.keep(&meta.cgroup)?;
        let listener = wharf_link::blocking::Listener::bind(dir.socket())?.into_std();
        let plan = Plan {
            id: spec.id.clone(),
            dir: dir.0.clone(),
            runtime: spec.runtime.clone(),
            rootfs: spec.rootfs.clone(),
            cwd: bundle::cwd(spec),
            laid,
            cgroup: meta.cgroup.clone(),
            user: spec.namespaces.user.clone(),
            uid,
            gid,
            terminal: spec.terminal,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            log_path: spec.log_path.clone(),
            oom_score_adj: spec.oom_score_adj,
            deadline: self.config.deadline,
        };
        Ok((plan, listener))
    }

    async fn pause(self: &Arc<Self>, spec: PauseSpec) -> Result<Pause, Error> {
        let id = spec.id.clone();
        let mut retried = false;
        let ready = loop {
            let io = |cause| Error::Io { what: "connect to a pause process".to_owned(), cause };
            let (ours, theirs) = UnixStream::pair().map_err(io)?;
            self.zygote.fork(Fork::Pause(spec.clone()), vec![theirs.into()]).await?;
            let mut socket = Socket::over(ours)?;
            match timeout(ANSWER, socket.recv::<PauseReady>()).await {
                Err(_) => return Err(Error::Deadline { id, seconds: ANSWER.as_secs() }),
                Ok(Ok(Some(message))) => break message.body,
                Ok(Ok(None)) if !retried => retried = true, // the zygote died meanwhile
                Ok(Ok(None)) => {
                    return Err(Error::Refused(format!("the pause process of {id} died at once")));
                }
                Ok(Err(error)) => return Err(error.into()),
            }
        };
        let pid = match ready {
            PauseReady::Running { pid } => pid,
            PauseReady::Failed(why) => return Err(Error::Refused(why)),
        };
        let Some(started) = start_time(pid) else {
            return Err(Error::Refused(format!("the pause process of {id} died at once")));
        };
        let pause = Pause { id: id.clone(), pid, started };
        state::write(&self.pause_file(&id), &pause)?;
        self.adopt(pause.clone());
        Ok(pause)
    }

    /// Knows a pause process from now on, and tells when it dies.
    pub fn adopt(self: &Arc<Self>, pause: Pause) {
        self.pauses(|map| map.insert(pause.id.clone(), pause.clone()));
        let inner = self.clone();
        tokio::spawn(async move {
            let process = open_process(&pause).and_then(watch_process);
            if let Some(process) = process {
                tokio::select! {
                    () = inner.stop.cancelled() => return,
                    _ = process.readable() => {}
                }
            }
            // One that was removed on purpose is not news.
            let known = inner.pauses(|map| map.get(&pause.id) == Some(&pause));
            if known {
                let _ = inner.events.send(Event::PauseExited { id: pause.id }).await;
            }
        });
    }
}

/// The process, if it is still the same one.
fn open_process(pause: &Pause) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pause.pid)?;
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK).ok()?;
    (start_time(pause.pid) == Some(pause.started)).then_some(process)
}

/// Readable when the process has ended.
#[expect(unsafe_code, reason = "registering a descriptor wants it to stay the same and open")]
fn watch_process(process: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one open descriptor until it is dropped, and the AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }.ok()
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    finish(tokio::task::spawn_blocking(work)).await
}

/// Waits for a task that goes on if the caller does not wait.
async fn finish<T>(task: tokio::task::JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    match task.await {
        Ok(outcome) => outcome,
        Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
        Err(_) => Err(Error::Refused("the runtime shut down".to_owned())),
    }
}

fn check_id(id: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
    if !id.is_empty() && id.len() <= 128 && id.bytes().all(plain) && !matches!(id, "." | "..") {
        return Ok(());
    }
    Err(Error::Invalid(format!("{id:?} cannot be an id")))
}
