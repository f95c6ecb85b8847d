//! More programs in a container that runs, and clients at its own input and output.

use crate::support::{Harness, eventually, within};
use std::{
    io::Read,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
};
use wharf_wasm::{Error, Exec, Failure, Stdio};

pub fn exec(args: &[&str]) -> Exec {
    Exec { args: args.iter().map(|&arg| arg.to_owned()).collect(), terminal: false }
}

/// The end that the host gets, and ours.
fn output() -> (Option<OwnedFd>, pipe::Receiver) {
    let (ours, theirs) = nix::unistd::pipe().expect("a pipe");
    rustix_nonblocking(&ours);
    (Some(theirs), pipe::Receiver::from_owned_fd(ours).expect("a pipe"))
}

fn input() -> (Option<OwnedFd>, pipe::Sender) {
    let (theirs, ours) = nix::unistd::pipe().expect("a pipe");
    rustix_nonblocking(&ours);
    (Some(theirs), pipe::Sender::from_owned_fd(ours).expect("a pipe"))
}

fn rustix_nonblocking(fd: &OwnedFd) {
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(flags)).expect("a pipe");
}

async fn all(mut receiver: pipe::Receiver) -> String {
    let mut text = String::new();
    within("the end of output", receiver.read_to_string(&mut text)).await.expect("text");
    text
}

impl Harness {
    /// A command that stays, until it is killed.
    pub async fn stays(&self, id: &str, guest: &str, adapt: impl FnOnce(&mut wharf_wasm::ContainerSpec)) {
        let mut spec = self.spec(id, guest);
        spec.args.extend(["sleep".to_owned(), "1000000".to_owned()]);
        adapt(&mut spec);
        self.host.create(spec).await.expect("created");
        self.host.start_container(id, None).await.expect("started");
    }

    /// Runs one more program without input: its code, its output and its errors.
    pub async fn exec(&self, id: &str, args: &[&str]) -> (i32, String, String) {
        let ((stdout, said), (stderr, complained)) = (output(), output());
        let ran = self.host.exec(id, exec(args), Stdio { stdin: None, stdout, stderr });
        let (code, said, complained) = tokio::join!(within("its end", ran), all(said), all(complained));
        (code.unwrap_or_else(|error| panic!("{args:?}: {error}")), said, complained)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_again_beside_the_first_with_what_its_container_has() {
    let harness = Harness::start().await;
    for guest in ["core/guest-command", "guest-command"] {
        let id = guest.replace('/', "-");
        let volume = harness.dir().join(&id);
        std::fs::create_dir(&volume).expect("a volume");
        harness
            .stays(&id, guest, |spec| {
                spec.env = vec![("WHO".to_owned(), "wharf".to_owned())];
                spec.mounts = vec![wharf_wasm::Mount {
                    host: volume.clone(),
                    guest: "/data".to_owned(),
                    read_only: false,
                }];
            })
            .await;
        let said = harness.exec(&id, &["guest", "say", "out", "err"]).await;
        assert_eq!(said, (0, "out\n".to_owned(), "err\n".to_owned()));
        assert_eq!(harness.exec(&id, &["guest", "env"]).await.1, "WHO=wharf\n");
        assert_eq!(harness.exec(&id, &["guest", "write", "/data/new", "text"]).await.0, 0);
        assert_eq!(std::fs::read_to_string(volume.join("new")).expect("it is there"), "text");
        // All that Rust's standard library can say on WASI 0.2 is that it failed.
        let code = if guest == "guest-command" { 1 } else { 200 };
        assert_eq!(harness.exec(&id, &["guest", "exit", "200"]).await.0, code);
        let (code, _, complaint) = harness.exec(&id, &["guest", "panic"]).await;
        assert_eq!(code, 134);
        assert!(complaint.contains("asked to") && complaint.contains("unreachable"), "{complaint}");
        assert_eq!(harness.log(&id), [], "none of it is the container's own output");
        // More than any pipe holds.
        let (code, flood, _) = harness.exec(&id, &["guest", "flood", "3000000"]).await;
        assert_eq!((code, flood.len()), (0, 3_000_000));
    }
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_is_passed_on_and_ends() {
    let harness = Harness::start().await;
    for guest in ["core/guest-command", "guest-command"] {
        let id = guest.replace('/', "-");
        harness.stays(&id, guest, |_| {}).await;
        let ((stdin, mut write), (stdout, mut read)) = (input(), output());
        let ran = tokio::spawn({
            let host = harness.host.clone();
            let id = id.clone();
            async move { host.exec(&id, exec(&["guest", "cat"]), Stdio { stdin, stdout, stderr: None }).await }
        });
        for word in ["one\n", "two\n"] {
            write.write_all(word.as_bytes()).await.expect("taken");
            let mut back = [0; 4];
            within(word, read.read_exact(&mut back)).await.expect("it comes back");
            assert_eq!(&back, word.as_bytes());
        }
        assert!(!ran.is_finished());
        drop(write);
        assert_eq!(within("its end", ran).await.expect("task").expect("ran"), 0);
        // Files are no pipes, and have no end to wait for.
        let file = harness.dir().join(format!("{id}.input"));
        std::fs::write(&file, "from a file").expect("written");
        let (stdout, read) = output();
        let stdin = Some(std::fs::File::open(&file).expect("a file").into());
        let ran = harness.host.exec(&id, exec(&["guest", "cat"]), Stdio { stdin, stdout, stderr: None });
        let (code, text) = tokio::join!(ran, all(read));
        assert_eq!((code.expect("ran"), text.as_str()), (0, "from a file"));
    }
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_seen_as_one() {
    let harness = Harness::start().await;
    for guest in ["core/guest-command", "guest-command"] {
        let id = guest.replace('/', "-");
        harness.stays(&id, guest, |_| {}).await;
        assert_eq!(harness.exec(&id, &["guest", "terminal"]).await.1, "false false\n");
        let terminal = nix::pty::openpty(None, None).expect("a terminal");
        let side = || Some(terminal.slave.try_clone().expect("a descriptor"));
        let exec = Exec { terminal: true, ..exec(&["guest", "terminal"]) };
        let stdio = Stdio { stdin: side(), stdout: side(), stderr: None };
        assert_eq!(within("its end", harness.host.exec(&id, exec, stdio)).await.expect("ran"), 0);
        let mut text = [0; 64];
        let read = std::fs::File::from(terminal.master).read(&mut text).expect("text");
        assert_eq!(&text[..read], b"true true\r\n");
    }
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_ends_with_its_caller_and_with_its_container() {
    let mut harness = Harness::start().await;
    harness.stays("stays", "guest-command", |_| {}).await;
    let instances = async || harness.host.stats("stays").await.expect("stats").instances;
    eventually("it runs", async || instances().await == 1).await;
    let spawn = || {
        let host = harness.host.clone();
        tokio::spawn(async move { host.exec("stays", exec(&["guest", "loop"]), Stdio::default()).await })
    };
    let left = spawn();
    eventually("it runs", async || instances().await == 2).await;
    left.abort();
    eventually("it ended with its caller", async || instances().await == 1).await;

    let stuck = {
        let (stdout, read) = output();
        let host = harness.host.clone();
        let stdio = Stdio { stdin: None, stdout, stderr: None };
        let ran =
            tokio::spawn(
                async move { host.exec("stays", exec(&["guest", "flood", "3000000"]), stdio).await },
            );
        (ran, read)
    };
    let looping = spawn();
    eventually("both run", async || instances().await == 3).await;
    let began = Instant::now();
    harness.host.kill("stays").await.expect("killed");
    for ran in [looping, stuck.0] {
        assert_eq!(within("its end", ran).await.expect("task").expect("ran"), 137);
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    harness.exit_of("stays").await;
    let refused = harness.host.exec("stays", exec(&["guest"]), Stdio::default()).await;
    assert!(matches!(refused, Err(Error::Refused(Failure::NotRunning { .. }))), "{refused:?}");
    harness.end().await;
}

/// Answers no request, but says that it would.
const HTTP_ALONE: &str = r#"(component
    (import "wasi:http/types@0.2.0" (instance $types
        (export "incoming-request" (type (sub resource))) (export "response-outparam" (type (sub resource)))))
    (alias export $types "incoming-request" (type $request))
    (alias export $types "response-outparam" (type $out))
    (core module $m (func (export "handle") (param i32 i32)))
    (core instance $m (instantiate $m))
    (func $handle (param "request" (own $request)) (param "response-out" (own $out))
        (canon lift (core func $m "handle")))
    (instance $handler (export "handle" (func $handle)))
    (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_answers_requests_alone_has_nothing_to_run() {
    let harness = Harness::start().await;
    let mut spec = harness.spec("serves", "guest-http");
    spec.module = harness.dir().join("http.wasm");
    std::fs::write(&spec.module, wat::parse_str(HTTP_ALONE).expect("text")).expect("written");
    spec.digest = crate::support::digest(&spec.module);
    harness.serve(spec).await;
    match harness.host.exec("serves", exec(&["sh"]), Stdio::default()).await {
        Err(Error::Refused(Failure::Exec { why })) => assert!(why.contains("wasi:http"), "{why}"),
        other => panic!("{other:?}"),
    }
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_clients_see_the_output_and_the_first_input_is_the_last() {
    let mut harness = Harness::start().await;
    let mut spec = harness.spec("talks", "guest-command");
    spec.args.push("cat".to_owned());
    (spec.stdin, spec.stdin_once) = (true, true);
    harness.host.create(spec).await.expect("created");
    harness.host.start_container("talks", None).await.expect("started");

    let ((stdin, mut write), (stdout, read), (stderr, complaints)) = (input(), output(), output());
    let attach = |stdio| {
        let host = harness.host.clone();
        tokio::spawn(async move { host.attach("talks", stdio).await })
    };
    let one = attach(Stdio { stdin, stdout, stderr });
    // This one never reads: it is cut off, and keeps nobody.
    let (full, unread) = output();
    let deaf = attach(Stdio { stdin: None, stdout: full, stderr: None });
    let text = "y".repeat(4 << 20);
    let write = async {
        write.write_all(text.as_bytes()).await.expect("taken");
        drop(write);
    };
    let ((), said, complained) = tokio::join!(write, all(read), all(complaints));
    assert_eq!((said.len(), complained.as_str()), (4 << 20, "end of input\n"));
    assert_eq!(within("its end", one).await.expect("task").expect("attached"), 0);
    assert_eq!(harness.exit_of("talks").await.code, 0);
    drop(unread);
    let _ = within("its end", deaf).await.expect("task"); // the code, or that it did not take what there was
    let logged: usize = harness.log("talks").iter().map(|(_, _, text)| text.len()).sum();
    assert_eq!(logged, (4 << 20) + "end of input".len(), "the log has it too");
    harness.end().await;
}

/// An archive of these: name, type and content, or target.
fn archive(members: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in members {
        let mut header = tar::Header::new_gnu();
        // Not through the library, which refuses the names that attackers write.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        if *kind == tar::EntryType::Regular {
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).expect("appended");
        } else {
            if *kind != tar::EntryType::Directory {
                header.set_link_name(content).expect("a target");
            }
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, std::io::empty()).expect("appended");
        }
    }
    builder.into_inner().expect("an archive")
}

impl Harness {
    async fn unpack(&self, id: &str, dir: &str, members: &[(&str, tar::EntryType, &str)]) -> (i32, String) {
        let ((stdin, mut write), (stderr, complaints)) = (input(), output());
        let args = exec(&["tar", "-xmf", "-", "-C", dir]);
        let ran = self.host.exec(id, args, Stdio { stdin, stdout: None, stderr });
        let bytes = archive(members);
        let write = async {
            let _ = write.write_all(&bytes).await; // a refusal may come first
            drop(write);
        };
        let (code, complaints, ()) = tokio::join!(within("its end", ran), all(complaints), write);
        (code.expect("ran"), complaints)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied_in_and_out_of_the_mounts_and_nowhere_else() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let harness = Harness::start().await;
    let dir = |name: &str| {
        let path = harness.dir().join(name);
        std::fs::create_dir(&path).expect("a folder");
        path
    };
    let (data, config, outside) = (dir("data"), dir("config"), dir("outside"));
    std::fs::write(config.join("file"), "configured").expect("written");
    let mount = |host: &std::path::Path, guest: &str, read_only| wharf_wasm::Mount {
        host: host.to_owned(),
        guest: guest.to_owned(),
        read_only,
    };
    let mut spec = harness.spec("copies", "guest-http");
    spec.mounts = vec![mount(&data, "/data", false), mount(&config, "/data/config", true)];
    harness.serve(spec).await;

    // A service has no other program than this, and cp needs none.
    let members = [
        ("a/", Directory, ""),
        ("a/b/deep", Regular, "deep content"),
        ("hard", Link, "a/b/deep"),
        ("soft", Symlink, "a/b/deep"),
    ];
    assert_eq!(harness.unpack("copies", "/data", &members).await, (0, String::new()));
    assert_eq!(std::fs::read_to_string(data.join("a/b/deep")).expect("there"), "deep content");
    assert_eq!(std::fs::read_to_string(data.join("hard")).expect("there"), "deep content");
    // Again, over what is there.
    let again = [("hard", Regular, "new"), ("a/b/deep", Regular, "newer")];
    assert_eq!(harness.unpack("copies", "/data", &again).await.0, 0);
    assert_eq!(std::fs::read_to_string(data.join("soft")).expect("there"), "newer");

    let (stdout, mut read) = output();
    let mut packed = Vec::new();
    let args = exec(&["tar", "cf", "-", "/data/a", "/data/config/file"]);
    let ran = harness.host.exec("copies", args, Stdio { stdin: None, stdout, stderr: None });
    let (code, _) = tokio::join!(within("its end", ran), read.read_to_end(&mut packed));
    assert_eq!(code.expect("ran"), 0);
    let mut names: Vec<String> = Vec::new();
    for entry in tar::Archive::new(&packed[..]).entries().expect("an archive") {
        let mut entry = entry.expect("a member");
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("text");
        names.push(format!("{}={text}", entry.path().expect("a name").display()));
    }
    assert_eq!(names, ["data/a=", "data/a/b=", "data/a/b/deep=newer", "data/config/file=configured"]);

    let is_dir = async |path: &str| harness.exec("copies", &["test", "-d", path]).await.0;
    assert_eq!((is_dir("/data/a").await, is_dir("/data/soft").await, is_dir("/etc").await), (0, 1, 1));

    // What attackers and mistakes send.
    std::os::unix::fs::symlink(&outside, data.join("out")).expect("a link");
    std::os::unix::fs::symlink("../outside", data.join("up")).expect("a link");
    for (dir, name, words) in [
        ("/data", "../escaped", "leads out"),
        ("/data", "out/escaped", ""),
        ("/data", "up/escaped", ""),
        ("/data/config", "new", "Read-only"),
        ("/etc", "new", "which is [/data, /data/config]"),
    ] {
        let (code, complaint) = harness.unpack("copies", dir, &[(name, Regular, "escaped")]).await;
        assert_eq!(code, 2, "{dir} {name}");
        assert!(complaint.contains(name) && complaint.contains(words), "{complaint}");
    }
    // A hard link would make writable what is mounted to be read.
    let (code, _) = harness.unpack("copies", "/data", &[("stolen", Link, "config/file")]).await;
    assert_eq!(code, 2);
    assert!(!data.join("stolen").exists());
    // A member that goes through a link which the archive made before it.
    let through = [("way", Symlink, "/"), ("way/escaped", Regular, "escaped")];
    assert_eq!(harness.unpack("copies", "/data", &through).await.0, 2);
    assert_eq!(std::fs::read_dir(&outside).expect("a folder").count(), 0);
    assert!(!harness.dir().join("escaped").exists() && !std::path::Path::new("/escaped").exists());
    assert!(!config.join("new").exists());
    assert_eq!(harness.exec("copies", &["tar", "cf", "-", "/data/out/x"]).await.0, 2);
    assert_eq!(harness.exec("copies", &["tar", "cf", "-", "/etc/passwd"]).await.0, 2);
    harness.end().await;
}
