//! What the module promises beyond the written apply cases.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

mod cases;
mod decoding;
mod defaults;
mod managers;
mod patches;
mod properties;
mod the_schema;

fn ty(group: &str, kind: &str) -> Type {
    Schema::get().kind(group, "v1", kind).expect("a kind of the schema")
}

fn deployment() -> Type {
    ty("apps", "Deployment")
}

fn error(object: Value, ty: Type) -> String {
    decode(object.to_string().as_bytes(), Format::Json, ty, Validation::Strict)
        .expect_err("malformed")
        .to_string()
}

fn pod_with(container: Value) -> Value {
    json!({"spec": {"containers": [container]}})
}
