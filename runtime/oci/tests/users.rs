//! Containers whose users are others on the host.
#![expect(clippy::unwrap_used, reason = "these are tests, with helpers beside them")]

mod bed;

use bed::{Bed, exited, until};
use std::{fs, os::unix::fs::MetadataExt as _, os::unix::fs::PermissionsExt as _};
use wharf_oci::{
    ContainerSpec, Error, IdMapping, IdMappings, Mount, Network, Pause, PauseSpec, Propagation, Rootfs,
    Stdio, UserNamespace,
};

const UIDS: IdMapping = IdMapping { inside: 0, outside: 200_000, length: 65_536 };
const GIDS: IdMapping = IdMapping { inside: 0, outside: 300_000, length: 65_536 };

fn pause_spec() -> PauseSpec {
    PauseSpec {
        id: "pod".to_owned(),
        network: Network::New,
        users: Some(IdMappings { uids: vec![UIDS], gids: vec![GIDS] }),
        hostname: Some("the-pod".to_owned()),
        ipc: true,
        pid: true,
        oom_score_adj: Some(-998),
        ..PauseSpec::default()
    }
}

fn join(pause: &Pause, mut spec: ContainerSpec) -> ContainerSpec {
    let mappings = pause_spec().users.expect("they are there");
    spec.namespaces.user = Some(UserNamespace { path: pause.namespace("user"), mappings });
    spec.namespaces.network = Some(pause.namespace("net"));
    spec.namespaces.ipc = Some(pause.namespace("ipc"));
    spec.namespaces.uts = Some(pause.namespace("uts"));
    spec
}

#[tokio::test]
async fn root_of_a_container_is_another_on_the_host() {
    let bed = Bed::new();
    let (oci, mut events) = bed.start().await;
    let pause = oci.pause(pause_spec()).await.unwrap();
    let owner = (UIDS.outside, GIDS.outside);
    let owns = |path: &str| fs::metadata(bed.path(path)).map(|meta| (meta.uid(), meta.gid())).unwrap();
    let spec = |id: &str, args: &[&str]| join(&pause, bed.spec(id, args));

    let (code, text) = bed.outcome(&oci, spec("map", &["cat", "/proc/self/uid_map"])).await;
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!((code, words.as_slice()), (0, ["0", "200000", "65536"].as_slice()));
    let (_, text) = bed.outcome(&oci, spec("me", &["me"])).await;
    assert!(text.contains("uid=0 gid=0 ") && text.contains("host=the-pod"), "{text}");
    let (code, text) = bed.outcome(&oci, spec("links", &["links"])).await;
    assert!(code == 0 && text.contains("lo:") && !text.contains("eth0:"), "{text}");

    // What it writes is its own, there and here; the layer below is the host's, and its program runs all the same.
    let mut made = spec("made", &["write", "/tmp/made"]);
    made.cwd = "/work/here".into();
    made.user.uid = 7;
    fs::create_dir(bed.path("layer/tmp")).unwrap();
    fs::set_permissions(bed.path("layer/tmp"), fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(bed.outcome(&oci, made).await, (0, String::new()));
    assert_eq!(owns("rw/made/upper/tmp/made"), (owner.0 + 7, owner.1));
    for made in ["rw/made/upper", "rw/made/upper/tmp", "rw/made/upper/work/here"] {
        assert_eq!(owns(made), owner, "{made}");
    }
    assert_eq!(owns("layer/tmp"), (0, 0));

    // A directory that only the host's root may enter is one that the container's root owns where it is mapped, and one of
    // nobody's where not; either way its root may not be reached by a path that the container's root cannot walk.
    let private = bed.path("private");
    fs::create_dir(&private).unwrap();
    fs::write(private.join("file"), "of root").unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    for (id, mapped, expected) in [("mapped", true, 0), ("unmapped", false, 1)] {
        let mut spec = spec(id, &["cat", "/data/file"]);
        spec.mounts = vec![Mount::Bind {
            source: private.clone(),
            destination: "/data".into(),
            readonly: false,
            recursive_readonly: false,
            propagation: Propagation::Private,
            mapped,
        }];
        let (code, text) = bed.outcome(&oci, spec).await;
        assert_eq!(code, expected, "{id}: {text}");
        assert_eq!(text.contains("of root"), mapped, "{text}");
    }

    // An image as a volume is seen through the same mappings, and a root that is a directory too.
    let mut volume = spec("volume", &["cat", "/image/secret"]);
    let image = bed.path("image");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("secret"), "of the image").unwrap();
    fs::set_permissions(image.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    volume.mounts =
        vec![Mount::Layers { lower: vec![image], sub_path: "".into(), destination: "/image".into() }];
    assert_eq!(bed.outcome(&oci, volume).await, (0, "of the image\n".to_owned()));
    let mut plain = spec("plain", &["write", "/plain"]);
    plain.rootfs = Rootfs::Dir(bed.path("layer"));
    assert_eq!(bed.outcome(&oci, plain).await, (0, String::new()));
    assert_eq!(owns("layer/plain"), (0, 0));

    // Later processes are of the same users.
    let pid = oci.create(spec("waits", &["wait"])).await.unwrap();
    oci.start_container("waits").await.unwrap();
    until("its log to tell", || bed.log("waits").contains("ready")).await;
    let command = |args: &[&str]| ["/bin/box"].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
    for (file, stdio) in [("/piped", Stdio::Pipes([None, None, None])), ("/terminal", Stdio::Terminal)] {
        let mut exec = oci.exec("waits", command(&["write", file]), stdio).await.unwrap();
        assert_eq!(exec.wait().await.unwrap(), 0);
        assert_eq!(owns(&format!("rw/waits/upper{file}")), owner);
    }
    let (reader, writer) = std::io::pipe().unwrap();
    let streams = Stdio::Pipes([None, Some(writer.into()), None]);
    let mut exec = oci.exec("waits", command(&["cat", "/proc/self/status"]), streams).await.unwrap();
    assert_eq!(exec.wait().await.unwrap(), 0);
    let later = std::io::read_to_string(reader).unwrap();
    let first = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with("Cap")).map(str::to_owned).collect()
    };
    assert_eq!(of(&later), of(&first));
    let shown = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let stage = shown.lines().filter(|line| line.split(' ').nth(4).is_some_and(|at| at.starts_with("/mnt")));
    assert_eq!(stage.count(), 0, "what was only laid out is not seen: {shown}");
    oci.signal("waits", 15).await.unwrap();

    for _ in 0..9 {
        exited(&mut events).await;
    }
    for (id, _) in oci.list() {
        oci.remove(&id).await.unwrap();
    }
    oci.remove_pause("pod").await.unwrap();
    drop((oci, events));
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn what_a_user_namespace_cannot_have_is_said() {
    let bed = Bed::new();
    let (oci, _events) = bed.start().await;
    let overlapping = IdMappings { uids: vec![UIDS, UIDS], gids: vec![GIDS] };
    let error = oci.pause(PauseSpec { users: Some(overlapping), ..pause_spec() }).await.unwrap_err();
    assert!(error.to_string().contains("uid_map of the user namespace"), "{error}");

    let pause = oci.pause(pause_spec()).await.unwrap();
    let mut spec = join(&pause, bed.spec("foreign", &["me"]));
    spec.user.uid = 65_536;
    let error = oci.create(spec).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(why) if why.contains("no user 65536")), "{error}");
    let mut spec = join(&pause, bed.spec("outward", &["me"]));
    spec.mounts = vec![Mount::Bind {
        source: bed.path("layer"),
        destination: "/data".into(),
        readonly: false,
        recursive_readonly: false,
        propagation: Propagation::Bidirectional,
        mapped: true,
    }];
    let error = oci.create(spec).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(why) if why.contains("/data")), "{error}");
    assert!(oci.list().is_empty());
    oci.remove_pause("pod").await.unwrap();
    drop(oci);
    bed.nothing_is_left().await;
}
