//! Tells wasm images from others.
//!
//! The field ships modules in several ways (D6); each is told from what the documents and the file itself say:
//! - a layer that *is* the module, by its media type (CNCF artifacts, artifacts with an empty config, runwasi's images): [`artifact`];
//! - a file in an ordinary layer, where the platform says wasm or the annotation of crun says `compat`: [`in_layers`], which insists;
//! - the same with a linux platform and no word about it: [`in_layers`], which then believes the file's first bytes alone.
//!
//! A name that ends in `.wasm` counts nowhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::image::{ImageConfig, WasmModule};
use crate::layer;
use crate::manifest::{ConfigDocument, Descriptor, Manifest, is_wasm_config};

const MAGIC: [u8; 4] = *b"\0asm";
const TITLE: &str = "org.opencontainers.image.title";
const VARIANT: &str = "module.wasm.image/variant";
const HANDLER: &str = "run.oci.handler";
const DEFAULT_NAME: &str = "module.wasm";

/// The layer that is the image's module, if it is shipped that way.
///
/// Where there are several, the one whose title is the entry point, else the first: the others are its data.
pub(crate) fn artifact<'a>(
    manifest: &'a Manifest,
    config: &ImageConfig,
) -> Result<Option<&'a Descriptor>, Error> {
    let modules: Vec<&Descriptor> = manifest.layers.iter().filter(|layer| layer.is_wasm()).collect();
    if modules.is_empty() {
        return match (is_wasm_config(&manifest.config), manifest.layers.as_slice()) {
            (false, _) => Ok(None),
            (true, [only]) => Ok(Some(only)), // older tools gave the layer a generic type
            (true, _) => Err(Error::Content("a wasm artifact, but no layer has a wasm media type".into())),
        };
    }
    let wanted = command(config).map(|command| command.trim_start_matches('/'));
    let titled = |layer: &&&Descriptor| {
        wanted.is_some() && layer.annotations.get(TITLE).map(|title| title.trim_start_matches('/')) == wanted
    };
    Ok(modules.iter().find(titled).or(modules.first()).copied())
}

/// Describes a module that is a blob of its own. `path` is relative to the store.
pub(crate) fn of_artifact(layer: &Descriptor, path: PathBuf, config: &ImageConfig) -> WasmModule {
    let (name, function) = match command(config) {
        Some(command) => split_function(command),
        None => (layer.annotations.get(TITLE).map_or(DEFAULT_NAME, String::as_str).to_owned(), None),
    };
    WasmModule { path, digest: layer.digest.clone(), size: layer.size, name, function }
}

/// Whether the documents say that the program in the layers is wasm.
fn is_declared(document: &ConfigDocument, annotations: &BTreeMap<String, String>) -> Option<String> {
    let platform = document.platform();
    if platform.is_wasm() {
        return Some(format!("platform {platform}"));
    }
    // The `-smart` forms say "if it is wasm", which is what the file is asked anyway.
    let labels = &document.config.labels;
    let value = |key: &str| annotations.get(key).or_else(|| labels.get(key)).map(String::as_str);
    match (value(VARIANT), value(HANDLER)) {
        (Some("compat"), _) => Some(format!("annotation {VARIANT}=compat")),
        (_, Some("wasm")) => Some(format!("annotation {HANDLER}=wasm")),
        _ => None,
    }
}

/// The module among an image's files, if its program is one. Blocks.
///
/// # Errors
/// If the documents say wasm and the program is not.
pub(crate) fn in_layers(
    document: &ConfigDocument,
    annotations: &BTreeMap<String, String>,
    lower_dirs: &[PathBuf],
) -> Result<Option<WasmModule>, Error> {
    let declared = is_declared(document, annotations);
    let config = &document.config;
    let read = |cause: io::Error| Error::Disk { what: "read the image's program".into(), cause };
    let Some(command) = command(config) else {
        return match declared {
            Some(why) => Err(Error::Content(format!(
                "the image says that it is wasm ({why}), but names no entry point"
            ))),
            None => Ok(None),
        };
    };
    let (name, function) = split_function(command);
    for candidate in places(&name, config) {
        let Some(path) = layer::lookup(lower_dirs, &candidate).map_err(read)? else { continue };
        let mut file = File::open(&path).map_err(read)?;
        if !is_wasm(&mut file).map_err(read)? {
            continue;
        }
        let (digest, size) = digest_of(&path).map_err(read)?;
        return Ok(Some(WasmModule { path, digest, size, name, function }));
    }
    match declared {
        Some(why) => Err(Error::Content(format!(
            "the image says that it is wasm ({why}), but its entry point {name:?} is no wasm file in it"
        ))),
        None => Ok(None),
    }
}

/// The first word of what the image runs by default.
fn command(config: &ImageConfig) -> Option<&str> {
    config.entrypoint.first().or(config.cmd.first()).map(String::as_str).filter(|word| !word.is_empty())
}

/// `path#function`, runwasi's way to name an entry point other than `_start`.
fn split_function(command: &str) -> (String, Option<String>) {
    match command.split_once('#') {
        Some((path, function)) if !path.is_empty() && !function.is_empty() => {
            (path.to_owned(), Some(function.to_owned()))
        }
        _ => (command.to_owned(), None),
    }
}

/// Where a command's file may be: as execvp would look, then in the working directory, where wasm runtimes look.
fn places(command: &str, config: &ImageConfig) -> Vec<PathBuf> {
    let working = Path::new("/").join(&config.working_dir);
    if command.contains('/') {
        return vec![working.join(command)];
    }
    let path = config
        .env
        .iter()
        .find_map(|var| var.strip_prefix("PATH="))
        .unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut places: Vec<PathBuf> =
        path.split(':').filter(|dir| dir.starts_with('/')).map(|dir| Path::new(dir).join(command)).collect();
    places.push(working.join(command));
    places
}

/// Whether these are the first bytes of a module or component.
pub(crate) fn is_wasm(reader: &mut impl io::Read) -> io::Result<bool> {
    let mut head = [0; 4];
    match reader.read_exact(&mut head) {
        Ok(()) => Ok(head == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn digest_of(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 128 << 10];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.update(&buffer[..n]);
        size += n as u64;
    }
}
