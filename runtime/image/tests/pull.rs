//! Pulls from the built-in registry over real sockets.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not tests to clippy")]

mod common;

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use serde_json::json;
use wharf_image::{
    Auth, Endpoint, Error, HostConfig, Images, Kind, Prefer, PullOptions, RegistriesConfig, Remedy,
};

fn base_layer() -> Vec<u8> {
    tar(|t| {
        t.dir("bin/", 0o755).dir("tmp/", 0o1777).dir("etc/", 0o755);
        t.file_mode("bin/app", 0o4755, "#!/bin/sh\n")
            .hard_link("bin/again", "bin/app")
            .symlink("bin/sh", "/bin/app");
        t.file("etc/passwd", "root:x:0:0::/:/bin/sh\n").file("etc/old", "old");
    })
}

fn upper_layer() -> Vec<u8> {
    tar(|t| {
        t.file("etc/.wh.old", "")
            .file("tmp/scratch", "x")
            .dir("srv/", 0o750)
            .file("srv/.wh..wh..opq", "")
            .file("srv/new", "new");
    })
}

#[tokio::test]
async fn an_image_arrives_whole_in_every_compression() {
    let server = Server::start().await;
    let third = tar(|t| {
        t.file("third", "3");
    });
    let mut image = TestImage::of(vec![
        TestLayer::gzip(&base_layer()),
        TestLayer::zstd(&upper_layer()),
        TestLayer::plain(third),
    ]);
    image.process = json!({
        "Env": ["A=b"], "Entrypoint": ["/bin/app"], "Cmd": ["run"], "User": "1000:1000", "WorkingDir": "/srv",
        "ExposedPorts": { "80/tcp": {}, "53/udp": {} }, "StopSignal": "SIGQUIT", "Volumes": { "/data": {} }, "Labels": { "l": "v" },
    });
    let pushed = server.push("team/app", "1", &image).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let reference = server.reference("team/app:1");
    let pulled = images.pull(&reference, PullOptions::default()).await.unwrap();

    assert_eq!(pulled.id.digest(), &pushed.config);
    assert_eq!(pulled.repo_tags, [format!("{}/team/app:1", server.addr)]);
    assert_eq!(pulled.repo_digests, [format!("{}/team/app@{}", server.addr, pushed.manifest)]);
    assert_eq!(pulled.kind, Kind::Oci);
    let config = &pulled.config;
    assert_eq!(
        (config.env.as_slice(), config.uid(), config.working_dir.as_str()),
        (["A=b".to_owned()].as_slice(), Some(1000), "/srv")
    );
    assert_eq!(
        (config.exposed_ports.as_slice(), config.stop_signal.as_deref()),
        (["53/udp".to_owned(), "80/tcp".to_owned()].as_slice(), Some("SIGQUIT"))
    );

    let dirs = images.lower_dirs(&pulled);
    assert_eq!(dirs.len(), 3);
    assert!(dirs[0].join("third").is_file(), "topmost first");
    let app = std::fs::metadata(dirs[2].join("bin/app")).unwrap();
    assert_eq!((app.mode() & 0o7777, app.nlink(), app.mtime()), (0o4755, 2, 1_700_000_000));
    assert_eq!(app.ino(), std::fs::metadata(dirs[2].join("bin/again")).unwrap().ino());
    assert_eq!(std::fs::read_link(dirs[2].join("bin/sh")).unwrap(), Path::new("/bin/app"));
    let whiteout = std::fs::symlink_metadata(dirs[1].join("etc/old")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert!(!dirs[1].join("srv/.wh..wh..opq").exists());
    assert_eq!(
        std::fs::metadata(dirs[1].join("tmp")).unwrap().mode() & 0o7777,
        0o1777,
        "a directory in passing keeps the mode from below"
    );

    let passwd = images.file(&pulled, "/etc/passwd").await.unwrap().expect("there");
    assert!(std::fs::read_to_string(passwd).unwrap().starts_with("root"));
    assert!(images.file(&pulled, "/etc/old").await.unwrap().is_none(), "hidden by the whiteout");
    assert!(images.file(&pulled, "/bin/sh").await.unwrap().is_some(), "a link within the image is followed");
    assert!(images.file(&pulled, "/../../bin/../bin/again").await.unwrap().is_some());
    assert_eq!(
        std::fs::metadata(root.path()).unwrap().mode() & 0o777,
        0o700,
        "setuid programs are out of reach"
    );
    assert!(images.usage().used_bytes > 0 && images.usage().inodes_used > 10);
    until_clean(root.path()).await;

    // Again: nothing but the manifest is asked for.
    let before = server.requests("/blobs/sha256");
    images.pull(&reference, PullOptions::default()).await.unwrap();
    assert_eq!(server.requests("/blobs/sha256"), before);

    // A restart finds it.
    drop(images);
    let images = open(root.path()).await;
    let found = images.status(&reference.to_string()).expect("kept");
    assert_eq!((&found.id, &found.repo_tags, &found.config), (&pulled.id, &pulled.repo_tags, &pulled.config));
}

#[tokio::test]
async fn the_kernel_takes_the_layers_as_they_are() {
    let server = Server::start().await;
    server
        .push(
            "app",
            "1",
            &TestImage::of(vec![TestLayer::gzip(&base_layer()), TestLayer::gzip(&upper_layer())]),
        )
        .await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let image = images.pull(&server.reference("app:1"), PullOptions::default()).await.unwrap();
    let lower: Vec<String> = images.lower_dirs(&image).iter().map(|dir| dir.display().to_string()).collect();
    // In a mount namespace of its own, so that nothing stays mounted whatever happens.
    let script = format!(
        "set -e; mkdir {0}/m; mount -t overlay overlay -o lowerdir={1} {0}/m; cd {0}/m; test ! -e etc/old; test -e etc/passwd; test \"$(ls srv)\" = new; stat -c %a tmp bin/app",
        root.path().display(),
        lower.join(":")
    );
    let output = std::process::Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1777\n4755\n");
}

#[tokio::test]
async fn an_index_gives_the_image_of_this_machine_or_the_wasm_one() {
    let server = Server::start().await;
    for (index_type, manifest_type) in [(OCI_INDEX, OCI_MANIFEST), (DOCKER_LIST, DOCKER_MANIFEST)] {
        let native_image =
            TestImage { media_type: manifest_type, ..TestImage::of(vec![TestLayer::gzip(&base_layer())]) };
        let mut wasm_image =
            TestImage { media_type: manifest_type, os: "wasi", architecture: "wasm", ..native_image.clone() };
        wasm_image.layers = vec![TestLayer::gzip(&tar(|t| {
            t.file("app.wasm", module(1));
        }))];
        wasm_image.process = json!({ "Entrypoint": ["/app.wasm"] });
        let (native_pushed, wasm_pushed) =
            (server.push("a", "", &native_image).await, server.push("a", "", &wasm_image).await);
        let other = server.push("a", "", &TestImage { architecture: "s390x", ..native_image.clone() }).await;
        let entries =
            [(&other, "linux", "s390x"), (&wasm_pushed, "wasi", "wasm"), (&native_pushed, "linux", native())];
        let index = server.push_index("a", "1", index_type, &entries).await;
        let root = tempfile::tempdir().unwrap();
        let images = open(root.path()).await;
        let image = images.pull(&server.reference("a:1"), PullOptions::default()).await.unwrap();
        assert_eq!(image.id.digest(), &native_pushed.config);
        assert_eq!(image.repo_digests, [format!("{}/a@{index}", server.addr)], "the digest is the index's");
        let options = PullOptions { prefer: Prefer::Wasm, ..PullOptions::default() };
        let image = images.pull(&server.reference("a:1"), options).await.unwrap();
        assert_eq!(image.id.digest(), &wasm_pushed.config);
        assert!(image.is_wasm());

        server.push_index("a", "2", index_type, &entries[..1]).await;
        let error =
            images.pull(&server.reference("a:2"), PullOptions::default()).await.unwrap_err().to_string();
        assert!(error.contains("linux/s390x"), "{error}");
    }
}

#[tokio::test]
async fn a_pull_by_digest_gives_no_tag() {
    let server = Server::start().await;
    let pushed = server.push("app", "1", &TestImage::of(vec![TestLayer::gzip(&base_layer())])).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let name = format!("app@{}", pushed.manifest);
    let image = images.pull(&server.reference(&name), PullOptions::default()).await.unwrap();
    assert_eq!(image.repo_tags, Vec::<String>::new());
    assert_eq!(image.repo_digests, [format!("{}/{name}", server.addr)]);
    for form in [
        format!("{}/{name}", server.addr),
        image.id.to_string(),
        image.id.digest().hex().to_owned(),
        image.id.digest().hex()[..12].to_owned(),
    ] {
        assert_eq!(images.status(&form).expect(&form).id, image.id);
    }
    for form in ["sha256:00", "0000000", "no/such:thing", "%%", ""] {
        assert!(images.status(form).is_none(), "{form}");
    }
}

#[tokio::test]
async fn one_image_has_many_names_and_removal_by_any_takes_all() {
    let server = Server::start().await;
    let image = TestImage::of(vec![TestLayer::gzip(&base_layer())]);
    for (repo, tag) in [("a", "1"), ("a", "2"), ("b", "1")] {
        server.push(repo, tag, &image).await;
    }
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    for name in ["a:1", "a:2", "b:1"] {
        images.pull(&server.reference(name), PullOptions::default()).await.unwrap();
    }
    assert_eq!(images.list().len(), 1);
    assert_eq!((images.list()[0].repo_tags.len(), images.list()[0].repo_digests.len()), (3, 2));
    let id = images.list()[0].id.to_string();
    let removals: Vec<_> = (0..5).map(|_| images.remove(&id)).collect();
    for result in futures::future::join_all(removals).await {
        result.unwrap();
    }
    assert!(images.list().is_empty() && images.status(&id).is_none());
    images.remove(&server.reference("a:1").to_string()).await.unwrap(); // not there: no error
    until_clean(root.path()).await;
    assert_eq!(files(root.path()), ["lock"], "nothing is left on disk");
}

#[tokio::test]
async fn a_tag_moves_and_the_old_image_stays_without_it() {
    let server = Server::start().await;
    let first = TestImage::of(vec![TestLayer::gzip(&base_layer())]);
    let second = TestImage::of(vec![TestLayer::gzip(&base_layer()), TestLayer::gzip(&upper_layer())]);
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    server.push("a", "1", &first).await;
    let old = images.pull(&server.reference("a:1"), PullOptions::default()).await.unwrap();
    server.push("a", "1", &second).await;
    let new = images.pull(&server.reference("a:1"), PullOptions::default()).await.unwrap();
    assert_ne!(old.id, new.id);
    let check = |images: &Images| {
        let old_now = images.status(old.id.as_str()).unwrap();
        assert!(old_now.repo_tags.is_empty() && old_now.repo_digests.len() == 1);
        assert_eq!(images.status(&server.reference("a:1").to_string()).unwrap().id, new.id);
    };
    check(&images);
    drop(images);
    let images = open(root.path()).await;
    check(&images);
    // They share a layer: removing one leaves the other whole.
    images.remove(old.id.as_str()).await.unwrap();
    for dir in images.lower_dirs(&new) {
        assert!(dir.is_dir());
    }
    assert!(images.file(&new, "/bin/app").await.unwrap().is_some());
}

#[tokio::test]
async fn what_runs_is_kept_until_its_lease_ends_also_over_a_restart() {
    let server = Server::start().await;
    server.push("a", "1", &TestImage::of(vec![TestLayer::gzip(&base_layer())])).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let image = images.pull(&server.reference("a:1"), PullOptions::default()).await.unwrap();
    let lease = images.lease(&image.id).unwrap();
    images.remove(image.id.as_str()).await.unwrap();
    assert!(images.list().is_empty(), "gone at once");
    assert!(lease.lower_dirs()[0].join("bin/app").is_file(), "but its files are there");
    // As after a kill: the lease is not given back.
    let dirs = lease.lower_dirs().to_vec();
    std::mem::forget(lease);
    drop(images);
    // The forgotten lease holds the lock file open in this process; a copy of the directory stands for the restarted one's view.
    let copy = tempfile::tempdir().unwrap();
    assert!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(root.path())
            .arg(copy.path().join("s"))
            .status()
            .unwrap()
            .success()
    );
    let images = open(&copy.path().join("s")).await;
    let lease = images.lease(&image.id).expect("a removed image can be leased again");
    images.collect().await.unwrap();
    assert!(images.list().is_empty());
    assert!(lease.lower_dirs()[0].join("bin/app").is_file() && dirs[0].join("bin/app").is_file());
    drop(lease);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !files(&copy.path().join("s")).iter().all(|file| file == "lock") {
        assert!(std::time::Instant::now() < deadline, "{:?}", files(&copy.path().join("s")));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(images.lease(&image.id).is_none());
}

#[tokio::test]
async fn two_processes_cannot_share_a_store() {
    let root = tempfile::tempdir().unwrap();
    let _images = open(root.path()).await;
    let error = Images::open(wharf_image::Config::new(root.path())).await.unwrap_err();
    assert!(matches!(error, Error::Busy(_)), "{error}");
}

#[tokio::test]
async fn errors_carry_the_registrys_own_words() {
    let server = Server::start().await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let error = images.pull(&server.reference("no/such:1"), PullOptions::default()).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("manifest unknown: no/such:1")
            && text.contains("MANIFEST_UNKNOWN")
            && text.contains("no/such:1"),
        "{text}"
    );
    assert_eq!(error.remedy(), Remedy::Absent);

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error =
        images.pull(&format!("{closed}/a:1").parse().unwrap(), PullOptions::default()).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("connection refused"), "{error}");
    assert_eq!(error.remedy(), Remedy::BackOff);
    until_clean(root.path()).await;
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_names_stay() {
    let (empty, full) = (Server::start().await, Server::start().await);
    full.push("pause", "3.9", &TestImage::of(vec![TestLayer::gzip(&base_layer())])).await;
    let config = HostConfig {
        mirrors: vec![Endpoint::at(&empty.url), Endpoint::at(&full.url)],
        server: None,
        mirrors_only: true,
    };
    let hosts = ["registry.k8s.io", "k8s.gcr.io"].map(|host| (host.to_owned(), config.clone())).into();
    let root = tempfile::tempdir().unwrap();
    let images = open_with(root.path(), RegistriesConfig { hosts, ..RegistriesConfig::default() }).await;
    for host in ["registry.k8s.io", "k8s.gcr.io"] {
        images.pull(&format!("{host}/pause:3.9").parse().unwrap(), PullOptions::default()).await.unwrap();
    }
    let image = &images.list()[0];
    assert_eq!(image.repo_tags, ["k8s.gcr.io/pause:3.9", "registry.k8s.io/pause:3.9"]);
    assert!(empty.requests("/v2/pause/manifests/3.9") == 2);
    let error = images
        .pull(&"k8s.gcr.io/other:1".parse().unwrap(), PullOptions::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains(&empty.url) && error.contains(&full.url), "{error}");
}

#[tokio::test]
async fn tls_with_a_client_certificate_works_and_without_it_does_not() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let issue = |names: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let params =
            CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        (params.signed_by(&key, &ca).unwrap(), key)
    };
    let (server_cert, server_key) = issue(&["127.0.0.1"]);
    let (node_cert, node_key) = issue(&["node-1"]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let tls = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server_cert.der().clone()], server_key.serialize_der().try_into().unwrap())
        .unwrap();
    let server = Server::with(None, Some(Arc::new(tls).into())).await;
    // Filled through the back door: what is asked here is the pull.
    let plain = Server::start().await;
    plain.push("app", "1", &TestImage::of(vec![TestLayer::gzip(&base_layer())])).await;
    assert!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(plain.dir.path().join("blobs"))
            .arg(plain.dir.path().join("repos"))
            .arg(server.dir.path())
            .status()
            .unwrap()
            .success()
    );

    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = files.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    let mut endpoint = Endpoint {
        ca: file("ca.pem", ca.pem()),
        client_cert: file("node.pem", node_cert.pem()),
        client_key: file("node.key", node_key.serialize_pem()),
        ..Endpoint::at(&server.url)
    };
    let reference = "registry.wharf/app:1".parse().unwrap();
    let root = tempfile::tempdir().unwrap();
    let image = open_with(root.path(), mirrored("registry.wharf", endpoint.clone()))
        .await
        .pull(&reference, PullOptions::default())
        .await
        .unwrap();
    assert_eq!(image.repo_tags, ["registry.wharf/app:1"]);

    for (what, word) in [("no certificate", "certificate"), ("another authority", "certificate")] {
        if what == "no certificate" {
            (endpoint.client_cert, endpoint.client_key) = (None, None);
        } else {
            endpoint.ca = file("other.pem", node_cert.pem());
        }
        let root = tempfile::tempdir().unwrap();
        let images = open_with(root.path(), mirrored("registry.wharf", endpoint.clone())).await;
        let error = images.pull(&reference, PullOptions::default()).await.unwrap_err().to_string();
        assert!(error.to_lowercase().contains(word), "{what}: {error}");
    }
}

#[tokio::test]
async fn basic_and_token_authentication_let_the_right_ones_in() {
    for scheme in ["basic", "token"] {
        let realm = Arc::new(std::sync::OnceLock::<String>::new());
        let asked = realm.clone();
        let server = Server::hooked(move |request| {
            let authorization = request
                .headers()
                .get("authorization")
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default()
                .to_owned();
            if request.uri().path() == "/token" {
                let query = request.uri().query().unwrap_or_default();
                assert!(
                    query.contains("service=reg") && query.contains("scope=repository%3Aapp%3Apull"),
                    "{query}"
                );
                return Some(match authorization.as_str() {
                    "Basic dTpw" => reply(200, r#"{"token":"t0k3n"}"#),
                    _ => reply(401, r#"{"details":"incorrect username or password"}"#),
                });
            }
            if request.method() != http::Method::GET
                || authorization == "Bearer t0k3n"
                || (scheme == "basic" && authorization == "Basic dTpw")
            {
                return None;
            }
            let mut response =
                reply(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#);
            let challenge = match scheme {
                "basic" => "Basic realm=\"x\"".to_owned(),
                _ => format!(
                    "Bearer realm=\"{}/token\",service=\"reg\",scope=\"repository:app:pull\"",
                    asked.get().unwrap()
                ),
            };
            response.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
            Some(response)
        })
        .await;
        realm.set(server.url.clone()).unwrap();
        server.push("app", "1", &TestImage::of(vec![TestLayer::gzip(&base_layer())])).await;
        let root = tempfile::tempdir().unwrap();
        let images = open(root.path()).await;
        let with = |password: &str| PullOptions {
            auth: Some(Auth::Basic { username: "u".into(), password: password.into() }),
            ..PullOptions::default()
        };
        let reference = server.reference("app:1");
        for (options, words) in [
            (PullOptions::default(), ["authentication required", "incorrect"]),
            (with("wrong"), ["authentication required", "incorrect"]),
        ] {
            let error = images.pull(&reference, options).await.unwrap_err();
            assert!(words.iter().any(|word| error.to_string().contains(word)), "{scheme}: {error}");
            assert_eq!(error.remedy(), Remedy::Credentials);
        }
        images.pull(&reference, with("p")).await.unwrap();

        let logins = root.path().join("config.json");
        let auths = format!(r#"{{"auths": {{"{}": {{"auth": "dTpw"}}}}}}"#, server.addr);
        std::fs::write(&logins, auths).unwrap();
        let registries = RegistriesConfig { docker_config: Some(logins), ..RegistriesConfig::default() };
        let images = open_with(&root.path().join("other"), registries).await;
        images.pull(&reference, PullOptions::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_transfer_that_breaks_off_goes_on_where_it_stopped() {
    // Cuts the first two answers for the big layer in the middle.
    let cuts = Arc::new(AtomicUsize::new(0));
    let big = Arc::new(std::sync::OnceLock::<(String, Vec<u8>)>::new());
    let (counted, content) = (cuts.clone(), big.clone());
    let server = Server::hooked(move |request| {
        let (path, bytes) = content.get()?;
        if request.method() != http::Method::GET
            || request.uri().path() != path
            || counted.fetch_add(1, Ordering::SeqCst) >= 2
        {
            return None;
        }
        let from: usize = request
            .headers()
            .get("range")
            .and_then(|v| v.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
            .unwrap_or(0);
        let rest = bytes[from..].to_vec();
        let part = bytes::Bytes::copy_from_slice(&rest[..rest.len() / 2]);
        let frames = vec![Ok(http_body::Frame::data(part)), Err(std::io::Error::other("cut"))];
        let body = http_body_util::BodyExt::boxed_unsync(http_body_util::StreamBody::new(
            futures::stream::iter(frames),
        ));
        let mut response = http::Response::new(body);
        response.headers_mut().insert("content-length", rest.len().into());
        if from > 0 {
            *response.status_mut() = http::StatusCode::PARTIAL_CONTENT;
        }
        Some(response)
    })
    .await;
    let noise: Vec<u8> = (0..2_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let layer = TestLayer::plain(tar(|t| {
        t.file("noise", &noise);
    }));
    big.set((format!("/v2/app/blobs/{}", layer.diff_id), layer.blob.clone())).unwrap();
    server.push("app", "1", &TestImage::of(vec![layer])).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let image = images.pull(&server.reference("app:1"), PullOptions::default()).await.unwrap();
    let file = images.file(&image, "/noise").await.unwrap().unwrap();
    assert!(std::fs::read(file).unwrap() == noise);
    assert!(cuts.load(Ordering::SeqCst) >= 3);
}

#[tokio::test]
async fn concurrent_pulls_of_one_reference_are_one_transfer() {
    let server = Server::start().await;
    server.push("app", "1", &TestImage::of(vec![TestLayer::gzip(&base_layer())])).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let reference = server.reference("app:1");
    let pulls = (0..8).map(|_| images.pull(&reference, PullOptions::default()));
    let ids: Vec<_> =
        futures::future::join_all(pulls).await.into_iter().map(|result| result.unwrap().id.clone()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(server.requests("GET /v2/app/manifests/1"), 1);
    assert!(images.progress(&reference).is_none(), "landed");
}

#[tokio::test]
async fn concurrent_pulls_of_images_that_share_layers_and_removals_agree() {
    let server = Server::start().await;
    let base = TestLayer::gzip(&base_layer());
    for n in 0..6 {
        let own = TestLayer::zstd(&tar(|t| {
            t.file("own", format!("{n}"));
        }));
        server.push(&format!("app{n}"), "1", &TestImage::of(vec![base.clone(), own])).await;
    }
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    for round in 0..4 {
        let work = (0..6).map(|n| {
            let (images, reference) = (images.clone(), server.reference(&format!("app{n}:1")));
            async move {
                let image = images.pull(&reference, PullOptions::default()).await.unwrap();
                if n % 2 == round % 2 {
                    images.remove(&reference.to_string()).await.unwrap();
                } else {
                    for dir in images.lower_dirs(&image) {
                        assert!(dir.is_dir(), "{}", dir.display());
                    }
                }
            }
        });
        futures::future::join_all(work).await;
        for image in images.list() {
            assert!(images.file(&image, "/own").await.unwrap().is_some());
            assert!(images.file(&image, "/bin/app").await.unwrap().is_some());
        }
    }
    until_clean(root.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_at_any_moment_leaves_nothing() {
    let server = Server::start().await;
    let layers = (0..4).map(|l| {
        TestLayer::gzip(&tar(|t| {
            for f in 0..60 {
                t.file(&format!("dir{l}/file{f}"), vec![f; 20_000]);
            }
        }))
    });
    server.push("app", "1", &TestImage::of(layers.collect())).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let reference = server.reference("app:1");
    let mut finished = 0;
    for n in 0..40_u64 {
        let deadline =
            if n == 39 { Duration::from_secs(60) } else { Duration::from_micros(100 + n * n * 60) };
        match tokio::time::timeout(deadline, images.pull(&reference, PullOptions::default())).await {
            Ok(result) => {
                result.unwrap();
                finished += 1;
                images.remove(&reference.to_string()).await.unwrap();
            }
            // A commit that had begun goes through: then the image is whole.
            Err(_) => {
                until_clean(root.path()).await;
                for image in images.list() {
                    assert_eq!(images.lower_dirs(&image).iter().filter(|dir| dir.is_dir()).count(), 4);
                    images.remove(image.id.as_str()).await.unwrap();
                }
            }
        }
        assert!(images.progress(&reference).is_none());
        until_clean(root.path()).await;
        images.collect().await.unwrap();
        assert_eq!(files(root.path()), ["lock"]);
    }
    assert!(finished > 0, "some deadline was long enough");
}

/// Not a test of its own: the process that the next test kills.
#[tokio::test]
async fn child_that_pulls() {
    let (Ok(root), Ok(reference)) = (std::env::var("WHARF_TEST_ROOT"), std::env::var("WHARF_TEST_REFERENCE"))
    else {
        return;
    };
    let images = Images::open(wharf_image::Config::new(root)).await.unwrap();
    images.pull(&reference.parse().unwrap(), PullOptions::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_moment_leaves_no_half_image() {
    let server = Server::start().await;
    let layers = (0..3).map(|l: u8| {
        TestLayer::gzip(&tar(|t| {
            for f in 0..200_u8 {
                t.file(&format!("dir{l}/file{f}"), vec![f; 5_000]);
            }
        }))
    });
    server.push("app", "1", &TestImage::of(layers.collect())).await;
    let reference = server.reference("app:1");
    let (mut absent, mut present) = (0, 0);
    for n in 0..14_u64 {
        let root = tempfile::tempdir().unwrap();
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_pulls", "--nocapture"])
            .env("WHARF_TEST_ROOT", root.path())
            .env("WHARF_TEST_REFERENCE", reference.to_string())
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(8 + n * 12), child.wait()).await;
        child.kill().await.unwrap();
        let images = open(root.path()).await;
        match images.list().as_slice() {
            [] => absent += 1,
            [image] => {
                present += 1;
                for l in 0..3 {
                    for f in 0..200_u8 {
                        let file =
                            images.file(image, format!("/dir{l}/file{f}")).await.unwrap().expect("whole");
                        assert!(std::fs::read(file).unwrap() == vec![f; 5_000]);
                    }
                }
            }
            more => panic!("{more:?}"),
        }
        assert!(files(&root.path().join("tmp")).is_empty());
        images.pull(&reference, PullOptions::default()).await.unwrap();
        images.remove(&reference.to_string()).await.unwrap();
        images.collect().await.unwrap();
        until_clean(root.path()).await;
        assert_eq!(files(root.path()), ["lock"]);
    }
    assert!(absent > 0, "no kill came early enough ({present} late)");
}
