//! The ways in which the field ships wasm, each told from what the documents and the file say.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not tests to clippy")]

mod common;

use common::*;
use serde_json::{Value, json};
use wharf_image::{Digest, Kind, PullOptions, Remedy};

const WASM: &str = "application/wasm";

fn in_tar(name: &str, os: &'static str, architecture: &'static str) -> TestImage {
    let layer = TestLayer::gzip(&tar(|t| {
        t.file(name, module(1));
    }));
    TestImage {
        os,
        architecture,
        process: json!({ "Entrypoint": ["/hello.wasm"], "Env": ["PATH=/"] }),
        ..TestImage::of(vec![layer])
    }
}

fn artifact(config_type: &'static str, config: Value) -> TestImage {
    TestImage {
        config_type,
        config: Some(serde_json::to_vec(&config).unwrap()),
        ..TestImage::of(vec![TestLayer::module(WASM, &module(1))])
    }
}

#[tokio::test]
async fn all_six_ways_give_the_same_module() {
    let server = Server::start().await;
    let digest = Digest::of(&module(1));
    server.push("file-linux", "1", &in_tar("hello.wasm", "linux", native())).await;
    server.push("file-wasip1", "1", &in_tar("hello.wasm", "wasip1", "wasm")).await;
    let inner = server.push("file-wasi-index", "", &in_tar("hello.wasm", "wasi", "wasm")).await;
    server.push_index("file-wasi-index", "1", OCI_INDEX, &[(&inner, "wasi", "wasm")]).await;
    let mut runwasi = in_tar("unused", "wasip1", "wasm");
    runwasi.layers =
        vec![TestLayer::module("application/vnd.bytecodealliance.wasm.component.layer.v0+wasm", &module(1))];
    server.push("runwasi-layer", "1", &runwasi).await;
    let config = json!({ "architecture": "wasm", "os": "wasip1", "layerDigests": [digest.as_str()], "component": null });
    server.push("artifact", "1", &artifact("application/vnd.wasm.config.v0+json", config)).await;
    server.push("artifact-empty", "1", &artifact("application/vnd.oci.empty.v1+json", json!({}))).await;

    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let mut ids = Vec::new();
    for name in
        ["file-linux", "file-wasip1", "file-wasi-index", "runwasi-layer", "artifact", "artifact-empty"]
    {
        let image =
            images.pull(&server.reference(&format!("{name}:1")), PullOptions::default()).await.unwrap();
        let Kind::Wasm(wasm) = &image.kind else { panic!("{name} is {:?}", image.kind) };
        assert_eq!((&wasm.digest, wasm.size), (&digest, module(1).len() as u64), "{name}");
        assert_eq!(std::fs::read(&wasm.path).unwrap(), module(1), "{name}");
        let is_artifact = name.starts_with("artifact");
        assert_eq!(wasm.name, if is_artifact { "module.wasm" } else { "/hello.wasm" }, "{name}");
        assert_eq!(image.config.entrypoint, std::slice::from_ref(&wasm.name), "{name}");
        assert_eq!(images.lower_dirs(&image).len(), usize::from(name.starts_with("file")), "{name}");
        ids.push(image.id.clone());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6);
    until_clean(root.path()).await;
    drop(images);
    let images = open(root.path()).await;
    for image in images.list() {
        let Kind::Wasm(wasm) = &image.kind else { panic!("{:?}", image.kind) };
        assert!(wasm.path.is_file(), "also after a restart");
        images.remove(image.id.as_str()).await.unwrap();
    }
    until_clean(root.path()).await;
    assert_eq!(files(root.path()), ["lock"]);
}

#[tokio::test]
async fn artifacts_with_one_empty_config_are_different_images() {
    let server = Server::start().await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    for n in [1, 2] {
        let mut image = artifact("application/vnd.oci.empty.v1+json", json!({}));
        image.layers =
            vec![TestLayer { title: Some(format!("app{n}.wasm")), ..TestLayer::module(WASM, &module(n)) }];
        server.push("app", &n.to_string(), &image).await;
        let image =
            images.pull(&server.reference(&format!("app:{n}")), PullOptions::default()).await.unwrap();
        assert_eq!(image.config.entrypoint, [format!("app{n}.wasm")]);
    }
    assert_eq!(images.list().len(), 2);
}

#[tokio::test]
async fn a_name_makes_nothing_wasm_and_a_claim_must_hold() {
    let server = Server::start().await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;

    let mut script = in_tar("x", "linux", native());
    script.layers = vec![TestLayer::gzip(&tar(|t| {
        t.file_mode("hello.wasm", 0o755, "#!/bin/sh\n");
    }))];
    server.push("script", "1", &script).await;
    let image = images.pull(&server.reference("script:1"), PullOptions::default()).await.unwrap();
    assert_eq!(image.kind, Kind::Oci, "called hello.wasm, but a shell script");

    let mut plain = in_tar("bin/app", "linux", native());
    plain.process = json!({ "Entrypoint": ["app#handle"], "Env": ["PATH=/bin"] });
    server.push("plain", "1", &plain).await;
    let image = images.pull(&server.reference("plain:1"), PullOptions::default()).await.unwrap();
    let Kind::Wasm(wasm) = &image.kind else { panic!("{:?}", image.kind) };
    assert_eq!(
        (wasm.name.as_str(), wasm.function.as_deref()),
        ("app", Some("handle")),
        "no suffix, but a module"
    );

    for (name, annotations, os) in [
        ("by-annotation", json!({ "module.wasm.image/variant": "compat" }), "linux"),
        ("by-handler", json!({ "run.oci.handler": "wasm" }), "linux"),
        ("by-platform", Value::Null, "wasip2"),
    ] {
        let image = TestImage { annotations: annotations.clone(), os, ..script.clone() };
        server.push(name, "1", &image).await;
        let error =
            images.pull(&server.reference(&format!("{name}:1")), PullOptions::default()).await.unwrap_err();
        assert!(error.to_string().contains("says that it is wasm"), "{name}: {error}");
        assert_eq!(error.remedy(), Remedy::Correct);
        let honest = TestImage { annotations, os, ..in_tar("hello.wasm", "linux", native()) };
        server.push(name, "2", &honest).await;
        assert!(
            images
                .pull(&server.reference(&format!("{name}:2")), PullOptions::default())
                .await
                .unwrap()
                .is_wasm()
        );
    }
    let smart = TestImage { annotations: json!({ "module.wasm.image/variant": "compat-smart" }), ..script };
    server.push("smart", "1", &smart).await;
    assert!(!images.pull(&server.reference("smart:1"), PullOptions::default()).await.unwrap().is_wasm());

    let mut lies = artifact("application/vnd.wasm.config.v0+json", json!({}));
    lies.layers = vec![TestLayer::module(WASM, b"not a module")];
    server.push("lies", "1", &lies).await;
    let error =
        images.pull(&server.reference("lies:1"), PullOptions::default()).await.unwrap_err().to_string();
    assert!(error.contains("its first bytes do not"), "{error}");
}

/// With WHARF_IMAGES=DIR, an unpacked OCI layout of real images under their names: all of them can be pulled.
#[tokio::test]
async fn images_of_the_field_are_pulled() {
    let Ok(layout) = std::env::var("WHARF_IMAGES") else {
        eprintln!("skipped: WHARF_IMAGES is not set");
        return;
    };
    let server = Server::start().await;
    let blob = |digest: &str| std::fs::read(format!("{layout}/blobs/{}", digest.replace(':', "/"))).unwrap();
    let index: Value =
        serde_json::from_slice(&std::fs::read(format!("{layout}/index.json")).unwrap()).unwrap();
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    for item in index["manifests"].as_array().unwrap() {
        let name = item["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap();
        let (repo, tag) = name.split_once('/').unwrap().1.rsplit_once(':').unwrap();
        // Manifests of an index first, blobs of a manifest before it.
        let mut stack = vec![(item.clone(), tag.to_owned())];
        let mut order = Vec::new();
        while let Some((item, target)) = stack.pop() {
            let document: Value = serde_json::from_slice(&blob(item["digest"].as_str().unwrap())).unwrap();
            for child in document["manifests"].as_array().into_iter().flatten() {
                stack.push((child.clone(), child["digest"].as_str().unwrap().to_owned()));
            }
            order.push((item, document, target));
        }
        for (item, document, target) in order.into_iter().rev() {
            for part in
                document.get("config").into_iter().chain(document["layers"].as_array().into_iter().flatten())
            {
                server.push_blob(repo, &blob(part["digest"].as_str().unwrap())).await;
            }
            let url = format!("{}/v2/{repo}/manifests/{target}", server.url);
            let body = blob(item["digest"].as_str().unwrap());
            let response = client()
                .put(url)
                .header("content-type", item["mediaType"].as_str().unwrap())
                .body(body)
                .send()
                .await
                .unwrap();
            assert!(response.status().is_success(), "{name}: {}", response.text().await.unwrap());
        }
        let image =
            images.pull(&server.reference(&format!("{repo}:{tag}")), PullOptions::default()).await.unwrap();
        eprintln!(
            "{name}: {} {:?} user {:?}",
            image.kind.as_str(),
            image.config.entrypoint,
            image.config.user
        );
        assert_eq!(image.is_wasm(), name.contains("wasm"), "{name}");
    }
}
