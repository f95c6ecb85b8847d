//! The members of an etcd: which one is asked, and what its failure means.
//!
//! Each member has a connection of its own, so that requests do not go to one that is known to be dead: all
//! go to the last that answered. When it fails, the next is asked, round and round with growing pauses.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error as EtcdError, Identity, KvClient, TlsOptions, Txn,
    TxnResponse, WatchOptions, WatchStream,
};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};
use tonic::{Code, ConnectError};
use tracing::warn;

use crate::Error;

/// How long a member may take for one request. Etcd itself gives up after 5 s and two elections' time.
const REQUEST: Duration = Duration::from_secs(8);

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(2);

/// How long members are tried in turn: a new leader is there after one or two seconds with etcd's settings.
const GIVE_UP: Duration = Duration::from_secs(15);

/// The pause after a round in which no member answered, doubled up to the second figure.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How often a quiet connection is tested, and for how long the answer is awaited: a watch on a member that
/// vanished without a word ends after that. Etcd refuses clients that ask more often than every 5 s.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// The largest answer that is read: a page of the largest objects that etcd takes, and some.
const ANSWER: usize = 1 << 30;

/// Where an etcd is, and who asks.
#[derive(Clone, Debug)]
pub struct Config {
    /// The members, each `host:port`.
    pub members: Vec<String>,
    /// Where in etcd the store lies.
    pub prefix: String,
    /// TLS, if the members speak it.
    pub tls: Option<Tls>,
    /// The user, if etcd asks for one.
    pub user: Option<User>,
}

impl Config {
    /// How a client connects.
    pub(crate) fn options(self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            // A member that lost its peers would tell a watch nothing, for ever.
            .with_require_leader(true);
        if let Some(Tls { ca, identity }) = self.tls {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let Some((cert, key)) = identity {
                tls = tls.identity(Identity::from_pem(cert, key));
            }
            options = options.with_tls(tls);
        }
        if let Some(User { name, password }) = self.user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        options
    }
}

/// Whom to trust and what to show, in PEM.
#[derive(Clone)]
pub struct Tls {
    /// The authority that issued the members' certificates.
    pub ca: Vec<u8>,
    /// Our certificate and its key, if the members ask for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// A user of etcd. The password is never printed.
#[derive(Clone)]
pub struct User {
    pub name: String,
    pub password: String,
}

/// Whether a request may be sent again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing, or the same again.
    Freely,
    /// Only if it is certain that it was not done.
    IfNotDone,
}

/// Why etcd did not do what was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// The revision is older than the history that etcd has.
    Compacted,
    /// The revision is not there yet.
    Future,
    /// It said no; another member would say the same.
    Refused(Cause),
    /// The member could not do it and did not; another one might.
    NotDone(Cause),
    /// It may have been done.
    Unknown(Cause),
}

type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// What etcd said, or what was in the way to it, without the client's wrapping.
#[derive(Debug, thiserror::Error)]
struct Told(EtcdError);

pub(super) struct Members {
    members: Vec<Member>,
    options: ConnectOptions,
    /// The member that answered last.
    preferred: AtomicUsize,
}

struct Member {
    url: String,
    /// Made at first use, since a user is shown to the member then. It connects again by itself.
    client: OnceCell<Client>,
}

impl Members {
    pub(super) fn new(config: Config) -> Self {
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let member = |at: &String| Member { url: format!("{scheme}://{at}"), client: OnceCell::new() };
        let members = config.members.iter().map(member).collect();
        Self { members, options: config.options(), preferred: AtomicUsize::new(0) }
    }

    /// One transaction; a read if it changes nothing.
    pub(super) async fn txn(&self, repeat: Repeat, txn: Txn) -> Result<TxnResponse, Failure> {
        let ask = |mut kv: KvClient| {
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        };
        self.ask(repeat, |client| ask(client.kv_client().max_decoding_message_size(ANSWER))).await
    }

    pub(super) async fn compact(&self, revision: i64) -> Result<(), Failure> {
        let ask = |mut kv: KvClient| async move { kv.compact(revision, None).await };
        self.ask(Repeat::Freely, |client| ask(client.kv_client())).await.map(drop)
    }

    /// A watch on the keys from `start` to before `end`, with what each was before, from `revision` on.
    /// The member has confirmed it.
    pub(super) async fn watch(
        &self,
        start: Vec<u8>,
        end: Vec<u8>,
        revision: i64,
    ) -> Result<WatchStream, Failure> {
        let options =
            WatchOptions::new().with_range(end).with_start_revision(revision).with_prev_key().with_fragment();
        let ask = |client: &Client| {
            let mut watches = client.watch_client().max_decoding_message_size(ANSWER);
            let (start, options) = (start.clone(), options.clone());
            async move {
                let mut stream = watches.watch(start, Some(options)).await?;
                match stream.message().await? {
                    Some(answer) if answer.created() && !answer.canceled() => Ok(stream),
                    Some(answer) => Err(EtcdError::WatchError(answer.cancel_reason().to_owned())),
                    None => Err(EtcdError::WatchError("etcd ended it at once".to_owned())),
                }
            }
        };
        self.ask(Repeat::Freely, ask).await
    }

    /// Asks one member after the other until one answers, or nothing more can be done.
    async fn ask<T, F>(&self, repeat: Repeat, request: impl Fn(&Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let until = Instant::now() + GIVE_UP;
        let mut pause = BACK_OFF.0;
        let first = self.preferred.load(Ordering::Relaxed);
        for turn in 0.. {
            let nth = (first + turn) % self.members.len();
            let failure = match self.ask_one(&self.members[nth], &request).await {
                Ok(answer) => {
                    self.preferred.store(nth, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            let again = match failure {
                Failure::Compacted | Failure::Future | Failure::Refused(_) => false,
                Failure::NotDone(_) => true,
                Failure::Unknown(_) => repeat == Repeat::Freely,
            };
            if !again || Instant::now() >= until {
                // The next request begins with another member.
                self.preferred.store((nth + 1) % self.members.len(), Ordering::Relaxed);
                return Err(failure);
            }
            warn!(member = self.members[nth].url, cause = %failure, "a member of etcd failed");
            if (turn + 1) % self.members.len() == 0 {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACK_OFF.1);
            }
        }
        unreachable!("the loop has no end but a return")
    }

    async fn ask_one<T, F>(&self, member: &Member, request: impl Fn(&Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let connect =
            member.client.get_or_try_init(|| Client::connect([&member.url], Some(self.options.clone())));
        let client = match timeout(REQUEST, connect).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                return Err(match judge(error) {
                    Failure::Unknown(cause) => Failure::NotDone(cause), // all it did was to show who we are
                    other => other,
                });
            }
            Err(late) => return Err(Failure::NotDone(Arc::new(late))),
        };
        match timeout(REQUEST, request(client)).await {
            Ok(answer) => answer.map_err(judge),
            Err(late) => Err(Failure::Unknown(Arc::new(late))),
        }
    }
}

/// What an error of the client means for the request.
pub(super) fn judge(error: EtcdError) -> Failure {
    let EtcdError::GRpcStatus(status) = &error else {
        return match error {
            // Of the transport, the client itself says this only of certificates and keys that it cannot use.
            EtcdError::InvalidArgs(_)
            | EtcdError::InvalidUri(_)
            | EtcdError::InvalidMetadataValue(_)
            | EtcdError::TransportError(_) => Failure::Refused(Arc::new(Told(error))),
            _ => Failure::Unknown(Arc::new(Told(error))),
        };
    };
    let never_sent = causes(status).any(|cause| cause.is::<ConnectError>());
    match (status.code(), status.message()) {
        // The texts are etcd's api/v3rpc/rpctypes/error.go; a code stands for several.
        (Code::OutOfRange, text) if text.contains("has been compacted") => Failure::Compacted,
        (Code::OutOfRange, text) if text.contains("is a future revision") => Failure::Future,
        (_, "etcdserver: no leader" | "etcdserver: not leader") => Failure::NotDone(Arc::new(Told(error))),
        _ if never_sent => Failure::NotDone(Arc::new(Told(error))),
        (
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented,
            _,
        ) => Failure::Refused(Arc::new(Told(error))),
        _ => Failure::Unknown(Arc::new(Told(error))),
    }
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |error| error.source())
}

impl Failure {
    /// Etcd did or holds something that it should not.
    pub(super) fn strange(what: &str) -> Self {
        Self::Refused(Arc::new(std::io::Error::other(what.to_owned())))
    }

    /// The error for who wanted to do `action`, which changes nothing.
    pub(super) fn on(self, action: &'static str) -> Error {
        let cause = match self {
            Self::Refused(cause) | Self::NotDone(cause) | Self::Unknown(cause) => cause,
            Self::Compacted | Self::Future => Arc::new(std::io::Error::other(self.to_string())),
        };
        Error::Engine { action, cause }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compacted => f.write_str("etcd has compacted the revision"),
            Self::Future => f.write_str("etcd is not at the revision yet"),
            Self::Refused(cause) | Self::NotDone(cause) | Self::Unknown(cause) => cause.fmt(f),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (said, root) = match &self.0 {
            EtcdError::GRpcStatus(status) if status.message().is_empty() => {
                (status.code().description().to_owned(), causes(status).last())
            }
            EtcdError::GRpcStatus(status) => (status.message().to_owned(), causes(status).last()),
            EtcdError::TransportError(error) => (error.to_string(), causes(error).last()),
            other => (other.to_string(), None),
        };
        f.write_str(&said)?;
        match root.map(ToString::to_string) {
            Some(root) if !said.contains(&root) => write!(f, ": {root}"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}
