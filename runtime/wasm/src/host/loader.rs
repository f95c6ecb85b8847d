//! Components in memory: each mapped once, however many containers run it.

use super::guest::Guest;
use crate::{cache::Cache, model::Kind, protocol::Failure};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use wasmtime::{
    Engine,
    component::{Component, Linker},
};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

/// Components that stay mapped though no container has them: an image is compiled at its pull and run soon after.
const KEPT: usize = 16;
/// Of the WebAssembly specification.
const PAGE: u64 = 64 << 10;

/// A component, ready to make instances of.
pub(crate) struct Loaded {
    pub program: Program,
    /// What one instance takes at least, in bytes of memories and tables.
    pub initial_bytes: u64,
}

pub(crate) enum Program {
    Http(ProxyPre<Guest>),
    Command(CommandPre<Guest>),
}

impl Loaded {
    pub fn kind(&self) -> Kind {
        match self.program {
            Program::Http(_) => Kind::Http,
            Program::Command(_) => Kind::Command,
        }
    }
}

type Loading = Shared<BoxFuture<'static, Result<Arc<Loaded>, Failure>>>;

enum Entry {
    Loading(Loading),
    Loaded(Weak<Loaded>),
}

pub(crate) struct Loader {
    engine: Engine,
    cache: Arc<Cache>,
    linker: Arc<Linker<Guest>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    entries: HashMap<String, Entry>,
    recent: VecDeque<Arc<Loaded>>,
}

impl Loader {
    pub fn new(engine: Engine, cache: Cache) -> wasmtime::Result<Self> {
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        Ok(Self { engine, cache: Arc::new(cache), linker: Arc::new(linker), known: Mutex::default() })
    }

    /// The component with this digest: the one that is mapped, or from the cache, or compiled. Cancel-safe: a load that
    /// nobody waits for any more goes on.
    pub async fn load(&self, module: &Path, digest: &str) -> Result<Arc<Loaded>, Failure> {
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
        let (engine, cache, linker) = (self.engine.clone(), self.cache.clone(), self.linker.clone());
        let (module, digest) = (module.to_owned(), digest.to_owned());
        let task = tokio::task::spawn_blocking(move || {
            let component = cache.load(&engine, &module, &digest)?;
            prepare(&engine, &linker, &component).map(Arc::new)
        });
        async move {
            task.await
                .unwrap_or_else(|cause| Err(Failure::Internal { why: format!("loading failed: {cause}") }))
        }
        .boxed()
        .shared()
    }
}

/// Tells the world from the exports, and links the imports.
fn prepare(engine: &Engine, linker: &Linker<Guest>, component: &Component) -> Result<Loaded, Failure> {
    let refuse = |why: String| Failure::Module { why };
    let exports: Vec<String> =
        component.component_type().exports(engine).map(|(name, _)| name.to_owned()).collect();
    let has = |interface: &str| exports.iter().any(|name| name.starts_with(&format!("{interface}@0.2.")));
    let (http, command) = (has("wasi:http/incoming-handler"), has("wasi:cli/run"));
    if !http && !command {
        return Err(refuse(format!(
            "the component exports neither wasi:http/incoming-handler nor wasi:cli/run of WASI 0.2, but [{}]",
            exports.join(", ")
        )));
    }
    let linked = linker.instantiate_pre(component).map_err(|error| refuse(format!("{error:#}")))?;
    let program = if http {
        ProxyPre::new(linked).map(Program::Http)
    } else {
        CommandPre::new(linked).map(Program::Command)
    };
    let program = program.map_err(|error| refuse(format!("{error:#}")))?;
    let needs = component.resources_required();
    let initial_bytes = needs.map_or(PAGE, |needs| {
        let memories = u64::from(needs.num_memories) * needs.max_initial_memory_size.unwrap_or(0) * PAGE;
        let tables = u64::from(needs.num_tables) * needs.max_initial_table_size.unwrap_or(0) * 8;
        memories + tables
    });
    // Before the first request rather than in it.
    let _ = component.initialize_copy_on_write_image();
    Ok(Loaded { program, initial_bytes })
}
