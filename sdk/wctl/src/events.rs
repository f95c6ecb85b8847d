//! Events as the cluster's own table shows them, oldest first.

use http::Method;
use serde_json::Value;

use crate::api::Api;
use crate::uri::with_query;

/// Asks for rows whose objects come whole, for what is not in a column.
pub const AS_TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// One event.
pub struct Row {
    /// Of the object, with its metadata.
    pub event: Value,
    cells: Vec<(String, String)>,
}

impl Row {
    /// The cell of the column with this heading, empty if there is none.
    pub fn cell(&self, heading: &str) -> String {
        let found = self.cells.iter().find(|(name, _)| name == heading);
        found.map(|(_, cell)| cell.clone()).unwrap_or_default()
    }

    fn last_seen(&self) -> &str {
        let times =
            ["/lastTimestamp", "/series/lastObservedTime", "/eventTime", "/metadata/creationTimestamp"];
        times.iter().find_map(|at| self.event.pointer(at).and_then(Value::as_str)).unwrap_or_default()
    }
}

/// Of a namespace or, without one, of all; and the revision to watch on from.
pub async fn list(
    api: &Api,
    namespace: Option<&str>,
    fields: Option<&str>,
) -> anyhow::Result<(Vec<Row>, String)> {
    let path = path(namespace);
    let selector = fields.map(|fields| ("fieldSelector", fields));
    let path = with_query(&path, [("includeObject", "Object")].into_iter().chain(selector));
    let table = api.call(Method::GET, &path, &[("accept", AS_TABLE)], Vec::new()).await?;
    let mut rows = rows(&table, &headings(&table));
    rows.sort_by(|a, b| a.last_seen().cmp(b.last_seen()));
    Ok((rows, table["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()))
}

/// Where a namespace's events, or all, are.
pub fn path(namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("/api/v1/namespaces/{}/events", crate::uri::segment(namespace)),
        None => "/api/v1/events".to_owned(),
    }
}

/// The headings of a table's columns. A watch sends them with its first event alone.
pub fn headings(table: &Value) -> Vec<String> {
    let columns = table["columnDefinitions"].as_array().into_iter().flatten();
    columns.map(|column| column["name"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The rows of a table that has these columns.
pub fn rows(table: &Value, headings: &[String]) -> Vec<Row> {
    let rows = table["rows"].as_array().into_iter().flatten();
    rows.map(|row| {
        let cells = row["cells"].as_array().into_iter().flatten().map(|cell| match cell {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        Row { event: row["object"].clone(), cells: headings.iter().cloned().zip(cells).collect() }
    })
    .collect()
}

/// The field selector of the events about one object.
pub fn about(object: &Value) -> String {
    let meta = &object["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    // The events of a Node bear its name as uid, as the kubelet writes them.
    let mut fields = vec![format!("involvedObject.name={}", text(&meta["name"]))];
    fields.push(format!("involvedObject.kind={}", text(&object["kind"])));
    if object["kind"] != "Node" {
        fields.push(format!("involvedObject.uid={}", text(&meta["uid"])));
    }
    fields.join(",")
}
