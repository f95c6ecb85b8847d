//! What the server counts, in the text form that Prometheus reads (OpenMetrics).

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A request's labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Labels {
    pub user: String,
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub code: u16,
}

pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    series: AtomicUsize,
    watches: Gauge,
    revision: Gauge,
}

/// Beyond so many combinations of labels, new ones are counted without user and code.
const SERIES_MAX: usize = 10_000;

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let (requests, watches, revision) = (Family::default(), Gauge::default(), Gauge::default());
        // The library writes a counter's name with `_total` behind it.
        let help = "Requests by user, verb, group, resource, subresource and code";
        registry.register("apiserver_request", help, Family::clone(&requests));
        registry.register("apiserver_watches", "Watches that are open", Gauge::clone(&watches));
        registry.register(
            "apiserver_store_revision",
            "The newest revision that reads show",
            Gauge::clone(&revision),
        );
        Self { registry, requests, series: AtomicUsize::new(0), watches, revision }
    }
}

impl Metrics {
    pub fn count(&self, labels: Labels) {
        if let Some(known) = self.requests.get(&labels) {
            known.inc();
            return;
        }
        let fits = self.series.fetch_add(1, Ordering::Relaxed) < SERIES_MAX;
        let labels = if fits { labels } else { Labels { user: "other".to_owned(), code: 0, ..labels } };
        self.requests.get_or_create(&labels).inc();
    }

    pub fn watches(&self, change: i64) {
        self.watches.inc_by(change);
    }

    pub fn text(&self, revision: u64) -> String {
        self.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}
