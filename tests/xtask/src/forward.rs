//! HTTP to a pod through `wctl port-forward`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// How long a pod that is ready may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// A `wctl port-forward` that runs until it is dropped.
pub struct Forward {
    child: Child,
    address: String,
}

impl Forward {
    /// `wctl` has its global arguments already; `what` is a pod or TYPE/NAME.
    pub fn start(mut wctl: Command, what: &str, port: u16) -> Result<Self> {
        wctl.args(["port-forward", what, &format!("0:{port}")]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = wctl.spawn()?;
        let mut said = String::new();
        BufReader::new(child.stdout.take().ok_or("its output is a pipe")?).read_line(&mut said)?;
        // Forwarding from 127.0.0.1:PORT -> 8080
        let address = said.split_whitespace().nth(2).map(str::to_owned);
        let mut forward = Self { child, address: address.unwrap_or_default() };
        if forward.address.is_empty() {
            let _ = forward.child.kill();
            return Err(format!("wctl port-forward {what} did not begin: {}", said.trim()).into());
        }
        Ok(forward)
    }

    /// The body of a 200, asked for until there is one or patience ends.
    pub fn get(&self, path: &str) -> Result<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            match get(&self.address, path) {
                Ok((200, body)) => return Ok(body),
                last if Instant::now() > until => {
                    return Err(format!("no answer from http://{}{path}: {last:?}", self.address).into());
                }
                _ => std::thread::sleep(Duration::from_millis(50)), // the pod may be starting; the deadline bounds it
            }
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request: the status and the body.
fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    let status = status.ok_or_else(|| std::io::Error::other("that was no HTTP"))?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { whole(body) } else { body.to_owned() }))
}

/// Puts a chunked body together.
fn whole(mut chunks: &str) -> String {
    let mut body = String::new();
    while let Some((size, rest)) = chunks.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        body.push_str(chunk);
        chunks = rest[size..].trim_start_matches("\r\n");
    }
    body
}

#[cfg(test)]
mod tests {
    #[test]
    fn chunks_make_a_body() {
        assert_eq!(super::whole("5\r\nhello\r\n3\r\n\r\nx\r\n0\r\n\r\n"), "hello\r\nx");
        assert_eq!(super::whole("0\r\n\r\n"), "");
    }
}
