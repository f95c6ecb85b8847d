//! `wctl explain`: what the fields of a kind are for, from the cluster's own OpenAPI v3.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::api::Api;
use crate::resource::{Resource, Resources};
use crate::{Global, output};

#[derive(clap::Args)]
pub struct Options {
    /// A type and fields of it, for example deployment.spec.strategy
    #[arg(value_name = "TYPE[.FIELD…]")]
    what: String,
    /// All fields below too, by name
    #[arg(long)]
    recursive: bool,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let resources = Resources::discover(&api).await?;
    let (resource, fields) = parse(&resources, &options.what)?;
    let index = api.get("/openapi/v3").await?;
    let group_version = match resource.group.as_str() {
        "" => format!("api/{}", resource.version),
        group => format!("apis/{group}/{}", resource.version),
    };
    let url = index["paths"][&group_version]["serverRelativeURL"]
        .as_str()
        .with_context(|| format!("the cluster describes nothing of {group_version}"))?;
    let document = api.get(url).await?;
    output::line(
        Explained { schemas: &document["components"]["schemas"] }
            .page(resource, &fields, options.recursive)?
            .trim_end(),
    );
    Ok(())
}

/// `deployments.apps.spec` may name the group; what is left are fields.
fn parse<'a>(resources: &'a Resources, what: &str) -> anyhow::Result<(&'a Resource, Vec<String>)> {
    let words: Vec<&str> = what.split('.').collect();
    let longest = (1..=words.len()).rev().find_map(|end| {
        let named = resources.named(&words[..end].join(".")).ok()?;
        let [resource] = named[..] else { return None };
        Some((resource, end))
    });
    let Some((resource, end)) = longest else {
        resources.named(words[0])?;
        bail!("{:?} means several types; name one", words[0]);
    };
    let fields = words[end..].iter().filter(|word| !word.is_empty()).map(|word| (*word).to_owned());
    Ok((resource, fields.collect()))
}

/// The schemas of one group and version.
struct Explained<'a> {
    schemas: &'a Value,
}

impl<'a> Explained<'a> {
    fn page(&self, resource: &Resource, fields: &[String], recursive: bool) -> anyhow::Result<String> {
        let root = self.schemas.as_object().into_iter().flatten().map(|(_, schema)| schema).find(|schema| {
            let kinds = schema["x-kubernetes-group-version-kind"].as_array();
            kinds.into_iter().flatten().any(|kind| {
                kind["group"] == resource.group.as_str()
                    && kind["version"] == resource.version.as_str()
                    && kind["kind"] == resource.kind.as_str()
            })
        });
        let mut schema = root.with_context(|| format!("the cluster does not describe {}", resource.kind))?;
        let mut described = schema;
        for (nth, field) in fields.iter().enumerate() {
            let Some(found) = self.inside(schema)["properties"].get(field) else {
                let at = [resource.plural.clone()].into_iter().chain(fields[..nth].iter().cloned());
                bail!("{} has no field {field:?}", at.collect::<Vec<_>>().join("."));
            };
            schema = found;
            described = found;
        }

        let mut page = String::new();
        if !resource.group.is_empty() {
            let _ = writeln!(page, "GROUP:      {}", resource.group);
        }
        let _ = writeln!(page, "KIND:       {}\nVERSION:    {}\n", resource.kind, resource.version);
        if let Some(last) = fields.last() {
            let _ = writeln!(page, "FIELD: {last} <{}>\n", self.type_of(schema));
        }
        page.push_str("DESCRIPTION:\n");
        let text = described["description"].as_str().or_else(|| self.inside(schema)["description"].as_str());
        wrap(&mut page, text.unwrap_or("<empty>"), 4);
        let below = self.inside(schema);
        if below["properties"].is_object() {
            page.push_str("\nFIELDS:\n");
            self.fields(&mut page, below, recursive, &mut Vec::new());
        }
        Ok(page)
    }

    fn fields(&self, page: &mut String, schema: &'a Value, recursive: bool, above: &mut Vec<*const Value>) {
        let required = schema["required"].as_array();
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let mark = match required.into_iter().flatten().any(|required| required == name.as_str()) {
                true => " -required-",
                false => "",
            };
            let indent = 2 * (above.len() + 1);
            let _ = writeln!(page, "{:indent$}{name}\t<{}>{mark}", "", self.type_of(field));
            if recursive {
                let below = self.inside(field);
                // Some types hold themselves.
                if below["properties"].is_object() && !above.contains(&std::ptr::from_ref(below)) {
                    above.push(std::ptr::from_ref(below));
                    self.fields(page, below, recursive, above);
                    above.pop();
                }
            } else {
                let text =
                    field["description"].as_str().or_else(|| self.inside(field)["description"].as_str());
                wrap(page, text.unwrap_or("<no description>"), 4);
                page.push('\n');
            }
        }
    }

    /// What `$ref` stands for; also as the only part of `allOf`, where a default or description stands beside it.
    fn resolve(&self, schema: &'a Value) -> (&'a Value, Option<&'a str>) {
        let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
        match reference.and_then(|path| path.rsplit('/').next()) {
            Some(name) => (&self.schemas[name], name.rsplit('.').next()),
            None => (schema, None),
        }
    }

    /// The schema whose properties a field's own fields are: the element's of a list or map.
    fn inside(&self, schema: &'a Value) -> &'a Value {
        let (schema, _) = self.resolve(schema);
        match ["items", "additionalProperties"].iter().find(|inner| schema[**inner].is_object()) {
            Some(inner) => self.inside(&schema[*inner]),
            None => schema,
        }
    }

    /// As kubectl writes it: `string`, `[]Container`, `map[string]string`.
    fn type_of(&self, schema: &'a Value) -> String {
        let (resolved, name) = self.resolve(schema);
        if resolved["items"].is_object() {
            return format!("[]{}", self.type_of(&resolved["items"]));
        }
        if resolved["additionalProperties"].is_object() {
            return format!("map[string]{}", self.type_of(&resolved["additionalProperties"]));
        }
        match (name, resolved["type"].as_str()) {
            // A named scalar, such as Time and Quantity, is told by its name as well.
            (Some(name), _) => name.to_owned(),
            (None, Some("object") | None) => "Object".to_owned(),
            (None, Some(type_)) => type_.to_owned(),
        }
    }
}

/// Lays a text out in lines of 80.
fn wrap(page: &mut String, text: &str, indent: usize) {
    for paragraph in text.lines() {
        let mut width = 0;
        for word in paragraph.split_whitespace() {
            if width == 0 || width + 1 + word.len() > 80 - indent {
                let start = if width == 0 { "" } else { "\n" };
                let _ = write!(page, "{start}{:indent$}{word}", "");
                width = word.len();
            } else {
                let _ = write!(page, " {word}");
                width += 1 + word.len();
            }
        }
        page.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resource() -> Resource {
        Resource {
            group: "apps".into(),
            version: "v1".into(),
            kind: "Thing".into(),
            plural: "things".into(),
            singular: "thing".into(),
            short_names: vec![],
            categories: vec![],
            namespaced: true,
        }
    }

    fn schemas() -> Value {
        json!({
            "a.v1.Thing": {"description": "A thing.", "type": "object",
                "x-kubernetes-group-version-kind": [{"group": "apps", "version": "v1", "kind": "Thing"}],
                "properties": {"spec": {"allOf": [{"$ref": "#/components/schemas/a.v1.Spec"}], "default": {}}}},
            "a.v1.Spec": {"description": "What is wanted.", "type": "object", "required": ["parts"], "properties": {
                "labels": {"type": "object", "additionalProperties": {"type": "string"}, "description": "Marks."},
                "parts": {"type": "array", "items": {"$ref": "#/components/schemas/a.v1.Part"}}}},
            "a.v1.Part": {"description": "A part.", "type": "object", "properties": {
                "inner": {"$ref": "#/components/schemas/a.v1.Part"}, "size": {"type": "integer"}}},
        })
    }

    #[test]
    fn a_field_is_told_with_its_type_and_its_own_fields() {
        let schemas = schemas();
        let page = Explained { schemas: &schemas }.page(&resource(), &["spec".into()], false).unwrap();
        assert_eq!(
            page,
            "GROUP:      apps\nKIND:       Thing\nVERSION:    v1\n\nFIELD: spec <Spec>\n\nDESCRIPTION:\n    What is wanted.\n\n\
             FIELDS:\n  labels\t<map[string]string>\n    Marks.\n\n  parts\t<[]Part> -required-\n    A part.\n\n"
        );
    }

    #[test]
    fn what_holds_itself_is_told_once() {
        let schemas = schemas();
        let page = Explained { schemas: &schemas }.page(&resource(), &[], true).unwrap();
        let fields = page.split("FIELDS:\n").nth(1).unwrap();
        assert_eq!(
            fields,
            "  spec\t<Spec>\n    labels\t<map[string]string>\n    parts\t<[]Part> -required-\n      inner\t<Part>\n      size\t<integer>\n"
        );
    }

    #[test]
    fn a_field_that_is_not_there_is_told_with_its_place() {
        let schemas = schemas();
        let fields = ["spec".to_owned(), "part".to_owned()];
        let error = Explained { schemas: &schemas }.page(&resource(), &fields, false).unwrap_err();
        assert_eq!(error.to_string(), "things.spec has no field \"part\"");
    }
}
