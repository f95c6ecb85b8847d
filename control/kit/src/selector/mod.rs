//! Label and field selectors: parse from both of their forms, match, print.
//!
//! Errors carry the texts that Kubernetes' own parser gives, since clients show them.

mod field;
mod label;
mod parse;
mod syntax;

pub use field::{FieldSelector, FieldTerm};
pub use label::{LabelSelector, Operator, Requirement};
pub use syntax::{label_value_problem, qualified_name_problem};

/// Why a text or an object is no selector, in Kubernetes' words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

fn error<T>(text: impl Into<String>) -> Result<T, Error> {
    Err(Error(text.into()))
}
