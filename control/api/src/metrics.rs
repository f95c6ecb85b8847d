//! What the server counts, in Prometheus' text form.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A request's labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    pub user: String,
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub code: u16,
}

#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Labels, u64>>,
    watches: AtomicI64,
}

/// Beyond so many combinations of labels, new ones are counted without user and code.
const SERIES_MAX: usize = 10_000;

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Metrics {
    pub fn count(&self, labels: Labels) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let known = requests.len() < SERIES_MAX || requests.contains_key(&labels);
        let labels = if known { labels } else { Labels { user: "other".to_owned(), code: 0, ..labels } };
        *requests.entry(labels).or_default() += 1;
    }

    pub fn watches(&self, change: i64) {
        self.watches.fetch_add(change, Ordering::Relaxed);
    }

    pub fn text(&self, revision: u64) -> String {
        let mut out = String::from(
            "# HELP apiserver_request_total Requests by user, verb, group, resource, subresource and code.\n\
             # TYPE apiserver_request_total counter\n",
        );
        for (labels, count) in &*self.requests.lock().unwrap_or_else(PoisonError::into_inner) {
            let Labels { user, verb, group, resource, subresource, code } = labels;
            let _ = writeln!(
                out,
                "apiserver_request_total{{user=\"{}\",verb=\"{}\",group=\"{}\",resource=\"{}\",subresource=\"{}\",code=\"{code}\"}} {count}",
                escaped(user),
                escaped(verb),
                escaped(group),
                escaped(resource),
                escaped(subresource),
            );
        }
        let _ = writeln!(
            out,
            "# HELP apiserver_longrunning_requests Watches that are open.\n\
             # TYPE apiserver_longrunning_requests gauge\n\
             apiserver_longrunning_requests{{verb=\"watch\"}} {}\n\
             # HELP apiserver_store_revision The newest revision that reads show.\n\
             # TYPE apiserver_store_revision gauge\n\
             apiserver_store_revision {revision}",
            self.watches.load(Ordering::Relaxed)
        );
        out
    }
}
