//! Finding again what an earlier run of the shim left.

use crate::{
    Error,
    end::{conclude, remove_dir},
    error::at,
    oci::{Entry, Inner, blocking},
    pause::{Pause, start_time},
    state::{self, Dir, Meta, Status},
    wire::{Reply, Request},
};
use std::{fs, sync::Arc, time::Duration};
use tokio::time::timeout;
use tracing::{info, warn};
use wharf_link::{Peer, Socket};

/// A monitor answers at once, unless it is inside a create that the shim's death interrupted: then after that.
const ANSWER: Duration = Duration::from_secs(30);

impl Inner {
    pub(crate) async fn recover(self: Arc<Self>) -> Result<(), Error> {
        self.find_pauses()?;
        let inner = self.clone();
        let found = blocking(move || inner.scan()).await?;
        let count = found.len();
        let mut unreported = Vec::new();
        for entry in found {
            // What is known is known before the first call; containers do not wait for each other.
            if let Some(exit) = self.find(&entry).await? {
                if !entry.dir.reported().exists() {
                    unreported.push((entry.clone(), exit.clone()));
                }
                entry.status.send_replace(Status::Exited(exit));
            }
        }
        if count > 0 {
            info!(containers = count, unreported = unreported.len(), "found containers of an earlier run");
        }
        tokio::spawn(async move {
            for (entry, exit) in unreported {
                self.report(&entry, exit).await;
            }
        });
        Ok(())
    }

    fn scan(&self) -> Result<Vec<Arc<Entry>>, Error> {
        let root = self.config.state_dir.join("containers");
        let mut found = Vec::new();
        for item in fs::read_dir(&root).map_err(at("read", &root))? {
            let dir = Dir(item.map_err(at("read", &root))?.path());
            match state::read::<Meta>(&dir.meta()) {
                Some(meta) => {
                    self.parents.keep(&meta.cgroup)?;
                    found.push(Entry::new(dir, meta, Status::Creating));
                }
                None => remove_dir(&dir.0)?, // the shim died before it had begun, or when it was all but done
            }
        }
        self.parents.sweep()?;
        Ok(found)
    }

    /// Connects to the container's monitor, or concludes how it ended.
    async fn find(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<Option<state::Exit>, Error> {
        let id = entry.meta.id.clone();
        if let Ok(socket) = Socket::connect(entry.dir.socket()).await {
            let (link, events) = Peer::over(socket);
            let answer = timeout(ANSWER, link.call(Request::Status, Vec::new())).await;
            match answer {
                Ok(Ok(message)) => match message.body {
                    Reply::Status(status @ (Status::Created { .. } | Status::Running { .. })) => {
                        entry.status.send_replace(status);
                        entry.set_link(Some(link));
                        self.containers(|map| map.insert(id, entry.clone()));
                        self.clone().follow(entry.clone(), events);
                        return Ok(None);
                    }
                    // Its create was never asked for, so nobody knows of it: without us the monitor ends.
                    _ => {
                        drop((link, events));
                        self.clean_up(entry).await?;
                        return Ok(None);
                    }
                },
                Ok(Err(_)) => {} // it ended just now
                Err(_) => warn!(id, "a monitor does not answer; its container is ended"),
            }
        }
        let concluding = entry.clone();
        let exit = blocking(move || conclude(&concluding)).await?;
        self.containers(|map| map.insert(id, entry.clone()));
        Ok(Some(exit))
    }

    fn find_pauses(self: &Arc<Self>) -> Result<(), Error> {
        let root = self.config.state_dir.join("pauses");
        for item in fs::read_dir(&root).map_err(at("read", &root))? {
            let path = item.map_err(at("read", &root))?.path();
            match state::read::<Pause>(&path) {
                Some(pause) if start_time(pause.pid) == Some(pause.started) => self.adopt(pause),
                _ => fs::remove_file(&path).map_err(at("remove", &path))?,
            }
        }
        Ok(())
    }
}
