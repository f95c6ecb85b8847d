//! Uploads in progress.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
use uuid::Uuid;

use super::Incoming;
use super::reply::Refusal;
use crate::digest::{Digest, Hasher};
use http::StatusCode;

/// Uploads by id. One upload takes one request at a time; others wait for it.
pub(super) struct Uploads {
    dir: PathBuf,
    open: Mutex<HashMap<Uuid, Arc<tokio::sync::Mutex<Upload>>>>,
}

/// The bytes that arrived so far.
pub(super) struct Upload {
    pub(super) repo: String,
    dir: PathBuf,
    /// Of the bytes on disk, with their number. None where that is not known: after a restart or a broken request.
    progress: Option<(Hasher, u64)>,
    /// Finished or cancelled while somebody waited for it.
    pub(super) over: bool,
}

impl Uploads {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, open: Mutex::default() }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Arc<tokio::sync::Mutex<Upload>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one. Blocks briefly.
    pub(super) fn begin(&self, repo: &str) -> io::Result<(Uuid, Arc<tokio::sync::Mutex<Upload>>)> {
        let id = Uuid::new_v4();
        let dir = self.dir.join(id.to_string());
        fs::create_dir(&dir)?;
        fs::write(dir.join("data"), b"")?;
        fs::write(dir.join("repo"), repo)?;
        let upload =
            Upload { repo: repo.to_owned(), dir, progress: Some((Hasher::default(), 0)), over: false };
        let upload = Arc::new(tokio::sync::Mutex::new(upload));
        self.table().insert(id, upload.clone());
        Ok((id, upload))
    }

    /// Finds one, also one from before a restart. Blocks briefly.
    pub(super) fn find(&self, id: Uuid, repo: &str) -> Option<Arc<tokio::sync::Mutex<Upload>>> {
        let dir = self.dir.join(id.to_string());
        let mut table = self.table();
        if fs::read_to_string(dir.join("repo")).ok()? != repo {
            return None;
        }
        let made = || {
            Arc::new(tokio::sync::Mutex::new(Upload {
                repo: repo.to_owned(),
                dir,
                progress: None,
                over: false,
            }))
        };
        Some(table.entry(id).or_insert_with(made).clone())
    }

    /// Forgets one and its bytes. Blocks briefly.
    pub(super) fn end(&self, id: Uuid) {
        self.table().remove(&id);
        if let Err(error) = fs::remove_dir_all(self.dir.join(id.to_string()))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%id, %error, "could not remove an upload; the next collection will");
        }
    }

    /// Forgets those that got no bytes for this long, unless a request is at it. Blocks.
    pub(super) fn expire(&self, age: Duration) -> io::Result<()> {
        for item in fs::read_dir(&self.dir)? {
            let item = item?;
            let Some(id) = item.file_name().to_str().and_then(|name| Uuid::parse_str(name).ok()) else {
                continue;
            };
            let touched = fs::metadata(item.path().join("data")).or_else(|_| item.metadata())?.modified()?;
            let known = self.table().get(&id).cloned();
            let busy = known.is_some_and(|upload| upload.try_lock().is_err());
            if !busy && touched.elapsed().unwrap_or(Duration::ZERO) > age {
                self.end(id);
            }
        }
        Ok(())
    }
}

impl Upload {
    pub(super) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Bytes so far.
    pub(super) async fn len(&mut self) -> Result<u64, Refusal> {
        let (_, len) = self.known().await?;
        Ok(*len)
    }

    async fn known(&mut self) -> Result<&mut (Hasher, u64), Refusal> {
        let progress = match self.progress.take() {
            Some(progress) => progress,
            None => {
                let path = self.data();
                let hashed = tokio::task::spawn_blocking(move || hash(&path))
                    .await
                    .unwrap_or_else(|e| Err(io::Error::other(e)));
                hashed.map_err(Refusal::disk("read the upload"))?
            }
        };
        Ok(self.progress.insert(progress))
    }

    /// Appends a body. On an error, the bytes that arrived stay, so that the client can go on from there.
    pub(super) async fn append(&mut self, mut body: Incoming, limit: u64) -> Result<u64, Refusal> {
        self.known().await?;
        // Taken out while bytes are on their way: if this future is dropped in between, the file is asked again.
        let (mut hasher, mut len) = self.progress.take().expect("known() has just set it");
        let disk = || Refusal::disk("write the upload");
        let mut file = tokio::fs::File::options().write(true).open(self.data()).await.map_err(disk())?;
        file.seek(io::SeekFrom::Start(len)).await.map_err(disk())?;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Refusal::new(
                    StatusCode::BAD_REQUEST,
                    "BLOB_UPLOAD_INVALID",
                    format!("the upload broke off: {error}"),
                )
            })?;
            let Ok(chunk) = frame.into_data() else { continue };
            len += chunk.len() as u64;
            if len > limit {
                return Err(Refusal::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "SIZE_INVALID",
                    format!("a blob may have {limit} bytes"),
                ));
            }
            file.write_all(&chunk).await.map_err(disk())?;
            hasher.update(&chunk);
        }
        file.flush().await.map_err(disk())?;
        self.progress = Some((hasher, len));
        Ok(len)
    }

    /// The digest of all that arrived.
    pub(super) async fn digest(&mut self) -> Result<Digest, Refusal> {
        let (hasher, _) = self.known().await?;
        Ok(hasher.clone().finish())
    }
}

fn hash(path: &Path) -> io::Result<(Hasher, u64)> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 128 << 10];
    let mut len = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((hasher, len));
        }
        hasher.update(&buffer[..n]);
        len += n as u64;
    }
}
