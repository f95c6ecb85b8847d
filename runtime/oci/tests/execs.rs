//! Real processes in running containers: what they are, how they end, and who follows the container itself.
#![expect(clippy::unwrap_used, reason = "these are tests, with helpers beside them")]

mod bed;

use bed::{Bed, exited, until};
use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::OwnedFd,
    time::Duration,
};
use wharf_oci::{Error, Exec, Oci, Seccomp, Stdio, User};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (File::from(reader), writer)
}

async fn read(mut pipe: File) -> String {
    let text = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).map(|_| text)
    });
    tokio::time::timeout(PATIENCE, text).await.expect("the pipe ends").unwrap().unwrap()
}

fn args(args: &[&str]) -> Vec<String> {
    ["/bin/box"].iter().chain(args).map(|arg| (*arg).to_owned()).collect()
}

async fn code(mut exec: Exec) -> i32 {
    tokio::time::timeout(PATIENCE, exec.wait()).await.expect("it ends").unwrap()
}

/// Its exit code and its two outputs.
async fn outcome(oci: &Oci, id: &str, command: &[&str]) -> (i32, String, String) {
    let ((stdout, out), (stderr, err)) = (pipe(), pipe());
    let exec = oci.exec(id, args(command), Stdio::Pipes([None, Some(out), Some(err)])).await.unwrap();
    let (stdout, stderr) = tokio::join!(read(stdout), read(stderr));
    (code(exec).await, stdout, stderr)
}

fn lines<'a>(text: &'a str, names: &[&str]) -> Vec<&'a str> {
    text.lines().filter(|line| names.iter().any(|name| line.starts_with(name))).collect()
}

#[tokio::test]
async fn a_command_is_what_the_container_is_and_ends_on_its_own() {
    let bed = Bed::new();
    let (oci, events) = bed.start().await;
    let mut spec = bed.spec("c", &["me"]);
    spec.env = vec!["WHARF=yes".to_owned()];
    spec.hostname = Some("inside".to_owned());
    spec.seccomp = Seccomp::RuntimeDefault;
    spec.user = User { uid: 1000, gid: 1001, additional_gids: vec![1002] };
    let (_, itself) = bed.outcome(&oci, bed_spec_named(&spec, "first")).await;
    let mut waits = spec.clone();
    waits.args = args(&["wait"]);
    bed.run(&oci, waits, "ready").await;

    let (ended, stdout, _) = outcome(&oci, "c", &["me"]).await;
    assert_eq!(ended, 0);
    let names = ["Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Seccomp", "sethostname", "SigIgn"];
    assert_eq!(lines(&stdout, &names), lines(&itself, &names), "it may what the container's first may");
    assert!(stdout.contains("Seccomp:\t2"), "{stdout}");
    for part in ["uid=1000 gid=1001", "host=inside", "env=yes", "cwd=/ "] {
        assert!(stdout.contains(part), "{part} is missing: {stdout}");
    }
    assert_eq!(outcome(&oci, "c", &["exit", "7"]).await.0, 7);
    assert_eq!(outcome(&oci, "c", &["die", "9"]).await.0, 137);
    let (ended, stdout, stderr) = outcome(&oci, "c", &["echo", "hi"]).await;
    assert_eq!((ended, stdout.as_str(), stderr.as_str()), (0, "hi\n", "err hi\n"));
    assert!(!bed.log("c").contains("hi"), "what it says is no log of the container's");

    let missing = oci.exec("c", vec!["/bin/none".to_owned()], Stdio::Pipes([None, None, None])).await;
    let why = missing.unwrap().wait().await.unwrap_err().to_string();
    assert!(why.contains("/bin/none"), "{why}");
    let unknown = oci.exec("other", args(&["me"]), Stdio::Terminal).await;
    assert!(matches!(unknown, Err(Error::Unknown(_))));
    let over = oci.exec("first", args(&["me"]), Stdio::Terminal).await;
    assert!(matches!(over, Err(Error::State { .. })));

    let left: Vec<_> = fs::read_dir(bed.path("state/containers/c")).unwrap().flatten().collect();
    assert!(left.iter().all(|file| !file.file_name().to_string_lossy().contains("exec")), "{left:?}");
    for id in ["c", "first"] {
        oci.remove(id).await.unwrap();
    }
    drop((oci, events));
    bed.nothing_is_left().await;
}

fn bed_spec_named(spec: &wharf_oci::ContainerSpec, id: &str) -> wharf_oci::ContainerSpec {
    let mut spec = spec.clone();
    let swap =
        |path: &std::path::Path| path.to_str().unwrap().replace("/rw/c/", &format!("/rw/{id}/")).into();
    if let wharf_oci::Rootfs::Overlay { upper, work, .. } = &mut spec.rootfs {
        (*upper, *work) = (swap(upper), swap(work));
    }
    spec.log_path = spec.log_path.map(|path| path.with_file_name(format!("{id}.log")));
    spec.id = id.to_owned();
    spec
}

#[tokio::test]
async fn no_new_privileges_and_seccomp_hold_for_commands_as_well() {
    let bed = Bed::new();
    let (oci, events) = bed.start().await;
    let mut spec = bed.spec("c", &["wait"]);
    spec.seccomp = Seccomp::RuntimeDefault;
    spec.no_new_privileges = true;
    bed.run(&oci, spec, "ready").await;
    let (_, stdout, _) = outcome(&oci, "c", &["me"]).await;
    assert_eq!(lines(&stdout, &["NoNewPrivs:", "Seccomp:"]), ["NoNewPrivs:\t1", "Seccomp:\t2"]);
    oci.remove("c").await.unwrap();
    drop((oci, events));
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn input_reaches_a_command_and_its_end_does_too() {
    let bed = Bed::new();
    let (oci, events) = bed.start().await;
    bed.run(&oci, bed.spec("c", &["wait"]), "ready").await;
    let (stdout, out) = pipe();
    let (theirs, ours) = pipe();
    let stdio = Stdio::Pipes([Some(theirs.into()), Some(out), None]);
    let exec = oci.exec("c", args(&["copy"]), stdio).await.unwrap();
    let writing = tokio::task::spawn_blocking(move || File::from(ours).write_all(&vec![b'y'; 1 << 20]));
    let text = read(stdout).await;
    writing.await.unwrap().unwrap();
    assert_eq!(text.len(), (1 << 20) + "end\n".len());
    assert_eq!(code(exec).await, 5);
    oci.remove("c").await.unwrap();
    drop((oci, events));
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn a_command_can_have_a_terminal_with_a_size() {
    let bed = Bed::new();
    let (oci, events) = bed.start().await;
    bed.run(&oci, bed.spec("c", &["wait"]), "ready").await;
    let mut exec = oci.exec("c", args(&["size"]), Stdio::Terminal).await.unwrap();
    let terminal = exec.terminal.take().unwrap();
    let size = rustix::termios::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&terminal, size).unwrap();
    let (mut terminal, mut text) = (File::from(terminal), String::new());
    until("it to tell the size", || {
        let mut buffer = [0; 256];
        if let Ok(n) = terminal.read(&mut buffer) {
            text += std::str::from_utf8(&buffer[..n]).unwrap();
        }
        text.contains("24 x 80 on /dev/pts/")
    })
    .await;
    assert_eq!(code(exec).await, 0);
    oci.remove("c").await.unwrap();
    drop((oci, events));
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn commands_end_when_dropped_and_with_their_container() {
    let bed = Bed::new();
    let (oci, mut events) = bed.start().await;
    bed.run(&oci, bed.spec("c", &["wait"]), "ready").await;
    let start = async || oci.exec("c", args(&["wait"]), Stdio::Pipes([None, None, None])).await.unwrap();
    let running = |n: usize| bed.named("box").len() == n;
    let dropped = start().await;
    until("it to run", || running(2)).await;
    drop(dropped);
    until("it to end", || running(1)).await;
    let mut killed = start().await;
    killed.kill();
    assert_eq!(code(killed).await, 137);
    let with = start().await;
    until("it to run", || running(2)).await;
    oci.signal("c", 9).await.unwrap();
    assert_eq!(code(with).await, 137);
    let (id, exit) = exited(&mut events).await;
    assert_eq!((id.as_str(), exit.code), ("c", 137));
    oci.remove("c").await.unwrap();
    drop((oci, events));
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn who_attaches_gets_the_output_and_the_input_and_who_is_slow_is_let_go() {
    let bed = Bed::new();
    let (oci, events) = bed.start().await;
    let mut spec = bed.spec("c", &["copy"]);
    (spec.stdin, spec.stdin_once) = (true, true);
    oci.create(spec).await.unwrap();
    oci.start_container("c").await.unwrap();
    let (slow, slow_end) = pipe();
    oci.attach("c", false, [Some(slow_end), None]).await.unwrap();
    let (stdout, out) = pipe();
    let attached = oci.attach("c", true, [Some(out), None]).await.unwrap();
    let mut input = File::from(attached.input.unwrap());
    let reading = tokio::spawn(read(stdout));
    // Each piece is seen before the next: the one that reads is never behind, the other one always is.
    for n in 1..=20 {
        input.write_all(&[&[b'z'; 16 << 10][..], b"\n"].concat()).unwrap();
        until("the log to have it", || bed.log("c").len() > n * (16 << 10)).await;
    }
    drop(input);
    let text = tokio::time::timeout(PATIENCE, reading).await.expect("it ends").unwrap();
    assert_eq!(text.len(), 20 * ((16 << 10) + 1) + "end\n".len());
    assert!(read(slow).await.len() < text.len(), "a pipe that nobody reads holds it all");
    assert_eq!(oci.wait("c").await.unwrap().code, 5, "its input ended with who was attached");
    assert!(bed.output("c").ends_with("end\n"), "the log has it all");
    oci.remove("c").await.unwrap();
    drop((oci, events));
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn who_attached_and_left_takes_nobodys_place() {
    let bed = Bed::new();
    let (oci, events) = bed.start().await;
    bed.run(&oci, bed.spec("c", &["wait"]), "ready").await;
    for _ in 0..20 {
        oci.attach("c", true, [None, None]).await.unwrap();
        let (read, write) = pipe();
        oci.attach("c", false, [Some(write), None]).await.unwrap();
        drop(read);
    }
    oci.signal("c", 9).await.unwrap();
    oci.wait("c").await.unwrap();
    oci.remove("c").await.unwrap();
    drop((oci, events));
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn a_terminal_of_a_container_is_had_by_attaching() {
    let bed = Bed::new();
    let (oci, events) = bed.start().await;
    let mut spec = bed.spec("c", &["size"]);
    (spec.stdin, spec.terminal) = (true, true);
    oci.create(spec).await.unwrap();
    oci.start_container("c").await.unwrap();
    let (stdout, out) = pipe();
    let attached = oci.attach("c", true, [Some(out), None]).await.unwrap();
    let size = rustix::termios::Winsize { ws_row: 7, ws_col: 9, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(attached.input.unwrap(), size).unwrap();
    assert!(read(stdout).await.contains("7 x 9 on /dev/"));
    assert_eq!(oci.wait("c").await.unwrap().code, 0);
    oci.remove("c").await.unwrap();
    drop((oci, events));
    bed.nothing_is_left().await;
}
