//! Selection by fields.

use std::fmt;
use std::str::FromStr;

use super::{Error, error};

/// A selection of objects by some of their fields. The default selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

/// One condition on one field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldTerm {
    /// As written: `spec.nodeName`.
    pub field: String,
    /// Whether the field is to have the value, or not to have it.
    pub equal: bool,
    pub value: String,
}

impl FieldSelector {
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that the field must have, if the selector says so: `metadata.name=x` is one object.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }

    /// `value` gives a field's text; a field that is not there is the empty text.
    pub fn matches_with<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|term| (value(&term.field).unwrap_or_default() == term.value) == term.equal)
    }
}

impl FromStr for FieldSelector {
    type Err = Error;

    /// From `a=b,c==d,e!=f`; `\` takes the meaning from a following `\`, `,` or `=`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let refused = || Error(format!("invalid selector: '{text}'; can't understand '{part}'"));
            let (field, equal, value) = split_term(part).ok_or_else(refused)?;
            terms.push(FieldTerm { field: field.to_owned(), equal, value: unescaped(value)? });
        }
        Ok(Self { terms })
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, term) in self.terms.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            let sign = if term.equal { "=" } else { "!=" };
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(out, "{comma}{}{sign}{value}", term.field)?;
        }
        Ok(())
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                parts.push(&text[start..place]);
                start = place + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_term(part: &str) -> Option<(&str, bool, &str)> {
    for place in 0..part.len() {
        let Some(rest) = part.get(place..) else { continue };
        for (sign, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(sign) {
                return Some((&part[..place], equal, value));
            }
        }
    }
    None
}

fn unescaped(text: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = ['\\'].into_iter().chain(other).collect();
                    return error(format!("invalid field selector: invalid escape sequence: {sequence}"));
                }
            },
            ',' | '=' => {
                return error(format!("invalid field selector: unescaped character in value: {c}"));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn field_selectors_match_and_unescape() {
        let field = |name: &str| match name {
            "spec.nodeName" => Some("n1"),
            "x" => Some("a,b=c"),
            _ => None,
        };
        for (text, expected) in [
            ("", true),
            ("spec.nodeName=n1", true),
            ("spec.nodeName==n1,x!=q", true),
            ("spec.nodeName!=n1", false),
            ("missing=", true),
            ("x=a\\,b\\=c", true),
            (",,spec.nodeName=n1", true),
        ] {
            let selector: FieldSelector = text.parse().unwrap();
            assert_eq!(selector.matches_with(field), expected, "{text}");
        }
        let parsed: FieldSelector = "metadata.name=a,b!=c".parse().unwrap();
        assert_eq!(parsed.exact("metadata.name"), Some("a"));
        assert_eq!(parsed.exact("b"), None);
    }

    #[test]
    fn bad_field_selectors_are_refused_in_kubernetes_words() {
        for (text, message) in [
            ("a", "invalid selector: 'a'; can't understand 'a'"),
            ("a=b,c", "invalid selector: 'a=b,c'; can't understand 'c'"),
            ("a=b=c", "invalid field selector: unescaped character in value: ="),
            ("a=\\x", "invalid field selector: invalid escape sequence: \\x"),
        ] {
            assert_eq!(text.parse::<FieldSelector>().unwrap_err().to_string(), message, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = text.parse::<FieldSelector>();
        }

        #[test]
        fn field_values_survive_printing(value in "\\PC{0,12}") {
            let selector = FieldSelector { terms: vec![FieldTerm { field: "f".into(), equal: true, value }] };
            prop_assert_eq!(selector.to_string().parse::<FieldSelector>().unwrap(), selector);
        }
    }
}
