//! What strangers and broken clients send to a whole server: each gets the right answer, and the server goes on.

use std::time::{Duration, SystemTime};

use http::Request;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::Value;
use wharf_tests::{Cluster, Kind, eventually_async, processes};

const HOUR: Duration = Duration::from_secs(3600);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// What a client shows of itself.
enum Shown {
    Nothing,
    Token(String),
    /// A certificate and its key, PEM.
    Certificate(String, String),
}

/// A client of the cluster's API server that trusts it.
fn client(cluster: &Cluster, shown: Shown) -> kube::Client {
    let _ = rustls::crypto::ring::default_provider().install_default(); // all of a process share one
    let local = cluster.local();
    let ca = std::fs::read_to_string(local.data.join("server/pki/ca.crt")).expect("the cluster's CA");
    let url = local.url().expect("it runs").parse().expect("a URL");
    let mut config = kube::Config::new(url);
    let der: Vec<Vec<u8>> = rustls::pki_types::pem::PemObject::pem_slice_iter(ca.as_bytes())
        .map(|cert: Result<rustls::pki_types::CertificateDer<'_>, _>| cert.expect("PEM").to_vec())
        .collect();
    config.root_cert = Some(der);
    match shown {
        Shown::Nothing => {}
        Shown::Token(token) => config.auth_info.token = Some(token.into()),
        Shown::Certificate(cert, key) => {
            use base64::prelude::{BASE64_STANDARD, Engine as _};
            config.auth_info.client_certificate_data = Some(BASE64_STANDARD.encode(cert));
            config.auth_info.client_key_data = Some(BASE64_STANDARD.encode(key).into());
        }
    }
    kube::Client::try_from(config).expect("a client")
}

/// A certificate for an administrator, signed by `issuer` and good from `from` to `to`.
fn administrator(issuer: &Issuer<'_, KeyPair>, from: SystemTime, to: SystemTime) -> Shown {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "kubernetes-admin");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (from.into(), to.into());
    let key = KeyPair::generate().expect("a key");
    let cert = params.signed_by(&key, issuer).expect("a certificate");
    Shown::Certificate(cert.pem(), key.serialize_pem())
}

/// The CA of the cluster, with its key.
fn own_ca(cluster: &Cluster) -> Issuer<'static, KeyPair> {
    let read = |name: &str| {
        std::fs::read_to_string(cluster.local().data.join("server/pki").join(name)).expect("a file of the CA")
    };
    let key = KeyPair::from_pem(&read("ca.key")).expect("the CA's key");
    Issuer::from_ca_cert_pem(&read("ca.crt"), key).expect("the CA")
}

/// One of the same name, made by somebody else.
fn foreign_ca() -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "wharf-ca");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Issuer::new(params, KeyPair::generate().expect("a key"))
}

/// Sends a request; the code and reason of the answer.
async fn asks(client: &kube::Client, method: &str, path: &str, form: &str, body: &[u8]) -> (u16, String) {
    let request = Request::builder().method(method).uri(path).header("content-type", form);
    let request = request.body(kube::client::Body::from(body.to_vec())).expect("a request");
    let answer = tokio::time::timeout(wharf_tests::PATIENCE, async {
        let response = client.send(request).await.expect("an answer, not a broken connection");
        (response.status().as_u16(), response.into_body().collect_bytes().await.expect("a body"))
    });
    let (code, body) = answer.await.expect("an answer in time");
    let said: Value = serde_json::from_slice(&body).unwrap_or_default();
    (code, said["reason"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_and_whatever_is_sent_the_answer_says_what_is_wrong_and_the_server_goes_on() {
    let cluster = Cluster::up();
    let server = || processes(&cluster).into_iter().find(|one| one.kind == Kind::Server).map(|one| one.pid);
    let before = server();
    assert!(before.is_some());

    // Who asks.
    let admin = cluster.client().await;
    let json_form = "application/json";
    let path = "/api/v1/namespaces/default/serviceaccounts/revoked";
    let account = br#"{"metadata":{"name":"revoked"}}"#;
    let accounts = path.trim_end_matches("/revoked");
    assert_eq!(asks(&admin, "POST", accounts, json_form, account).await.0, 201);
    let request = Request::post(format!("{path}/token")).body(br#"{"spec":{}}"#.to_vec()).expect("a request");
    let issued: Value = admin.request(request).await.expect("a token");
    let token = issued["status"]["token"].as_str().expect("a token").to_owned();
    let robot = client(&cluster, Shown::Token(token.clone()));
    assert_eq!(asks(&robot, "GET", MAPS, json_form, b"").await, (403, "Forbidden".to_owned()));
    assert_eq!(asks(&admin, "DELETE", path, json_form, b"").await.0, 200);
    eventually_async("a token ends with its account", async || {
        let answer = asks(&robot, "GET", MAPS, json_form, b"").await;
        if answer == (401, "Unauthorized".to_owned()) { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let now = SystemTime::now();
    let (own, foreign) = (own_ca(&cluster), foreign_ca());
    for (what, shown, answer) in [
        ("a good certificate", administrator(&own, now - HOUR, now + HOUR), (200, "")),
        ("an expired one", administrator(&own, now - 2 * HOUR, now - HOUR), (401, "Unauthorized")),
        ("one for later", administrator(&own, now + HOUR, now + 2 * HOUR), (401, "Unauthorized")),
        ("a foreign CA's", administrator(&foreign, now - HOUR, now + HOUR), (401, "Unauthorized")),
        ("a token that nobody issued", Shown::Token("nobody.issued.this".to_owned()), (401, "Unauthorized")),
        (
            "a token whose signature was cut",
            Shown::Token(token[..token.len() - 3].to_owned()),
            (401, "Unauthorized"),
        ),
        (
            "an unknown bootstrap token",
            Shown::Token("abcdef.0123456789abcdef".to_owned()),
            (401, "Unauthorized"),
        ),
        ("nothing", Shown::Nothing, (403, "Forbidden")),
    ] {
        let (code, reason) = asks(&client(&cluster, shown), "GET", MAPS, json_form, b"").await;
        assert_eq!((code, reason.as_str()), answer, "{what}");
    }

    // What is sent.
    let one = format!("{MAPS}/kube-root-ca.crt");
    let applied = format!("{one}?fieldManager=test");
    eventually_async("there is something to patch", async || {
        let (code, _) = asks(&admin, "GET", &one, json_form, b"").await;
        if code == 200 { Ok(()) } else { Err(code.to_string()) }
    })
    .await;
    let large = format!(r#"{{"metadata":{{"name":"large"}},"data":{{"a":"{}"}}}}"#, "a".repeat(4 << 20));
    let deep = format!(r#"{{"metadata":{{"name":"deep"}},"data":{}"#, "[".repeat(100_000));
    let patches = format!("[{}]", vec![r#"{"op":"test","path":"/kind"}"#; 10_001].join(","));
    for (what, method, path, form, body, answer) in [
        ("a large body", "POST", MAPS, json_form, large.as_bytes(), (413, "RequestEntityTooLarge")),
        ("half an object", "POST", MAPS, json_form, br#"{"metadata":"#, (400, "BadRequest")),
        ("depth without end", "POST", MAPS, json_form, deep.as_bytes(), (400, "BadRequest")),
        ("broken YAML", "POST", MAPS, "application/yaml", b"metadata: [", (400, "BadRequest")),
        (
            "no protobuf",
            "POST",
            MAPS,
            "application/vnd.kubernetes.protobuf",
            b"k8s\0\xff\xff\xff\xff",
            (400, "BadRequest"),
        ),
        ("a form unknown", "POST", MAPS, "application/toml", b"a = 1", (415, "UnsupportedMediaType")),
        ("a patch of nothing", "PATCH", &one, "application/json-patch+json", b"{}", (400, "BadRequest")),
        (
            "a patch too long",
            "PATCH",
            &one,
            "application/json-patch+json",
            patches.as_bytes(),
            (413, "RequestEntityTooLarge"),
        ),
        ("a merge of half", "PATCH", &one, "application/merge-patch+json", b"{", (400, "BadRequest")),
        ("a wrong apply", "PATCH", &applied, "application/apply-patch+yaml", b"a: [", (400, "BadRequest")),
    ] {
        let (code, reason) = asks(&admin, method, path, form, body).await;
        assert_eq!((code, reason.as_str()), answer, "{what}");
    }
    let left: Value =
        admin.request(Request::get(MAPS).body(Vec::new()).expect("a request")).await.expect("a list");
    let names: Vec<&Value> =
        left["items"].as_array().into_iter().flatten().map(|map| &map["metadata"]["name"]).collect();
    assert_eq!(names, ["kube-root-ca.crt"], "nothing came of it");
    assert_eq!(server(), before, "the server has not crashed");
}
