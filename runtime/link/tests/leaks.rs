//! Nothing that came in stays open. Apart from the other tests, since the descriptor table is the process's own.
#![expect(clippy::unwrap_used, reason = "these are tests, with helpers beside them")]

use std::{
    fs::{self, File},
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
};
use wharf_link::{Error, MAX_BODY, MAX_FDS, blocking};

fn file() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn open_fds() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// One test at a time.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn descriptors_nobody_takes_are_closed_and_none_is_inherited() {
    let _alone = alone();
    let before = open_fds();
    {
        let (mut a, mut b) = blocking::Socket::pair().unwrap();
        for _ in 0..3 {
            a.send(&1, vec![file(), file()]).unwrap();
        }
        let message = b.recv::<u8>().unwrap().unwrap();
        for fd in &message.fds {
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
        assert!(
            matches!(b.recv::<String>(), Err(Error::Decode(_))),
            "the descriptors of a message not understood"
        );
    } // one message was never received
    assert_eq!(open_fds(), before);
}

#[test]
fn hostile_bytes_are_an_error_and_no_allocation() {
    let _alone = alone();
    let before = open_fds();
    let head = |len: u32, fds: u16, magic: u16| {
        let mut head = len.to_le_bytes().to_vec();
        head.extend(fds.to_le_bytes());
        head.extend(magic.to_le_bytes());
        head
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("not a frame", b"GET / HTTP/1.1\r\n".to_vec()),
        ("too long", head(u32::MAX, 0, 0x5768)),
        ("just too long", head(MAX_BODY as u32 + 1, 0, 0x5768)),
        ("too many descriptors", head(1, MAX_FDS as u16 + 1, 0x5768)),
        ("descriptors that are not there", [head(1, 1, 0x5768), b"1".to_vec()].concat()),
        ("cut in the head", head(1, 0, 0x5768)[..5].to_vec()),
        ("cut in the body", [head(10, 0, 0x5768), b"\"cut".to_vec()].concat()),
        ("not JSON", [head(3, 0, 0x5768), b"\xff\xff\xff".to_vec()].concat()),
    ];
    for (name, bytes) in cases {
        let (mut raw, other) = UnixStream::pair().unwrap();
        raw.write_all(&bytes).unwrap();
        drop(raw);
        assert!(blocking::Socket::over(other).recv::<u8>().is_err(), "{name}");
    }
    let (mut a, _b) = blocking::Socket::pair().unwrap();
    assert!(matches!(a.send(&"x".repeat(MAX_BODY), vec![]), Err(Error::TooLarge { .. })));
    let many = (0..=MAX_FDS).map(|_| file()).collect();
    assert!(matches!(a.send(&1, many), Err(Error::TooManyFds { .. })));
    drop((a, _b));
    assert_eq!(open_fds(), before);
}
