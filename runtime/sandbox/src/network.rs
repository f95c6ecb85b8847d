//! The pod network of one node.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::link::{MAIN_TABLE, Netlink};
use crate::{AddressPool, Error, Range, netns};

/// The bridge that OCI pods hang on.
pub(crate) const BRIDGE: &str = "wharf0";
/// The node's end of the pair that joins the wasm host's namespace.
pub(crate) const WASM_LINK: &str = "wharf1";
/// The ends of that pair. Link-local (RFC 3927): nobody but the two ends ever sees them.
const WASM_NODE_END: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 1);
const WASM_HOST_END: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 2);
/// The routing table by which the wasm host's namespace sends pod traffic out (D5).
const WASM_TABLE: u32 = 100;

/// How long the kernel may take to remove a namespace.
const LINGER: Duration = Duration::from_secs(2);

/// What an OCI pod was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The mounted network namespace.
    pub netns: PathBuf,
    /// The pod's address on its interface `eth0`.
    pub address: Ipv4Addr,
}

/// The pod network of one node. See the crate's first page.
pub struct Network {
    dir: PathBuf,
    node: Netlink,
    state: Mutex<Option<State>>,
}

struct State {
    range: Range,
    bridge: u32,
    oci: AddressPool,
    wasm: AddressPool,
}

impl Network {
    /// Opens the network of the namespace that the caller runs in. `dir` is where namespaces are mounted; it
    /// need not exist. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Socket`] if netlink is not to be had.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self { dir: dir.to_owned(), node: Netlink::here()?, state: Mutex::new(None) })
    }

    /// Lays the fixed parts for `range`, the node's share of the pod addresses: its lower half is for OCI pods,
    /// its upper half for wasm pods. A repeat with the same range changes nothing, also after a restart.
    ///
    /// # Errors
    /// [`Error::RangeChanged`] if another range is configured already; else what netlink says.
    pub async fn configure(&self, range: Range) -> Result<(), Error> {
        if let Some(present) = self.range() {
            return if present == range {
                Ok(())
            } else {
                Err(Error::RangeChanged { present, asked: range })
            };
        }
        let (lower, upper) = range.halves();
        sysctl("net/ipv4/ip_forward", "1")?;
        let bridge = self.node.bridge(BRIDGE).await?;
        let gateway = lower.nth(1);
        self.node.address(bridge, gateway, lower.prefix()).await?;
        self.join_wasm(upper, gateway).await?;
        let mut state = self.state.lock().expect("no holder of this lock panics");
        *state = Some(State {
            range,
            bridge,
            // The range's own name and the bridge are not handed out.
            oci: AddressPool::new(lower, 2),
            wasm: AddressPool::new(upper, 1),
        });
        Ok(())
    }

    /// The configured range.
    pub fn range(&self) -> Option<Range> {
        self.with(|state| state.range).ok()
    }

    /// The namespace in which wasm hosts run. It exists once [`Self::configure`] returned.
    pub fn wasm_netns(&self) -> PathBuf {
        self.dir.join("wasm")
    }

    /// The address of the bridge: how a pod reaches its node.
    ///
    /// # Errors
    /// [`Error::NoRange`] before [`Self::configure`].
    pub fn gateway(&self) -> Result<Ipv4Addr, Error> {
        self.with(|state| state.range.halves().0.nth(1))
    }

    /// An address for a wasm pod. It works at once: no kernel call is needed.
    ///
    /// # Errors
    /// [`Error::NoRange`], [`Error::Exhausted`].
    pub fn take_wasm_address(&self) -> Result<Ipv4Addr, Error> {
        self.with(|state| state.wasm.take())?
    }

    /// Marks an address taken that a pod found after a restart has. One of no range here is left alone.
    pub fn reserve(&self, address: Ipv4Addr) {
        let _ = self.with(|state| {
            state.oci.reserve(address);
            state.wasm.reserve(address);
        });
    }

    /// Gives the address of a pod back. A repeat changes nothing.
    pub fn release(&self, address: Ipv4Addr) {
        let _ = self.with(|state| {
            state.oci.release(address);
            state.wasm.release(address);
        });
    }

    /// Makes the namespace of a pod whose network others make, with its loopback up, or takes the one that was `made`
    /// elsewhere, a path. [`Self::detach`] removes it.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn namespace(&self, id: &str, made: Option<PathBuf>) -> Result<(), Error> {
        let path = self.netns_path(id);
        lay(&path, made).await?;
        Netlink::inside(&path)?.up(LOOPBACK).await
    }

    /// Makes the namespace of the OCI pod `id`, or takes the one that was `made` elsewhere, a path: `eth0` on the bridge with
    /// an address, a default route, and the loopback. On an error nothing is left.
    ///
    /// # Errors
    /// [`Error::NoRange`], [`Error::Exhausted`], or what the kernel says.
    pub async fn attach(&self, id: &str, made: Option<PathBuf>) -> Result<Attachment, Error> {
        let (address, range, bridge) = self.with(|state| {
            state.oci.take().map(|address| (address, state.range.halves().0, state.bridge))
        })??;
        let path = self.netns_path(id);
        let wired = async {
            lay(&path, made).await?;
            self.wire(id, &path, address, range, bridge).await
        };
        match wired.await {
            Ok(()) => Ok(Attachment { netns: path, address }),
            Err(error) => {
                let _ = self.detach(id, Some(address)).await;
                Err(error)
            }
        }
    }

    async fn wire(
        &self,
        id: &str,
        path: &Path,
        address: Ipv4Addr,
        range: Range,
        bridge: u32,
    ) -> Result<(), Error> {
        let file = open(path)?;
        self.node.veth(&veth_name(id), "eth0", file.as_raw_fd(), Some(bridge)).await?;
        let pod = Netlink::inside(path)?;
        pod.up(LOOPBACK).await?;
        let eth0 = pod.index("eth0").await?.ok_or(Error::Netlink {
            action: "find the pod's eth0".to_owned(),
            cause: rtnetlink::Error::RequestFailed,
        })?;
        pod.address(eth0, address, range.prefix()).await?;
        pod.up(eth0).await?;
        pod.default_route(eth0, range.nth(1), MAIN_TABLE).await
    }

    /// Unmakes the namespace of the OCI pod `id` and gives its address back; its link goes some milliseconds later. A repeat
    /// changes nothing.
    ///
    /// # Errors
    /// What the kernel says; a repeat goes on from there.
    pub async fn detach(&self, id: &str, address: Option<Ipv4Addr>) -> Result<(), Error> {
        netns::remove(&self.netns_path(id))?;
        if let Some(address) = address {
            self.release(address);
        }
        // The kernel removes the link with the namespace, a moment later and for many pods at once; asked for it, it takes some
        // 15 ms for each. Here is for the namespace that somebody keeps, such as a shell of the administrator's.
        let (node, name) = (self.node.clone(), veth_name(id));
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            let _ = node.delete(&name).await; // else it goes with whoever keeps it
        });
        Ok(())
    }

    /// Where the namespace of the OCI pod `id` is mounted.
    pub fn netns_path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("pod-{id}"))
    }

    /// Unmakes everything that `configure` laid and every namespace that is left.
    ///
    /// # Errors
    /// What the kernel says; the rest is tried nevertheless.
    pub async fn teardown(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for link in [WASM_LINK, BRIDGE] {
            result = result.and(self.node.delete(link).await);
        }
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            result = result.and(netns::remove(&entry.path()));
        }
        *self.state.lock().expect("no holder of this lock panics") = None;
        result
    }

    /// D5: the wasm host's namespace owns `range` whole, and all that it sends from it goes by the node.
    async fn join_wasm(&self, range: Range, gateway: Ipv4Addr) -> Result<(), Error> {
        let path = self.wasm_netns();
        if !netns::exists(&path) {
            netns::remove(&path)?;
            lay(&path, None).await?;
        }
        let file = open(&path)?;
        self.node.veth(WASM_LINK, "eth0", file.as_raw_fd(), None).await?;
        let near = self.node.index(WASM_LINK).await?.ok_or(Error::NoRange)?;
        // The namespace of a pod sends packets whose source is another pod of this very link.
        sysctl(&format!("net/ipv4/conf/{WASM_LINK}/rp_filter"), "0")?;
        sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        self.node.address(near, WASM_NODE_END, 30).await?;

        let host = Netlink::inside(&path)?;
        let far = host.index("eth0").await?.ok_or(Error::NoRange)?;
        host.up(LOOPBACK).await?;
        host.address(far, WASM_HOST_END, 30).await?;
        host.up(far).await?;
        netns::within(&path, || {
            for (key, value) in [
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/eth0/rp_filter", "0"),
                ("net/ipv4/conf/all/accept_local", "1"),
                ("net/ipv4/conf/eth0/accept_local", "1"),
            ] {
                fs::write(format!("/proc/sys/{key}"), value)?;
            }
            Ok(())
        })?;
        host.default_route(far, WASM_NODE_END, MAIN_TABLE).await?;
        host.default_route(far, WASM_NODE_END, WASM_TABLE).await?;
        host.own_range(range, LOOPBACK).await?;
        host.send_out(range, WASM_TABLE).await?;
        self.node.route(range, near, WASM_HOST_END, gateway).await
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> Result<T, Error> {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        state.as_mut().map(work).ok_or(Error::NoRange)
    }
}

/// The index of `lo` in every namespace (`LOOPBACK_IFINDEX`).
pub(crate) const LOOPBACK: u32 = 1;

/// A link name holds 15 bytes; sandbox ids are random, so their first 12 tell them apart.
pub(crate) fn veth_name(id: &str) -> String {
    format!("wh-{}", &id[..id.len().min(12)])
}

async fn lay(path: &Path, made: Option<PathBuf>) -> Result<(), Error> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || match made {
        Some(made) => netns::adopt(&made, &path),
        None => netns::create(&path),
    })
    .await
    .expect("mounting a namespace does not panic")
}

fn open(path: &Path) -> Result<fs::File, Error> {
    fs::File::open(path).map_err(|cause| Error::Namespace { action: "open", path: path.to_owned(), cause })
}

pub(crate) fn sysctl(key: &str, value: &'static str) -> Result<(), Error> {
    fs::write(format!("/proc/sys/{key}"), value).map_err(|cause| Error::Sysctl {
        key: key.to_owned(),
        value,
        cause,
    })
}
