//! Requests, answers and events over one connection.

use crate::{
    Error, Message, Socket,
    frame::{self, Encoded},
    socket::{Reader, Writer},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::HashMap,
    marker::PhantomData,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

/// Events that may wait at a [`Peer`] to be taken. Past it the connection is given up ([`Error::Overrun`]) rather
/// than answers held back behind events, which would lock up a caller who takes events and makes calls in turn.
pub const EVENT_BACKLOG: usize = 4096;
/// Frames that may wait to be sent, and requests to be answered: then senders wait.
const QUEUE: usize = 64;

/// What a requesting end sends.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wire<Req> {
    /// Chosen by the caller; its answer has the same.
    pub id: u64,
    pub request: Req,
}

/// What an answering end sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireReply<Resp, Ev> {
    Reply {
        id: u64,
        reply: Resp,
    },
    /// The request was refused, in words for people.
    Refused {
        id: u64,
        why: String,
    },
    Event(Ev),
}

type Waiting<Resp> = HashMap<u64, oneshot::Sender<Message<Result<Resp, String>>>>;

struct Shared<Resp> {
    /// `None` after the connection was lost.
    waiting: Mutex<Option<Waiting<Resp>>>,
}

impl<Resp> Shared<Resp> {
    fn with<T>(&self, act: impl FnOnce(&mut Option<Waiting<Resp>>) -> T) -> T {
        act(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Tasks(Vec<AbortHandle>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// The requesting end. Clones share the connection, which closes with the last of them.
///
/// Two tasks run per connection, one a direction; both end with it.
pub struct Peer<Req, Resp, Ev> {
    out: mpsc::Sender<Encoded>,
    shared: Arc<Shared<Resp>>,
    ids: Arc<std::sync::atomic::AtomicU64>,
    tasks: Arc<Tasks>,
    kind: PhantomData<fn(Req) -> Ev>,
}

impl<Req, Resp, Ev> Clone for Peer<Req, Resp, Ev> {
    fn clone(&self) -> Self {
        Self {
            out: self.out.clone(),
            shared: self.shared.clone(),
            ids: self.ids.clone(),
            tasks: self.tasks.clone(),
            kind: PhantomData,
        }
    }
}

impl<Req, Resp, Ev> std::fmt::Debug for Peer<Req, Resp, Ev> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("lost", &self.is_lost()).finish()
    }
}

impl<Req, Resp, Ev> Peer<Req, Resp, Ev> {
    /// Whether the connection is gone; every call would fail.
    pub fn is_lost(&self) -> bool {
        self.shared.with(|waiting| waiting.is_none())
    }
}

/// The events of a [`Peer`]'s other end. Taking them or dropping this is up to the caller; see [`EVENT_BACKLOG`].
#[derive(Debug)]
pub struct Events<Ev> {
    queue: mpsc::Receiver<Message<Ev>>,
    end: Option<oneshot::Receiver<Error>>,
}

impl<Ev> Events<Ev> {
    /// The next event; after the last, once, why the connection ended, and then `None`. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Message<Ev>, Error>> {
        if let Some(event) = self.queue.recv().await {
            return Some(Ok(event));
        }
        self.end.take()?.await.ok().map(Err)
    }
}

impl<Req, Resp, Ev> Peer<Req, Resp, Ev>
where
    Req: Serialize + Send + 'static,
    Resp: DeserializeOwned + Send + 'static,
    Ev: DeserializeOwned + Send + 'static,
{
    /// Must be called in a runtime.
    pub fn over(socket: Socket) -> (Self, Events<Ev>) {
        let (reader, writer) = socket.split();
        let (out, frames) = mpsc::channel(QUEUE);
        let (events, queue) = mpsc::channel(EVENT_BACKLOG);
        let (ended, end) = oneshot::channel();
        let shared = Arc::new(Shared { waiting: Mutex::new(Some(HashMap::new())) });
        let sending = tokio::spawn(send_frames(writer, frames));
        let receiving = tokio::spawn({
            let (shared, sending) = (shared.clone(), sending.abort_handle());
            async move {
                let why = receive_replies(reader, &shared, &events).await;
                sending.abort();
                shared.with(|waiting| *waiting = None); // every caller wakes with `Closed`
                let _ = ended.send(why);
            }
        });
        let tasks = Arc::new(Tasks(vec![sending.abort_handle(), receiving.abort_handle()]));
        let peer = Self { out, shared, ids: Arc::default(), tasks, kind: PhantomData };
        (peer, Events { queue, end: Some(end) })
    }

    /// Sends a request and waits for its answer. Dropping this future forgets the answer, not the request.
    ///
    /// # Errors
    /// [`Error::Remote`] when the other end refuses; [`Error::Closed`] when the connection is lost before the answer.
    pub async fn call(&self, request: Req, fds: Vec<OwnedFd>) -> Result<Message<Resp>, Error> {
        let id = self.ids.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let frame = frame::encode(&Wire { id, request }, fds)?;
        let (answer, answered) = oneshot::channel();
        let known =
            self.shared.with(|waiting| waiting.as_mut().map(|waiting| waiting.insert(id, answer)).is_some());
        if !known {
            return Err(Error::Closed);
        }
        let _forget = Forget { shared: &self.shared, id };
        self.out.send(frame).await.map_err(|_| Error::Closed)?;
        let Message { body, fds } = answered.await.map_err(|_| Error::Closed)?;
        let body = body.map_err(Error::Remote)?;
        Ok(Message { body, fds })
    }
}

/// Takes a call off the list of those that wait, however it ends.
struct Forget<'a, Resp> {
    shared: &'a Shared<Resp>,
    id: u64,
}

impl<Resp> Drop for Forget<'_, Resp> {
    fn drop(&mut self) {
        self.shared.with(|waiting| waiting.as_mut().map(|waiting| waiting.remove(&self.id)));
    }
}

async fn send_frames(mut writer: Writer, mut frames: mpsc::Receiver<Encoded>) {
    while let Some(frame) = frames.recv().await {
        if writer.send_encoded(frame).await.is_err() {
            return; // the receiving task sees the same loss, and tells
        }
    }
}

async fn receive_replies<Resp, Ev>(
    mut reader: Reader,
    shared: &Shared<Resp>,
    events: &mpsc::Sender<Message<Ev>>,
) -> Error
where
    Resp: DeserializeOwned,
    Ev: DeserializeOwned,
{
    loop {
        let Message { body, fds } = match reader.recv::<WireReply<Resp, Ev>>().await {
            Ok(Some(message)) => message,
            Ok(None) => return Error::Closed,
            Err(error) => return error,
        };
        let (id, body) = match body {
            WireReply::Event(event) => match events.try_send(Message { body: event, fds }) {
                Err(mpsc::error::TrySendError::Full(_)) => return Error::Overrun,
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => continue,
            },
            WireReply::Reply { id, reply } => (id, Ok(reply)),
            WireReply::Refused { id, why } => (id, Err(why)),
        };
        let caller = shared.with(|waiting| waiting.as_mut().and_then(|waiting| waiting.remove(&id)));
        if let Some(caller) = caller {
            let _ = caller.send(Message { body, fds }); // a caller who left: its answer is closed with it
        }
    }
}

/// The answering end: takes requests as they come, and emits events.
///
/// Two tasks run per connection; they end when the other end closes, or when the [`Calls`], every [`Call`] and every
/// [`Emitter`] are gone. Must be called in a runtime.
pub fn serve<Req, Resp, Ev>(socket: Socket) -> (Calls<Req, Resp, Ev>, Emitter<Resp, Ev>)
where
    Req: DeserializeOwned + Send + 'static,
    Resp: Serialize + Send + 'static,
    Ev: Serialize + Send + 'static,
{
    let (mut reader, writer) = socket.split();
    let (out, frames) = mpsc::channel(QUEUE);
    let (requests, queue) = mpsc::channel(QUEUE);
    let sending = tokio::spawn(send_frames(writer, frames)).abort_handle();
    tokio::spawn(async move {
        loop {
            let received = tokio::select! {
                received = reader.recv::<Wire<Req>>() => received,
                () = requests.closed() => return, // nobody takes requests; events and answers may still leave
            };
            let request = match received {
                Ok(Some(message)) => Ok(message),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            let broken = request.is_err();
            if requests.send(request).await.is_err() || broken {
                break;
            }
        }
        sending.abort(); // nobody reads answers any more
    });
    let emitter = Emitter { out, kind: PhantomData };
    (Calls { queue, emitter: emitter.clone() }, emitter)
}

/// The requests of one connection, in the order they were sent.
#[derive(Debug)]
pub struct Calls<Req, Resp, Ev> {
    queue: mpsc::Receiver<Result<Message<Wire<Req>>, Error>>,
    emitter: Emitter<Resp, Ev>,
}

impl<Req, Resp, Ev> Calls<Req, Resp, Ev> {
    /// The next request; `None` when the other end closed. After an error there is no other. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Call<Req, Resp, Ev>, Error>> {
        let next = self.queue.recv().await?;
        Some(next.map(|Message { body, fds }| Call {
            request: body.request,
            fds,
            answer: Answer { id: body.id, emitter: self.emitter.clone() },
        }))
    }
}

/// One request. Answer it once, from any task, in any order.
#[derive(Debug)]
pub struct Call<Req, Resp, Ev> {
    pub request: Req,
    pub fds: Vec<OwnedFd>,
    pub answer: Answer<Resp, Ev>,
}

/// Where the answer to a [`Call`] goes.
#[derive(Debug)]
pub struct Answer<Resp, Ev> {
    id: u64,
    emitter: Emitter<Resp, Ev>,
}

impl<Resp: Serialize, Ev: Serialize> Answer<Resp, Ev> {
    /// # Errors
    /// [`Error::Closed`] when the caller is gone; what is to be undone then is the answerer's matter.
    pub async fn reply(self, reply: Resp, fds: Vec<OwnedFd>) -> Result<(), Error> {
        self.emitter.send(&WireReply::Reply { id: self.id, reply }, fds).await
    }

    pub async fn refuse(self, why: impl std::fmt::Display) -> Result<(), Error> {
        self.emitter.send(&WireReply::Refused { id: self.id, why: why.to_string() }, Vec::new()).await
    }
}

/// Sends events to the other end.
#[derive(Debug)]
pub struct Emitter<Resp, Ev> {
    out: mpsc::Sender<Encoded>,
    kind: PhantomData<fn(Resp, Ev)>,
}

impl<Resp, Ev> Clone for Emitter<Resp, Ev> {
    fn clone(&self) -> Self {
        Self { out: self.out.clone(), kind: PhantomData }
    }
}

impl<Resp: Serialize, Ev: Serialize> Emitter<Resp, Ev> {
    /// Waits while the queue is full. Cancel-safe: a dropped future sends nothing.
    pub async fn emit(&self, event: Ev, fds: Vec<OwnedFd>) -> Result<(), Error> {
        self.send(&WireReply::Event(event), fds).await
    }

    /// Resolves when the other end is gone.
    pub async fn closed(&self) {
        self.out.closed().await;
    }

    async fn send(&self, wire: &WireReply<Resp, Ev>, fds: Vec<OwnedFd>) -> Result<(), Error> {
        self.out.send(frame::encode(wire, fds)?).await.map_err(|_| Error::Closed)
    }
}
