//! Exec and attach over SPDY: the client opens a stream for each that it wants, and says in its header which.

use std::time::Duration;

use super::spdy::{Incoming, Stream};
use super::streams::{Session, Wants};

/// In the order of preference. Before the fourth the error stream carried words instead of a Status.
pub const PROTOCOLS: [&str; 4] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io"];

/// How long a client may take to open its streams (the kubelet's figure).
pub const OPENING: Duration = Duration::from_secs(30);

/// Waits for the streams that make a session; `None` if the client goes, opens something else, or takes too long.
pub async fn collect(incoming: &mut Incoming, wants: Wants, protocol: &str) -> Option<Session> {
    tokio::time::timeout(OPENING, gather(incoming, wants, protocol)).await.ok().flatten()
}

async fn gather(incoming: &mut Incoming, wants: Wants, protocol: &str) -> Option<Session> {
    let resizes = wants.tty && protocol != PROTOCOLS[3];
    let names = [
        ("error", true),
        ("stdin", wants.stdin),
        ("stdout", wants.stdout),
        ("stderr", wants.stderr && !wants.tty),
        ("resize", resizes),
    ];
    let mut found: [Option<Stream>; 5] = Default::default();
    while names.iter().zip(&found).any(|((_, wanted), found)| *wanted && found.is_none()) {
        let stream = incoming.next().await?;
        let name = stream.headers.get("streamtype").map_or("", String::as_str);
        let place = names.iter().position(|(known, wanted)| *wanted && *known == name)?;
        if found[place].replace(stream).is_some() {
            return None; // twice
        }
    }
    let [error, stdin, stdout, stderr, resize] = found;
    Some(Session {
        stdin: stdin.map(|stream| stream.input),
        resize: resize.map(|stream| stream.input),
        stdout: stdout.map(|stream| stream.output),
        stderr: stderr.map(|stream| stream.output),
        error: error?.output,
        structured: protocol == PROTOCOLS[0] || protocol == PROTOCOLS[1],
    })
}
