//! One container's keeper: a single-threaded process between the container and whichever shim there is.
//!
//! It waits in one `poll` for: its children's end, requests, and the container's output. When the container's first
//! process ends it kills what else is in the container's cgroup, empties the pipes, writes `exit.json` and ends; the
//! connections that close with it are the news.

mod attach;
mod binary;
mod create;
mod exec;
mod log;

use crate::{
    cgroup,
    state::{self, Dir, Exit, Status},
    sys, terminal,
    wire::{Nothing, Plan, Reply, Request},
};
use attach::Follower;
use create::Stdio;
use exec::Exec;
use log::{Lines, Log};
use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use rustix::fs::FlockOperation;
use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::{Duration, Instant},
};
use wharf_link::{
    Wire, WireReply,
    blocking::{Listener, Socket},
};

/// Connections at a time: one shim, and one that takes over from it.
const CLIENTS: usize = 8;
/// How long the pipes may stay open after everything in the container's cgroup was killed: only a process that had
/// left the cgroup can hold them.
const DRAIN: Duration = Duration::from_secs(2);

/// The container as it is now; there is none before.
struct Running {
    plan: Plan,
    pid: Pid,
    started_at: Option<String>,
    outputs: Vec<Output>,
    log: Option<Log>,
    /// Kept open, so that a container that reads it waits; a terminal is among the outputs.
    stdin: Option<OwnedFd>,
    /// What else was started in it.
    execs: Vec<Exec>,
    followers: Vec<Follower>,
}

struct Output {
    file: File,
    lines: Lines,
}

/// A connection, and the number that tells it from others for as long as the monitor lives.
struct Client {
    key: u64,
    socket: Socket,
}

impl Client {
    /// Whether it went. Answers are small: one that does not fit is to a client that stopped reading.
    fn answer(&mut self, id: u64, answer: Result<(Reply, Vec<OwnedFd>), String>) -> bool {
        let (wire, fds): (WireReply<Reply, Nothing>, _) = match answer {
            Ok((reply, fds)) => (WireReply::Reply { id, reply }, fds),
            Err(why) => (WireReply::Refused { id, why }, Vec::new()),
        };
        self.socket.send(&wire, fds).is_ok()
    }
}

struct Monitor {
    listener: Option<Listener>,
    clients: Vec<Client>,
    /// The next client's.
    key: u64,
    signals: SignalFd,
    /// A call into the library may have taken the signal of a child that ended.
    unreaped: bool,
    /// [`Dir::lock`]
    lock: Option<File>,
    container: Option<Running>,
}

/// The monitor's whole life, in a fork of the zygote.
pub(crate) fn run(connection: UnixStream, listener: UnixListener) -> ! {
    let _ = rustix::thread::set_name(c"wharf-monitor");
    let _ = nix::unistd::setsid();
    let _ = nix::sys::prctl::set_child_subreaper(true);
    sys::set_disposition(Signal::SIGPIPE, true);
    let outcome = Monitor::new(connection, listener).and_then(|mut monitor| monitor.serve());
    sys::leave(if outcome.is_ok() { 0 } else { 1 })
}

/// What an accepted request asks of the loop beside its answer.
enum Next {
    Go,
    /// This client is gone.
    Gone,
    /// There is no container and will be none.
    Leave,
}

impl Monitor {
    fn new(connection: UnixStream, listener: UnixListener) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        connection.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        let clients = vec![Client { key: 0, socket: Socket::over(connection) }];
        let listener = Some(Listener::over(listener));
        Ok(Self { listener, clients, key: 1, signals, unreaped: false, lock: None, container: None })
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            let (clients, outputs, news) = self.wait()?;
            // Output first: what a process wrote before it ended is logged before its end is.
            if let Some(container) = &mut self.container {
                container.copy(&outputs);
            }
            if let Some(code) = self.reap() {
                self.finish(code);
                return Ok(());
            }
            if news
                && self.clients.len() < CLIENTS
                && let Some(Ok(socket)) = self.listener.as_ref().map(Listener::accept)
                && socket.set_nonblocking(true).is_ok()
            {
                self.clients.push(Client { key: self.key, socket });
                self.key += 1;
            }
            // In the order they came: what a shim that died had still asked is heard before its successor.
            let mut gone = Vec::new();
            for index in clients {
                match self.attend(index) {
                    Next::Go => {}
                    Next::Gone => gone.push(index),
                    Next::Leave => return Ok(()),
                }
            }
            for index in gone.into_iter().rev() {
                let client = self.clients.remove(index);
                if let Some(container) = &mut self.container {
                    container.kill_execs(|exec| exec.client == client.key); // nobody has their streams any more
                }
            }
            if self.clients.is_empty() && self.container.is_none() {
                return Ok(()); // whoever wanted a container is gone
            }
        }
    }

    /// Which clients and outputs have something, and whether someone connects.
    fn wait(&self) -> io::Result<(Vec<usize>, Vec<usize>, bool)> {
        let listen = self.listener.as_ref().filter(|_| self.clients.len() < CLIENTS);
        let outputs = self.container.iter().flat_map(|container| &container.outputs);
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.clients.iter().map(|client| PollFd::new(client.socket.as_fd(), PollFlags::POLLIN)));
        fds.extend(outputs.map(|output| PollFd::new(output.file.as_fd(), PollFlags::POLLIN)));
        fds.extend(listen.map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, if self.unreaped { PollTimeout::ZERO } else { PollTimeout::NONE }) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(cause) => return Err(cause.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let (clients, rest) = ready[1..].split_at(self.clients.len());
        let count = self.container.as_ref().map_or(0, |container| container.outputs.len());
        let (outputs, listener) = rest.split_at(count);
        let indices =
            |ready: &[bool]| ready.iter().enumerate().filter(|(_, ready)| **ready).map(|(i, _)| i).collect();
        Ok((indices(clients), indices(outputs), listener.first().copied().unwrap_or(false)))
    }

    /// Reaps whatever ended and answers for it; the exit code if the container's first process did.
    fn reap(&mut self) -> Option<i32> {
        self.unreaped = false;
        while matches!(self.signals.read_signal(), Ok(Some(_))) {}
        let first = self.container.as_ref().map(|container| container.pid);
        let mut code = None;
        loop {
            let (pid, ended) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (pid, status),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return code,
                Ok(_) => continue,
            };
            if Some(pid) == first {
                code = Some(ended);
            } else if let Some(exec) = self.container.as_mut().and_then(|container| container.take_exec(pid))
            {
                self.tell(&exec, ended);
            }
        }
    }

    /// Answers for a process that was started and is over.
    fn tell(&mut self, exec: &Exec, code: i32) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.key == exec.client) {
            let _ = client.answer(exec.request, Ok((Reply::Ended(code), Vec::new()))); // it shows as gone, if so
        }
    }

    /// Takes what a client sent.
    fn attend(&mut self, index: usize) -> Next {
        loop {
            let (request, fds) = match self.clients[index].socket.recv::<Wire<Request>>() {
                Ok(Some(message)) => (message.body, message.fds),
                Err(error) if error.would_block() => return Next::Go,
                Ok(None) | Err(_) => return Next::Gone,
            };
            let id = request.id;
            let creating = matches!(request.request, Request::Create(_));
            let answer = match request.request {
                Request::Exec { token, args, streams } => {
                    let client = self.clients[index].key;
                    match self.exec(Exec::new(client, id, token), &args, streams, fds) {
                        Ok(()) => continue, // answered at its end
                        Err(why) => Err(why),
                    }
                }
                Request::KillExec(token) => {
                    let client = self.clients[index].key;
                    if let Some(container) = &mut self.container {
                        container.kill_execs(|exec| exec.client == client && exec.token == token);
                    }
                    Ok((Reply::Done, Vec::new()))
                }
                Request::Attach { stdin, stdout, stderr } => match &mut self.container {
                    Some(container) => container.attach(stdin, [stdout, stderr], fds),
                    None => Err("there is no container yet".to_owned()),
                },
                request => self.answer(request).map(|reply| (reply, Vec::new())),
            };
            let refused = answer.is_err();
            let sent = self.clients[index].answer(id, answer);
            if creating && refused {
                return Next::Leave;
            }
            if !sent {
                return Next::Gone;
            }
        }
    }

    fn answer(&mut self, request: Request) -> Result<Reply, String> {
        if let Request::Create(plan) = request {
            if self.container.is_some() {
                return Err("there is a container already".to_owned());
            }
            let pid = self.create(*plan)?;
            return Ok(Reply::Status(Status::Created { pid }));
        }
        let Some(container) = &mut self.container else {
            return match request {
                Request::Status => Ok(Reply::Status(Status::Creating)),
                _ => Err("there is no container yet".to_owned()),
            };
        };
        match request {
            Request::Create(_) => Err("there is a container already".to_owned()),
            Request::Start if container.started_at.is_some() => Err("it was started already".to_owned()),
            Request::Start => {
                let (plan, deadline) = (&container.plan, Duration::from_secs(container.plan.deadline));
                self.unreaped = true;
                create::in_child(&self.signals, deadline, || {}, || create::start(plan))?;
                let started_at = state::now();
                container.started_at = Some(started_at.clone());
                Ok(Reply::Status(Status::Running { pid: container.pid.as_raw(), started_at }))
            }
            Request::Signal(number) => {
                let signal = Signal::try_from(number).map_err(|_| format!("no signal {number}"))?;
                // Not reaped yet, so the pid is still its own.
                kill(container.pid, signal).map_err(|cause| format!("signal {number}: {cause}"))?;
                Ok(Reply::Done)
            }
            Request::Status => Ok(Reply::Status(container.status())),
            Request::ReopenLog => match &mut container.log {
                Some(log) => log.reopen().map(|()| Reply::Done).map_err(|cause| format!("log file: {cause}")),
                None => Ok(Reply::Done),
            },
            // Taken by `attend`: these have descriptors, or are answered later.
            Request::Exec { .. } | Request::KillExec(_) | Request::Attach { .. } => {
                Err("it is no request of this kind".to_owned())
            }
        }
    }

    fn create(&mut self, plan: Plan) -> Result<i32, String> {
        let words = |what: &'static str| move |cause: io::Error| format!("{what}: {cause}");
        let dir = Dir(plan.dir.clone());
        let lock = File::options().create(true).append(true).open(dir.lock()).map_err(words("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| "another monitor makes this container".to_owned())?;
        self.lock = Some(lock);
        let log = plan.log_path.as_deref().map(Log::open).transpose().map_err(words("log file"))?;
        let (stdio, mut outputs, stdin) = if plan.terminal {
            (None, Vec::new(), None)
        } else {
            let (stdio, outputs, stdin) = pipes(&plan).map_err(words("pipes"))?;
            (Some(stdio), outputs, stdin)
        };
        let console = match plan.terminal {
            true => Some(Listener::bind(create::console(&dir)).map_err(|cause| cause.to_string())?),
            false => None,
        };
        let deadline = Duration::from_secs(plan.deadline);
        // What the child inherits, the container's waiting process keeps until it is started: not these.
        let (clients, listener) = (&mut self.clients, &mut self.listener);
        let created = {
            let (plan, stdio) = (&plan, stdio);
            let mut stdio = stdio;
            let child_stdio = &mut stdio;
            create::in_child(
                &self.signals,
                deadline,
                || {
                    clients.clear();
                    *listener = None;
                },
                || create::create(plan, child_stdio.take()),
            )
        };
        let undo = |why: String| {
            let _ = cgroup::kill(&plan.cgroup, &[]);
            // A pod's process namespace is not over before they are reaped.
            while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(ended) if ended != WaitStatus::StillAlive)
            {
            }
            why
        };
        let pid = created.map_err(undo)?;
        if let Some(score) = plan.oom_score_adj {
            sys::set_oom_score(pid, score);
        }
        if let Some(console) = console {
            let socket = console.accept().map_err(|cause| undo(cause.to_string()))?.into_stream();
            let terminal = terminal::receive(&socket).map_err(words("terminal")).map_err(undo)?;
            outputs.push(Output { file: File::from(terminal), lines: Lines::new("stdout") });
        }
        self.container = Some(Running {
            plan,
            pid: Pid::from_raw(pid),
            started_at: None,
            outputs,
            log,
            stdin,
            execs: Vec::new(),
            followers: Vec::new(),
        });
        Ok(pid)
    }

    /// Everything that is left to do after the container's first process ended.
    fn finish(&mut self, code: i32) {
        let Some(mut container) = self.container.take() else { return };
        let _ = cgroup::kill(&container.plan.cgroup, &[]);
        container.drain();
        container.kill_execs(|_| true); // also one that left the cgroup: it is waited for below
        for exec in std::mem::take(&mut container.execs) {
            // All that was in the cgroup is killed, and a process namespace's rest with its first.
            let code = exec.wait();
            self.tell(&exec, code);
        }
        while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
        let oom_killed = code != 0 && cgroup::oom_kills(&container.plan.cgroup) > 0;
        let exit = Exit::new(code, oom_killed, container.started_at);
        let _ = state::write(&Dir(container.plan.dir).exit(), &exit);
    }
}

impl Running {
    fn status(&self) -> Status {
        let pid = self.pid.as_raw();
        match &self.started_at {
            Some(started_at) => Status::Running { pid, started_at: started_at.clone() },
            None => Status::Created { pid },
        }
    }

    /// Copies what these outputs have to the log, and closes those that ended.
    fn copy(&mut self, ready: &[usize]) {
        let mut buffer = [0; 16 << 10];
        let mut entries = Vec::new();
        let time = state::now();
        let mut ended = Vec::new();
        for index in ready {
            let output = &mut self.outputs[*index];
            match output.file.read(&mut buffer) {
                Ok(n) if n > 0 => {
                    let bytes = &buffer[..n];
                    let stream = output.lines.stream();
                    self.followers.retain_mut(|follower| follower.take(stream, bytes));
                    output.lines.feed(bytes, &time, &mut entries);
                }
                Err(cause)
                    if matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // A terminal without a program at its end says EIO.
                Ok(_) | Err(_) => {
                    output.lines.finish(&time, &mut entries);
                    ended.push(*index);
                }
            }
        }
        for index in ended.into_iter().rev() {
            self.outputs.remove(index);
        }
        if let Some(log) = self.log.as_mut().filter(|_| !entries.is_empty()) {
            log.write(&entries);
        }
    }

    /// Copies what is left in the pipes.
    fn drain(&mut self) {
        let until = Instant::now() + DRAIN;
        while !self.outputs.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds: Vec<PollFd<'_>> = self
                .outputs
                .iter()
                .map(|output| PollFd::new(output.file.as_fd(), PollFlags::POLLIN))
                .collect();
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
                Err(nix::errno::Errno::EINTR) => continue,
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let ready = fds.iter().map(|fd| fd.any().unwrap_or(false)).enumerate();
            let ready: Vec<usize> = ready.filter(|(_, ready)| *ready).map(|(index, _)| index).collect();
            self.copy(&ready);
        }
        let mut entries = Vec::new();
        let time = state::now();
        for output in &mut self.outputs {
            output.lines.finish(&time, &mut entries);
        }
        if let Some(log) = &mut self.log {
            log.write(&entries);
        }
    }
}

/// The container's ends, our ends of its output, and our end of its input if it has one.
fn pipes(plan: &Plan) -> io::Result<(Stdio, Vec<Output>, Option<OwnedFd>)> {
    let (uid, gid) = (Some(plan.uid.into()), Some(plan.gid.into()));
    let output = |stream: &'static str| -> io::Result<(Output, OwnedFd)> {
        let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        rustix::fs::fcntl_setfl(&ours, rustix::fs::OFlags::NONBLOCK)?;
        nix::unistd::fchown(&theirs, uid, gid)?; // so that a program may open /dev/stdout anew
        Ok((Output { file: File::from(ours), lines: Lines::new(stream) }, theirs))
    };
    let (out, stdout) = output("stdout")?;
    let (err, stderr) = output("stderr")?;
    let (stdin, kept) = if plan.stdin {
        let (theirs, ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        nix::unistd::fchown(&theirs, uid, gid)?;
        (theirs, Some(ours))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    Ok((Stdio { stdin, stdout, stderr }, vec![out, err], kept))
}
