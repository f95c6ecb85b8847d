//! The threads that run guests, and who runs next.
//!
//! Each container has a [`Queue`]. A free thread takes the queue that had the least processor time so far (as Linux's
//! fair scheduler does) and polls one of its tasks once. Guests hand their thread back at every tick of the epoch, so
//! a poll lasts about a tick; a container that has used up its quota waits for the next period.
//!
//! One more thread, the *ticker*, advances the epoch, wakes queues whose period begins, and looks for polls that do not
//! end (one instruction of a guest may fill a gigabyte): their thread no longer counts, and a spare one takes its
//! place. When no guest runs and none waits for a period, it sleeps.

use crate::model::CpuQuota;
use nix::time::{ClockId, clock_gettime};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use wasmtime::Engine;

/// How long a guest runs before others get a turn.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// A poll that lasts longer does not react to the epoch.
const STUCK_AFTER: Duration = Duration::from_millis(5);
/// Ticks without a guest after which the ticker sleeps: short enough to cost nothing, long enough that a busy service
/// does not wake it for each request.
const LINGER: u32 = 20;
/// Threads beyond those that may run at once, to stand in for stuck ones.
const SPARES_PER_EXECUTOR: usize = 3;
/// Against the I/O threads' 0: a third of their share when both want the processor.
const NICENESS: i32 = 5;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The threads. Dropping it ends them once their poll returns; tasks that are left are dropped.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    tick: Condvar,
    engine: Engine,
    executors: usize,
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<u64, Sched>,
    next_id: u64,
    /// Queues with a task that may run, by what they had so far.
    ready: BTreeMap<(u64, u64), ()>,
    /// Queues that wait for their next period.
    throttled: BTreeMap<(Instant, u64), ()>,
    /// What the queue that ran last had: where one that comes now begins.
    floor: u64,
    /// Threads that poll and are not stuck.
    active: usize,
    polls: Vec<Option<Running>>,
    ticker_sleeps: bool,
    stop: bool,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    since: Instant,
    stuck: bool,
}

/// What the pool knows of one container.
#[derive(Debug)]
struct Sched {
    tasks: VecDeque<Arc<Task>>,
    /// Processor time it had, in nanoseconds, moved up to the floor when it comes back from being idle.
    runtime: u64,
    ready: bool,
    quota: Option<CpuQuota>,
    period_began: Instant,
    used_nanos: u64,
    throttled: bool,
}

/// A container's tasks. They keep it alive; the pool forgets it when the last handle and task are gone.
#[derive(Debug)]
pub(crate) struct Queue {
    id: u64,
    shared: Arc<Shared>,
    cpu_nanos: AtomicU64,
}

struct Task {
    queue: Arc<Queue>,
    work: Mutex<Option<Work>>,
    state: AtomicU8,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("queue", &self.queue.id).finish_non_exhaustive()
    }
}

// States of a task.
const IDLE: u8 = 0;
const READY: u8 = 1;
const POLLED: u8 = 2;
/// Woken while it was polled.
const WOKEN: u8 = 3;
const DONE: u8 = 4;

impl Pool {
    /// Starts the threads. What guests' host calls wait for (timers, files, sockets) is served by `io`.
    pub fn start(engine: Engine, executors: usize, io: &tokio::runtime::Handle) -> std::io::Result<Self> {
        let count = executors * (1 + SPARES_PER_EXECUTOR);
        let state = State { polls: vec![None; count], ..State::default() };
        let shared = Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            tick: Condvar::new(),
            engine,
            executors,
        };
        let shared = Arc::new(shared);
        let mut pool = Self { shared: shared.clone(), threads: Vec::with_capacity(count + 1) };
        for index in 0..count {
            let (shared, io) = (shared.clone(), io.clone());
            let run = move || {
                lower_priority();
                let _io = io.enter();
                shared.execute(index);
            };
            pool.threads.push(std::thread::Builder::new().name(format!("guest-{index}")).spawn(run)?);
        }
        let run = move || shared.run_ticker();
        pool.threads.push(std::thread::Builder::new().name("ticker".to_owned()).spawn(run)?);
        Ok(pool)
    }

    pub fn queue(&self, quota: Option<CpuQuota>) -> Arc<Queue> {
        let quota = quota.filter(|quota| quota.quota_micros > 0 && quota.period_micros > 0);
        let mut state = self.shared.lock();
        let id = state.next_id;
        state.next_id += 1;
        let sched = Sched {
            tasks: VecDeque::new(),
            runtime: state.floor,
            ready: false,
            quota,
            period_began: Instant::now(),
            used_nanos: 0,
            throttled: false,
        };
        state.queues.insert(id, sched);
        drop(state);
        Arc::new(Queue { id, shared: self.shared.clone(), cpu_nanos: AtomicU64::new(0) })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        self.shared.tick.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        // Outside of the lock: dropping a guest may wake another.
        let left: Vec<_> =
            self.shared.lock().queues.values_mut().map(|sched| std::mem::take(&mut sched.tasks)).collect();
        drop(left);
    }
}

impl Queue {
    /// Runs this future on the executor threads until it is done.
    pub fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let task =
            Task { queue: self.clone(), work: Mutex::new(Some(Box::pin(work))), state: AtomicU8::new(READY) };
        self.shared.push(Arc::new(task));
    }

    /// Processor time that its tasks had.
    pub fn cpu_nanos(&self) -> u64 {
        self.cpu_nanos.load(Ordering::Relaxed)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        // Neither ready nor with tasks: those would keep it alive. But it may still wait for a period.
        state.queues.remove(&self.id);
        let id = self.id;
        state.throttled.retain(|(_, queue), ()| *queue != id);
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let next = |state| match state {
            IDLE => Some(READY),
            POLLED => Some(WOKEN),
            _ => None,
        };
        if let Ok(IDLE) = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) {
            let queue = self.queue.clone();
            queue.shared.push(self);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics half-way; a poisoned lock would be no reason to stop every guest.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, task: Arc<Task>) {
        let mut state = self.lock();
        if state.stop {
            drop(state);
            return; // the task is dropped outside of the lock, with its guest
        }
        state.push(task);
        let wake = state.active < self.executors;
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    fn execute(&self, index: usize) {
        let mut last = thread_time();
        while let Some(task) = self.next(index) {
            let again = task.poll();
            let now = thread_time();
            let used = now.saturating_sub(last);
            last = now;
            task.queue.cpu_nanos.fetch_add(used, Ordering::Relaxed);
            self.finish(index, &task.queue, used);
            if again {
                self.push(task);
            }
        }
    }

    /// Waits for a task that may run now; `None` when the pool stops.
    fn next(&self, index: usize) -> Option<Arc<Task>> {
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            if state.active < self.executors
                && let Some(task) = state.take()
            {
                state.active += 1;
                state.polls[index] = Some(Running { since: Instant::now(), stuck: false });
                let more = state.active < self.executors && !state.ready.is_empty();
                let tick = std::mem::take(&mut state.ticker_sleeps);
                drop(state);
                if more {
                    self.work.notify_one();
                }
                if tick {
                    self.tick.notify_one();
                }
                return Some(task);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn finish(&self, index: usize, queue: &Queue, used: u64) {
        let mut state = self.lock();
        if state.polls[index].take().is_some_and(|poll| !poll.stuck) {
            state.active -= 1;
        }
        state.charge(queue.id, used);
    }

    fn run_ticker(&self) {
        let mut idle = 0;
        let mut state = self.lock();
        while !state.stop {
            let now = Instant::now();
            let released = state.release(now);
            let stuck = state.find_stuck(now);
            for _ in 0..released + stuck {
                self.work.notify_one();
            }
            let running = state.polls.iter().any(Option::is_some);
            idle = if running { 0 } else { idle + 1 };
            let wait = match state.throttled.keys().next() {
                _ if idle <= LINGER => TICK,
                Some((until, _)) => until.saturating_duration_since(now).max(TICK),
                None => Duration::MAX,
            };
            state = if wait == TICK {
                // Not on the condition: nothing is to happen before the tick.
                drop(state);
                std::thread::sleep(TICK);
                if running {
                    self.engine.increment_epoch();
                }
                self.lock()
            } else {
                state.ticker_sleeps = true;
                let mut state = if wait == Duration::MAX {
                    self.tick.wait(state).unwrap_or_else(PoisonError::into_inner)
                } else {
                    self.tick.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                };
                state.ticker_sleeps = false;
                idle = 0;
                state
            };
        }
    }
}

impl State {
    fn push(&mut self, task: Arc<Task>) {
        let id = task.queue.id;
        let floor = self.floor;
        let Some(sched) = self.queues.get_mut(&id) else { return };
        sched.tasks.push_back(task);
        if !sched.ready && !sched.throttled {
            sched.runtime = sched.runtime.max(floor); // time when it had nothing to do is not saved up
            sched.ready = true;
            self.ready.insert((sched.runtime, id), ());
        }
    }

    /// A task of the queue that had the least.
    fn take(&mut self) -> Option<Arc<Task>> {
        let ((runtime, id), ()) = self.ready.pop_first()?;
        self.floor = self.floor.max(runtime);
        let sched = self.queues.get_mut(&id)?;
        sched.ready = false;
        let task = sched.tasks.pop_front();
        // Charged a tick beforehand, so that its other tasks do not all go before others'.
        sched.runtime += TICK.as_nanos() as u64;
        if !sched.tasks.is_empty() {
            sched.ready = true;
            self.ready.insert((sched.runtime, id), ());
        }
        task
    }

    /// After a poll of one of its tasks.
    fn charge(&mut self, id: u64, used: u64) {
        let Some(sched) = self.queues.get_mut(&id) else { return };
        let before = sched.runtime;
        sched.runtime = (before + used).saturating_sub(TICK.as_nanos() as u64);
        if sched.ready {
            self.ready.remove(&(before, id));
            self.ready.insert((sched.runtime, id), ());
        }
        let Some(quota) = sched.quota else { return };
        let period = Duration::from_micros(quota.period_micros);
        let allowed = quota.quota_micros * 1000;
        let now = Instant::now();
        let periods = (now - sched.period_began).as_nanos() / period.as_nanos();
        if periods > 0 {
            // What it had beyond its share, since a poll cannot be cut off, counts in the periods after.
            let paid = u64::try_from(periods).unwrap_or(u64::MAX).saturating_mul(allowed);
            sched.used_nanos = sched.used_nanos.saturating_sub(paid);
            sched.period_began = now;
        }
        sched.used_nanos += used;
        if sched.used_nanos >= allowed && !sched.throttled {
            sched.throttled = true;
            let until = sched.period_began + period * u32::try_from(sched.used_nanos / allowed).unwrap_or(1);
            self.throttled.insert((until, id), ());
            if std::mem::take(&mut sched.ready) {
                self.ready.remove(&(sched.runtime, id));
            }
        }
    }

    /// Queues whose next period has begun may run; how many can.
    fn release(&mut self, now: Instant) -> usize {
        let mut released = 0;
        while let Some(entry) = self.throttled.first_entry()
            && entry.key().0 <= now
        {
            let ((until, id), ()) = entry.remove_entry();
            let floor = self.floor;
            let Some(sched) = self.queues.get_mut(&id) else { continue };
            sched.throttled = false;
            sched.used_nanos = 0;
            sched.period_began = until;
            if !sched.tasks.is_empty() {
                sched.runtime = sched.runtime.max(floor);
                sched.ready = true;
                self.ready.insert((sched.runtime, id), ());
                released += 1;
            }
        }
        released
    }

    /// Marks polls that do not end; how many are new. Each frees the place of one more thread.
    fn find_stuck(&mut self, now: Instant) -> usize {
        let mut found = 0;
        for poll in self.polls.iter_mut().flatten() {
            if !poll.stuck && now.saturating_duration_since(poll.since) > STUCK_AFTER {
                poll.stuck = true;
                self.active -= 1;
                found += 1;
            }
        }
        found
    }
}

impl Task {
    /// Whether it is to be polled again.
    fn poll(self: &Arc<Self>) -> bool {
        self.state.store(POLLED, Ordering::Release);
        let waker = Waker::from(self.clone());
        let mut slot = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(work) = slot.as_mut() else { return false };
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(&mut Context::from_waker(&waker))));
        if !matches!(polled, Ok(Poll::Pending)) {
            if polled.is_err() {
                tracing::error!("a guest's task panicked");
            }
            self.state.store(DONE, Ordering::Release);
            // A future that panicked may panic again while it is dropped.
            let _ = catch_unwind(AssertUnwindSafe(|| slot.take()));
            return false;
        }
        drop(slot);
        if self.state.compare_exchange(POLLED, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            return false;
        }
        self.state.store(READY, Ordering::Release);
        true
    }
}

fn lower_priority() {
    // Of this thread alone: on Linux a priority belongs to a thread.
    if let Err(cause) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::warn!(%cause, "guests run with the priority of everything else");
    }
}

/// Processor time of the calling thread, in nanoseconds.
fn thread_time() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
