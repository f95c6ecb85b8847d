//! What every part of Wharf that is a client of the Kubernetes API needs exactly once.
//!
//! | module | what it gives | who uses it |
//! |---|---|---|
//! | [`identity`] | the CA, server and client certificates, rustls configurations, who a peer is | API server, node agent, `wctl`, joining |
//! | [`client_ca`] | what a client certificate proves, told after the handshake | API server |
//! | [`quantity`] | Kubernetes quantities: parse, print, add, compare | admission, scheduler, node agent |
//! | [`resources`] | resource lists: names, sums, what a pod needs | admission, controllers |
//! | [`quota`] | what ResourceQuotas count, and whether one can be charged | API server, controllers |
//! | [`selector`] | label and field selectors: parse with Kubernetes' own error texts, match | API server, scheduler, controllers |
//! | [`placement`] | taints and tolerations, node selectors and node affinity: what matches what | scheduler, controllers |
//! | [`api`] | untyped verbs (create, patch, delete, …) over [`kube::Client`] that decode into narrow types | controllers, scheduler |
//! | [`view`] | narrow views and the one shared reflector per view in a process | every loop |
//! | [`queue`], [`reconcile`] | the work queue and the loop around one `pass` per key | every loop |
//! | [`leader`] | one leader among several servers, by a Lease | `wharf server` |
//! | [`event`] | the recorder of core/v1 Events | scheduler, controllers, node agent |
//! | [`log`] | [`chain`], the one way to put an error into a log line | everyone |
//!
//! How they fit: a [`view::Hub`] owns the watches of a process. A loop asks it for a
//! [`view::Store`] of the view it wants; the store's changes are mapped to keys
//! ([`reconcile::Controller::watches`]); the [`queue::Queue`] hands one key at a time to
//! [`reconcile::Pass::pass`], which reads the stores, plans purely, and acts through [`api::Rest`].
//!
//! ```no_run
//! # use wharf_kit::{api, reconcile::{Controller, Next, Pass}, view::{Hub, Key, Meta, View}};
//! # use tokio_util::sync::CancellationToken;
//! #[derive(serde::Deserialize)]
//! struct ConfigMap { metadata: Meta }
//! impl View for ConfigMap {
//!     const KIND: api::Kind = api::Kind::core("ConfigMap", "configmaps");
//!     fn meta(&self) -> &Meta { &self.metadata }
//! }
//! struct Loop;
//! impl Pass for Loop {
//!     type Key = Key;
//!     type Error = api::Error;
//!     async fn pass(&self, _key: &Key) -> Result<Next, api::Error> { Ok(Next::Done) }
//! }
//! # async fn start(client: kube::Client, stop: CancellationToken) {
//! let hub = Hub::new(client, stop.clone());
//! let maps = hub.view::<ConfigMap>();
//! let controller = Controller::new("ConfigMap", Loop).watches(&maps, |change| vec![change.key.clone()]);
//! maps.ready().await;
//! controller.run(stop).await;
//! # }
//! ```

pub mod api;
pub mod client_ca;
pub mod cron;
pub mod event;
pub mod identity;
pub mod leader;
pub mod log;
pub mod placement;
pub mod quantity;
pub mod queue;
pub mod quota;
pub mod reconcile;
pub mod renew;
pub mod resources;
pub mod selector;
pub mod view;

pub use log::chain;
