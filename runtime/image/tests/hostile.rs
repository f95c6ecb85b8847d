//! Layers and documents that are broken or mean harm: each gives a clear error and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not tests to clippy")]

mod common;

use std::io::Write as _;
use std::path::Path;

use common::*;
use proptest::prelude::*;
use serde_json::json;
use tar::EntryType;
use wharf_image::{Config, Images, Limits, PullOptions, Remedy};

fn small() -> Limits {
    Limits { unpacked: 1 << 20, entries: 50, document: 20_000, blob: 1 << 20, layers: 5, ..Limits::default() }
}

async fn open_small(root: &Path) -> Images {
    Images::open(Config { limits: small(), durable: false, ..Config::new(root) }).await.unwrap()
}

fn header(kind: EntryType, size: usize) -> tar::Header {
    Archive::header(kind, 0o644, size)
}

/// Pulls an image that must fail, and checks that nothing is left of it, inside and outside of the store.
async fn refused(server: &Server, name: &str, image: &TestImage, word: &str) {
    server.push(name, "1", image).await;
    refused_as_pushed(server, name, word).await;
}

async fn refused_as_pushed(server: &Server, name: &str, word: &str) {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("a/b/store");
    let images = open_small(&root).await;
    let error =
        images.pull(&server.reference(&format!("{name}:1")), PullOptions::default()).await.expect_err(name);
    let text = error.to_string();
    assert!(text.contains(word), "{name}: {text}");
    assert_eq!(error.remedy(), Remedy::Correct, "{name}: {text}");
    until_clean(&root).await;
    images.collect().await.unwrap();
    assert_eq!(files(outside.path()), ["a/b/store/lock"], "{name}");
    assert!(images.list().is_empty());
}

#[tokio::test]
async fn hostile_archives_are_refused_with_a_reason() {
    let server = Server::start().await;
    let long = "x".repeat(90);
    type Fill = Box<dyn FnOnce(&mut Archive)>;
    let table: Vec<(&str, Fill, &str)> = vec![
        ("dots", Box::new(|t| t.file("../escape", "x").done()), "leaves the layer"),
        ("dots-inside", Box::new(|t| t.file("a/../../escape", "x").done()), "leaves the layer"),
        ("dots-absolute", Box::new(|t| t.file("/../../escape", "x").done()), "leaves the layer"),
        (
            "link-out",
            Box::new(|t| t.symlink("out", "/tmp").file("out/escape", "x").done()),
            "symbolic link out",
        ),
        (
            "link-up",
            Box::new(|t| {
                t.symlink("out", "../../../..")
                    .dir("d/", 0o755)
                    .symlink("d/x", "../out/etc")
                    .file("d/x/escape", "x")
                    .done()
            }),
            "symbolic link d/x",
        ),
        (
            "link-chain",
            Box::new(|t| {
                t.symlink("a", "b").symlink("b", "/proc/self/root").file("a/tmp/escape", "x").done()
            }),
            "symbolic link",
        ),
        (
            "link-proc",
            Box::new(|t| t.symlink("a", "/proc/self/cwd").file("a/escape", "x").done()),
            "symbolic link a",
        ),
        ("link-loop", Box::new(|t| t.symlink("a", "b").symlink("b", "a").file("a/escape", "x").done()), "a"),
        (
            "dir-became-link",
            Box::new(|t| t.dir("d", 0o755).symlink("d", "/etc").file("d/escape", "x").done()),
            "symbolic link d",
        ),
        (
            "hard-link-out",
            Box::new(|t| t.hard_link("x", "/etc/passwd").done()),
            "hard link to etc/passwd, which this layer does not have",
        ),
        ("hard-link-dots", Box::new(|t| t.hard_link("x", "../../etc/passwd").done()), "leaves the layer"),
        (
            "hard-link-through",
            Box::new(|t| t.symlink("e", "/etc").hard_link("x", "e/passwd").done()),
            "does not have",
        ),
        ("hard-link-directory", Box::new(|t| t.dir("d", 0o755).hard_link("x", "d").done()), "directory d"),
        ("hard-link-itself", Box::new(|t| t.hard_link("x", "x").done()), "to itself"),
        ("under-a-file", Box::new(|t| t.file("f", "x").file("f/g", "x").done()), "no directory"),
        ("whiteout-dots", Box::new(|t| t.file("a/.wh...", "").done()), "hides no name"),
        ("whiteout-dot", Box::new(|t| t.file("a/.wh..", "").done()), "hides no name"),
        (
            "whiteout-through",
            Box::new(|t| t.symlink("e", "/etc").file("e/.wh.passwd", "").done()),
            "symbolic link e",
        ),
        ("root-is-a-file", Box::new(|t| t.file("./", "x").done()), "root"),
        ("no-target", Box::new(|t| t.symlink("x", "").done()), "no target"),
        ("odd-type", Box::new(|t| t.raw("x", "", header(EntryType::new(b'Q'), 0), b"").done()), "type 'Q'"),
        (
            "many-entries",
            Box::new(|t| (0..60).for_each(|n| t.dir(&format!("d{n}"), 0o755).done())),
            "more than 50 entries",
        ),
        ("big", Box::new(|t| t.file("zeros", vec![0; 3 << 20]).done()), "more than 1048576 bytes"),
        (
            "bad-uid",
            Box::new(|t| {
                let mut header = header(EntryType::Regular, 0);
                header.set_uid(u64::from(u32::MAX) + 1);
                t.raw("x", "", header, b"");
            }),
            "user id",
        ),
        (
            "long-part",
            Box::new(move |t| {
                let mut header = header(EntryType::Regular, 0);
                header.set_cksum();
                t.0.append_data(&mut header, format!("{0}{0}{0}", long), &b""[..]).unwrap();
            }),
            "too long",
        ),
        (
            "huge-name",
            Box::new(|t| {
                let data = vec![b'n'; 2 << 20];
                t.raw("././@LongLink", "", header(EntryType::GNULongName, data.len()), &data);
                t.file("x", "");
            }),
            "bytes",
        ),
        (
            "sparse-pax",
            Box::new(|t| {
                t.0.append_pax_extensions([("GNU.sparse.major", &b"1"[..])]).unwrap();
                t.file("x", "");
            }),
            "sparse",
        ),
    ];
    for (name, fill, word) in table {
        let archive = tar(fill);
        refused(&server, name, &TestImage::of(vec![TestLayer::gzip(&archive)]), word).await;
    }
}

#[tokio::test]
async fn broken_transfers_and_false_documents_are_refused_with_a_reason() {
    let server = Server::start().await;
    let good = tar(|t| t.file("f", vec![7; 3000]).done());
    let layer = TestLayer::gzip(&good);

    let mut cut = layer.clone();
    cut.blob.truncate(cut.blob.len() - 12);
    refused(&server, "cut-gzip", &TestImage::of(vec![cut]), "layer sha256:").await;
    let mut cut = TestLayer::plain(good.clone());
    cut.blob.truncate(1000);
    refused(&server, "cut-tar", &TestImage::of(vec![cut]), "ends early").await;
    let mut cut = TestLayer::zstd(&good);
    cut.blob.truncate(cut.blob.len() - 3);
    refused(&server, "cut-zstd", &TestImage::of(vec![cut]), "layer sha256:").await;
    let mut noise = layer.clone();
    noise.blob = (0..5000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    refused(&server, "noise", &TestImage::of(vec![noise]), "damaged").await;

    let mut lies = layer.clone();
    lies.diff_id = wharf_image::Digest::of(b"else");
    refused(&server, "diff-id", &TestImage::of(vec![lies]), "but the config says").await;
    let mut trailing = good.clone();
    trailing.extend_from_slice(b"after the end");
    let mut smuggled = TestLayer::gzip(&trailing);
    smuggled.diff_id = wharf_image::Digest::of(&good);
    refused(&server, "trailing", &TestImage::of(vec![smuggled]), "but the config says").await;

    // 200 MiB of zeros in some 200 KiB.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..200 {
        encoder.write_all(&[0; 1 << 20]).unwrap();
    }
    let bomb = TestLayer { blob: encoder.finish().unwrap(), ..layer.clone() };
    refused(&server, "bomb", &TestImage::of(vec![bomb]), "more than 1048576 bytes").await;
    let mut big = tar(|t| t.file("first", "x").done());
    big.truncate(1024); // without the end mark
    big.extend(tar(|t| t.file("zeros", vec![0; 2 << 20]).done()));
    refused(&server, "bomb-inside", &TestImage::of(vec![TestLayer::zstd(&big)]), "more than 1048576 bytes")
        .await;

    let too_large = TestLayer::plain(vec![1; 2 << 20]);
    refused(&server, "large-blob", &TestImage::of(vec![too_large]), "larger than 1048576 bytes").await;
    refused(&server, "layers", &TestImage::of(vec![layer.clone(); 6]), "6 layers").await;
    let mut fewer = TestImage::of(vec![layer.clone()]);
    fewer.config = Some(TestImage::of(vec![]).config_bytes());
    refused(&server, "counts", &fewer, "names 0 layers and the manifest 1").await;
    let mut text = TestImage::of(vec![layer.clone()]);
    text.config = Some(b"no json".to_vec());
    refused(&server, "config", &text, "config is malformed").await;
    let mut large = TestImage::of(vec![layer.clone()]);
    large.annotations = json!({ "x": "y".repeat(30_000) });
    refused(&server, "large-manifest", &large, "larger than 20000 bytes").await;

    // What the registry serves is not what it took.
    let swap = |server: &Server, digest: &wharf_image::Digest, change: &dyn Fn(&mut Vec<u8>)| {
        let path = server.blob_path(digest);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    };
    let digest = wharf_image::Digest::of(&layer.blob);
    server.push("swapped", "1", &TestImage::of(vec![layer.clone()])).await;
    swap(&server, &digest, &|bytes| bytes[20] ^= 1);
    refused_as_pushed(&server, "swapped", "arrived with digest").await;
    swap(&server, &digest, &|bytes| bytes.truncate(bytes.len() - 1));
    refused_as_pushed(&server, "swapped", "the manifest says").await;
    swap(&server, &digest, &|bytes| bytes.extend(b"more"));
    refused_as_pushed(&server, "swapped", "more than the").await;
    let pushed = server.push("config-swapped", "1", &TestImage::of(vec![])).await;
    swap(&server, &pushed.config, &|bytes| bytes[3] ^= 1);
    refused_as_pushed(&server, "config-swapped", "arrived with digest").await;
    let inner = server.push("index", "", &TestImage::of(vec![])).await;
    server.push_index("index", "1", OCI_INDEX, &[(&inner, "linux", native())]).await;
    swap(&server, &inner.manifest, &|bytes| bytes[3] ^= 1);
    refused_as_pushed(&server, "index", "has digest").await;
}

#[tokio::test]
async fn odd_but_honest_archives_unpack() {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let archive = tar(|t| {
        t.file("/absolute/f", "1").file("./dotted/./f", "2"); // names that only look odd
        t.dir("usr/lib/", 0o755).symlink("lib", "usr/lib").file("lib/through", "3"); // a link to a directory of the layer
        t.dir("etc", 0o755).symlink("abs", "/etc").file("abs/inside", "4"); // absolute, but inside it is this layer's /etc
        t.file("twice", "first").file("twice", "second"); // the later one counts
        t.dir("was-dir/sub", 0o755).file("was-dir/sub/f", "x").file("was-dir", "now a file");
        t.file("was-file", "x").dir("was-file", 0o700);
        t.file(".wh.gone", "").dir("gone", 0o755); // hidden below, and new here: opaque
        t.file(".wh..wh.plnk", "").file("d/.wh.x", "").file("d/x", "here again");
        t.raw("pipe", "", header(EntryType::Fifo, 0), b"");
        let mut null = Archive::header(EntryType::Char, 0o666, 0);
        null.set_device_major(1).unwrap();
        null.set_device_minor(3).unwrap();
        t.raw("null", "", null, b"");
        let mut blank = Archive::header(EntryType::Regular, 0, 1);
        let fields = blank.as_old_mut();
        (fields.mode, fields.uid, fields.gid) = ([0; 8], [b' '; 8], [0; 8]);
        t.raw("blank", "", blank, b"b");
        let mut owned = Archive::header(EntryType::Regular, 0o6755, 1);
        owned.set_uid(1234);
        owned.set_gid(4321);
        let attributes = [
            ("SCHILY.xattr.user.note", &b"kept"[..]),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("mtime", b"1700000001.5"),
        ];
        t.0.append_pax_extensions(attributes).unwrap();
        t.raw("owned", "", owned, b"o");
        t.0.append_pax_extensions([("path", "dir/".repeat(40).into_bytes().as_slice())]).unwrap();
        t.dir("short", 0o755);
    });
    let server = Server::start().await;
    server.push("odd", "1", &TestImage::of(vec![TestLayer::gzip(&archive)])).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let image = images.pull(&server.reference("odd:1"), PullOptions::default()).await.unwrap();
    let dir = images.lower_dirs(&image)[0].clone();
    let read = |path: &str| std::fs::read_to_string(dir.join(path)).unwrap();
    assert_eq!(
        (read("absolute/f"), read("dotted/f"), read("usr/lib/through"), read("etc/inside")),
        ("1".into(), "2".into(), "3".into(), "4".into())
    );
    assert_eq!(
        (read("twice"), read("was-dir"), read("d/x")),
        ("second".into(), "now a file".into(), "here again".into())
    );
    assert!(dir.join("was-file").is_dir() && !dir.join(".wh..wh.plnk").exists());
    let opaque = |path: &str| {
        let mut value = [0_u8; 1];
        rustix::fs::lgetxattr(dir.join(path), "trusted.overlay.opaque", &mut value[..])
            .is_ok_and(|n| n == 1 && value == *b"y")
    };
    assert!(opaque("gone") && !opaque("d"));
    assert!(std::fs::symlink_metadata(dir.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(std::fs::symlink_metadata(dir.join("null")).unwrap().rdev(), rustix::fs::makedev(1, 3));
    let blank = std::fs::metadata(dir.join("blank")).unwrap();
    assert_eq!((blank.uid(), blank.gid(), blank.mode() & 0o7777), (0, 0, 0), "nothing is 0");
    let owned = std::fs::metadata(dir.join("owned")).unwrap();
    assert_eq!((owned.uid(), owned.gid(), owned.mode() & 0o7777), (1234, 4321, 0o6755));
    assert_eq!((owned.mtime(), owned.mtime_nsec()), (1_700_000_001, 500_000_000));
    let mut note = [0_u8; 4];
    assert_eq!(rustix::fs::getxattr(dir.join("owned"), "user.note", &mut note[..]).unwrap(), 4);
    assert!(
        rustix::fs::getxattr(dir.join("owned"), "trusted.overlay.redirect", &mut note[..]).is_err(),
        "overlayfs' own attributes stay out"
    );
    assert!(dir.join("dir/".repeat(40)).is_dir());
}

/// One random entry. Few names, so that entries meet.
fn entry() -> impl Strategy<Value = (u8, String, String)> {
    let name = proptest::sample::select(vec![
        "a",
        "b",
        "a/b",
        "a/a",
        "b/a/b",
        "../a",
        "/a/../b",
        ".wh.a",
        "a/.wh.b",
        "a/.wh..wh..opq",
        ".",
        "/",
    ]);
    let target = proptest::sample::select(vec![
        "a",
        "b",
        "/a",
        "..",
        "../..",
        "/",
        "../../../../../../tmp",
        "a/b",
        "/proc/self/root",
        ".",
    ]);
    (0_u8..5, name.prop_map(String::from), target.prop_map(String::from))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_entries_leaves_the_layer(entries in proptest::collection::vec(entry(), 1..12)) {
        let archive = tar(|t| {
            for (kind, name, target) in &entries {
                match kind {
                    0 => t.file(name, "PROPTEST-CONTENT").done(),
                    1 => t.dir(name, 0o755).done(),
                    2 => t.symlink(name, target).done(),
                    3 => t.hard_link(name, target).done(),
                    _ => t.file(name, "").done(),
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::start().await;
            server.push("p", "1", &TestImage::of(vec![TestLayer::plain(archive)])).await;
            let outside = tempfile::tempdir().unwrap();
            let root = outside.path().join("x/store");
            let images = open(&root).await;
            let result = images.pull(&server.reference("p:1"), PullOptions::default()).await;
            until_clean(&root).await;
            let known = |path: &String| path == "x/store/lock" || (result.is_ok() && ["layers", "images", "blobs"].iter().any(|dir| path.starts_with(&format!("x/store/{dir}/"))));
            let strange: Vec<_> = files(outside.path()).into_iter().filter(|path| !known(path)).collect();
            assert!(strange.is_empty(), "{strange:?}");
            images.remove("p").await.unwrap();
        });
    }

    #[test]
    fn references_never_panic_and_their_complete_form_is_stable(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,60}") {
        if let Ok(reference) = text.parse::<wharf_image::Reference>() {
            let complete = reference.to_string();
            prop_assert_eq!(complete.parse::<wharf_image::Reference>().unwrap(), reference);
        }
    }
}
