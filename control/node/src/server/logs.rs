//! `/containerLogs/NS/POD/CONTAINER`: reads a CRI log file from the asked place on, and follows it with inotify.

use std::io::SeekFrom;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use jiff::{SignedDuration, Timestamp};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::{mpsc, watch};
use wharf_kit::view::Key;

use super::{Body, text};
use crate::logs::{self, Stream};
use crate::pod::{Shared, Snapshot};

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
    limit: Option<u64>,
    /// Only this one; none: both.
    stream: Option<Stream>,
}

impl PartialEq<Stream> for Options {
    fn eq(&self, other: &Stream) -> bool {
        self.stream.is_none_or(|stream| stream == *other)
    }
}

impl Options {
    fn parse(query: &str, now: Timestamp) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let number = || {
                value.parse::<u64>().map_err(|_| {
                    format!("invalid value for \"{name}\": {value:?} is not a number of at least 0")
                })
            };
            let flag = || match value.as_ref() {
                "" | "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(format!("invalid value for \"{name}\": {value:?} is neither true nor false")),
            };
            match name.as_ref() {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => options.tail = Some(usize::try_from(number()?).unwrap_or(usize::MAX)),
                "limitBytes" => options.limit = Some(number()?),
                "sinceSeconds" => {
                    let seconds = i64::try_from(number()?).unwrap_or(i64::MAX);
                    options.since =
                        Some(now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN));
                }
                "sinceTime" => {
                    options.since =
                        Some(value.parse().map_err(|_| {
                            format!("invalid value for \"sinceTime\": {value:?} is not a time")
                        })?)
                }
                "stream" => {
                    options.stream = match value.as_ref() {
                        "Stdout" => Some(Stream::Stdout),
                        "Stderr" => Some(Stream::Stderr),
                        _ => None,
                    }
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

pub async fn serve(
    shared: &Arc<Shared>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &str,
) -> Response<Body> {
    let options = match Options::parse(query, Timestamp::now()) {
        Ok(options) => options,
        Err(words) => return text(StatusCode::BAD_REQUEST, format!("{words}\n")),
    };
    let Some(found) = shared.directory.find(&Key::new(namespace, pod)) else {
        return text(StatusCode::NOT_FOUND, format!("pod \"{pod}\" not found\n"));
    };
    let snapshot = found.borrow().clone();
    let Some(brief) = snapshot.containers.iter().find(|brief| brief.name == container) else {
        return text(
            StatusCode::BAD_REQUEST,
            format!("container \"{container}\" in pod \"{pod}\" is not available\n"),
        );
    };
    let attempt = match (brief.attempt, options.previous) {
        (Some(attempt), false) => Some(attempt),
        (Some(attempt), true) => attempt.checked_sub(1),
        (None, _) => None,
    };
    let directory = logs::pod_directory(&shared.logs, namespace, pod, &snapshot.uid);
    let Some(attempt) = attempt else {
        let words = if options.previous {
            format!("previous terminated container \"{container}\" in pod \"{pod}\" not found\n")
        } else {
            let why = if brief.waiting.is_empty() { "ContainerCreating" } else { &brief.waiting };
            format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {why}\n")
        };
        return text(StatusCode::BAD_REQUEST, words);
    };
    let path = directory.join(logs::relative(container, attempt));
    let follow = (options.follow && !options.previous).then(|| Running {
        pod: found,
        container: container.to_owned(),
        attempt,
    });
    let (tx, rx) = mpsc::channel(8);
    let reader = Reader { options, path, tx, sent: 0, partial: [false; 2] };
    // Errors of reading end the stream; the client sees a broken body.
    tokio::spawn(reader.run(follow));
    let stream = futures::stream::unfold(rx, |mut rx| async move {
        rx.recv().await.map(|item| (item.map(hyper::body::Frame::data), rx))
    });
    let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Tells whether the run whose log is followed goes on.
struct Running {
    pod: watch::Receiver<Snapshot>,
    container: String,
    attempt: u32,
}

impl Running {
    fn goes_on(&mut self) -> bool {
        let snapshot = self.pod.borrow_and_update();
        snapshot
            .containers
            .iter()
            .any(|brief| brief.name == self.container && brief.attempt == Some(self.attempt) && brief.running)
    }
}

struct Reader {
    options: Options,
    path: PathBuf,
    tx: mpsc::Sender<std::io::Result<Bytes>>,
    sent: u64,
    /// An entry of this stream was cut: what comes next continues it and gets no time of its own.
    partial: [bool; 2],
}

/// As much is read at once.
const CHUNK: usize = 32 << 10;

impl Reader {
    async fn run(mut self, follow: Option<Running>) {
        if let Err(error) = self.read(follow).await {
            let _ = self.tx.send(Err(error)).await; // the client went away
        }
    }

    async fn read(&mut self, mut follow: Option<Running>) -> std::io::Result<()> {
        // Watched before it is read: nothing that comes in between is missed. The directory tells of its files' changes, and
        // of a new file that takes this one's name when the log is rotated.
        let changes = match &follow {
            Some(_) => Some(Changes::of(&self.path)?),
            None => None,
        };
        let mut file = self.open(&mut follow, changes.as_ref()).await?;
        let Some(file) = &mut file else { return Ok(()) };
        if let Some(lines) = self.options.tail {
            let from = tail(file, lines).await?;
            file.seek(SeekFrom::Start(from)).await?;
        }
        let mut pending = BytesMut::new();
        loop {
            // Asked before the file is read to its end: what is written before a container ends is in its log by then.
            let goes_on = follow.as_mut().is_some_and(Running::goes_on);
            if !self.drain(file, &mut pending).await? {
                return Ok(());
            }
            let (Some(follow), Some(changes)) = (&mut follow, &changes) else { return Ok(()) };
            if self.rotated(file).await? {
                // The old file has been read to its end, the new one is read from its start.
                if !self.drain(file, &mut pending).await? {
                    return Ok(());
                }
                *file = File::open(&self.path).await?;
                continue;
            }
            if !goes_on {
                return Ok(());
            }
            tokio::select! {
                () = self.tx.closed() => return Ok(()),
                changed = changes.next() => changed?,
                // An error means that the pod is gone: `goes_on` was told so by the last snapshot, or is never again.
                ended = follow.pod.changed() => if ended.is_err() {
                    self.drain(file, &mut pending).await?;
                    return Ok(());
                },
            }
        }
    }

    /// Opens the log; one of a container that has written nothing yet may not be there.
    async fn open(
        &self,
        follow: &mut Option<Running>,
        changes: Option<&Changes>,
    ) -> std::io::Result<Option<File>> {
        loop {
            match File::open(&self.path).await {
                Ok(file) => return Ok(Some(file)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let (Some(running), Some(changes)) = (follow.as_mut(), changes) else { return Ok(None) };
            if !running.goes_on() {
                return Ok(None);
            }
            tokio::select! {
                () = self.tx.closed() => return Ok(None),
                changed = changes.next() => changed?,
                ended = running.pod.changed() => if ended.is_err() { return Ok(None) },
            }
        }
    }

    async fn rotated(&self, file: &File) -> std::io::Result<bool> {
        let open = file.metadata().await?;
        Ok(match tokio::fs::metadata(&self.path).await {
            Ok(there) => (there.ino(), there.dev()) != (open.ino(), open.dev()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false, // between the two steps of a rotation
            Err(error) => return Err(error),
        })
    }

    /// Sends what is in the file up to its end now. False when the client has all it asked for, or is gone.
    async fn drain(&mut self, file: &mut File, pending: &mut BytesMut) -> std::io::Result<bool> {
        loop {
            pending.reserve(CHUNK);
            if file.read_buf(pending).await? == 0 {
                return Ok(!self.tx.is_closed());
            }
            let mut out = BytesMut::new();
            let mut more = true;
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line = pending.split_to(end + 1);
                more = self.line(&line[..end], &mut out);
                if !more {
                    break;
                }
            }
            if !out.is_empty() && self.tx.send(Ok(out.freeze())).await.is_err() || !more {
                return Ok(false);
            }
        }
    }

    /// Adds one entry to what is sent. False when the limit is reached.
    fn line(&mut self, line: &[u8], out: &mut BytesMut) -> bool {
        let Some(entry) = logs::parse(line) else { return true };
        if self.options != entry.stream {
            return true;
        }
        if let (Some(since), Some(at)) = (self.options.since, entry.timestamp())
            && at < since
        {
            return true;
        }
        let index = usize::from(entry.stream == Stream::Stderr);
        let continues = std::mem::replace(&mut self.partial[index], !entry.full);
        let before = out.len();
        if self.options.timestamps && !continues {
            out.extend_from_slice(entry.time);
            out.extend_from_slice(b" ");
        }
        out.extend_from_slice(entry.text);
        if entry.full {
            out.extend_from_slice(b"\n");
        }
        self.sent += (out.len() - before) as u64;
        match self.options.limit {
            Some(limit) if self.sent >= limit => {
                let surplus = usize::try_from(self.sent - limit).unwrap_or(0);
                out.truncate(out.len().saturating_sub(surplus));
                false
            }
            _ => true,
        }
    }
}

/// Where the last `lines` lines begin.
async fn tail(file: &mut File, lines: usize) -> std::io::Result<u64> {
    let length = file.metadata().await?.len();
    if lines == 0 {
        return Ok(length);
    }
    let mut left = lines;
    let mut end = length;
    let mut block = vec![0; CHUNK];
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        let size = usize::try_from(end - start).unwrap_or(CHUNK);
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(&mut block[..size]).await?;
        for at in (0..size).rev() {
            let position = start + at as u64;
            // The line feed that ends the file begins no line.
            if block[at] == b'\n' && position + 1 != length {
                left -= 1;
                if left == 0 {
                    return Ok(position + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

/// Changes in the directory of a log.
struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    fn of(path: &Path) -> std::io::Result<Self> {
        let directory = path.parent().unwrap_or(path);
        std::fs::create_dir_all(directory)?; // the runtime makes it no later than with the first line
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE_SELF;
        inotify.add_watch(directory, flags)?;
        #[expect(unsafe_code, reason = "tokio has no safe way to wait for a descriptor that is no socket")]
        // SAFETY: an OwnedFd is an open descriptor and stays the same one until it is dropped, which is when the AsyncFd is.
        let readable = unsafe { AsyncFd::register(OwnedFd::from(inotify)) };
        Ok(Self(readable?))
    }

    /// Waits until something changed. What it was does not matter: the file is looked at anew.
    async fn next(&self) -> std::io::Result<()> {
        let mut events = [0; 4096];
        loop {
            let mut ready = self.0.readable().await?;
            match nix::unistd::read(self.0.get_ref(), &mut events) {
                Ok(_) => return Ok(()), // several at once are one reason to read on
                Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;
    use crate::pod::Brief;

    fn line(n: u32) -> String {
        format!("2026-01-02T03:04:{n:02}.5Z stdout F line {n}\n")
    }

    async fn read_all(path: &Path, query: &str) -> String {
        let (tx, mut rx) = mpsc::channel(8);
        let now = "2026-01-02T03:04:10Z".parse().unwrap();
        let reader = Reader {
            options: Options::parse(query, now).unwrap(),
            path: path.to_owned(),
            tx,
            sent: 0,
            partial: [false; 2],
        };
        tokio::spawn(reader.run(None));
        let mut all = Vec::new();
        while let Some(chunk) = rx.recv().await {
            all.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn logs_are_read_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log: String = (0..10).map(line).collect();
        log += "2026-01-02T03:04:11Z stderr P long \n2026-01-02T03:04:12Z stderr F text\n";
        std::fs::write(&path, log).unwrap();
        for (query, want) in [
            ("tailLines=1", "text\n"),
            ("tailLines=3&stream=Stdout", "line 9\n"),
            ("tailLines=0", ""),
            ("tailLines=3", "line 9\nlong text\n"),
            ("limitBytes=9", "line 0\nli"),
            ("sinceSeconds=1", "line 9\nlong text\n"),
            (
                "sinceTime=2026-01-02T03:04:09%2B00:00&timestamps=true",
                "2026-01-02T03:04:09.5Z line 9\n2026-01-02T03:04:11Z long text\n",
            ),
            ("stream=Stderr", "long text\n"),
        ] {
            assert_eq!(read_all(&path, query).await, want, "{query}");
        }
        assert!(read_all(&path, "tailLines=100000").await.starts_with("line 0\n"));
        assert_eq!(read_all(&dir.path().join("none"), "").await, "");
        assert!(Options::parse("tailLines=-1", Timestamp::UNIX_EPOCH).is_err());
    }

    #[tokio::test]
    async fn tails_are_found_across_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log: String = (0..5000).map(|n| line(n % 60)).collect();
        std::fs::write(&path, log).unwrap();
        assert_eq!(read_all(&path, "tailLines=4000").await.lines().count(), 4000);
        assert_eq!(read_all(&path, "tailLines=5000").await.lines().count(), 5000);
    }

    #[tokio::test]
    async fn a_followed_log_goes_on_over_rotation_until_the_container_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c/0.log");
        let state = |running| Snapshot {
            containers: vec![Brief {
                name: "c".into(),
                attempt: Some(0),
                id: None,
                running,
                waiting: String::new(),
            }],
            ..Default::default()
        };
        let (pod_tx, pod) = watch::channel(state(true));
        let (tx, mut rx) = mpsc::channel(8);
        let options = Options { follow: true, ..Default::default() };
        let reader = Reader { options, path: path.clone(), tx, sent: 0, partial: [false; 2] };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        tokio::spawn(reader.run(Some(Running { pod, container: "c".into(), attempt: 0 })));
        let mut next = async || {
            tokio::time::timeout(Duration::from_secs(5), rx.recv())
                .await
                .expect("in time")
                .map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap())
        };

        std::fs::write(&path, line(1)).unwrap();
        assert_eq!(next().await.unwrap(), "line 1\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&line(2).as_bytes()[..20]).unwrap();
        file.write_all(&line(2).as_bytes()[20..]).unwrap();
        assert_eq!(next().await.unwrap(), "line 2\n");
        std::fs::rename(&path, dir.path().join("c/0.log.old")).unwrap();
        file.write_all(line(3).as_bytes()).unwrap();
        std::fs::write(&path, line(4)).unwrap();
        assert_eq!(next().await.unwrap(), "line 3\n");
        assert_eq!(next().await.unwrap(), "line 4\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(line(5).as_bytes()).unwrap();
        pod_tx.send(state(false)).unwrap();
        assert_eq!(next().await.unwrap(), "line 5\n");
        assert_eq!(next().await, None, "the stream ends with the container");
    }
}
