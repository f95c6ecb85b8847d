//! `wctl events`.

use anyhow::{Context as _, bail};
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use http::Request;
use serde_json::Value;

use crate::api::{Api, unreachable};
use crate::events::{self, Row};
use crate::resource::{Resources, targets};
use crate::uri::with_query;
use crate::{Global, output};

#[derive(clap::Args)]
pub struct Options {
    /// Only those about one object
    #[arg(long = "for", value_name = "TYPE/NAME")]
    about: Option<String>,
    /// Only of these types, for example Warning
    #[arg(long, value_delimiter = ',', value_name = "TYPES")]
    types: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Then print each as it happens
    #[arg(short, long)]
    watch: bool,
    /// Leave the headings out
    #[arg(long)]
    no_headers: bool,
}

const COLUMNS: [&str; 5] = ["Last Seen", "Type", "Reason", "Object", "Message"];

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let namespace = (!options.all_namespaces).then_some(api.namespace.as_str());
    let fields = match &options.about {
        None => None,
        Some(what) => Some(about(&Resources::discover(&api).await?, what)?),
    };
    let (mut rows, version) = events::list(&api, namespace, fields.as_deref()).await?;
    rows.retain(|row| options.shows(row));
    if rows.is_empty() && !options.watch {
        eprintln!(
            "no events{}",
            namespace.map(|name| format!(" in the namespace {name:?}")).unwrap_or_default()
        );
        return Ok(());
    }
    let heading = options.cells("NAMESPACE", COLUMNS.map(str::to_uppercase).to_vec());
    let heading = (!options.no_headers).then_some(heading);
    let laid: Vec<_> = heading.into_iter().chain(rows.iter().map(|row| options.row(row))).collect();
    output::columns(&laid).iter().for_each(|line| output::line(line));
    if options.watch {
        watch(&api, namespace, fields.as_deref(), &version, &options).await?;
    }
    Ok(())
}

fn about(resources: &Resources, what: &str) -> anyhow::Result<String> {
    match targets(resources, &[what.to_owned()])?.as_slice() {
        [(resource, Some(name))] => {
            Ok(format!("involvedObject.kind={},involvedObject.name={name}", resource.kind))
        }
        _ => bail!("write --for TYPE/NAME, for example pod/web-0"),
    }
}

impl Options {
    fn shows(&self, row: &Row) -> bool {
        self.types.is_empty()
            || self.types.iter().any(|wanted| wanted.eq_ignore_ascii_case(&row.cell("Type")))
    }

    fn cells(&self, namespace: &str, cells: Vec<String>) -> Vec<String> {
        self.all_namespaces.then(|| namespace.to_owned()).into_iter().chain(cells).collect()
    }

    fn row(&self, row: &Row) -> Vec<String> {
        let namespace = row.event["metadata"]["namespace"].as_str().unwrap_or_default();
        self.cells(namespace, COLUMNS.map(|heading| row.cell(heading).replace('\n', " ")).to_vec())
    }
}

/// Prints events after `version`, until the server ends the watch.
async fn watch(
    api: &Api,
    namespace: Option<&str>,
    fields: Option<&str>,
    version: &str,
    options: &Options,
) -> anyhow::Result<()> {
    let asked = [("watch", "true"), ("includeObject", "Object"), ("resourceVersion", version)];
    let fields = fields.map(|fields| ("fieldSelector", fields));
    let path = with_query(&events::path(namespace), asked.into_iter().chain(fields));
    let request = Request::get(path).header("accept", events::AS_TABLE).body(Vec::new())?;
    let mut lines = std::pin::pin!(api.client.request_stream(request).await.map_err(unreachable)?.lines());
    let mut headings = Vec::new();
    while let Some(line) = lines.try_next().await? {
        let event: Value = serde_json::from_str(&line).context("the watch sent what is not JSON")?;
        let table = &event["object"];
        match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => {}
            Some("ERROR") => {
                bail!("the watch ended: {}", table["message"].as_str().unwrap_or("no reason given"))
            }
            _ => continue,
        }
        let named = events::headings(table);
        if !named.is_empty() {
            headings = named;
        }
        for row in events::rows(table, &headings).iter().filter(|row| options.shows(row)) {
            output::line(&options.row(row).join("   "));
        }
    }
    Ok(())
}
