//! `wctl describe`: an object for people, with what happened to it.

mod node;
mod page;
mod pod;
mod workload;

use anyhow::bail;
use serde_json::Value;

use crate::api::Api;
use crate::resource::{Resource, Resources, name_of, targets};
use crate::uri::with_query;
use crate::{Global, events, output};
use page::{Page, scalar};

#[derive(clap::Args)]
pub struct Options {
    /// `pod NAME`, `pod/NAME`, or a type for all of it
    #[arg(required = true, value_name = "TYPE[/NAME]")]
    what: Vec<String>,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let resources = Resources::discover(&api).await?;
    let mut objects: Vec<(&Resource, Value)> = Vec::new();
    for (resource, name) in targets(&resources, &options.what)? {
        if let Some(name) = name {
            objects.push((resource, api.get(&resource.object(&api.namespace, &name)).await?));
            continue;
        }
        let selector = options.selector.as_deref().map(|text| ("labelSelector", text));
        let mut list = api.get(&with_query(&resource.path(Some(&api.namespace)), selector)).await?;
        for mut item in list["items"].as_array_mut().map(std::mem::take).unwrap_or_default() {
            item["kind"] = resource.kind.clone().into();
            objects.push((resource, item));
        }
    }
    if objects.is_empty() {
        bail!("none found in the namespace {:?}", api.namespace);
    }
    for (nth, (resource, object)) in objects.iter().enumerate() {
        if nth > 0 {
            output::line("\n");
        }
        let mut page = Page::default();
        match resource.kind.as_str() {
            "Pod" => pod::describe(&mut page, object),
            "Node" => node::describe(&mut page, object, &pods_on(&api, name_of(object)).await?),
            "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" => {
                workload::describe(&mut page, object);
            }
            "Secret" => secret(&mut page, object),
            _ => anything(&mut page, object),
        }
        tell_events(&api, &mut page, object).await?;
        output::line(page.text().trim_end());
    }
    Ok(())
}

/// A pod template, told to people.
pub fn template(template: &Value) -> String {
    let mut page = Page::default();
    pod::template(&mut page, template);
    page.text().trim_end().to_owned()
}

async fn pods_on(api: &Api, node: &str) -> anyhow::Result<Vec<Value>> {
    let field = format!("spec.nodeName={node}");
    let mut list = api.get(&with_query("/api/v1/pods", [("fieldSelector", field.as_str())])).await?;
    Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

async fn tell_events(api: &Api, page: &mut Page, object: &Value) -> anyhow::Result<()> {
    let namespace = object["metadata"]["namespace"].as_str();
    let (rows, _) = events::list(api, namespace, Some(&events::about(object))).await?;
    let mut table = vec![["Type", "Reason", "Age", "From", "Message"].map(str::to_owned).to_vec()];
    table.extend(rows.iter().map(|row| {
        let message = row.cell("Message").replace('\n', " ");
        vec![row.cell("Type"), row.cell("Reason"), row.cell("Last Seen"), row.cell("Source"), message]
    }));
    page.table(0, "Events", &table);
    Ok(())
}

/// Name, namespace, labels and annotations.
fn identity(page: &mut Page, object: &Value) {
    let meta = &object["metadata"];
    page.field(0, "Name", scalar(&meta["name"]));
    page.field_if(0, "Namespace", &meta["namespace"]);
    page.list(0, "Labels", pairs(&meta["labels"], "="));
    let mut annotations = meta["annotations"].clone();
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    page.list(0, "Annotations", pairs(&annotations, ": "));
}

/// When it was made, and since when it is being deleted.
fn age(page: &mut Page, object: &Value) {
    let meta = &object["metadata"];
    page.field_if(0, "Creation Timestamp", &meta["creationTimestamp"]);
    page.field_if(0, "Deletion Timestamp", &meta["deletionTimestamp"]);
    if let Some(owner) =
        meta["ownerReferences"].as_array().into_iter().flatten().find(|o| o["controller"] == true)
    {
        page.field(0, "Controlled By", format!("{}/{}", scalar(&owner["kind"]), scalar(&owner["name"])));
    }
}

/// The entries of a map, each as one text.
fn pairs(map: &Value, between: &str) -> Vec<String> {
    let entries = map.as_object().into_iter().flatten();
    entries.map(|(key, value)| format!("{key}{between}{}", scalar(value))).collect()
}

/// `type`, `status` and why, of an object's conditions.
fn conditions(page: &mut Page, object: &Value) {
    let mut rows = vec![["Type", "Status", "Since", "Reason", "Message"].map(str::to_owned).to_vec()];
    let all = object["status"]["conditions"].as_array().into_iter().flatten();
    rows.extend(all.map(|condition| {
        ["type", "status", "lastTransitionTime", "reason", "message"]
            .map(|field| scalar(&condition[field]).replace('\n', " "))
            .to_vec()
    }));
    page.table(0, "Conditions", &rows);
}

/// Sizes instead of contents: what is printed is kept in terminals and tickets.
fn secret(page: &mut Page, object: &Value) {
    identity(page, object);
    page.field_if(0, "Type", &object["type"]);
    page.heading(0, "Data");
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
        page.field(1, key, format!("{} bytes", (text.len() / 4 * 3).saturating_sub(padding)));
    }
}

/// A kind without a page of its own: all that it holds.
fn anything(page: &mut Page, object: &Value) {
    identity(page, object);
    age(page, object);
    for (key, value) in object.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "metadata" | "kind" | "apiVersion") {
            page.tree(0, &page::in_words(key), value);
        }
    }
}
