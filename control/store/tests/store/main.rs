//! One binary, so that it is linked once.

mod cache;
mod compaction;
mod copy;
mod disk;
mod etcd;
mod kill;
mod latency;

use std::path::PathBuf;

use tempfile::TempDir;
use wharf_store::Redb;
use wharf_store::testing::{Place, contract};

/// A folder that goes away with the test.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().expect("a folder"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("store")
    }
}

impl Place for Folder {
    type Engine = Redb;

    async fn open(&self) -> Redb {
        Redb::open(self.path()).await.expect("open")
    }

    async fn close(&self, engine: Redb) {
        engine.close().await;
    }
}

#[tokio::test]
async fn redb_keeps_the_contract() {
    contract(Folder::new).await;
}

#[tokio::test]
async fn a_store_is_open_once_and_readable_by_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let first = folder.open().await;
    let mode = std::fs::metadata(folder.path()).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = Redb::open(folder.path()).await.err().expect("a second engine is refused");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("already open") && cause.contains("/store"), "{error}: {cause}");
    first.close().await;
    folder.open().await.close().await;
}
