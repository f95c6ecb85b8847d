//! Follows a narrow part of a collection (the pods of one node, one ConfigMap): a list, then its watch, for ever.
//!
//! The kit's views hold a whole collection for everybody in the process; a node may see no more than what is its own, and
//! keeps the encoded object beside the few fields it looks at. Hence this smaller thing.

use std::time::Duration;

use bytes::Bytes;
use futures::AsyncBufReadExt as _;
use http::Request;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tracing::{debug, warn};
use wharf_kit::api::with_query;
use wharf_kit::chain;

/// What happened to the followed objects.
#[derive(Debug)]
pub enum Change {
    /// All that there is now; whatever is not in it is gone.
    Listed(Vec<Bytes>),
    /// Added or changed.
    Applied(Bytes),
    Deleted(Bytes),
}

/// A part of a collection.
#[derive(Debug, Clone)]
pub struct Part {
    /// Of the collection: `/api/v1/pods`.
    pub path: String,
    /// As in `fieldSelector`.
    pub fields: String,
}

/// Why one round of listing and watching ended.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API refused or did not answer")]
    Api(#[from] kube::Error),
    #[error("the watch broke")]
    Stream(#[from] std::io::Error),
    #[error("the answer is not understood")]
    Decode(#[from] serde_json::Error),
    #[error("the watch is too old")]
    Expired,
    #[error("nobody listens any more")]
    Closed,
    #[error("the watch was ended by the server: {0}")]
    Server(String),
    #[error("the request could not be made")]
    Request(#[from] http::Error),
}

#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
    items: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    r#continue: Option<String>,
}

#[derive(Deserialize)]
struct Event<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Versioned {
    metadata: Version,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    resource_version: String,
}

/// Sends every change, in order, until the receiver is dropped. Troubles are retried with a growing pause and logged.
pub async fn follow(client: kube::Client, part: Part, changes: mpsc::Sender<Change>) {
    const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
    let mut pause = PAUSES.0;
    let mut revision: Option<String> = None;
    loop {
        let started = tokio::time::Instant::now();
        let result = match &revision {
            None => match list(&client, &part).await {
                Ok((items, at)) => {
                    revision = Some(at);
                    changes.send(Change::Listed(items)).await.map_err(|_| Error::Closed)
                }
                Err(error) => Err(error),
            },
            Some(at) => watch(&client, &part, at.clone(), &mut revision, &changes).await,
        };
        match result {
            Ok(()) => pause = PAUSES.0,
            Err(Error::Closed) => return,
            Err(Error::Expired) => revision = None,
            Err(Error::Api(kube::Error::Api(status))) if status.code == 410 => revision = None,
            Err(error) => {
                // A list tells the truth whatever the watch missed; a watch that lived for long is merely resumed.
                if started.elapsed() > PAUSES.1 {
                    pause = PAUSES.0;
                    debug!(path = part.path, fields = part.fields, error = %chain(&error), "watch ended");
                } else {
                    warn!(path = part.path, fields = part.fields, error = %chain(&error), "could not follow, trying again");
                }
                if matches!(error, Error::Decode(_)) {
                    revision = None;
                }
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

fn request(path: String) -> Result<Request<Vec<u8>>, Error> {
    Ok(Request::get(path)
        .header("accept", "application/json")
        .header("accept-encoding", "identity")
        .body(Vec::new())?)
}

/// Everything in the part (in pages as `kubectl` asks for them) and the revision of that answer.
async fn list(client: &kube::Client, part: &Part) -> Result<(Vec<Bytes>, String), Error> {
    let mut items = Vec::new();
    let mut next = None::<String>;
    loop {
        let asked = [("fieldSelector", part.fields.as_str()), ("limit", "500")];
        let path =
            with_query(&part.path, asked.into_iter().chain(next.as_deref().map(|next| ("continue", next))));
        let list: List = client.request(request(path)?).await?;
        items.extend(list.items.iter().map(|item| Bytes::copy_from_slice(item.get().as_bytes())));
        match list.metadata.r#continue {
            Some(token) if !token.is_empty() => next = Some(token),
            _ => return Ok((items, list.metadata.resource_version)),
        }
    }
}

async fn watch(
    client: &kube::Client,
    part: &Part,
    from: String,
    revision: &mut Option<String>,
    changes: &mpsc::Sender<Change>,
) -> Result<(), Error> {
    let asked = [
        ("watch", "true"),
        ("allowWatchBookmarks", "true"),
        ("fieldSelector", part.fields.as_str()),
        ("resourceVersion", from.as_str()),
    ];
    let path = with_query(&part.path, asked);
    let mut lines = std::pin::pin!(client.request_stream(request(path)?).await?);
    let mut line = Vec::new();
    let mut seen = false;
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).await? == 0 {
            // The server ends watches now and then. One that ended without a word is not resumed in a tight loop.
            return if seen { Ok(()) } else { Err(Error::Server("it closed the stream".to_owned())) };
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let event: Event<'_> = serde_json::from_slice(&line)?;
        if event.r#type == "ERROR" {
            let status: kube::core::Status = serde_json::from_str(event.object.get())?;
            return Err(if status.code == 410 { Error::Expired } else { Error::Server(status.message) });
        }
        seen = true;
        let version = serde_json::from_str::<Versioned>(event.object.get())?.metadata.resource_version;
        let object = || Bytes::copy_from_slice(event.object.get().as_bytes());
        let change = match event.r#type {
            "ADDED" | "MODIFIED" => Some(Change::Applied(object())),
            "DELETED" => Some(Change::Deleted(object())),
            _ => None, // a bookmark
        };
        *revision = Some(version);
        if let Some(change) = change {
            changes.send(change).await.map_err(|_| Error::Closed)?;
        }
    }
}
