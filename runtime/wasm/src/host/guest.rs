//! What one instance has: its WASI world, its tables, its limiter.

use super::{
    container::Container,
    memory::{Grant, Limiter},
    stdio::Stdio,
};
use http_body_util::BodyExt;
use std::sync::{Arc, atomic::Ordering};
use wasmtime::Store;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView, p1::WasiP1Ctx};
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks,
    WasiHttpView,
};

/// Resources (streams, headers, requests) that an instance may have at once. They are the host's memory, so bounded.
const RESOURCES: usize = 4096;
/// One write of a response's body.
const BODY_CHUNK: usize = 64 << 10;
/// All headers of one request or response.
const FIELD_BYTES: usize = 64 << 10;

/// The data of an instance's store.
pub(crate) struct Guest {
    /// Of WASI 0.2, with the descriptors of 0.1 over it.
    wasi: WasiP1Ctx,
    http: WasiHttpCtx,
    hooks: Closed,
    pub limiter: Limiter,
    container: Arc<Container>,
}

impl Guest {
    /// A store for a new instance of the container, with the memory that was granted to it.
    pub fn store(
        container: &Arc<Container>,
        grant: Grant,
        args: &[String],
        stdio: Stdio,
    ) -> wasmtime::Result<Store<Self>> {
        let spec = &container.spec;
        let mut wasi = WasiCtx::builder();
        wasi.args(args)
            .envs(&spec.env)
            .stdin(stdio.stdin)
            .stdout(stdio.stdout)
            .stderr(stdio.stderr)
            // Sockets come with the network world; until then a guest has none.
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false);
        for mount in &spec.mounts {
            let perms = if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            wasi.preopened_dir(&mount.host, &mount.guest, perms)?;
        }
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELD_BYTES);
        let mut wasi = wasi.build_p1();
        wasi.ctx().table.set_max_capacity(RESOURCES);
        container.counters.instances.fetch_add(1, Ordering::Relaxed);
        let guest =
            Self { wasi, http, hooks: Closed, limiter: Limiter::new(grant), container: container.clone() };
        let mut store = Store::try_new(&container.common.engine, guest)?;
        store.limiter(|guest| &mut guest.limiter);
        // At every tick others get a turn; the container's end is seen there too (its task is dropped).
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|_| Ok(wasmtime::UpdateDeadline::Yield(1)));
        Ok(store)
    }

    /// What core modules see.
    pub fn preview1(&mut self) -> &mut WasiP1Ctx {
        &mut self.wasi
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.container.counters.instances.fetch_sub(1, Ordering::Relaxed);
        self.container.learn(self.limiter.needed());
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.ctx()
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: self.wasi.ctx().table, hooks: &mut self.hooks }
    }
}

type Pending<T> = Box<dyn Future<Output = Result<T, Error>> + Send>;

/// No way out: who owns the cluster has not opened one.
struct Closed;

impl WasiHttpHooks for Closed {
    fn is_forbidden_header(&mut self, name: &http::HeaderName) -> bool {
        DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Pending<()>,
    ) -> Pending<(http::Response<WasiBody>, Pending<()>)> {
        Box::new(async {
            // Guests send the body before they look at the answer: it has to go somewhere, or they see a broken
            // connection instead of the reason. Ends with the instance, which holds the other end.
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(Ok(_)) = body.frame().await {}
            });
            Err(Error::HttpRequestDenied)
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK
    }
}
