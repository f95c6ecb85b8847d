//! How client and server agree on a protocol before the connection becomes theirs.

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::refuse;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOL: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agreed {
    /// With the client's key; without a subprotocol if it offered none.
    WebSocket {
        key: String,
        protocol: Option<&'static str>,
    },
    Spdy {
        protocol: &'static str,
    },
}

/// Picks the first of ours that the client offers too.
///
/// # Errors
/// The answer that says why there will be no streams.
pub fn agree(
    headers: &HeaderMap,
    websocket: &[&'static str],
    spdy: &[&'static str],
) -> Result<Agreed, Box<Response<Full<Bytes>>>> {
    let is =
        |name: &str| headers.get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(name.as_bytes()));
    let refused = |status, why: &str| Err(Box::new(refuse(status, why)));
    if is("websocket") {
        let Some(key) = headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()) else {
            return refused(StatusCode::BAD_REQUEST, "a WebSocket upgrade needs a Sec-WebSocket-Key");
        };
        let offered = offers(headers, &SEC_WEBSOCKET_PROTOCOL);
        let protocol = websocket.iter().find(|ours| offered.contains(*ours)).copied();
        if protocol.is_none() && !offered.is_empty() {
            let why =
                format!("none of the subprotocols {offered:?} is spoken here; offer one of {websocket:?}");
            return refused(StatusCode::BAD_REQUEST, &why);
        }
        return Ok(Agreed::WebSocket { key: key.to_owned(), protocol });
    }
    if is("SPDY/3.1") {
        let offered = offers(headers, &STREAM_PROTOCOL);
        if let Some(protocol) = spdy.iter().find(|ours| offered.contains(*ours)) {
            return Ok(Agreed::Spdy { protocol });
        }
        let why = format!("unable to upgrade: none of {offered:?} is spoken here; offer one of {spdy:?}");
        let mut response = refuse(StatusCode::FORBIDDEN, &why);
        for ours in spdy {
            response.headers_mut().append(ACCEPTED_PROTOCOL, HeaderValue::from_static(ours));
        }
        return Err(Box::new(response));
    }
    refused(StatusCode::UPGRADE_REQUIRED, "streams need an upgrade to websocket or SPDY/3.1")
}

/// The values of a header that lists, in one line or several.
fn offers<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',').map(str::trim)).filter(|offer| !offer.is_empty()).collect()
}

impl Agreed {
    /// The answer after which the connection speaks the protocol.
    pub fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        match self {
            Self::WebSocket { key, protocol } => {
                let accept = derive_accept_key(key.as_bytes());
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(SEC_WEBSOCKET_ACCEPT, accept.parse().expect("base64 is a header value"));
                if let Some(protocol) = protocol {
                    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
                }
            }
            Self::Spdy { protocol } => {
                headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a header value"));
        }
        headers
    }

    #[test]
    fn the_first_of_ours_that_is_offered_is_agreed_on() {
        let ours = ["v5", "v4"];
        let websocket = |offers: &[(&'static str, &str)]| {
            let mut all = vec![("upgrade", "WebSocket"), ("sec-websocket-key", "k")];
            all.extend_from_slice(offers);
            agree(&headers(&all), &ours, &ours)
        };
        let got = |protocol| Agreed::WebSocket { key: "k".to_owned(), protocol };
        let name = "sec-websocket-protocol";
        assert_eq!(websocket(&[(name, "v4, v5")]).expect("v5"), got(Some("v5")));
        assert_eq!(websocket(&[(name, "v1"), (name, "v4")]).expect("v4"), got(Some("v4")));
        assert_eq!(websocket(&[]).expect("none is needed"), got(None));
        assert_eq!(websocket(&[(name, "v1")]).expect_err("v1").status(), 400);

        let name = "x-stream-protocol-version";
        let spdy = |offer: &str| agree(&headers(&[("upgrade", "SPDY/3.1"), (name, offer)]), &ours, &ours);
        assert_eq!(spdy("v4").expect("v4"), Agreed::Spdy { protocol: "v4" });
        let refused = spdy("v1").expect_err("v1");
        assert_eq!(refused.status(), 403);
        assert_eq!(refused.headers().get_all(ACCEPTED_PROTOCOL).iter().count(), 2);
        assert_eq!(agree(&headers(&[]), &ours, &ours).expect_err("no upgrade").status(), 426);
    }
}
