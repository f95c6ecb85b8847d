//! The types of the served kinds, as OpenAPI schemas.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::Dialect;
use crate::discovery;
use crate::kinds::Kind;
use crate::schema::{Field, ListType, Schema, Shape, Type};

/// What Kubernetes says about types and fields: type -> field -> text, the field `""` for the type itself.
pub type Texts = HashMap<String, HashMap<String, String>>;

/// Made by `control/api/schema/describe.py`.
const DESCRIPTIONS: &[u8] = include_bytes!("../../schema/descriptions.json.gz");
/// Made by `control/api/schema/enumerate.py`.
const ENUMERATIONS: &str = include_str!("../../schema/enumerations.txt");
/// Types that every group version's operations speak of.
const EVERYWHERE: [&str; 2] = ["meta.v1.DeleteOptions", "meta.v1.Status"];
/// Shapes that are types of their own in OpenAPI, with their short names.
const QUANTITY: &str = "api.resource.Quantity";
const INT_OR_STRING: &str = "util.intstr.IntOrString";
const TIME: &str = "meta.v1.Time";
const MICRO_TIME: &str = "meta.v1.MicroTime";
/// The body of a patch, whatever its kind.
pub const PATCH: &str = "meta.v1.Patch";

/// Unpacks the descriptions, which are wanted only while documents are made.
pub fn descriptions() -> Texts {
    let reader = flate2::read::GzDecoder::new(DESCRIPTIONS);
    serde_json::from_reader(reader).expect("descriptions.json.gz is part of the build and read by a test")
}

/// The values that Kubernetes names for fields, by type and field.
fn enumerations() -> HashMap<(&'static str, &'static str), Vec<&'static str>> {
    let lines = ENUMERATIONS.lines().filter(|line| !line.starts_with('#'));
    let told = lines.filter_map(|line| {
        let (ty, rest) = line.split_once(' ')?;
        let (field, values) = rest.split_once(' ')?;
        Some(((ty, field), values.split('|').collect()))
    });
    told.collect()
}

/// The name that OpenAPI knows a type by: `io.k8s.api.apps.v1.Deployment`.
pub fn full_name(short: &str) -> String {
    let home = match short.split('.').next().unwrap_or_default() {
        "meta" => "io.k8s.apimachinery.pkg.apis",
        "metrics" => "io.k8s.metrics.pkg.apis",
        "api" | "runtime" | "util" | "version" => "io.k8s.apimachinery.pkg",
        "apiextensions" => "io.k8s.apiextensions-apiserver.pkg.apis",
        "apiregistration" => "io.k8s.kube-aggregator.pkg.apis",
        _ => "io.k8s.api",
    };
    format!("{home}.{short}")
}

/// A reference to a type by its short name.
pub fn reference(dialect: Dialect, short: &str) -> Value {
    let home = match dialect {
        Dialect::V2 => "#/definitions/",
        Dialect::V3 => "#/components/schemas/",
    };
    json!({"$ref": format!("{home}{}", full_name(short))})
}

/// The types of these kinds, their lists and what their operations speak of, with all they lead to.
pub fn of(dialect: Dialect, kinds: &[&Kind], texts: &Texts) -> Value {
    let schema = Schema::get();
    let mut found = Collector { dialect, texts, values: enumerations(), schemas: BTreeMap::new() };
    for kind in kinds {
        found.add(kind.ty());
        let list = schema.kind(&kind.group, &kind.version, &format!("{}List", kind.kind));
        let spoken = kind.subresources.iter().filter_map(|sub| {
            let (_, group, version, name) = discovery::subresource(kind, *sub);
            schema.kind(&group, &version, &name)
        });
        list.into_iter().chain(spoken).for_each(|ty| found.add(ty));
    }
    EVERYWHERE.iter().filter_map(|name| schema.named(name)).for_each(|ty| found.add(ty));
    found.leaf(PATCH, json!({"type": "object"}));
    json!(found.schemas)
}

struct Collector<'a> {
    dialect: Dialect,
    texts: &'a Texts,
    values: HashMap<(&'static str, &'static str), Vec<&'static str>>,
    /// By full name.
    schemas: BTreeMap<String, Value>,
}

impl Collector<'_> {
    fn text(&self, ty: &str, field: &str) -> Option<&str> {
        self.texts.get(ty)?.get(field).map(String::as_str)
    }

    /// Adds a type and all it leads to.
    fn add(&mut self, ty: Type) {
        let full = full_name(ty.name());
        if self.schemas.contains_key(&full) {
            return;
        }
        // Types hold themselves at times: this one is known from here on.
        self.schemas.insert(full.clone(), Value::Null);
        let mut schema = Map::from_iter([("type".to_owned(), json!("object"))]);
        if let Some(text) = self.text(ty.name(), "") {
            schema.insert("description".to_owned(), text.into());
        }
        let properties: Map<String, Value> =
            ty.fields().iter().map(|field| (field.name.to_owned(), self.field(ty, field))).collect();
        if !properties.is_empty() {
            schema.insert("properties".to_owned(), properties.into());
        }
        let required: Vec<&str> =
            ty.fields().iter().filter(|field| field.required).map(|field| field.name).collect();
        if !required.is_empty() {
            schema.insert("required".to_owned(), json!(required));
        }
        if ty.is_atomic() {
            schema.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
        let kinds: Vec<Value> = ty
            .kinds()
            .iter()
            .map(|gvk| json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind}))
            .collect();
        if !kinds.is_empty() {
            schema.insert("x-kubernetes-group-version-kind".to_owned(), kinds.into());
        }
        self.schemas.insert(full, schema.into());
    }

    fn field(&mut self, ty: Type, field: &'static Field) -> Value {
        let shape = self.shape(&field.shape);
        let mut schema = match shape {
            Value::Object(own) => own,
            _ => Map::new(),
        };
        // In version 3 nothing may stand beside a reference.
        if self.dialect == Dialect::V3 && schema.contains_key("$ref") {
            schema = Map::from_iter([("allOf".to_owned(), json!([schema]))]);
        }
        if let Some(text) = self.text(ty.name(), field.name) {
            schema.insert("description".to_owned(), text.into());
        }
        if let Some(default) = &field.default {
            schema.insert("default".to_owned(), default.clone());
        }
        if let Some(values) = self.values.get(&(ty.name(), field.name)) {
            // Of a list they are its items'.
            match schema.get_mut("items") {
                Some(items) => items["enum"] = json!(values),
                None => drop(schema.insert("enum".to_owned(), json!(values))),
            }
        }
        let merges = field.patch.merge.is_some();
        let list = match (&field.shape, &field.list) {
            (Shape::List(_), ListType::Map(keys)) => {
                schema.insert("x-kubernetes-list-map-keys".to_owned(), json!(keys));
                Some("map")
            }
            (Shape::List(_), ListType::Set) => Some("set"),
            (Shape::List(_), ListType::Atomic) if !merges => Some("atomic"),
            _ => None,
        };
        if let Some(list) = list {
            schema.insert("x-kubernetes-list-type".to_owned(), list.into());
        }
        if let Some(granular) = field.granular() {
            let type_ = if granular { "granular" } else { "atomic" };
            schema.insert("x-kubernetes-map-type".to_owned(), type_.into());
        }
        let strategies =
            [(merges, "merge"), (field.patch.retain_keys, "retainKeys"), (field.patch.replace, "replace")];
        let strategies: Vec<&str> = strategies.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
        if !strategies.is_empty() {
            schema.insert("x-kubernetes-patch-strategy".to_owned(), strategies.join(",").into());
        }
        if let Some(key) = field.patch.merge.filter(|key| !key.is_empty()) {
            schema.insert("x-kubernetes-patch-merge-key".to_owned(), key.into());
        }
        schema.into()
    }

    fn shape(&mut self, shape: &'static Shape) -> Value {
        match shape {
            Shape::String => json!({"type": "string"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Double => json!({"type": "number", "format": "double"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Quantity => {
                self.either(QUANTITY, json!({"oneOf": [{"type": "string"}, {"type": "number"}]}))
            }
            Shape::IntOrString => {
                let either =
                    json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]});
                self.either(INT_OR_STRING, either)
            }
            Shape::Time => self.leaf(TIME, json!({"type": "string", "format": "date-time"})),
            Shape::MicroTime => self.leaf(MICRO_TIME, json!({"type": "string", "format": "date-time"})),
            Shape::Any => json!({}),
            Shape::Object => json!({"type": "object"}),
            Shape::Struct(_) => match shape.as_type() {
                Some(ty) => {
                    self.add(ty);
                    reference(self.dialect, ty.name())
                }
                None => json!({}),
            },
            Shape::List(item) => json!({"type": "array", "items": self.shape(item)}),
            Shape::Map(item) => json!({"type": "object", "additionalProperties": self.shape(item)}),
        }
    }

    /// A type that is one of two scalars; version 2 has no word for that and says string.
    fn either(&mut self, short: &str, v3: Value) -> Value {
        let schema = match (self.dialect, v3.get("format").cloned()) {
            (Dialect::V3, _) => v3,
            (Dialect::V2, Some(format)) => json!({"type": "string", "format": format}),
            (Dialect::V2, None) => json!({"type": "string"}),
        };
        self.leaf(short, schema)
    }

    /// A named type without fields.
    fn leaf(&mut self, short: &str, mut schema: Value) -> Value {
        if let Some(text) = self.text(short, "") {
            schema["description"] = text.into();
        }
        self.schemas.insert(full_name(short), schema);
        reference(self.dialect, short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_enumeration_is_of_a_field_that_there_is() {
        let all = enumerations();
        assert!(all.len() > 100, "{}", all.len());
        for ((name, field), values) in all {
            let ty = Schema::get().named(name).unwrap_or_else(|| panic!("there is no type {name}"));
            let found = ty.fields().iter().find(|known| known.name == field);
            let found = found.unwrap_or_else(|| panic!("{name} has no {field}"));
            assert!(!matches!(found.shape, Shape::Struct(_)), "{name}.{field} is no text");
            assert!(values.iter().all(|value| !value.is_empty()), "{name}.{field}");
        }
    }
}
