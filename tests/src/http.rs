use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{PATIENCE, eventually};

/// Of a connection and of an answer. A request that takes longer counts as none.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One request on a connection of its own: the status and the body.
///
/// # Errors
/// Those of the connection, and an answer that is no HTTP.
pub fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    Stream::over(TcpStream::connect_timeout(&address, TIMEOUT)?)?.get(path)
}

/// A connection that HTTP/1.1 is spoken on.
pub struct Stream {
    reader: BufReader<TcpStream>,
}

impl Stream {
    pub fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// A request; the connection is good for another.
    pub fn get(&mut self, path: &str) -> io::Result<(u16, String)> {
        write!(self.reader.get_mut(), "GET {path} HTTP/1.1\r\nhost: pod.test\r\n\r\n")?;
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "that was no HTTP");
        let status = self.line()?.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
        let (mut length, mut chunked) = (None, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                None => break,
                Some(("content-length", value)) => length = Some(value.trim().parse().map_err(|_| bad())?),
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                Some(_) => {}
            }
        }
        let mut body = Vec::new();
        if chunked {
            loop {
                let size = usize::from_str_radix(self.line()?.trim(), 16).map_err(|_| bad())?;
                self.take(size, &mut body)?;
                self.line()?;
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = length {
            self.take(length, &mut body)?;
        } else {
            self.reader.read_to_end(&mut body)?;
        }
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn take(&mut self, size: usize, body: &mut Vec<u8>) -> io::Result<()> {
        let at = body.len();
        body.resize(at + size, 0);
        self.reader.read_exact(&mut body[at..])
    }
}

/// A node's network namespace: what is done in it is done as from that node.
#[derive(Clone)]
pub struct Node {
    namespace: PathBuf,
}

impl Node {
    pub(crate) fn at(namespace: PathBuf) -> Self {
        Self { namespace }
    }

    /// Does something on a thread in the namespace. Threads started meanwhile are in it too.
    ///
    /// # Errors
    /// That of `work`, or the namespace is not there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        wharf_sandbox::netns::within(&self.namespace, work).map_err(io::Error::other)
    }

    /// One request to a pod.
    ///
    /// # Errors
    /// As [`get`].
    pub fn get(&self, address: IpAddr, port: u16, path: &str) -> io::Result<(u16, String)> {
        self.within(|| get(SocketAddr::new(address, port), path))
    }

    /// A listener on an address of the node.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listen(&self, address: IpAddr, port: u16) -> io::Result<TcpListener> {
        self.within(|| TcpListener::bind((address, port)))
    }
}

/// A `wctl port-forward` that runs until it is dropped.
pub struct Forward {
    child: Child,
    pub address: SocketAddr,
}

impl Forward {
    /// `what` is a pod or TYPE/NAME.
    ///
    /// # Panics
    /// If it does not begin.
    #[track_caller]
    pub(crate) fn start(mut wctl: Command, what: &str, port: u16) -> Self {
        wctl.args(["port-forward", what, &format!("0:{port}")]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = wctl.spawn().expect("wctl starts");
        let mut said = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut said).expect("a line");
        // Forwarding from 127.0.0.1:PORT -> 8080
        let Some(Ok(address)) = said.split(' ').nth(2).map(str::parse) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("port-forward to {what} did not begin: {said:?}");
        };
        Self { child, address }
    }

    /// The body of a 200, asked for until there is one.
    ///
    /// # Panics
    /// If none comes within [`PATIENCE`].
    #[track_caller]
    pub fn get(&self, path: &str) -> String {
        eventually(&format!("200 to {path} within {PATIENCE:?}"), || match get(self.address, path) {
            Ok((200, body)) => Ok(body),
            other => Err(format!("{other:?}")),
        })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
