//! How a shim that starts finds again what an earlier one left.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use wharf_cri::v1::PodSandboxState;
use wharf_oci::Status;
use wharf_wasm::{Host, State};

use crate::containers::remove_dir;
use crate::error::Error;
use crate::record;
use crate::shim::{Container, Ending, Shim, nanos, parsed};

/// How a runtime has a container that it still knows.
enum Found {
    Created,
    /// Since then, in nanoseconds since the epoch.
    Running(i64),
    Exited(Ending),
}

impl Shim {
    /// Finds what runs, and settles it with what is written down.
    pub async fn recover(
        self: &Arc<Self>,
        oci_events: wharf_oci::Events,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let start = |what: &str| {
            let what = what.to_owned();
            move |cause| Error::Start { what, cause }
        };
        for record in self.sandbox_files.load().map_err(start("read the sandbox records"))? {
            self.sandboxes().insert(record.id.clone(), Arc::new(record));
        }
        for record in self.container_files.load().map_err(start("read the container records"))? {
            let leases = self.leases(&record);
            self.containers().insert(record.id.clone(), Arc::new(Container::new(record, leases)));
        }
        self.images.collect().await?;
        self.settle_oci().await?;
        self.settle_sandboxes().await?;
        if self.config.with_cni {
            self.start_wasm(None).await?;
        }
        let told = std::fs::read_to_string(self.range_file()).ok().map(|range| range.parse()).transpose()?;
        if let Some(range) = self.config.pod_range.or(told) {
            self.set_range(range).await?;
        }
        tokio::spawn(self.clone().take_oci_ends(oci_events, stop));
        Ok(())
    }

    /// Compares the records of OCI containers with what runs: what is not there any more has ended.
    async fn settle_oci(&self) -> Result<(), Error> {
        let found = self.oci.list().into_iter().map(|(id, status)| {
            let found = match status {
                Status::Creating | Status::Created { .. } => Found::Created,
                Status::Running { started_at, .. } => Found::Running(parsed(&started_at)),
                Status::Exited(exit) => Found::Exited(exit.into()),
            };
            (id, found)
        });
        for id in self.settle(false, found.collect())? {
            tracing::warn!(container = id, "removing a container that no record names");
            self.oci.remove(&id).await?;
        }
        for entry in std::fs::read_dir(self.containers_dir()).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(|id| self.containers().contains_key(id)) {
                remove_dir(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Compares the records of one runtime's containers with what it has; the ids that no record names.
    fn settle(&self, wasm: bool, mut found: HashMap<String, Found>) -> Result<Vec<String>, Error> {
        let known = self.containers().clone(); // not in the loop's head, which would hold the lock
        for (id, container) in known.into_iter().filter(|(_, container)| container.with(|c| c.wasm == wasm)) {
            match found.remove(&id) {
                None => self.ended(&id, Ending::lost()),
                // A shim was told, and died before it had written it down.
                Some(Found::Exited(ending)) => self.ended(&id, ending),
                Some(Found::Running(since)) => self.started(&container, since)?,
                Some(Found::Created) => {}
            }
        }
        Ok(found.into_keys().collect())
    }

    /// Undoes sandboxes in whose making or unmaking a shim was killed. Their records stay: who asked for them removes them.
    async fn settle_sandboxes(&self) -> Result<(), Error> {
        let is_half = |sandbox: &&Arc<record::Sandbox>| {
            sandbox.state() == PodSandboxState::SandboxNotready && self.containers_of(&sandbox.id).is_empty()
        };
        let all: Vec<_> = self.sandboxes().values().cloned().collect();
        let half: Vec<_> = all.iter().filter(is_half).collect();
        for sandbox in &half {
            self.unmake(sandbox).await?;
            let mut record = record::Sandbox::clone(sandbox);
            record.disconnect();
            self.save_sandbox(record)?;
        }
        for pause in self.oci.pauses() {
            if !self.sandboxes().contains_key(&pause.id) {
                tracing::warn!(sandbox = pause.id, "removing a sandbox that no record names");
                self.oci.remove_pause(&pause.id).await?;
            }
        }
        if half.is_empty() {
            return Ok(());
        }
        // Ports may lead to an address that no record has yet.
        let known: Vec<Ipv4Addr> =
            self.sandboxes().values().filter_map(|sandbox| sandbox.address.parse().ok()).collect();
        Ok(self.network.unpublish(|address| !known.contains(&address)).await?)
    }

    /// As [`Self::settle_oci`], for the wasm host.
    pub async fn settle_wasm(&self, host: &Host) -> Result<(), Error> {
        let found = host.list().await?.into_iter().map(|status| {
            let found = match status.state {
                State::Created => Found::Created,
                State::Running { started_at } => Found::Running(nanos(started_at)),
                State::Exited { exit, .. } => Found::Exited(exit.into()),
            };
            (status.id, found)
        });
        for id in self.settle(true, found.collect())? {
            tracing::warn!(container = id, "removing a wasm container that no record names");
            host.remove(&id).await?;
        }
        Ok(())
    }
}
