//! The distribution API, as a client sees it.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not tests to clippy")]

mod common;

use std::time::Duration;

use common::*;
use http::StatusCode;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use wharf_image::Digest;
use wharf_image::registry::{Config, Registry};

async fn send(
    server: &Server,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> Response {
    let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", server.url) };
    let mut request = client().request(method, url).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

async fn get(server: &Server, path: &str) -> Response {
    send(server, Method::GET, path, &[], "").await
}

fn header(response: &Response, name: &str) -> String {
    response
        .headers()
        .get(name)
        .unwrap_or_else(|| panic!("no {name} in {response:?}"))
        .to_str()
        .unwrap()
        .to_owned()
}

async fn code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    (status, body["errors"][0]["code"].as_str().unwrap().to_owned())
}

fn layer(n: usize) -> TestLayer {
    TestLayer::plain(tar(|t| {
        t.file("f", format!("{n}"));
    }))
}

#[tokio::test]
async fn ping_says_which_api_this_is() {
    let server = Server::start().await;
    let response = get(&server, "/v2/").await;
    assert_eq!(
        (response.status(), header(&response, "docker-distribution-api-version").as_str()),
        (StatusCode::OK, "registry/2.0")
    );
    assert_eq!(send(&server, Method::POST, "/v2/", &[], "").await.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_blob_goes_up_in_chunks_and_comes_down_in_ranges() {
    let server = Server::start().await;
    let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = Digest::of(&bytes);
    let begun = send(&server, Method::POST, "/v2/a/b/blobs/uploads/", &[], "").await;
    assert_eq!(begun.status(), StatusCode::ACCEPTED);
    let location = header(&begun, "location");
    let chunk = |from: usize, to: usize| (format!("{from}-{}", to - 1), bytes[from..to].to_vec());
    let (range, part) = chunk(0, 150_000);
    let sent = send(&server, Method::PATCH, &location, &[("content-range", &range)], part.clone()).await;
    assert_eq!((sent.status(), header(&sent, "range").as_str()), (StatusCode::ACCEPTED, "0-149999"));
    // The same again is out of order, and says where to go on.
    let again = send(&server, Method::PATCH, &location, &[("content-range", &range)], part).await;
    assert_eq!(
        (again.status(), header(&again, "range").as_str()),
        (StatusCode::RANGE_NOT_SATISFIABLE, "0-149999")
    );
    let asked = get(&server, &location).await;
    assert_eq!((asked.status(), header(&asked, "range").as_str()), (StatusCode::NO_CONTENT, "0-149999"));
    assert_eq!(
        code(get(&server, &location.replace("a/b", "a/c")).await).await.1,
        "BLOB_UPLOAD_UNKNOWN",
        "it belongs to its repository"
    );
    let (range, part) = chunk(150_000, 300_000);
    send(&server, Method::PATCH, &location, &[("content-range", &range)], part).await;
    let done =
        send(&server, Method::PUT, &format!("{location}?digest={digest}"), &[], bytes[300_000..].to_vec())
            .await;
    assert_eq!(
        (done.status(), header(&done, "docker-content-digest")),
        (StatusCode::CREATED, digest.to_string())
    );
    let path = header(&done, "location");
    assert_eq!(get(&server, &location).await.status(), StatusCode::NOT_FOUND, "the upload is over");

    let head = send(&server, Method::HEAD, &path, &[], "").await;
    assert_eq!((head.status(), header(&head, "content-length")), (StatusCode::OK, bytes.len().to_string()));
    assert!(get(&server, &path).await.bytes().await.unwrap() == bytes);
    let part = send(&server, Method::GET, &path, &[("range", "bytes=5-9")], "").await;
    assert_eq!(
        (part.status(), header(&part, "content-range")),
        (StatusCode::PARTIAL_CONTENT, format!("bytes 5-9/{}", bytes.len()))
    );
    assert_eq!(part.bytes().await.unwrap(), bytes[5..10]);
    assert_eq!(
        send(&server, Method::GET, &path, &[("range", "bytes=400000-")], "").await.status(),
        StatusCode::RANGE_NOT_SATISFIABLE
    );
}

#[tokio::test]
async fn false_digests_and_names_are_refused() {
    let server = Server::start().await;
    let other = Digest::of(b"other");
    for (method, path, body, expected) in [
        (Method::POST, format!("/v2/a/blobs/uploads/?digest={other}"), "bytes", (400, "DIGEST_INVALID")),
        (Method::POST, "/v2/a/blobs/uploads/?digest=sha256:12".into(), "bytes", (400, "DIGEST_INVALID")),
        (Method::POST, "/v2/UPPER/blobs/uploads/".into(), "", (400, "NAME_INVALID")),
        (
            Method::PATCH,
            format!("/v2/a/blobs/uploads/{}", uuid::Uuid::new_v4()),
            "x",
            (404, "BLOB_UPLOAD_UNKNOWN"),
        ),
        (Method::GET, format!("/v2/a/blobs/{other}"), "", (404, "BLOB_UNKNOWN")),
        (Method::GET, "/v2/a/manifests/1".into(), "", (404, "MANIFEST_UNKNOWN")),
        (Method::GET, "/v2/a/tags/list".into(), "", (404, "NAME_UNKNOWN")),
        (Method::PUT, "/v2/a/manifests/-x".into(), "{}", (400, "TAG_INVALID")),
        (Method::PUT, "/v2/a/manifests/1".into(), "no json", (400, "MANIFEST_INVALID")),
        (Method::PUT, "/v2/a/manifests/1".into(), "{}", (400, "MANIFEST_INVALID")),
        (Method::PUT, format!("/v2/a/manifests/{other}"), "{}", (400, "DIGEST_INVALID")),
        (Method::DELETE, "/v2/a/manifests/1".into(), "", (404, "MANIFEST_UNKNOWN")),
    ] {
        let response = send(&server, method.clone(), &path, &[("content-type", OCI_MANIFEST)], body).await;
        let (status, word) = code(response).await;
        assert_eq!((status, word.as_str()), expected, "{method} {path}");
    }
    let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
        "config": { "mediaType": OCI_CONFIG, "digest": other.as_str(), "size": 5 } });
    let response = send(
        &server,
        Method::PUT,
        "/v2/a/manifests/1",
        &[("content-type", OCI_MANIFEST)],
        manifest.to_string(),
    )
    .await;
    assert_eq!(code(response).await, (400, "MANIFEST_BLOB_UNKNOWN".into()));
    let response =
        send(&server, Method::PUT, "/v2/a/manifests/1", &[("content-type", OCI_INDEX)], manifest.to_string())
            .await;
    assert_eq!(code(response).await, (400, "MANIFEST_INVALID".into()));
    let response = send(
        &server,
        Method::PUT,
        "/v2/a/manifests/1",
        &[("content-type", OCI_MANIFEST)],
        vec![b' '; 5 << 20],
    )
    .await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let blobs: Vec<String> =
        files(server.dir.path()).into_iter().filter(|file| file.starts_with("blobs")).collect();
    assert!(blobs.is_empty(), "{blobs:?}");
}

#[tokio::test]
async fn manifests_tags_and_repositories_are_listed_and_deleted() {
    let server = Server::start().await;
    let pushed = server.push("b/c", "2", &TestImage::of(vec![layer(1)])).await;
    server.push("b/c", "1", &TestImage::of(vec![layer(1)])).await;
    server.push("a", "x", &TestImage::of(vec![layer(2)])).await;
    let body: Value = get(&server, "/v2/_catalog").await.json().await.unwrap();
    assert_eq!(body, json!({ "repositories": ["a", "b/c"] }));
    let first = get(&server, "/v2/b/c/tags/list?n=1").await;
    assert_eq!(header(&first, "link"), "</v2/b/c/tags/list?n=1&last=1>; rel=\"next\"");
    assert_eq!(first.json::<Value>().await.unwrap(), json!({ "name": "b/c", "tags": ["1"] }));
    for path in ["/v2/b/c/manifests/1".to_owned(), format!("/v2/b/c/manifests/{}", pushed.manifest)] {
        let head = send(&server, Method::HEAD, &path, &[], "").await;
        assert_eq!(
            (header(&head, "docker-content-digest"), header(&head, "content-type")),
            (pushed.manifest.to_string(), OCI_MANIFEST.into())
        );
        let bytes = get(&server, &path).await.bytes().await.unwrap();
        assert_eq!(Digest::of(&bytes), pushed.manifest);
    }
    let blob = format!("/v2/b/c/blobs/{}", pushed.config);
    assert_eq!(
        code(send(&server, Method::DELETE, &blob, &[], "").await).await,
        (405, "UNSUPPORTED".into()),
        "a manifest refers to it"
    );
    assert_eq!(
        send(&server, Method::DELETE, "/v2/b/c/manifests/1", &[], "").await.status(),
        StatusCode::ACCEPTED
    );
    assert_eq!(get(&server, "/v2/b/c/manifests/1").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(get(&server, "/v2/b/c/manifests/2").await.status(), StatusCode::OK, "the other tag stays");
    let path = format!("/v2/b/c/manifests/{}", pushed.manifest);
    assert_eq!(send(&server, Method::DELETE, &path, &[], "").await.status(), StatusCode::ACCEPTED);
    assert_eq!(
        get(&server, "/v2/b/c/manifests/2").await.status(),
        StatusCode::NOT_FOUND,
        "its tags go with a manifest"
    );
    assert_eq!(send(&server, Method::DELETE, &blob, &[], "").await.status(), StatusCode::ACCEPTED);
    assert_eq!(get(&server, &blob).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn blobs_are_mounted_across_repositories_and_not_seen_otherwise() {
    let server = Server::start().await;
    let digest = server.push_blob("a", b"shared").await;
    assert_eq!(get(&server, &format!("/v2/b/blobs/{digest}")).await.status(), StatusCode::NOT_FOUND);
    let mounted =
        send(&server, Method::POST, &format!("/v2/b/blobs/uploads/?mount={digest}&from=a"), &[], "").await;
    assert_eq!(mounted.status(), StatusCode::CREATED);
    assert_eq!(get(&server, &header(&mounted, "location")).await.text().await.unwrap(), "shared");
    let other = Digest::of(b"other");
    let not =
        send(&server, Method::POST, &format!("/v2/b/blobs/uploads/?mount={other}&from=a"), &[], "").await;
    assert_eq!(not.status(), StatusCode::ACCEPTED, "an upload begins instead");
}

#[tokio::test]
async fn referrers_are_found_by_subject_and_type() {
    let server = Server::start().await;
    let image = server.push("a", "1", &TestImage::of(vec![layer(1)])).await;
    let empty = server.push_blob("a", b"{}").await;
    for kind in ["sbom", "signature"] {
        let document = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": format!("test/{kind}"),
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": empty.as_str(), "size": 2 }, "layers": [],
            "subject": { "mediaType": OCI_MANIFEST, "digest": image.manifest.as_str(), "size": image.size } });
        server.push_document("a", "", OCI_MANIFEST, &document).await;
    }
    let count = async |query: &str| {
        let index: Value =
            get(&server, &format!("/v2/a/referrers/{}{query}", image.manifest)).await.json().await.unwrap();
        index["manifests"].as_array().unwrap().len()
    };
    assert_eq!(
        (count("").await, count("?artifactType=test/sbom").await, count("?artifactType=no").await),
        (2, 1, 0)
    );
}

#[tokio::test]
async fn many_pushes_at_once_all_arrive() {
    let server = Server::start().await;
    let pushes = (0..12).map(|n| {
        let server = &server;
        async move {
            server
                .push(
                    &format!("r{}", n % 3),
                    &format!("t{n}"),
                    &TestImage::of(vec![layer(n / 2), layer(100)]),
                )
                .await
        }
    });
    futures::future::join_all(pushes).await;
    for n in 0..12 {
        let tag = get(&server, &format!("/v2/r{}/manifests/t{n}", n % 3)).await;
        assert_eq!(tag.status(), StatusCode::OK, "t{n}");
    }
}

fn blob_count(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir.join("blobs/sha256")).unwrap().count()
}

/// As a registry that starts again finds it, while this one goes on.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(copied.success());
}

#[tokio::test]
async fn garbage_goes_after_its_grace_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let config = |grace: u64| Config { grace: Duration::from_secs(grace), ..Config::new(dir.path()) };
    // Filled through a server of its own directory, then copied, so that the grace can differ per opening.
    let server = Server::start().await;
    let old = server.push("app", "1", &TestImage::of(vec![layer(1), layer(3)])).await;
    server.push("app", "1", &TestImage::of(vec![layer(2), layer(3)])).await; // takes the tag
    let pinned = server.push("app", "", &TestImage::of(vec![layer(4)])).await; // by digest alone: that is a name too
    let child = server.push("app", "", &TestImage::of(vec![layer(5)])).await;
    server.push_index("app", "index", OCI_INDEX, &[(&child, "linux", "amd64")]).await;
    server.push_blob("app", b"nobody refers to it").await;
    let begun = send(&server, Method::POST, "/v2/app/blobs/uploads/", &[], "").await;
    assert_eq!(begun.status(), StatusCode::ACCEPTED);
    copy(server.dir.path(), dir.path());
    let before = blob_count(dir.path());

    drop(Registry::open(config(3600)).unwrap());
    assert_eq!(blob_count(dir.path()), before, "within its grace everything stays");
    let registry = Registry::open(config(0)).unwrap();
    // Gone: the old manifest with its config and first layer, and the stray blob.
    assert_eq!(blob_count(dir.path()), before - 4);
    let here = |digest: &Digest| dir.path().join("blobs/sha256").join(digest.hex()).exists();
    assert!(
        !here(&old.manifest) && here(&pinned.manifest) && here(&child.manifest) && here(&layer(3).diff_id)
    );
    assert_eq!(
        std::fs::read_dir(dir.path().join("uploads")).unwrap().count(),
        1,
        "an upload in progress stays"
    );
    drop(registry);
    drop(Registry::open(Config { upload_age: Duration::ZERO, ..config(0) }).unwrap());
    assert_eq!(std::fs::read_dir(dir.path().join("uploads")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart() {
    let server = Server::start().await;
    let begun = send(&server, Method::POST, "/v2/a/blobs/uploads/", &[], "").await;
    let location = header(&begun, "location");
    send(&server, Method::PATCH, &location, &[], "first ").await;
    let dir = tempfile::tempdir().unwrap();
    copy(server.dir.path(), dir.path());
    let mut service = Registry::open(Config::new(dir.path())).unwrap().service();
    let digest = Digest::of(b"first second");
    let body = http_body_util::Full::new(bytes::Bytes::from("second"));
    let request = http::Request::put(format!("{location}?digest={digest}")).body(body).unwrap();
    let response = tower_service::Service::call(&mut service, request).await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
}
