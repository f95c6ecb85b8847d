//! watch: changes as they come, one JSON document a line or one frame of protobuf each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use http::Response;
use serde_json::json;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use wharf_store::{CacheEvent, Error as StoreError, Revision, Watcher};

use super::read::parse_revision;
use super::{Call, store_failed};
use crate::Body;
use crate::encode::Facts;
use crate::kinds::Kind;
use crate::represent::{self, Form, typed_response};
use crate::select::Selection;
use crate::server::Inner;
use crate::status::{FieldError, Result, Status};
use crate::storage::Stored;

/// Without timeoutSeconds a watch lasts between this and twice this, so that not all end at once.
const MIN_TIMEOUT: Duration = Duration::from_secs(1800);
/// How often a bookmark tells a quiet watch where it stands.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// What a watch can be asked for as.
const STREAMS: &str = "application/json;stream=watch";
const STREAMS_PROTOBUF: &str =
    "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

/// What is sent to one client.
struct Feed {
    form: Form,
    kind: Arc<Kind>,
    selection: Selection,
    /// What exists at the start, sent as ADDED.
    initial: std::vec::IntoIter<Stored>,
    /// After `initial`: the bookmark that tells its end.
    initial_end: Option<Revision>,
    watcher: Watcher<Facts>,
    bookmarks: Option<Interval>,
    last_bookmark: Revision,
    deadline: Instant,
    stop: CancellationToken,
    server_stop: CancellationToken,
    /// Column definitions go with the first row only.
    first: bool,
    ready: VecDeque<Bytes>,
    ended: bool,
    _open: OpenWatch,
}

/// Counts a watch while it is open.
struct OpenWatch(Arc<Inner>);

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.0.metrics.watches(-1);
    }
}

impl Call {
    pub async fn watch(&self) -> Result<Response<Body>> {
        let form = match self.form()? {
            Form::Yaml if self.has_protobuf() => return Err(Status::not_acceptable(STREAMS_PROTOBUF)),
            Form::Yaml => return Err(Status::not_acceptable(STREAMS)),
            form => form,
        };
        match self.feed(form).await {
            Ok(feed) => {
                Ok(typed_response(200, represent::watch_type(form), Body::from_stream(feed.stream())))
            }
            // A revision that is gone is told in the stream, where clients look for it.
            Err(status) if status.code() == 410 => {
                let event = represent::plain_event(form, "ERROR", &status.to_json());
                Ok(typed_response(200, represent::watch_type(form), event))
            }
            Err(status) => Err(status),
        }
    }

    async fn feed(&self, form: Form) -> Result<Feed> {
        let prefix = self.kind.prefix_in(&self.path.namespace);
        let revision = self.query.text("resourceVersion").map(parse_revision).transpose()?;
        let matching = self.query.text("resourceVersionMatch");
        let send_initial = self.query.maybe_flag("sendInitialEvents")?;
        let invalid = |field: &str, why: &str| {
            Status::invalid("meta.k8s.io", "ListOptions", "", vec![FieldError::forbidden(field, why)])
        };
        match (send_initial, matching) {
            (None, Some(_)) => {
                return Err(invalid(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            (Some(_), Some("NotOlderThan")) | (None, None) => {}
            (Some(_), _) => {
                return Err(invalid(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
        }
        if let Some(revision) =
            revision.filter(|revision| revision.0 > 0 && *revision > self.storage().revision())
        {
            self.reach(revision).await?;
        }
        let with_state = send_initial.unwrap_or(revision.is_none_or(|revision| revision.0 == 0));
        let (initial, from) = if with_state {
            let snapshot = self.storage().snapshot(&prefix, None).await.map_err(store_failed)?;
            let objects = snapshot.iter().filter(|object| self.selection.matches(&object.meta)).cloned();
            (objects.collect(), snapshot.revision())
        } else {
            (Vec::new(), revision.filter(|r| r.0 > 0).unwrap_or_else(|| self.storage().revision()))
        };
        let watcher = self.storage().watch(&prefix, from).await.map_err(|error| match error {
            StoreError::Compacted { asked, oldest } => {
                Status::expired(format!("too old resource version: {asked} ({oldest})"))
            }
            other => store_failed(other),
        })?;
        let timeout = match self.query.number::<u64>("timeoutSeconds")?.filter(|seconds| *seconds > 0) {
            Some(seconds) => Duration::from_secs(seconds.min(MIN_TIMEOUT.as_secs() * 48)),
            None => MIN_TIMEOUT.mul_f64(1.0 + rand::random::<f64>()),
        };
        let bookmarks = self.query.flag("allowWatchBookmarks")?;
        self.server.metrics.watches(1);
        Ok(Feed {
            form,
            kind: self.kind.clone(),
            selection: self.selection.clone(),
            initial: initial.into_iter(),
            initial_end: (send_initial == Some(true) && bookmarks).then_some(from),
            watcher,
            bookmarks: bookmarks.then(|| {
                let mut interval = tokio::time::interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
                interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
                interval
            }),
            last_bookmark: from,
            deadline: Instant::now() + timeout,
            stop: self.stop.clone(),
            server_stop: self.server.stop.clone(),
            first: true,
            ready: VecDeque::new(),
            ended: false,
            _open: OpenWatch(self.server.clone()),
        })
    }
}

impl Feed {
    fn stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        stream::unfold(self, |mut feed| async move { feed.next().await.map(|bytes| (Ok(bytes), feed)) })
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            if self.ended {
                return None;
            }
            if let Some(object) = self.initial.next() {
                let first = std::mem::take(&mut self.first);
                return Some(represent::event(
                    self.form,
                    &self.kind,
                    "ADDED",
                    &object.value,
                    object.revision,
                    first,
                ));
            }
            if let Some(revision) = self.initial_end.take() {
                return Some(self.bookmark(revision, true));
            }
            let event = tokio::select! {
                biased;
                () = self.stop.cancelled() => { self.ended = true; continue }
                () = self.server_stop.cancelled() => { self.ended = true; continue }
                event = self.watcher.next() => event,
                () = tick(&mut self.bookmarks) => {
                    let revision = self.watcher.progress();
                    if revision > self.last_bookmark {
                        return Some(self.bookmark(revision, false));
                    }
                    continue;
                }
                () = tokio::time::sleep_until(self.deadline) => {
                    self.ended = true;
                    let revision = self.watcher.progress();
                    if self.bookmarks.is_some() && revision > self.last_bookmark {
                        return Some(self.bookmark(revision, false));
                    }
                    continue;
                }
            };
            match event {
                Ok(event) => {
                    if let Some(bytes) = self.encode(&event) {
                        return Some(bytes);
                    }
                }
                Err(StoreError::Closed) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    let status = match error {
                        StoreError::Lagged { at } => {
                            Status::expired(format!("too old resource version: {at}"))
                        }
                        other => store_failed(other),
                    };
                    return Some(represent::plain_event(self.form, "ERROR", &status.to_json()));
                }
            }
        }
    }

    /// The event as this client sees it; `None` if its selection never had the object.
    fn encode(&mut self, event: &CacheEvent<Facts>) -> Option<Bytes> {
        let passes = |object: &&Stored| self.selection.matches(&object.meta);
        let previous = event.previous.as_ref().filter(passes);
        let current = event.current.as_ref().filter(passes);
        let (type_, object) = match (previous, current) {
            (None, None) => return None,
            (None, Some(current)) => ("ADDED", current),
            (Some(_), Some(current)) => ("MODIFIED", current),
            // As it was when it last was here, at the revision at which it left.
            (Some(previous), None) => ("DELETED", previous),
        };
        let as_it_is = match type_ {
            "ADDED" => event.previous.is_none(),
            "DELETED" => event.current.is_none(),
            _ => true,
        };
        let first = std::mem::take(&mut self.first);
        let encode = || represent::event(self.form, &self.kind, type_, &object.value, event.revision, first);
        let shared = match self.form {
            Form::Json => Some(&event.encoded[0]),
            Form::Protobuf => Some(&event.encoded[1]),
            _ => None,
        };
        Some(match shared.filter(|_| as_it_is) {
            Some(encoded) => encoded.get_or_init(encode).clone(),
            None => encode(),
        })
    }

    fn bookmark(&mut self, revision: Revision, initial_end: bool) -> Bytes {
        self.last_bookmark = revision;
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Table(_) => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision.to_string()},
                "columnDefinitions": [], "rows": [{"cells": [], "object": {
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                }}],
            }),
            Form::Metadata(_) => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            }),
            Form::Json | Form::Yaml | Form::Protobuf => json!({
                "kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata,
            }),
        };
        represent::plain_event(self.form, "BOOKMARK", &object)
    }
}

async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
