//! Deployments and the other kinds that make pods from a template.

use serde_json::Value;

use super::page::{Page, in_words};
use super::{age, conditions, identity, pairs, pod};

pub fn describe(page: &mut Page, object: &Value) {
    let (spec, status) = (&object["spec"], &object["status"]);
    identity(page, object);
    age(page, object);
    let selector = &spec["selector"];
    page.list(0, "Selector", pairs(&selector["matchLabels"], "="));
    for (key, value) in spec.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "selector" | "template" | "volumeClaimTemplates") {
            page.tree(0, &in_words(key), value);
        }
    }
    page.heading(0, "Status");
    for (key, value) in status.as_object().into_iter().flatten().filter(|(key, _)| *key != "conditions") {
        page.tree(1, &in_words(key), value);
    }
    pod::template(page, &spec["template"]);
    conditions(page, object);
}
