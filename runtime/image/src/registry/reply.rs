//! Answers: the specification's error document, lists, files.

use std::io;
use std::path::Path;

use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::Body;

/// An error answer.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) headers: Vec<(header::HeaderName, String)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new() }
    }

    pub(super) fn blob_unknown(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("blob unknown to registry: {what}"))
    }

    pub(super) fn manifest_unknown(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", format!("manifest unknown: {what}"))
    }

    pub(super) fn manifest_invalid(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", format!("manifest invalid: {what}"))
    }

    pub(super) fn digest_invalid(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", what.to_string())
    }

    pub(super) fn unsupported(what: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", what)
    }

    pub(super) fn disk(what: &str) -> impl FnOnce(io::Error) -> Self {
        let what = what.to_owned();
        move |error| {
            tracing::error!(%error, what, "the registry's disk failed");
            let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            let status =
                if full { StatusCode::INSUFFICIENT_STORAGE } else { StatusCode::INTERNAL_SERVER_ERROR };
            Self::new(status, "UNKNOWN", format!("could not {what}: {error}"))
        }
    }

    pub(super) fn answer(self) -> Response<Body> {
        let document = serde_json::json!({ "errors": [{ "code": self.code, "message": self.message }] });
        let mut response = json(self.status, &document);
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

pub(super) fn json(status: StatusCode, document: &serde_json::Value) -> Response<Body> {
    let mut response = bytes(status, document.to_string().into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn bytes(status: StatusCode, bytes: Bytes) -> Response<Body> {
    let length = bytes.len();
    let mut response = Response::new(Full::new(bytes).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    response
}

pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// Adds a header made of parts that are known to be visible ASCII: names, digests, numbers.
pub(super) fn with(mut response: Response<Body>, name: header::HeaderName, value: &str) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Streams a file or a range of it.
pub(super) async fn file(path: &Path, range: Option<&str>, head: bool) -> Result<Response<Body>, io::Error> {
    let mut file = tokio::fs::File::open(path).await?;
    let size = file.metadata().await?.len();
    let (status, from, length) = match range.map(|range| parse_range(range, size)) {
        None | Some(Range::Whole) => (StatusCode::OK, 0, size),
        Some(Range::Part { from, length }) => (StatusCode::PARTIAL_CONTENT, from, length),
        Some(Range::Outside) => {
            let mut refusal = Refusal::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "RANGE_INVALID",
                format!("the blob has {size} bytes"),
            );
            refusal.headers.push((header::CONTENT_RANGE, format!("bytes */{size}")));
            return Ok(refusal.answer());
        }
    };
    let mut response = if head {
        empty(status)
    } else {
        file.seek(io::SeekFrom::Start(from)).await?;
        let stream = ReaderStream::with_capacity(file.take(length), 64 << 10)
            .map(|chunk| chunk.map(http_body::Frame::data));
        let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
        *response.status_mut() = status;
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if status == StatusCode::PARTIAL_CONTENT {
        let end = from + length - 1;
        headers.insert(
            header::CONTENT_RANGE,
            HeaderValue::from_str(&format!("bytes {from}-{end}/{size}")).expect("digits are ASCII"),
        );
    }
    Ok(response)
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    Part { from: u64, length: u64 },
    Outside,
}

/// RFC 9110's ranges; what is malformed or asks for several parts is answered in whole, as it allows.
fn parse_range(text: &str, size: u64) -> Range {
    let Some((from, to)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    match (from.trim().parse::<u64>(), to.trim().parse::<u64>()) {
        (Ok(from), to) if to.is_ok() || to_is_empty(text) => {
            let last = to.unwrap_or(u64::MAX).min(size.saturating_sub(1));
            if to_before(text, from) {
                Range::Whole
            } else if from >= size {
                Range::Outside
            } else {
                Range::Part { from, length: last - from + 1 }
            }
        }
        (Err(_), Ok(suffix)) if from.trim().is_empty() => match suffix.min(size) {
            0 => Range::Outside,
            length => Range::Part { from: size - length, length },
        },
        _ => Range::Whole,
    }
}

fn to_is_empty(text: &str) -> bool {
    text.ends_with('-')
}

fn to_before(text: &str, from: u64) -> bool {
    text.rsplit('-').next().and_then(|to| to.trim().parse::<u64>().ok()).is_some_and(|to| to < from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_says() {
        let part = |from, length| Range::Part { from, length };
        for (text, expected) in [
            ("bytes=0-9", part(0, 10)),
            ("bytes=5-", part(5, 95)),
            ("bytes=90-200", part(90, 10)),
            ("bytes=-10", part(90, 10)),
            ("bytes=-1000", part(0, 100)),
            ("bytes=100-", Range::Outside),
            ("bytes=-0", Range::Outside),
            ("bytes=9-3", Range::Whole),
            ("bytes=0-1,5-6", Range::Whole),
            ("lines=0-1", Range::Whole),
            ("bytes=a-b", Range::Whole),
            ("", Range::Whole),
        ] {
            assert_eq!(parse_range(text, 100), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Range::Outside);
    }
}
