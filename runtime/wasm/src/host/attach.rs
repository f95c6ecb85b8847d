//! A client at a container's own input and output.

use super::{channel::Channel, container::Container, log::Stream};
use crate::protocol::Failure;
use std::{io, sync::Arc, time::Duration};

/// One read of a client's input.
const CHUNK: usize = 16 << 10;
/// How long a client may take for what is left when the container has ended.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// To the container's exit code.
pub(crate) async fn run(
    container: &Arc<Container>,
    [stdin, stdout, stderr]: [Option<Arc<Channel>>; 3],
) -> Result<i32, Failure> {
    let mut output = container.log.watch();
    // A container that ended before it was watched has nobody to tell.
    container.check_running()?;
    let copying = async {
        while let Some((stream, bytes)) = output.recv().await {
            let channel = match stream {
                Stream::Stdout => &stdout,
                Stream::Stderr => &stderr,
            };
            if let Some(channel) = channel {
                channel.write_all(&bytes).await?;
            }
        }
        Ok::<_, io::Error>(())
    };
    let feeding = async {
        if let (Some(from), Some(to)) = (stdin, container.stdin()) {
            let _ = feed(&from, &to).await; // on an error, as at its end, no more comes
            drop(to);
            container.input_ended();
        }
        std::future::pending::<()>().await;
    };
    let mut copying = std::pin::pin!(copying);
    let copied = tokio::select! {
        () = feeding => unreachable!("it waits for ever"),
        copied = copying.as_mut() => copied,
        exit = container.ended() => {
            let _ = tokio::time::timeout(LAST_WORDS, copying).await;
            return Ok(exit.code);
        }
    };
    let why = match copied {
        Err(cause) => format!("the attached client is gone: {cause}"),
        // The log lets go of its watchers just before the end is known.
        Ok(()) => match tokio::time::timeout(LAST_WORDS, container.ended()).await {
            Ok(exit) => return Ok(exit.code),
            Err(_) => "the attached client did not take the container's output fast enough".to_owned(),
        },
    };
    Err(Failure::Exec { why })
}

async fn feed(from: &Channel, to: &Channel) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk).await? {
            0 => return Ok(()),
            read => to.write_all(&chunk[..read]).await?,
        }
    }
}
