//! What a hostile or broken peer sends over TLS: it is told no, and the server answers the next one.

use std::io::Write;
use std::sync::{Arc, Mutex};

use http::Request;
use jiff::ToSpan as _;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wharf_kit::identity::{ALPN_HTTP1, Ca, Pair, client_config};

use crate::harness::{DEADLINE, Harness, call, call_as, get, send};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Sends bytes over TLS with this certificate, and gives the answer's first line; what failed, if there is none.
async fn raw(harness: &Harness, pair: Option<&Pair>, bytes: &[u8]) -> Result<String, String> {
    let config = client_config(harness.ca.cert_pem(), pair, ALPN_HTTP1).unwrap();
    let exchange = async {
        let socket = tokio::net::TcpStream::connect(harness.address).await.map_err(|e| e.to_string())?;
        let name = "localhost".try_into().unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        let mut tls = connector.connect(name, socket).await.map_err(|e| e.to_string())?;
        tls.write_all(bytes).await.map_err(|e| e.to_string())?;
        let mut answer = vec![0; 1024];
        let read = tls.read(&mut answer).await.map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&answer[..read]).into_owned();
        text.lines().next().map(str::to_owned).ok_or_else(|| "closed".to_owned())
    };
    tokio::time::timeout(DEADLINE, exchange).await.expect("an answer or an end")
}

/// A client certificate of the harness's CA for `kubernetes-admin`, good from and to these seconds from now.
fn admin(ca: &Ca, from: i64, to: i64) -> Pair {
    let issuer = Issuer::from_ca_cert_pem(ca.cert_pem(), KeyPair::from_pem(ca.key_pem()).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "kubernetes-admin");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let at = |seconds: i64| (std::time::SystemTime::from(jiff::Timestamp::now() + seconds.seconds())).into();
    (params.not_before, params.not_after) = (at(from), at(to));
    let key = KeyPair::generate().unwrap();
    Pair { cert_pem: params.signed_by(&key, &issuer).unwrap().pem(), key_pem: key.serialize_pem() }
}

#[tokio::test]
async fn a_certificate_that_proves_nothing_is_answered_with_401_and_a_good_token_beside_it_still_counts() {
    let harness = Harness::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    call(&harness.admin(), "POST", accounts, json!({"metadata": {"name": "robot"}})).await;
    let token =
        call(&harness.admin(), "POST", &format!("{accounts}/robot/token"), json!({"spec": {}})).await.1;
    let token = token["status"]["token"].as_str().unwrap();
    let hello = |more: &str| {
        format!("GET /version HTTP/1.1\r\nhost: x\r\n{more}connection: close\r\n\r\n").into_bytes()
    };
    let with_token = hello(&format!("authorization: Bearer {token}\r\n"));
    let foreign = Ca::generate("test-ca").unwrap().client("kubernetes-admin", &["system:masters"]).unwrap();
    for (what, pair) in [
        ("foreign", &foreign),
        ("expired", &admin(&harness.ca, -7200, -3600)),
        ("not yet valid", &admin(&harness.ca, 3600, 7200)),
        ("for a server", &harness.ca.server("kubernetes-admin", &["127.0.0.1"]).unwrap()),
    ] {
        let line = raw(&harness, Some(pair), &hello("")).await.unwrap();
        assert_eq!(line, "HTTP/1.1 401 Unauthorized", "{what}");
        assert_eq!(raw(&harness, Some(pair), &with_token).await.unwrap(), "HTTP/1.1 200 OK", "{what}");
    }
    let wrong = hello("authorization: Bearer wrong\r\n");
    assert_eq!(raw(&harness, None, &wrong).await.unwrap(), "HTTP/1.1 401 Unauthorized");
    let good = harness.ca.client("jane", &[] as &[&str]).unwrap();
    assert_eq!(raw(&harness, Some(&good), &wrong).await.unwrap(), "HTTP/1.1 200 OK", "the first who knows");
}

#[tokio::test]
async fn a_connection_takes_no_requests_after_its_certificate() {
    let harness = Harness::start().await;
    let pair = admin(&harness.ca, -60, 3);
    let config = client_config(harness.ca.cert_pem(), Some(&pair), ALPN_HTTP1).unwrap();
    let socket = tokio::net::TcpStream::connect(harness.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    let mut tls = connector.connect("localhost".try_into().unwrap(), socket).await.unwrap();
    tls.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(DEADLINE, tls.read_to_end(&mut answer)).await.expect("it ends").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn heads_that_are_no_http_or_too_long_are_refused() {
    let harness = Harness::start().await;
    let long = format!("GET /version HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(100 << 10));
    let many = format!("GET /version HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(500));
    for (what, bytes, status) in [
        ("a long header", long.as_bytes(), "431"),
        ("many headers", many.as_bytes(), "431"),
        ("no HTTP", b"\0\0\0\0\r\n\r\n".as_slice(), "400"),
        ("two lengths", b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "400"),
    ] {
        let line = raw(&harness, None, bytes).await.unwrap();
        assert!(line.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {line}");
    }
    assert_eq!(get(&harness.admin(), MAPS).await.0, 200);
}

#[tokio::test]
async fn bodies_that_are_wrong_or_meant_to_hurt_are_refused() {
    let harness = Harness::start().await;
    let client = harness.admin();
    let one = format!("{MAPS}/a");
    assert_eq!(
        call(&client, "POST", MAPS, json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await.0,
        201
    );
    let (json, yaml) = ("application/json", "application/yaml");
    let (merge, patch) = ("application/merge-patch+json", "application/json-patch+json");
    let (strategic, apply) = ("application/strategic-merge-patch+json", "application/apply-patch+yaml");
    let deep = |open: &str| format!("{{\"data\":{}", open.repeat(100_000));
    let mut laughs = "a0: &a0 [x, x]\n".to_owned();
    for n in 1..40 {
        laughs += &format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1);
    }
    // Where anything may stand, and is kept.
    laughs += "metadata: {name: laughs, managedFields: [{fieldsV1: *a39}]}\n";
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let applied = format!("{one}?fieldManager=m");
    let cases: Vec<(&str, &str, &str, String, u16)> = vec![
        ("POST", MAPS, json, "{\"metadata\":".into(), 400),
        ("POST", &strict, json, r#"{"metadata":{"name":"b"},"data":{"k":"1","k":"2"}}"#.into(), 400),
        ("POST", MAPS, json, deep("[").to_string(), 400),
        ("POST", MAPS, json, deep("{\"a\":").to_string(), 400),
        ("POST", MAPS, yaml, "metadata: [".into(), 400),
        ("POST", MAPS, yaml, laughs, 400),
        ("POST", MAPS, yaml, format!("data: {}", "[".repeat(10_000)), 400),
        ("POST", MAPS, json, "x".repeat(4 << 20), 413),
        ("PATCH", &one, merge, "{".into(), 400),
        ("PATCH", &one, merge, deep("{\"a\":"), 400),
        ("PATCH", &one, strategic, "[1]".into(), 400),
        ("PATCH", &one, patch, "{}".into(), 400),
        ("PATCH", &one, patch, r#"[{"op":"test","path":"/data/k","value":"w"}]"#.into(), 422),
        ("PATCH", &applied, apply, "metadata: [".into(), 400),
        ("PATCH", &one, "text/plain", "{}".into(), 415),
    ];
    for (method, path, type_, body, code) in cases {
        let start: String = body.chars().take(60).collect();
        let (found, status) = call_as(&client, method, path, type_, body).await;
        assert_eq!(found, code, "{method} {type_} {start}: {status}");
        assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(code)), "{start}");
    }
    assert_eq!(get(&client, &one).await.1["data"], json!({"k": "v"}), "nothing of it came through");
}

/// Where the log goes in a test that reads it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_credential_is_logged() {
    let (log, secret) = (Log::default(), "0123456789abcdef");
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("wharf=trace")
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // The test's runtime has this one thread, so all of the server logs here.
    let _guard = tracing::subscriber::set_default(subscriber);
    let harness = Harness::start().await;
    let admin = harness.admin();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    call(&admin, "POST", accounts, json!({"metadata": {"name": "robot"}})).await;
    let (_, made) = call(&admin, "POST", &format!("{accounts}/robot/token"), json!({"spec": {}})).await;
    let token = made["status"]["token"].as_str().unwrap();
    assert_eq!(get(&harness.bearer(token), "/version").await.0, 200);
    call(&admin, "DELETE", &format!("{accounts}/robot"), Value::Null).await;
    let bootstrap = format!("abcdef.{secret}");
    for token in [token, &bootstrap, secret] {
        assert_eq!(get(&harness.bearer(token), "/version").await.0, 401);
        let review = json!({"spec": {"token": token}});
        call(&admin, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", review).await;
        let request = Request::get("/version").header("authorization", format!("Basic {token}"));
        send(&harness.anonymous(), request.body(Vec::new()).unwrap()).await;
    }
    let bad = json!({"metadata": {"name": "s"}, "data": {"k": format!("!{secret}")}});
    let (code, status) = call(&admin, "POST", "/api/v1/namespaces/default/secrets", bad).await;
    assert!(code >= 400 && !status.to_string().contains(secret), "{status}");
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("a credential was refused"), "the log is there: {log}");
    let signature = token.rsplit('.').next().unwrap();
    for hidden in [token, signature, secret, harness.ca.key_pem()] {
        assert!(!log.contains(hidden), "{log}");
    }
}
