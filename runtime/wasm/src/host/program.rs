//! What a container's code is: the worlds that it exports, linked, ready to make instances of.

use super::guest::Guest;
use crate::{cache::Code, model::Kind, protocol::Failure};
use wasmtime::{
    Engine, ExternType, InstancePre, Linker, Module, ResourcesRequired, Store,
    component::{self, Component},
};
use wasmtime_wasi::{I32Exit, p1, p2::bindings::CommandPre};
use wasmtime_wasi_http::p2::bindings::ProxyPre;

/// Of the WebAssembly specification.
const PAGE: u64 = 64 << 10;
/// What a core module imports of WASI 0.1.
const PREVIEW1: &str = "wasi_snapshot_preview1";
/// Where a command of WASI 0.1 begins.
const START: &str = "_start";

/// What guests may import: for components, and for core modules.
pub(crate) struct Linkers {
    component: component::Linker<Guest>,
    module: Linker<Guest>,
}

/// A program that can run; it has at least one of the two.
pub(crate) struct Program {
    pub http: Option<ProxyPre<Guest>>,
    pub command: Option<Command>,
    /// What one instance takes at least, in bytes of memories and tables.
    pub initial_bytes: u64,
}

/// Something that runs once, from its beginning to an exit code.
#[derive(Clone)]
pub(crate) enum Command {
    /// `wasi:cli/run` of WASI 0.2.
    Component(CommandPre<Guest>),
    /// `_start` of WASI 0.1.
    Module(InstancePre<Guest>),
}

impl Linkers {
    pub fn new(engine: &Engine) -> wasmtime::Result<Self> {
        let mut component = component::Linker::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut component)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut component)?;
        let mut module = Linker::new(engine);
        p1::add_to_linker_async(&mut module, Guest::preview1)?;
        // The library's own traps on codes from 126 on, which a shell's children use every day.
        module.allow_shadowing(true);
        module.func_wrap(PREVIEW1, "proc_exit", |code: i32| -> wasmtime::Result<()> {
            Err(I32Exit(code).into())
        })?;
        Ok(Self { component, module })
    }
}

impl Program {
    /// Tells the world from the exports, and links the imports.
    ///
    /// # Errors
    /// [`Failure::Module`] with what is wrong with the code.
    pub fn new(engine: &Engine, linkers: &Linkers, code: &Code) -> Result<Self, Failure> {
        match code {
            Code::Component(component) => Self::of_component(engine, &linkers.component, component),
            Code::Module(module) => Self::of_module(&linkers.module, module),
        }
    }

    fn of_component(
        engine: &Engine,
        linker: &component::Linker<Guest>,
        component: &Component,
    ) -> Result<Self, Failure> {
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
        let linked = linker.instantiate_pre(component).map_err(wrong)?;
        let http = http.then(|| ProxyPre::new(linked.clone())).transpose().map_err(wrong)?;
        let command = command.then(|| CommandPre::new(linked)).transpose().map_err(wrong)?;
        let initial_bytes = component.resources_required().map_or(PAGE, |needs| bytes(&needs));
        // Before the first request rather than in it.
        let _ = component.initialize_copy_on_write_image();
        Ok(Self { http, command: command.map(Command::Component), initial_bytes })
    }

    fn of_module(linker: &Linker<Guest>, module: &Module) -> Result<Self, Failure> {
        let start = module.exports().find(|export| export.name() == START).map(|export| export.ty());
        let command = matches!(&start, Some(ExternType::Func(start))
            if start.params().len() == 0 && start.results().len() == 0);
        if !command {
            return Err(refuse(format!(
                "the core module exports no function {START}, so it is a library (a reactor), not a program: \
                 build it with a main function, in Rust with --target wasm32-wasip1"
            )));
        }
        let linked = linker.instantiate_pre(module).map_err(wrong)?;
        let initial_bytes = bytes(&module.resources_required());
        let _ = module.initialize_copy_on_write_image();
        Ok(Self { http: None, command: Some(Command::Module(linked)), initial_bytes })
    }

    pub fn kind(&self) -> Kind {
        if self.http.is_some() { Kind::Http } else { Kind::Command }
    }
}

impl Command {
    /// Runs it in a new instance, to its exit code.
    ///
    /// # Errors
    /// What ended it otherwise: a trap, or no place for the instance.
    pub async fn run(&self, store: &mut Store<Guest>) -> wasmtime::Result<i32> {
        let ran = match self {
            Self::Component(command) => match command.instantiate_async(&mut *store).await {
                Ok(instance) => instance.wasi_cli_run().call_run(&mut *store).await,
                Err(error) => Err(error),
            },
            Self::Module(command) => start(command, store).await.map(Ok),
        };
        match ran {
            Ok(Ok(())) => Ok(0),
            Ok(Err(())) => Ok(1),
            Err(error) => error.downcast::<I32Exit>().map(|I32Exit(code)| code),
        }
    }
}

async fn start(command: &InstancePre<Guest>, store: &mut Store<Guest>) -> wasmtime::Result<()> {
    let instance = command.instantiate_async(&mut *store).await?;
    let start = instance.get_typed_func::<(), ()>(&mut *store, START)?;
    start.call_async(&mut *store, ()).await
}

fn bytes(needs: &ResourcesRequired) -> u64 {
    let memories = u64::from(needs.num_memories) * needs.max_initial_memory_size.unwrap_or(0) * PAGE;
    let tables = u64::from(needs.num_tables) * needs.max_initial_table_size.unwrap_or(0) * 8;
    memories + tables
}

fn refuse(why: String) -> Failure {
    Failure::Module { why }
}

fn wrong(error: wasmtime::Error) -> Failure {
    refuse(format!("{error:#}"))
}
