//! How a container's end is seen and told, and how what was made for it goes.

use crate::{
    Error, cgroup,
    error::at,
    oci::{ANSWER, Entry, Event, Inner, blocking},
    state::{self, Exit, Status},
    wire::{Nothing, Request},
};
use std::{
    fs, io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::timeout;
use tracing::{info, warn};

impl Inner {
    /// Waits for the end of a container's monitor, which is the end of the container, and tells.
    pub fn follow(self: Arc<Self>, entry: Arc<Entry>, mut events: wharf_link::Events<Nothing>) {
        tokio::spawn(async move {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = async { while let Some(Ok(_)) = events.next().await {} } => {}
            }
            entry.set_link(None);
            let exit = match blocking({
                let entry = entry.clone();
                move || conclude(&entry)
            })
            .await
            {
                Ok(exit) => exit,
                Err(error) => {
                    warn!(id = entry.meta.id, %error, "a container without a monitor could not be ended");
                    Exit::orphaned()
                }
            };
            self.report(&entry, exit).await;
        });
    }

    pub async fn report(&self, entry: &Entry, exit: Exit) {
        info!(id = entry.meta.id, code = exit.code, reason = exit.reason, "container exited");
        entry.advance(Status::Exited(exit.clone()));
        let event = Event::Exited { id: entry.meta.id.clone(), exit };
        tokio::select! {
            () = self.stop.cancelled() => {}
            _ = self.events.send(event) => {}
        }
    }

    /// Makes sure that the container is over.
    pub async fn end(&self, entry: &Arc<Entry>) -> Result<(), Error> {
        let mut status = entry.status.subscribe();
        if matches!(*status.borrow(), Status::Exited(_)) {
            return Ok(());
        }
        let killed = self.ask(entry, Request::Signal(libc::SIGKILL), ANSWER).await;
        if killed.is_err() {
            let group = entry.meta.cgroup.clone();
            blocking(move || cgroup::kill(&group, &[]).map_err(at("empty cgroup", Path::new(&group))))
                .await?;
        }
        let over = timeout(ANSWER, status.wait_for(|status| matches!(status, Status::Exited(_)))).await;
        over.map(drop).map_err(|_| Error::Deadline { id: entry.meta.id.clone(), seconds: ANSWER.as_secs() })
    }

    /// Removes everything that was made for a container that is over.
    pub async fn clean_up(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<(), Error> {
        entry.set_link(None);
        let (inner, entry) = (self.clone(), entry.clone());
        blocking(move || {
            end_makers(&entry)?;
            for owned in &entry.meta.owned {
                remove_dir(owned)?;
            }
            let known = entry.dir.meta().exists(); // only then its parents were counted
            remove_dir(&entry.dir.0)?;
            if known { inner.parents.release(&entry.meta.cgroup) } else { Ok(()) }
        })
        .await
    }
}

/// Ends whatever runs in the container, and what its monitor left that was still making it: once none of that is there,
/// nothing comes into the cgroup any more, and it is removed for good. Blocks for as long as that takes.
pub(crate) fn end_makers(entry: &Entry) -> Result<(), Error> {
    let (group, path) = (&entry.meta.cgroup, entry.dir.lock());
    cgroup::remove(group)?;
    let lock = match fs::File::open(&path) {
        Ok(lock) => lock,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()), // no monitor had begun
        Err(cause) => return Err(at("open", &path)(cause)),
    };
    let until = Instant::now() + ANSWER;
    while rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > until {
            return Err(Error::Deadline { id: entry.meta.id.clone(), seconds: ANSWER.as_secs() });
        }
        // They end by themselves, or in the cgroup once they are in it; the lock tells nobody when it is free.
        std::thread::sleep(Duration::from_millis(1));
        cgroup::remove(group)?;
    }
    cgroup::remove(group)
}

/// How a container ended whose monitor is gone. If the monitor left no word, the container is killed.
pub(crate) fn conclude(entry: &Entry) -> Result<Exit, Error> {
    if let Some(exit) = state::read(&entry.dir.exit()) {
        return Ok(exit);
    }
    let group = &entry.meta.cgroup;
    cgroup::kill(group, &[]).map_err(at("empty cgroup", Path::new(group)))?;
    let exit = Exit::orphaned();
    state::write(&entry.dir.exit(), &exit)?;
    Ok(exit)
}

pub(crate) fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(cause)),
        _ => Ok(()),
    }
}
