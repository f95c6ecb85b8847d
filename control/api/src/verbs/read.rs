//! get and list.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::Response;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wharf_store::{Error as StoreError, Revision};

use super::{Call, store_failed};
use crate::Body;
use crate::represent::{self, ListMeta};
use crate::status::{FieldError, Result, Status};
use crate::storage::Stored;

/// A read of a revision that is not there yet waits for it this long, as kube-apiserver does.
const FRESH_WAIT: Duration = Duration::from_secs(3);

/// A list's `continue`: Kubernetes' own form, so that its clients may look inside.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    /// -1: go on at whatever is the newest revision.
    rv: i64,
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

impl Token {
    /// `start` is the key after which the list goes on, without the collection's prefix.
    fn encode(rv: i64, start: &str) -> String {
        let token = Self { v: TOKEN_VERSION.to_owned(), rv, start: format!("{start}\0") };
        STANDARD_NO_PAD.encode(serde_json::to_vec(&token).expect("a token of text and a number serializes"))
    }

    fn decode(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let bytes =
            STANDARD_NO_PAD.decode(text.trim_end_matches('=')).map_err(|error| bad(&error.to_string()))?;
        let mut token: Self = serde_json::from_slice(&bytes).map_err(|error| bad(&error.to_string()))?;
        if token.v != TOKEN_VERSION {
            return Err(bad("server does not recognize this encoded version"));
        }
        if token.start.is_empty() || token.start.split('/').any(|part| part == "..") {
            return Err(bad("missing start key"));
        }
        token.start = token.start.trim_end_matches('\0').to_owned();
        Ok(token)
    }
}

/// How the wanted resourceVersion is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Newest,
    Any,
    NotOlderThan(Revision),
    Exact(Revision),
}

/// Reads `resourceVersion` and `resourceVersionMatch` of a list or get.
pub fn wanted(call: &Call, limit: usize) -> Result<Wanted> {
    let revision = call.query.text("resourceVersion");
    let matching = call.query.text("resourceVersionMatch");
    let forbidden = |why: &str| {
        Err(Status::invalid(
            "meta.k8s.io",
            "ListOptions",
            "",
            vec![FieldError::forbidden("resourceVersionMatch", why)],
        ))
    };
    let Some(text) = revision else {
        return match matching {
            None => Ok(Wanted::Newest),
            Some(_) => forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"),
        };
    };
    let revision = parse_revision(text)?;
    match matching {
        Some("Exact") if revision.0 == 0 => {
            forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
        }
        Some("Exact") => Ok(Wanted::Exact(revision)),
        None if revision.0 > 0 && limit > 0 => Ok(Wanted::Exact(revision)),
        None | Some("NotOlderThan") if revision.0 == 0 => Ok(Wanted::Any),
        None | Some("NotOlderThan") => Ok(Wanted::NotOlderThan(revision)),
        Some(other) => Err(Status::invalid(
            "meta.k8s.io",
            "ListOptions",
            "",
            vec![FieldError::not_supported("resourceVersionMatch", other, &["Exact", "NotOlderThan", ""])],
        )),
    }
}

pub fn parse_revision(text: &str) -> Result<Revision> {
    text.parse().map(Revision).map_err(|_| {
        Status::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

impl Call {
    /// Waits until reads show `revision`, for a moment.
    pub async fn reach(&self, revision: Revision) -> Result<()> {
        match tokio::time::timeout(FRESH_WAIT, self.storage().wait_for(revision)).await {
            Ok(reached) => reached.map_err(store_failed),
            Err(_) => Err(Status::too_large_resource_version(revision.0, self.storage().revision().0)),
        }
    }

    pub async fn get(&self) -> Result<Response<Body>> {
        let form = self.form()?;
        if let Wanted::NotOlderThan(revision) | Wanted::Exact(revision) = wanted(self, 0)? {
            self.reach(revision).await?;
        }
        let stored = self.storage().get(self.key().as_str()).ok_or_else(|| self.not_found())?;
        represent::object(form, &self.kind, 200, &stored.value, stored.revision)
    }

    pub async fn list(&self) -> Result<Response<Body>> {
        let form = self.form()?;
        let (meta, items) = self.select().await?;
        represent::list(form, &self.kind, &meta, items).await
    }

    /// The page of the collection that the query asks for.
    pub async fn select(&self) -> Result<(ListMeta, Vec<Stored>)> {
        let limit = self.query.number::<i64>("limit")?.unwrap_or(0);
        let limit = usize::try_from(limit).unwrap_or(0);
        let prefix = self.kind.prefix_in(&self.path.namespace);
        let token = self.query.text("continue").map(Token::decode).transpose()?;
        let at = match &token {
            Some(token) => {
                if !matches!(self.query.text("resourceVersion"), None | Some("0")) {
                    return Err(Status::bad_request(
                        "specifying resource version is not allowed when using continue",
                    ));
                }
                u64::try_from(token.rv).ok().map(Revision)
            }
            None => match wanted(self, limit)? {
                Wanted::Newest | Wanted::Any => None,
                Wanted::NotOlderThan(revision) => {
                    self.reach(revision).await?;
                    None
                }
                Wanted::Exact(revision) => Some(revision),
            },
        };
        let snapshot = match (self.storage().snapshot(&prefix, at).await, &token) {
            (Ok(snapshot), _) => snapshot,
            (Err(StoreError::Compacted { .. }), Some(token)) => {
                return Err(Status::expired_continue(Token::encode(-1, &token.start)));
            }
            (Err(error), _) => return Err(store_failed(error)),
        };
        let revision = snapshot.revision();
        let start = token.map(|token| format!("{prefix}{}", token.start));
        let found: Box<dyn Iterator<Item = &Stored> + Send> = match &start {
            Some(start) => Box::new(snapshot.after(start)),
            None => Box::new(snapshot.iter()),
        };
        let mut found = found.filter(|object| self.selection.matches(&object.meta));
        if limit == 0 {
            let items = found.cloned().collect();
            return Ok((ListMeta { revision, continue_: None, remaining: None }, items));
        }
        let items: Vec<Stored> = found.by_ref().take(limit).cloned().collect();
        let mut meta = ListMeta { revision, continue_: None, remaining: None };
        if let (Some(last), Some(_)) = (items.last(), found.next()) {
            let start = last.key.as_str().strip_prefix(&prefix).unwrap_or_default();
            meta.continue_ = Some(Token::encode(i64::try_from(revision.0).unwrap_or(i64::MAX), start));
            // With a selector the count would be a scan's, and Kubernetes leaves it out.
            meta.remaining = self.selection.is_everything().then(|| snapshot.remaining(last.key.as_str()));
        }
        Ok((meta, items))
    }
}
