//! What listens on the host's loopback, within a namespace: under the same address, so that URLs and certificates hold.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use wharf_sandbox::netns;

/// Connections at a time; an etcd client has one for each member.
const CONNECTIONS: usize = 256;

/// Passes connections to those of `members` (HOST:PORT) that are on this machine's loopback on to them, from the same
/// addresses inside `namespace`, until the runtime ends. The others are left alone.
///
/// # Errors
/// If a name means nothing, or its address in the namespace is taken.
pub async fn lend(members: &[String], namespace: &Path) -> anyhow::Result<()> {
    for member in members {
        let found = tokio::net::lookup_host(member).await.with_context(|| format!("look {member} up"))?;
        for address in found.filter(|address| address.ip().is_loopback()) {
            let bound = netns::within(namespace, || std::net::TcpListener::bind(address));
            let listener = bound.with_context(|| format!("listen on {address} in the cluster's network"))?;
            listener.set_nonblocking(true)?;
            tokio::spawn(pass(TcpListener::from_std(listener)?, address));
        }
    }
    Ok(())
}

async fn pass(listener: TcpListener, to: SocketAddr) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await.expect("nobody closes the semaphore");
        let mut near = match listener.accept().await {
            Ok((near, _)) => near,
            Err(error) => {
                tracing::warn!(%to, %error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await; // out of descriptors: let some close
                continue;
            }
        };
        tokio::spawn(async move {
            // One that is refused there ends here.
            if let Ok(mut far) = TcpStream::connect(to).await {
                let _ = near.set_nodelay(true);
                let _ = far.set_nodelay(true);
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
            drop(place);
        });
    }
}
