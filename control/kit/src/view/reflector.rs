//! Lists and watches one kind into a [`Store`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::Request;
use http_body_util::BodyExt;
use kube::client::Body;
use kube::core::Status;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::{debug, warn};

use super::{Filter, Key, Store, View};
use crate::api::{Kind, with_query};
use crate::chain;

/// Objects per page of a list: as client-go's reflector asks.
const PAGE: u32 = 500;
/// The server ends a watch after a time between these, so that watches spread over servers and over time.
const WATCH_SECONDS: std::ops::Range<u32> = 1800..3600;
const BACK_OFF_FIRST: Duration = Duration::from_millis(50);
const BACK_OFF_LAST: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the revision is gone")]
    Gone,
    #[error("the API server refused")]
    Refused(#[source] Box<Status>),
    #[error("the API server did not answer")]
    Request(#[source] kube::Error),
    #[error("the answer broke off")]
    Body(#[source] kube::Error),
    #[error("the answer is not understood")]
    Decode(#[source] serde_json::Error),
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    r#continue: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: ListMeta,
}

/// Feeds `store` until dropped.
pub(super) async fn run<T: View>(client: kube::Client, kind: Kind, filter: Filter, store: Store<T>) {
    let reflector = Reflector { client, kind, path: kind.path(&filter.namespace), filter, store };
    let mut from: Option<String> = None;
    let mut pause = BACK_OFF_FIRST;
    loop {
        let result = match &mut from {
            None => reflector.list().await.map(|revision| from = Some(revision)),
            Some(revision) => reflector.watch(revision, &mut pause).await,
        };
        let Err(error) = result else { continue };
        if matches!(error, Error::Gone) {
            debug!(kind = kind.kind, "revision is gone: listing afresh");
            from = None;
            // Straight on the first time; a server that forgets at once must not be hammered.
            if pause == BACK_OFF_FIRST {
                pause *= 2;
                continue;
            }
        } else {
            warn!(kind = kind.kind, error = chain(&error), "list or watch failed");
        }
        let jitter = rand::random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(BACK_OFF_LAST);
    }
}

struct Reflector<T> {
    client: kube::Client,
    kind: Kind,
    path: String,
    filter: Filter,
    store: Store<T>,
}

impl<T: View> Reflector<T> {
    /// Reads all pages into the store; returns the revision to watch from.
    async fn list(&self) -> Result<String, Error> {
        let mut objects = BTreeMap::new();
        let mut token = String::new();
        loop {
            let page = PAGE.to_string();
            let body = self.ask(&[("limit", &page), ("continue", &token)]).await?;
            let bytes = body.collect().await.map_err(Error::Body)?.to_bytes();
            let list: List<'_> = serde_json::from_slice(&bytes).map_err(Error::Decode)?;
            for item in list.items.unwrap_or_default() {
                if let Some((key, object)) = self.decode(item) {
                    objects.insert(key, object);
                }
            }
            if list.metadata.r#continue.is_empty() {
                let revision = list.metadata.resource_version;
                self.store.replace(objects, revision.parse().unwrap_or(0));
                return Ok(revision);
            }
            token = list.metadata.r#continue;
        }
    }

    /// Follows one watch to its end. `revision` moves with each event, so that the next watch goes on there.
    async fn watch(&self, revision: &mut String, pause: &mut Duration) -> Result<(), Error> {
        let seconds = rand::random_range(WATCH_SECONDS).to_string();
        let mut body = self
            .ask(&[
                ("watch", "true"),
                ("allowWatchBookmarks", "true"),
                ("timeoutSeconds", &seconds),
                ("resourceVersion", revision),
            ])
            .await?;
        let mut buffer = BytesMut::new();
        let mut scanned = 0; // bytes of `buffer` known to hold no line end
        let mut events = 0_u64;
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame.map_err(Error::Body)?.into_data() else { continue };
            buffer.extend_from_slice(&bytes);
            while let Some(end) = buffer[scanned..].iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(scanned + end + 1);
                scanned = 0;
                if !line.trim_ascii().is_empty() {
                    self.event(&line, revision)?;
                    events += 1;
                    *pause = BACK_OFF_FIRST;
                }
            }
            scanned = buffer.len();
            if buffer.is_empty() && buffer.capacity() > 256 * 1024 {
                buffer = BytesMut::new(); // one large object must not be paid for ever
            }
        }
        if events == 0 {
            // A server or a proxy that ends watches at once must not be asked in a tight loop.
            tokio::time::sleep(*pause).await;
            *pause = (*pause * 2).min(BACK_OFF_LAST);
        }
        Ok(())
    }

    fn event(&self, line: &[u8], revision: &mut String) -> Result<(), Error> {
        let event: Event<'_> = serde_json::from_slice(line).map_err(Error::Decode)?;
        match event.r#type {
            "ADDED" | "MODIFIED" | "DELETED" => {
                let Some((key, object)) = self.decode(event.object) else { return Ok(()) };
                *revision = object.meta().resource_version.to_string();
                let at = object.meta().revision();
                self.store.set(&key, (event.r#type != "DELETED").then_some(object), at);
                Ok(())
            }
            "BOOKMARK" => {
                let bookmark: Bookmark = serde_json::from_str(event.object.get()).map_err(Error::Decode)?;
                self.store.advance(bookmark.metadata.resource_version.parse().unwrap_or(0));
                *revision = bookmark.metadata.resource_version;
                Ok(())
            }
            _ => {
                let status: Status = serde_json::from_str(event.object.get()).map_err(Error::Decode)?;
                Err(refused(status))
            }
        }
    }

    /// One object; what cannot be decoded is logged and left out, so that it harms no other.
    fn decode(&self, raw: &RawValue) -> Option<(Key, Arc<T>)> {
        match serde_json::from_str::<T>(raw.get()) {
            Ok(mut object) => {
                object.prepare();
                Some((object.meta().key(), Arc::new(object)))
            }
            Err(error) => {
                let start: String = raw.get().chars().take(200).collect();
                warn!(
                    kind = self.kind.kind,
                    error = chain(&error),
                    object = start,
                    "object is not understood"
                );
                None
            }
        }
    }

    async fn ask(&self, parameters: &[(&str, &str)]) -> Result<Body, Error> {
        let selectors =
            [("labelSelector", self.filter.labels.as_str()), ("fieldSelector", self.filter.fields.as_str())];
        let given = parameters.iter().copied().chain(selectors).filter(|(_, value)| !value.is_empty());
        let uri = with_query(&self.path, given);
        let request =
            Request::get(uri).header("accept", "application/json").header("accept-encoding", "identity");
        let request =
            request.body(Body::empty()).map_err(|cause| Error::Request(kube::Error::HttpError(cause)))?;
        let response = self.client.send(request).await.map_err(Error::Request)?;
        let code = response.status();
        if code.is_success() {
            return Ok(response.into_body());
        }
        let bytes = response.into_body().collect().await.map_err(Error::Body)?.to_bytes();
        let status = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&bytes);
            Status::failure(&text, code.canonical_reason().unwrap_or_default()).with_code(code.as_u16())
        });
        Err(refused(status))
    }
}

fn refused(status: Status) -> Error {
    if status.code == 410 { Error::Gone } else { Error::Refused(Box::new(status)) }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use http::{Response, StatusCode};
    use serde_json::json;
    use tokio::time::timeout;
    use tokio_util::sync::CancellationToken;

    use super::super::{Hub, Meta};
    use super::*;

    #[derive(Deserialize)]
    struct Thing {
        metadata: Meta,
    }

    impl View for Thing {
        const KIND: Kind = Kind::core("Thing", "things");

        fn meta(&self) -> &Meta {
            &self.metadata
        }
    }

    type Asked = Arc<Mutex<Vec<String>>>;
    /// A body in the pieces in which it arrives.
    type Answer = (StatusCode, Vec<String>);

    /// A server that gives these answers in turn, and then none.
    fn server(answers: Vec<Answer>) -> (kube::Client, Asked) {
        let asked = Asked::default();
        let log = asked.clone();
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let service = tower::service_fn(move |request: Request<Body>| {
            log.lock().unwrap().push(request.uri().to_string());
            let answer = answers.lock().unwrap().pop_front();
            async move {
                let Some((code, pieces)) = answer else { return std::future::pending().await };
                let frames = pieces.into_iter().map(|piece| {
                    Ok::<_, std::convert::Infallible>(http_body::Frame::data(bytes::Bytes::from(piece)))
                });
                let body = http_body_util::StreamBody::new(futures::stream::iter(frames));
                Ok::<_, std::convert::Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        });
        (kube::Client::new(service, "default"), asked)
    }

    fn object(name: &str, revision: u64) -> serde_json::Value {
        json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": revision.to_string()}})
    }

    fn list(revision: u64, next: &str, items: &[serde_json::Value]) -> Answer {
        let list =
            json!({"metadata": {"resourceVersion": revision.to_string(), "continue": next}, "items": items});
        (StatusCode::OK, vec![list.to_string()])
    }

    fn event(kind: &str, object: serde_json::Value) -> String {
        format!("{}\n", json!({"type": kind, "object": object}))
    }

    fn names(store: &Store<Thing>) -> Vec<String> {
        store.all().iter().map(|thing| thing.metadata.name.to_string()).collect()
    }

    async fn until(store: &Store<Thing>, expected: &[&str]) {
        let reached = async {
            while names(store) != expected {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let reached = timeout(Duration::from_secs(600), reached).await;
        assert!(reached.is_ok(), "has {:?}, not {expected:?}", names(store));
    }

    #[tokio::test(start_paused = true)]
    async fn pages_and_events_in_any_pieces_make_the_store() {
        let events = event("ADDED", object("c", 11))
            + &event("DELETED", object("a", 12))
            + &event("MODIFIED", object("b", 13));
        let (one, rest) = events.split_at(30);
        let (client, asked) = server(vec![
            list(0, "more/==", &[object("a", 3)]),
            list(10, "", &[object("b", 4), json!({"metadata": "damaged"})]),
            (StatusCode::OK, vec![one.to_owned(), rest.to_owned()]),
        ]);
        let store = Hub::new(client, CancellationToken::new()).view::<Thing>();
        until(&store, &["b", "c"]).await;
        store.reached(13).await;
        assert_eq!(store.revision(), 13);
        let asked = asked.lock().unwrap();
        assert_eq!(
            asked[..2],
            ["/api/v1/things?limit=500", "/api/v1/things?limit=500&continue=more%2F%3D%3D"]
        );
        assert!(asked[2].contains("watch=true") && asked[2].ends_with("resourceVersion=10"), "{}", asked[2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_ends_goes_on_from_the_last_bookmark() {
        let bookmark = event("BOOKMARK", json!({"metadata": {"resourceVersion": "20"}}));
        let (client, asked) = server(vec![
            list(10, "", &[object("a", 3)]),
            (StatusCode::OK, vec![bookmark]),
            (StatusCode::OK, vec![event("ADDED", object("b", 21))]),
        ]);
        let store = Hub::new(client, CancellationToken::new()).view::<Thing>();
        until(&store, &["a", "b"]).await;
        assert!(asked.lock().unwrap()[2].ends_with("resourceVersion=20"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_missed_while_history_was_lost_is_told_as_changes() {
        let gone = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
        for answer in
            [(StatusCode::GONE, vec![gone.to_string()]), (StatusCode::OK, vec![event("ERROR", gone.clone())])]
        {
            let (client, asked) = server(vec![
                list(10, "", &[object("a", 3), object("b", 4)]),
                answer,
                list(30, "", &[object("b", 4), object("c", 29)]),
            ]);
            let store = Hub::new(client, CancellationToken::new()).view::<Thing>();
            let told = Arc::new(Mutex::new(Vec::new()));
            let log = told.clone();
            store.on_change(move |change| {
                let mark = if change.new.is_some() { '+' } else { '-' };
                log.lock().unwrap().push(format!("{mark}{}", change.key.name));
            });
            until(&store, &["b", "c"]).await;
            assert_eq!(*told.lock().unwrap(), ["+a", "+b", "-a", "+c"]);
            store.reached(30).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(asked.lock().unwrap().last().unwrap().ends_with("resourceVersion=30"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_one_watch_serves_all_who_ask() {
        let broken = || (StatusCode::INTERNAL_SERVER_ERROR, vec!["{}".to_owned()]);
        let (client, asked) =
            server((0..8).map(|_| broken()).chain([list(10, "", &[object("a", 3)])]).collect());
        let hub = Hub::new(client, CancellationToken::new());
        let start = tokio::time::Instant::now();
        let (one, two) = (hub.view::<Thing>(), hub.view::<Thing>());
        tokio::join!(one.ready(), two.ready());
        assert_eq!(names(&two), ["a"]);
        let waited = start.elapsed();
        assert!(waited > Duration::from_secs(6) && waited < Duration::from_secs(14), "{waited:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(asked.lock().unwrap().len(), 10, "eight failures, a list and a watch");
    }
}
