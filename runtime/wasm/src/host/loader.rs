//! Programs in memory: each mapped once, however many containers run it.

use super::program::{Linkers, Program};
use crate::{cache::Cache, protocol::Failure};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use wasmtime::Engine;

/// Programs that stay mapped though no container has them: an image is compiled at its pull and run soon after.
const KEPT: usize = 16;
type Loading = Shared<BoxFuture<'static, Result<Arc<Program>, Failure>>>;

enum Entry {
    Loading(Loading),
    Loaded(Weak<Program>),
}

pub(crate) struct Loader {
    engine: Engine,
    cache: Arc<Cache>,
    linkers: Arc<Linkers>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    entries: HashMap<String, Entry>,
    recent: VecDeque<Arc<Program>>,
}

impl Loader {
    pub fn new(engine: Engine, cache: Cache) -> wasmtime::Result<Self> {
        let linkers = Arc::new(Linkers::new(&engine)?);
        Ok(Self { engine, cache: Arc::new(cache), linkers, known: Mutex::default() })
    }

    /// The program with this digest: the one that is mapped, or from the cache, or compiled. Cancel-safe: a load that
    /// nobody waits for any more goes on.
    pub async fn load(&self, module: &Path, digest: &str) -> Result<Arc<Program>, Failure> {
        let loading = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            match known.entries.get(digest) {
                Some(Entry::Loading(loading)) => Some(loading.clone()),
                Some(Entry::Loaded(loaded)) => match loaded.upgrade() {
                    Some(loaded) => return Ok(loaded),
                    None => None,
                },
                None => None,
            }
            .unwrap_or_else(|| {
                let loading = self.begin(module, digest);
                known.entries.retain(|_, entry| match entry {
                    Entry::Loading(_) => true,
                    Entry::Loaded(loaded) => loaded.strong_count() > 0,
                });
                known.entries.insert(digest.to_owned(), Entry::Loading(loading.clone()));
                loading
            })
        };
        let result = loading.clone().await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // The first of those who waited notes how it went.
        if matches!(known.entries.get(digest), Some(Entry::Loading(current)) if current.ptr_eq(&loading)) {
            match &result {
                Ok(loaded) => {
                    known.entries.insert(digest.to_owned(), Entry::Loaded(Arc::downgrade(loaded)));
                    known.recent.push_back(loaded.clone());
                    if known.recent.len() > KEPT {
                        known.recent.pop_front();
                    }
                }
                Err(_) => drop(known.entries.remove(digest)), // the next one tries again
            }
        }
        result
    }

    fn begin(&self, module: &Path, digest: &str) -> Loading {
        let (engine, cache, linkers) = (self.engine.clone(), self.cache.clone(), self.linkers.clone());
        let (module, digest) = (module.to_owned(), digest.to_owned());
        let task = tokio::task::spawn_blocking(move || {
            let code = cache.load(&engine, &module, &digest)?;
            Program::new(&engine, &linkers, &code).map(Arc::new)
        });
        async move {
            task.await
                .unwrap_or_else(|cause| Err(Failure::Internal { why: format!("loading failed: {cause}") }))
        }
        .boxed()
        .shared()
    }
}
