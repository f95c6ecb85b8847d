//! Limits that change while a container or a pod is there.

use wharf_cri::v1::{ContainerState, LinuxContainerResources, LinuxPodSandboxConfig};

use crate::containers::state_name;
use crate::error::Error;
use crate::record::Sandbox;
use crate::shim::Shim;
use crate::spec;

impl Shim {
    /// Changes the limits of a container that has not ended. What CRI takes for nothing said, 0 and empty, stays as it was,
    /// and so does the OOM score: it is of the processes that run.
    ///
    /// # Errors
    /// [`Error::State`] of one that has ended; [`Error::Unsupported`] of one in the wasm host.
    pub async fn update_container(&self, id: &str, new: LinuxContainerResources) -> Result<(), Error> {
        let container = self.container(id)?;
        let (id, wasm, state) = container.with(|c| (c.id.clone(), c.wasm, c.state()));
        if !matches!(state, ContainerState::ContainerCreated | ContainerState::ContainerRunning) {
            return Err(Error::State { id, is: state_name(state), wanted: "created or running" });
        }
        if wasm {
            let why = format!("the limits of wasm container {id} are those that it was made with");
            return Err(Error::Unsupported(why));
        }
        let old = container.with(|c| c.config().linux.as_ref().and_then(|linux| linux.resources.clone()));
        let merged = merge(old.unwrap_or_default(), new);
        self.oci.update(&id, spec::resources(merged.clone())).await?;
        self.change(&container, |record| {
            let config = record.config.get_or_insert_default();
            config.linux.get_or_insert_default().resources = Some(merged);
            true
        })?;
        Ok(())
    }

    /// Notes what a pod may use in all. Its containers have the limits: there is no cgroup around them.
    pub fn update_sandbox(
        &self,
        id: &str,
        overhead: Option<LinuxContainerResources>,
        resources: Option<LinuxContainerResources>,
    ) -> Result<(), Error> {
        let mut record = Sandbox::clone(&*self.sandbox(id)?);
        let linux: &mut LinuxPodSandboxConfig =
            record.config.get_or_insert_default().linux.get_or_insert_default();
        linux.overhead = overhead.or(linux.overhead.take());
        linux.resources = resources.or(linux.resources.take());
        self.save_sandbox(record)
    }
}

fn merge(old: LinuxContainerResources, new: LinuxContainerResources) -> LinuxContainerResources {
    fn number(old: i64, new: i64) -> i64 {
        if new == 0 { old } else { new }
    }
    fn text(old: String, new: String) -> String {
        if new.is_empty() { old } else { new }
    }
    let mut merged = LinuxContainerResources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: number(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        memory_swap_limit_in_bytes: number(old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes),
        oom_score_adj: old.oom_score_adj,
        cpuset_cpus: text(old.cpuset_cpus, new.cpuset_cpus),
        cpuset_mems: text(old.cpuset_mems, new.cpuset_mems),
        hugepage_limits: old.hugepage_limits,
        unified: old.unified,
    };
    merged.unified.extend(new.unified);
    for pages in new.hugepage_limits {
        merged.hugepage_limits.retain(|known| known.page_size != pages.page_size);
        merged.hugepage_limits.push(pages);
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri::v1::HugepageLimit;

    #[test]
    fn what_is_not_said_stays() {
        let pages = |size: &str, limit| HugepageLimit { page_size: size.to_owned(), limit };
        let old = LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 26,
            oom_score_adj: 7,
            cpuset_cpus: "0".to_owned(),
            hugepage_limits: vec![pages("2MB", 1), pages("1GB", 2)],
            ..Default::default()
        };
        assert_eq!(merge(old.clone(), LinuxContainerResources::default()), old);
        let new = LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: 1 << 25,
            oom_score_adj: 9,
            hugepage_limits: vec![pages("2MB", 3)],
            ..Default::default()
        };
        let merged = merge(old, new);
        assert_eq!((merged.cpu_shares, merged.cpu_quota, merged.oom_score_adj), (512, -1, 7));
        assert_eq!((merged.memory_limit_in_bytes, merged.cpuset_cpus.as_str()), (1 << 25, "0"));
        assert_eq!(merged.hugepage_limits, [pages("1GB", 2), pages("2MB", 3)]);
    }
}
