//! The few things that sandboxes ask of netlink, with errors that name what was tried.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::path::Path;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::{Error, Range, netns};

/// A netlink socket in one namespace.
#[derive(Clone)]
pub(crate) struct Netlink(Handle);

fn failed(action: String) -> impl FnOnce(rtnetlink::Error) -> Error {
    |cause| Error::Netlink { action, cause }
}

/// `EEXIST` of a repeated step is success.
fn done_before(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::EEXIST => Ok(()),
        other => other,
    }
}

impl Netlink {
    /// Opens a socket in the caller's namespace. Must be called within a tokio runtime.
    pub(crate) fn here() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Opens a socket in the namespace at `path`. Must be called within a tokio runtime.
    pub(crate) fn inside(path: &Path) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle, _) = netns::within(path, || {
            let _entered = runtime.enter();
            rtnetlink::new_connection()
        })?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// The index of the link `name`, `None` if there is none.
    pub(crate) async fn index(&self, name: &str) -> Result<Option<u32>, Error> {
        let mut links = self.0.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await {
            Ok(link) => Ok(link.map(|l| l.header.index)),
            Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::ENODEV => Ok(None),
            Err(cause) => Err(Error::Netlink { action: format!("find the link {name}"), cause }),
        }
    }

    /// The index of the link `name`, which is there.
    pub(crate) async fn known(&self, name: &str) -> Result<u32, Error> {
        self.index(name).await?.ok_or_else(|| Error::Netlink {
            action: format!("find the link {name}"),
            cause: rtnetlink::Error::RequestFailed,
        })
    }

    /// Makes the link by `message` unless one of its name exists, and gives its index.
    async fn ensure(&self, name: &str, message: LinkMessage) -> Result<u32, Error> {
        let added = self.0.link().add(message).execute().await;
        done_before(added).map_err(failed(format!("make the link {name}")))?;
        self.known(name).await
    }

    pub(crate) async fn bridge(&self, name: &str) -> Result<u32, Error> {
        self.ensure(name, LinkBridge::new(name).up().build()).await
    }

    /// Makes a veth pair: `name` here, and `peer` in the namespace behind `peer_netns`. If `controller` is
    /// given, `name` joins that bridge. Both ends are made in one call, up on this side.
    pub(crate) async fn veth(
        &self,
        name: &str,
        peer: &str,
        peer_netns: RawFd,
        controller: Option<u32>,
    ) -> Result<(), Error> {
        let other = LinkUnspec::new_with_name(peer).setns_by_fd(peer_netns).build();
        let mut message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
            .up();
        if let Some(bridge) = controller {
            message = message.controller(bridge);
        }
        let added = self.0.link().add(message.build()).execute().await;
        done_before(added).map_err(failed(format!("make the veth pair {name}")))
    }

    /// Brings the link of this index up.
    pub(crate) async fn up(&self, index: u32) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.0.link().set(message).execute().await.map_err(failed(format!("bring link {index} up")))
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<(), Error> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        self.0.link().del(index).execute().await.map_err(failed(format!("remove the link {name}")))
    }

    /// Gives the link an address. A repeat changes nothing.
    pub(crate) async fn address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
        let added = self.0.address().add(index, address.into(), prefix).execute().await;
        done_before(added).map_err(failed(format!("give link {index} the address {address}/{prefix}")))
    }

    /// The default route by `gateway`, in routing table `table`.
    pub(crate) async fn default_route(&self, index: u32, gateway: Ipv4Addr, table: u32) -> Result<(), Error> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(index)
            .gateway(gateway)
            .table_id(table)
            .build();
        let added = self.0.route().add(message).execute().await;
        done_before(added).map_err(failed(format!("route everything by {gateway}")))
    }

    /// Routes `range` by `gateway`; packets of this node's own to it carry the source `source`.
    pub(crate) async fn route(
        &self,
        range: Range,
        index: u32,
        gateway: Ipv4Addr,
        source: Ipv4Addr,
    ) -> Result<(), Error> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(range.first(), range.prefix())
            .output_interface(index)
            .gateway(gateway)
            .pref_source(source)
            .build();
        let added = self.0.route().add(message).execute().await;
        done_before(added).map_err(failed(format!("route {range} by {gateway}")))
    }

    /// Routes `range` by the node at `gateway`.
    pub(crate) async fn route_by_node(&self, range: Range, gateway: Ipv4Addr) -> Result<(), Error> {
        let added = self.0.route().add(by_node(range, gateway)).execute().await;
        done_before(added).map_err(failed(format!("route {range} by {gateway}")))
    }

    /// Takes such a route away. One that is gone is no error.
    pub(crate) async fn remove_route(&self, range: Range, gateway: Ipv4Addr) -> Result<(), Error> {
        match self.0.route().del(by_node(range, gateway)).execute().await {
            Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::ESRCH => Ok(()),
            other => other.map_err(failed(format!("remove the route of {range} by {gateway}"))),
        }
    }

    /// The routes that [`Self::route_by_node`] made for ranges within `all`.
    pub(crate) async fn routes_by_nodes(&self, all: Range) -> Result<BTreeMap<Range, Ipv4Addr>, Error> {
        let asked = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let found: Vec<RouteMessage> = self
            .0
            .route()
            .get(asked)
            .execute()
            .try_collect()
            .await
            .map_err(failed("read the routes".to_owned()))?;
        let ours = found.into_iter().filter(|route| route.header.protocol == BY_NODE);
        let read = |route: RouteMessage| {
            let (mut to, mut by) = (None, None);
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(*address),
                    RouteAttribute::Gateway(RouteAddress::Inet(address)) => by = Some(*address),
                    _ => {}
                }
            }
            let range = Range::new(to?, route.header.destination_prefix_length)?;
            all.position(range.first())?;
            Some((range, by?))
        };
        Ok(ours.filter_map(read).collect())
    }

    /// Makes every address of `range` one of this namespace's own (any-IP).
    pub(crate) async fn own_range(&self, range: Range, loopback: u32) -> Result<(), Error> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(range.first(), range.prefix())
            .output_interface(loopback)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .table_id(LOCAL_TABLE)
            .build();
        let added = self.0.route().add(message).execute().await;
        done_before(added).map_err(failed(format!("make {range} local")))
    }

    /// What this namespace itself sends from `range` is routed by `table`, before it is looked up as local;
    /// so packets between two addresses of `range` take the way out and back, past the node's rules.
    pub(crate) async fn send_out(&self, range: Range, table: u32) -> Result<(), Error> {
        let rule =
            self.0.rule().add().v4().input_interface("lo").source_prefix(range.first(), range.prefix());
        let added = rule.table_id(table).priority(10).action(RuleAction::ToTable).execute().await;
        done_before(added).map_err(failed(format!("send traffic from {range} out")))?;
        let local = self.0.rule().add().v4().table_id(LOCAL_TABLE).priority(20);
        let added = local.action(RuleAction::ToTable).execute().await;
        done_before(added).map_err(failed("move the local table's rule".to_owned()))?;
        // The kernel's own rule 0 would answer first; it is the one without a priority attribute.
        let rules: Vec<_> = self
            .0
            .rule()
            .get(rtnetlink::IpVersion::V4)
            .execute()
            .try_collect()
            .await
            .map_err(failed("read the rules".to_owned()))?;
        let later = |a: &RuleAttribute| matches!(a, RuleAttribute::Priority(priority) if *priority != 0);
        for rule in rules.into_iter().filter(|rule| !rule.attributes.iter().any(later)) {
            self.0.rule().del(rule).execute().await.map_err(failed("remove rule 0".to_owned()))?;
        }
        Ok(())
    }
}

/// Who made a route, as the kernel keeps it: ours to other nodes. Numbers from 5 on are free to use
/// (`RTPROT_STATIC` is 4); `ip route` shows it.
const BY_NODE: RouteProtocol = RouteProtocol::Other(87);

fn by_node(range: Range, gateway: Ipv4Addr) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(range.first(), range.prefix())
        .gateway(gateway)
        .protocol(BY_NODE)
        .build()
}

/// The kernel's table of local addresses (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: u32 = 255;
/// The kernel's main routing table (`RT_TABLE_MAIN`).
pub(crate) const MAIN_TABLE: u32 = 254;
