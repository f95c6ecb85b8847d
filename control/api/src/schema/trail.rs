//! What a decoding walk keeps while it goes: where it is, and what it found wrong.

use serde_json::{Map, Value};

use super::decode::{DecodeError, Format, Validation};

/// As many faults are told at once, as in kube-apiserver.
const MAX_FAULTS: usize = 100;

/// What the walk finds besides the value.
#[derive(Default)]
pub(super) struct State {
    /// YAML 1.1 has more ways to write plain values.
    pub yaml: bool,
    /// In document order, as messages.
    faults: Vec<String>,
    /// The paths of unknown fields alone.
    pub unknown: Vec<String>,
    /// What ended the walk; the readers' own errors carry text alone, with a line number behind it.
    pub fatal: Option<String>,
}

impl State {
    pub fn of(format: Format) -> State {
        State { yaml: format == Format::Yaml, ..State::default() }
    }

    pub fn fault(&mut self, unknown: bool, path: String) {
        if self.faults.len() < MAX_FAULTS {
            let message = format!("{} field {path:?}", if unknown { "unknown" } else { "duplicate" });
            if !self.faults.contains(&message) {
                self.faults.push(message);
                if unknown {
                    self.unknown.push(path);
                }
            }
        }
    }

    pub fn outcome(&mut self, value: Result<Option<Value>, DecodeError>) -> Result<Value, DecodeError> {
        match (value, self.fatal.take()) {
            (_, Some(fatal)) => Err(DecodeError::Type(fatal)),
            (Ok(value), None) => Ok(value.unwrap_or_else(|| Value::Object(Map::new()))),
            (Err(error), None) => Err(error),
        }
    }

    pub fn finish(self, value: Value, validation: Validation) -> Result<(Value, Vec<String>), DecodeError> {
        match validation {
            Validation::Strict if !self.faults.is_empty() => Err(DecodeError::Strict(self.faults)),
            Validation::Warn => Ok((value, self.faults)),
            Validation::Strict | Validation::Ignore => Ok((value, Vec::new())),
        }
    }
}

/// Where the walk is: a list on the stack, so that a path costs nothing until a message needs it.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    pub parent: Option<&'a Path<'a>>,
    pub step: Step<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum Step<'a> {
    Root,
    Field(&'a str),
    Key(&'a str),
    Item(usize),
}

impl Path<'_> {
    /// `spec.containers[0].image`, or without what is in lists and maps, as encoding/json prints it.
    pub fn print(&self, items: bool) -> String {
        let mut out = self.parent.map(|parent| parent.print(items)).unwrap_or_default();
        match self.step {
            Step::Root => {}
            Step::Key(_) if !items => {}
            Step::Field(name) | Step::Key(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Step::Item(at) if items => out.push_str(&format!("[{at}]")),
            Step::Item(_) => {}
        }
        out
    }
}
