//! The networks of pods where CNI plugins make them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use wharf_sandbox::PortMapping;
use wharf_sandbox::cni::{Configuration, Pod};

use crate::error::Error;
use crate::record::{Cni, Sandbox};
use crate::shim::Shim;

impl Shim {
    pub async fn connect_by_cni(
        &self,
        record: &mut Sandbox,
        mappings: &[PortMapping],
        made: Option<PathBuf>,
    ) -> Result<(), Error> {
        let configuration = self.config.cni.configuration()?;
        record.netns = self.network.netns_path(&record.id).display().to_string();
        record.cni = Some(Cni { configuration: configuration.to_string(), ..Cni::default() });
        // Whoever finds it half made takes it back.
        self.save_sandbox(record.clone())?;
        self.network.namespace(&record.id, made).await?;
        let mut made = self.config.cni.add(&configuration, &pod(record, mappings)).await?;
        record.address = made.addresses.remove(0).to_string();
        if let Some(cni) = &mut record.cni {
            cni.more_addresses = made.addresses.iter().map(ToString::to_string).collect();
            cni.result = made.result;
        }
        Ok(())
    }

    /// A repeat changes nothing, and neither does one for a pod whose network is none of CNI's.
    pub async fn disconnect_by_cni(&self, record: &Sandbox) -> Result<(), Error> {
        let Some(cni) = &record.cni else { return Ok(()) };
        let unusable = |why| {
            let path = self.config.cni.configurations.clone();
            Error::Network(wharf_sandbox::Error::Configuration { path, why })
        };
        let configuration = Configuration::parse(&cni.configuration).map_err(unusable)?;
        let pod = pod(record, &crate::spec::port_mappings(record)?);
        Ok(self.config.cni.del(&configuration, &pod, &cni.result).await?)
    }
}

fn pod(record: &Sandbox, mappings: &[PortMapping]) -> Pod {
    let config = record.config();
    let metadata = config.metadata.clone().unwrap_or_default();
    // As containerd and CRI-O name them.
    let mut capabilities = Map::new();
    let mut offer = |name: &str, value: Value| capabilities.insert(name.to_owned(), value);
    if let Some(dns) = &config.dns_config {
        offer("dns", json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options }));
    }
    if !config.annotations.is_empty() {
        offer("io.kubernetes.cri.pod-annotations", json!(config.annotations));
    }
    if let Some(parent) =
        config.linux.as_ref().map(|linux| &linux.cgroup_parent).filter(|path| !path.is_empty())
    {
        offer("cgroupPath", json!(parent));
    }
    Pod {
        id: record.id.clone(),
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        netns: Path::new(&record.netns).to_owned(),
        ports: mappings.to_vec(),
        capabilities,
    }
}
