//! Paths and queries in which what a user typed means itself.

use form_urlencoded::Serializer;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

/// What a segment of a path may not hold as it is. Names have no other mark of RFC 3986's `pchar` than these.
const SEGMENT: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':').remove(b'@');

/// One segment of a path.
pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// The path with these pairs added to its query.
pub fn with_query<'a>(path: &str, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let start = path.find('?').unwrap_or(path.len()) + 1;
    let uri = if start > path.len() { format!("{path}?") } else { path.to_owned() };
    let uri = Serializer::for_suffix(uri, start).extend_pairs(pairs).finish();
    uri.strip_suffix('?').map(str::to_owned).unwrap_or(uri)
}

/// The label selector of objects that have all of these labels.
pub fn selector(labels: &Map<String, Value>) -> String {
    let one = |(key, value): (&String, &Value)| format!("{key}={}", value.as_str().unwrap_or_default());
    labels.iter().map(one).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_stays_in_its_place() {
        assert_eq!(segment("system:node"), "system:node");
        assert_eq!(segment("a/../b?c#d%e f"), "a%2F..%2Fb%3Fc%23d%25e%20f");
        assert_eq!(with_query("/pods", []), "/pods");
        let query = with_query("/pods", [("labelSelector", "a in (b, c),d!=e"), ("x", "1&y=2")]);
        assert_eq!(query, "/pods?labelSelector=a+in+%28b%2C+c%29%2Cd%21%3De&x=1%26y%3D2");
        assert_eq!(with_query(&query, [("watch", "true")]), format!("{query}&watch=true"));
        http::Uri::try_from(&query).expect("a URI");
    }
}
