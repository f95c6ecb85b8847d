//! `wctl get`: objects as tables or whole.

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use http::Request;
use serde_json::{Value, json};

use crate::Global;
use crate::api::{Api, unreachable};
use crate::output;
use crate::resource::{Resource, Resources, name_of, targets};
use crate::uri::with_query;

#[derive(clap::Args)]
pub struct Options {
    /// `pods`, `pods NAME`, `pod/NAME`, `deployments,pods`, `all`
    #[arg(required = true, value_name = "TYPE[/NAME]")]
    what: Vec<String>,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    /// Then print every change
    #[arg(short, long)]
    watch: bool,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels, for example app=web,tier!=db
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Only objects with these fields, for example status.phase=Running
    #[arg(long, value_name = "FIELDS")]
    field_selector: Option<String>,
    /// Leave the headings out
    #[arg(long)]
    no_headers: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Yaml,
    Json,
    Wide,
    Name,
}

const AS_TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let resources = Resources::discover(&api).await?;
    let targets = targets(&resources, &options.what)?;
    if options.watch && targets.len() > 1 {
        bail!("watch one type or one object at a time");
    }
    match options.output {
        Some(Format::Yaml | Format::Json) if !options.watch => whole(&api, &targets, &options).await,
        _ => tables(&api, &targets, &options).await,
    }
}

fn path(api: &Api, resource: &Resource, name: Option<&str>, options: &Options) -> anyhow::Result<String> {
    let namespace = (!options.all_namespaces).then_some(api.namespace.as_str());
    if let Some(name) = name {
        if options.all_namespaces && resource.namespaced {
            bail!("a name needs one namespace; leave --all-namespaces out");
        }
        return Ok(resource.object(&api.namespace, name));
    }
    let selectors = [("labelSelector", &options.selector), ("fieldSelector", &options.field_selector)];
    let given = selectors.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)));
    Ok(with_query(&resource.path(namespace), given))
}

async fn whole(api: &Api, targets: &[(&Resource, Option<String>)], options: &Options) -> anyhow::Result<()> {
    let mut objects = Vec::new();
    let mut single = targets.len() == 1;
    for (resource, name) in targets {
        let mut answer = api.get(&path(api, resource, name.as_deref(), options)?).await?;
        if name.is_some() {
            objects.push(answer);
            continue;
        }
        single = false;
        let Some(items) = answer["items"].as_array_mut() else { continue };
        for mut item in items.drain(..) {
            // A list says it once, a single object has it itself.
            item["apiVersion"] = resource.api_version().into();
            item["kind"] = resource.kind.clone().into();
            objects.push(item);
        }
    }
    let mut out = match single {
        true => objects.remove(0),
        false => json!({"apiVersion": "v1", "kind": "List", "items": objects}),
    };
    strip_managed_fields(&mut out);
    let text = match options.output {
        Some(Format::Yaml) => serde_yaml::to_string(&out)?,
        _ => serde_json::to_string_pretty(&out)?,
    };
    output::line(text.trim_end());
    Ok(())
}

/// Who owns which field is for machines, as in kubectl.
pub fn strip_managed_fields(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(strip_managed_fields);
    }
}

async fn tables(api: &Api, targets: &[(&Resource, Option<String>)], options: &Options) -> anyhow::Result<()> {
    let several = targets.len() > 1;
    // Names of one type make one table.
    let mut groups: Vec<(&Resource, Vec<Value>)> = Vec::new();
    for (resource, name) in targets {
        let path = path(api, resource, name.as_deref(), options)?;
        let (_, body) =
            api.send(http::Method::GET, &path, &[("accept", AS_TABLE)], kube::client::Body::empty()).await?;
        let table: Value = serde_json::from_slice(&body.collect_bytes().await?)?;
        match groups.last_mut() {
            Some((last, tables)) if last == resource => tables.push(table),
            _ => groups.push((resource, vec![table])),
        }
    }
    let mut empty = true;
    let mut version = String::new();
    let mut layout = Layout::default();
    for (resource, tables) in &groups {
        layout = Layout::new(&tables[0], resource, options, several);
        let rows: Vec<_> =
            tables.iter().flat_map(|table| table["rows"].as_array().into_iter().flatten()).collect();
        version = tables[0]["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        if rows.is_empty() {
            continue;
        }
        if !empty && options.output != Some(Format::Name) {
            output::line("");
        }
        empty = false;
        layout.print(&rows, resource, options);
    }
    if empty && !options.watch {
        let place = if options.all_namespaces {
            String::new()
        } else {
            format!(" in the namespace {:?}", api.namespace)
        };
        eprintln!("none found{place}");
    }
    if let (true, [(resource, name)]) = (options.watch, targets) {
        watch(api, resource, name.as_deref(), &version, layout, options).await?;
    }
    Ok(())
}

/// Prints every change as a row, for ever.
async fn watch(
    api: &Api,
    resource: &Resource,
    name: Option<&str>,
    version: &str,
    mut layout: Layout,
    options: &Options,
) -> anyhow::Result<()> {
    let path = match name {
        Some(name) => resource.list_of(&api.namespace, name),
        None => path(api, resource, None, options)?,
    };
    let path = with_query(&path, [("watch", "true"), ("resourceVersion", version)]);
    let request = Request::get(path).header("accept", AS_TABLE).body(Vec::new())?;
    let mut lines = std::pin::pin!(api.client.request_stream(request).await.map_err(unreachable)?.lines());
    layout.header = false;
    while let Some(line) = lines.try_next().await? {
        let event: Value = serde_json::from_str(&line).context("the watch sent what is not JSON")?;
        if event["type"] == "ERROR" {
            bail!("the watch ended: {}", event["object"]["message"].as_str().unwrap_or("no reason given"));
        }
        let rows: Vec<_> = event["object"]["rows"].as_array().into_iter().flatten().collect();
        layout.print(&rows, resource, options);
    }
    Ok(())
}

/// Which columns are shown.
#[derive(Default)]
struct Layout {
    /// Positions and headings.
    columns: Vec<(usize, String)>,
    header: bool,
    namespace: bool,
    /// Names are written TYPE/NAME.
    with_type: bool,
}

impl Layout {
    fn new(table: &Value, resource: &Resource, options: &Options, with_type: bool) -> Self {
        let definitions = table["columnDefinitions"].as_array().cloned().unwrap_or_default();
        let shown = |column: &Value| {
            options.output == Some(Format::Wide) || column["priority"].as_i64().unwrap_or(0) == 0
        };
        let heading = |column: &Value| column["name"].as_str().unwrap_or_default().to_uppercase();
        Self {
            columns: definitions
                .iter()
                .enumerate()
                .filter(|(_, c)| shown(c))
                .map(|(n, c)| (n, heading(c)))
                .collect(),
            header: !options.no_headers,
            namespace: options.all_namespaces && resource.namespaced,
            with_type,
        }
    }

    fn print(&self, rows: &[&Value], resource: &Resource, options: &Options) {
        if options.output == Some(Format::Name) {
            rows.iter()
                .for_each(|row| output::line(&format!("{}/{}", resource.name(), name_of(&row["object"]))));
            return;
        }
        if matches!(options.output, Some(Format::Json | Format::Yaml)) {
            rows.iter().for_each(|row| output::line(&row["object"].to_string()));
            return;
        }
        let mut laid = Vec::new();
        if self.header {
            let namespace = self.namespace.then(|| "NAMESPACE".to_owned());
            laid.push(
                namespace.into_iter().chain(self.columns.iter().map(|(_, name)| name.clone())).collect(),
            );
        }
        for row in rows {
            let namespace = row["object"]["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
            let cells = self.columns.iter().map(|(n, heading)| {
                let cell = match &row["cells"][n] {
                    Value::String(text) => text.clone(),
                    Value::Null => "<none>".to_owned(),
                    other => other.to_string(),
                };
                if self.with_type && heading == "NAME" { format!("{}/{cell}", resource.name()) } else { cell }
            });
            laid.push(self.namespace.then_some(namespace).into_iter().chain(cells).collect());
        }
        output::columns(&laid).iter().for_each(|row| output::line(row));
    }
}
