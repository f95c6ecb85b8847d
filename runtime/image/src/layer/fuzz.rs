//! Archives that were honest once, changed at random: each is unpacked or refused, in time, and reaches nothing outside.
//!
//! Changes know what an archive is (fields of headers get numbers and paths that hurt, and a checksum that is right), since
//! random bytes alone are refused at the first header. `WHARF_FUZZ_SECONDS` says how long, and `WHARF_FUZZ_SEED` which.

use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tar::{EntryType, Header};

use super::{Bounds, Cancel, Fault, Unpacked, unpack};
use crate::digest::Digest;

const BOUNDS: Bounds = Bounds { bytes: 1 << 20, entries: 64 };
/// For one archive: far more than any of this size takes.
const DEADLINE: Duration = Duration::from_secs(10);
const BLOCK: usize = 512;
/// Where an escape would show, by its absolute path.
const ESCAPE: &str = "/tmp/wharf-fuzz-escape";

/// Fields of a header: where each begins, and its length.
const FIELDS: [(usize, usize); 12] = [
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (257, 8),
    (329, 8),
    (337, 8),
    (345, 155),
];

/// What is put into them.
const WORDS: [&[u8]; 22] = [
    b"",
    b"a",
    b"a/b",
    b"link/wharf-fuzz-escape",
    b"../wharf-fuzz-escape",
    b"/tmp/wharf-fuzz-escape",
    b"/proc/self/root/tmp/wharf-fuzz-escape",
    b"a/../../wharf-fuzz-escape",
    b".wh.a",
    b"a/.wh..wh..opq",
    b".wh...",
    b"./",
    b"/",
    b"0000000",
    b"7777777\0",
    b"77777777777",
    b"00000000020",
    b"-1",
    b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"ustar\x0000",
    b"\xc3\x28\0\xff",
];

const KINDS: &[u8] = b"01234567gxLKSDMVQ\0";

fn header(kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_mtime(1);
    header.set_size(size as u64);
    header
}

/// Archives that use all of the format that layers use.
fn seeds() -> Vec<Vec<u8>> {
    let mut plain = tar::Builder::new(Vec::new());
    for (kind, path, target) in [
        (EntryType::Directory, "a/", ""),
        (EntryType::Symlink, "link", "a"),
        (EntryType::Symlink, "out", "/tmp"),
        (EntryType::Symlink, "up", "../.."),
        (EntryType::Regular, "a/b", ""),
        (EntryType::Link, "hard", "a/b"),
        (EntryType::Fifo, "fifo", ""),
        (EntryType::Char, "device", ""),
        (EntryType::Regular, "link/through", ""),
        (EntryType::Regular, "a/.wh.b", ""),
        (EntryType::Regular, "a/.wh..wh..opq", ""),
    ] {
        let mut header = header(kind, 0);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        match target {
            "" => plain.append_data(&mut header, path, std::io::empty()).unwrap(),
            target => plain.append_link(&mut header, path, target).unwrap(),
        }
    }
    let mut long = tar::Builder::new(Vec::new());
    let (name, content) = ("long/".repeat(60), vec![b'x'; 3000]);
    long.append_data(&mut header(EntryType::Regular, 3000), format!("{name}file"), &content[..]).unwrap();
    let records: [(&str, &[u8]); 4] =
        [("path", b"pax/name"), ("size", b"3000"), ("uid", b"70000"), ("SCHILY.xattr.user.note", b"yes")];
    long.append_pax_extensions(records).unwrap();
    long.append_data(&mut header(EntryType::Regular, 3000), "short", &content[..]).unwrap();
    let mut sparse = header(EntryType::GNUSparse, 512);
    let gnu = sparse.as_gnu_mut().unwrap();
    gnu.name[..6].copy_from_slice(b"sparse");
    gnu.sparse[0].offset.copy_from_slice(b"00000010000\0");
    gnu.sparse[0].numbytes.copy_from_slice(b"00000001000\0");
    // A hole up to its end.
    gnu.sparse[1].offset.copy_from_slice(b"00000020000\0");
    gnu.sparse[1].numbytes.copy_from_slice(b"00000000000\0");
    gnu.realsize.copy_from_slice(b"00000020000\0");
    sparse.set_cksum();
    long.append(&sparse, &[b'y'; 512][..]).unwrap();
    [plain, long].map(|archive| archive.into_inner().unwrap()).to_vec()
}

/// Where some block begins.
fn block(random: &mut StdRng, archive: &[u8]) -> usize {
    random.random_range(0..=archive.len() / BLOCK) * BLOCK
}

fn change(random: &mut StdRng, archive: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let (one, other) = (block(random, archive), block(random, archive));
    match random.random_range(0..10) {
        0 if !archive.is_empty() => {
            let at = random.random_range(0..archive.len());
            archive[at] = random.random();
        }
        1 => archive.truncate(random.random_range(0..=archive.len())),
        2 => drop(archive.drain(one.min(other)..one.max(other))),
        3 => {
            let copy = archive[one.min(other)..one.max(other)].to_vec();
            archive.splice(one..one, copy);
        }
        4 => {
            let seed = seeds.choose(random).unwrap();
            let from = block(random, seed);
            archive.splice(one..one, seed[from..].iter().copied());
        }
        _ if one + BLOCK <= archive.len() => {
            let header = &mut archive[one..one + BLOCK];
            let (at, length) = *FIELDS.choose(random).unwrap();
            let field = &mut header[at..at + length];
            match length {
                1 => field[0] = *KINDS.choose(random).unwrap(),
                _ if random.random_bool(0.1) => random.fill_bytes(field),
                _ => {
                    let word = WORDS.choose(random).unwrap();
                    let length = word.len().min(length);
                    field.fill(0);
                    field[..length].copy_from_slice(&word[..length]);
                }
            }
            if random.random_bool(0.9) {
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        _ => {}
    }
}

/// As a registry might have it, and perhaps damaged there.
fn pack(random: &mut StdRng, archive: &[u8]) -> Vec<u8> {
    let mut packed = match random.random_range(0..4) {
        0 => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(archive).unwrap();
            gzip.finish().unwrap()
        }
        1 => zstd::encode_all(archive, 1).unwrap(),
        _ => archive.to_vec(),
    };
    if random.random_bool(0.1) && !packed.is_empty() {
        let at = random.random_range(0..packed.len());
        packed[at] ^= 1 << random.random_range(0..8);
    }
    packed
}

/// Bytes on disk below a directory.
fn used(dir: &Path) -> u64 {
    let below = fs::read_dir(dir).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        meta.blocks() * 512 + if meta.is_dir() { used(&path) } else { 0 }
    });
    below.sum()
}

/// Unpacks in a directory of its own.
fn outcome(packed: &[u8], outer: &Path) -> Result<Unpacked, Fault> {
    let layer = outer.join("layer");
    fs::create_dir(&layer).unwrap();
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(packed).unwrap();
    file.rewind().unwrap();
    unpack(file, &layer, BOUNDS, &Cancel::default())
}

#[test]
fn unchanged_they_are_unpacked() {
    for archive in seeds() {
        let unpacked = outcome(&archive, tempfile::tempdir().unwrap().path()).unwrap();
        assert_eq!(unpacked.diff_id, Digest::of(&archive));
    }
}

#[test]
fn whatever_is_changed_in_an_archive_it_is_unpacked_or_refused() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let until = Instant::now() + Duration::from_secs(number("WHARF_FUZZ_SECONDS").unwrap_or(5));
    let first = number("WHARF_FUZZ_SEED");
    let seeds = seeds();
    let (mut taken, mut refused) = (0, 0);
    while Instant::now() < until {
        let seed = first.unwrap_or_else(rand::random);
        let mut random = StdRng::seed_from_u64(seed);
        let mut archive = seeds.choose(&mut random).unwrap().clone();
        for _ in 0..random.random_range(0..6) {
            change(&mut random, &mut archive, &seeds);
        }
        let packed = pack(&mut random, &archive);
        let again = format!("WHARF_FUZZ_SEED={seed} shows it again");
        let outer = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let outcome = std::panic::catch_unwind(|| outcome(&packed, outer.path()));
        assert!(began.elapsed() < DEADLINE, "it took {:?}; {again}", began.elapsed());
        match outcome.unwrap_or_else(|_| panic!("it panicked; {again}")) {
            Ok(_) => taken += 1,
            Err(fault) => {
                refused += 1;
                assert!(!fault.to_string().is_empty(), "{again}");
            }
        }
        let beside = fs::read_dir(outer.path()).unwrap().count();
        assert!(beside == 1 && !Path::new(ESCAPE).exists(), "something escaped; {again}");
        let used = used(&outer.path().join("layer"));
        assert!(used <= 2 * BOUNDS.bytes, "{used} bytes on disk; {again}");
        outer.close().unwrap_or_else(|cause| panic!("it cannot be removed: {cause}; {again}"));
        if first.is_some() {
            break;
        }
    }
    println!("{taken} archives taken, {refused} refused");
    assert!(first.is_some() || (taken > 0 && refused > 0), "the changes are too few or too many");
}
