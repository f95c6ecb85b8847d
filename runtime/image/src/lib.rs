//! Images: from a reference to directories and modules that a runtime can start.
//!
//! Enter at [`Images::open`]. The handle is cheap to clone; it owns one directory (nobody else may
//! have it open) and no task of its own: a pull runs in the futures of those who wait for it, and
//! stops when the last of them is dropped.
//!
//! ```no_run
//! # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
//! use wharf_image::{Config, Images, Kind, PullOptions, Reference};
//! let images = Images::open(Config::new("/var/lib/wharf/images")).await?;
//! let reference: Reference = "registry.wharf/greeter:1".parse()?;
//! let image = images.pull(&reference, PullOptions::default()).await?;
//! let lease = images.lease(&image.id).expect("just pulled"); // hold it while a container runs
//! match &lease.image().kind {
//!     Kind::Wasm(module) => println!("run {}", module.path.display()),
//!     Kind::Oci => println!("mount {:?}, topmost first", lease.lower_dirs()),
//! }
//! # Ok(()) }
//! ```
//!
//! # What is where on disk
//! ```text
//! lock                       held with flock while open
//! tmp/                       what a pull has not finished; emptied at open
//! blobs/sha256/HEX           configs, manifests and wasm modules (layers are kept unpacked only)
//! layers/HEX32/fs            one unpacked layer in overlayfs' form, named by its chain id
//! layers/HEX32/layer.json    its ids, size and inodes; the directory appears by one rename
//! images/HEX.json            one image: written last, atomically. No file, no image
//! ```
//! A process killed at any instant leaves at most things that no image names; the next
//! [`Images::open`] and [`Images::collect`] remove them.
//!
//! # Why not oci-client
//! Its `ClientConfig` (0.18) cannot carry a client certificate, which is how a node identifies itself
//! to `registry.wharf`, nor mirrors, resumed downloads, or streams that are cut off at the declared size.
//! So `client` speaks the distribution protocol itself over reqwest: manifests, blobs, basic and token auth.
//!
//! # The built-in registry
//! [`registry::Registry`] serves the OCI distribution API over a directory of its own; the API server mounts it at `/v2/`.

mod client;
mod digest;
mod docker;
mod error;
mod image;
mod images;
mod layer;
mod manifest;
mod pull;
mod reference;
mod registries;
pub mod registry;
mod store;
mod wasm;

pub use client::Auth;
pub use digest::{Digest, DigestError};
pub use error::{Error, Remedy};
pub use image::{Image, ImageConfig, ImageId, Kind, WasmModule};
pub use images::{Config, FsUsage, Images, Lease, Limits, Prefer, Progress, PullOptions};
pub use reference::{Reference, ReferenceError};
pub use registries::{Endpoint, HostConfig, RegistriesConfig};
