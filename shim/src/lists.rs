//! What CRI's lists answer with, whole or as a stream.

use std::cmp::Reverse;
use std::collections::HashMap;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tonic::Status;
use wharf_cri::v1::{self, ContainerState, PodSandboxState};

use crate::record::{Container, Sandbox};
use crate::shim::Shim;
use crate::{metrics, stats, view};

/// A stream of messages, as a call of CRI answers with one.
pub type Streamed<T> = BoxStream<'static, Result<T, Status>>;

/// The most items of one message of a stream.
const PAGE: usize = 128;

/// A list as messages of a bounded size. Without items there is no message.
pub fn pages<T, M>(items: Vec<T>, message: impl Fn(Vec<T>) -> M + Send + 'static) -> Streamed<M>
where
    T: Send + 'static,
    M: Send + 'static,
{
    let mut items = items.into_iter();
    let pages = std::iter::from_fn(move || {
        let page: Vec<T> = items.by_ref().take(PAGE).collect();
        (!page.is_empty()).then(|| Ok(message(page)))
    });
    futures::stream::iter(pages).boxed()
}

/// Whether `labels` has everything that a selector asks for.
fn matches(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The newest first.
pub fn sandboxes(shim: &Shim, filter: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
    let filter = filter.unwrap_or_default();
    let wanted = |s: &&std::sync::Arc<Sandbox>| {
        s.id.starts_with(&filter.id)
            && filter.state.is_none_or(|wanted| wanted.state == s.state)
            && matches(&filter.label_selector, &s.config().labels)
    };
    let mut items: Vec<_> = shim.sandboxes().values().filter(wanted).map(|s| view::sandbox_item(s)).collect();
    items.sort_by_key(|s| Reverse(s.created_at));
    items
}

/// The newest first.
pub fn containers(shim: &Shim, filter: Option<v1::ContainerFilter>) -> Vec<v1::Container> {
    let filter = filter.unwrap_or_default();
    let wanted = |c: &Container| {
        c.id.starts_with(&filter.id)
            && c.sandbox.starts_with(&filter.pod_sandbox_id)
            && filter.state.is_none_or(|wanted| wanted.state == c.state)
            && matches(&filter.label_selector, &c.config().labels)
    };
    let all: Vec<_> = shim.containers().values().cloned().collect();
    let item = |c: &Container| wanted(c).then(|| view::container_item(c));
    let mut items: Vec<_> = all.iter().filter_map(|container| container.with(item)).collect();
    items.sort_by_key(|c| Reverse(c.created_at));
    items
}

/// Of containers that run.
pub async fn container_stats(
    shim: &Shim,
    filter: Option<v1::ContainerStatsFilter>,
) -> Vec<v1::ContainerStats> {
    let filter = filter.unwrap_or_default();
    let wanted = |c: &Container| {
        c.state() == ContainerState::ContainerRunning
            && c.id.starts_with(&filter.id)
            && c.sandbox.starts_with(&filter.pod_sandbox_id)
            && matches(&filter.label_selector, &c.config().labels)
    };
    let all: Vec<_> = shim.containers().values().map(|c| c.get()).collect();
    let wanted: Vec<_> = all.into_iter().filter(wanted).collect();
    stats::containers(shim, &wanted).await
}

/// Of sandboxes that are ready.
pub async fn sandbox_stats(
    shim: &Shim,
    filter: Option<v1::PodSandboxStatsFilter>,
) -> Vec<v1::PodSandboxStats> {
    let filter = filter.unwrap_or_default();
    let wanted = |s: &&Sandbox| {
        s.state() == PodSandboxState::SandboxReady
            && s.id.starts_with(&filter.id)
            && matches(&filter.label_selector, &s.config().labels)
    };
    let all: Vec<_> = shim.sandboxes().values().cloned().collect();
    let wanted: Vec<_> = all.iter().map(|sandbox| &**sandbox).filter(wanted).collect();
    stats::sandboxes(shim, &wanted).await
}

/// Of sandboxes that are ready.
pub async fn sandbox_metrics(shim: &Shim) -> Vec<v1::PodSandboxMetrics> {
    let mut ready: Vec<_> = shim.sandboxes().values().cloned().collect();
    ready.retain(|sandbox| sandbox.state() == PodSandboxState::SandboxReady);
    metrics::pods(shim, &ready).await
}

/// All, or the one that the filter names.
pub fn images(shim: &Shim, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
    let wanted = filter.and_then(|filter| filter.image).map(|spec| spec.image);
    let images = match wanted.filter(|name| !name.is_empty()) {
        Some(name) => shim.images.status(&name).into_iter().collect(),
        None => shim.images.list(),
    };
    images.iter().map(|image| view::image(image)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_has_every_item_once_in_messages_of_a_bounded_size() {
        for all in [0, 1, PAGE, 2 * PAGE + 1] {
            let messages: Vec<Vec<usize>> =
                pages((0..all).collect(), |page| page).map(Result::unwrap).collect().await;
            assert!(messages.iter().all(|page| (1..=PAGE).contains(&page.len())), "{all}");
            assert_eq!(messages.concat(), (0..all).collect::<Vec<_>>());
        }
    }
}
