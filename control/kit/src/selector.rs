//! Label and field selectors: parse from both of their forms, match, print.
//!
//! Errors carry the texts that Kubernetes' own parser gives, since clients show them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Why a text or an object is no selector, in Kubernetes' words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

fn error<T>(text: impl Into<String>) -> Result<T, Error> {
    Err(Error(text.into()))
}

/// How a requirement compares a label with its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    /// As an integer; node affinity and the string form know it.
    Gt,
    Lt,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    #[serde(default, deserialize_with = "crate::view::or_default")]
    pub values: Vec<String>,
}

impl Requirement {
    /// Checks key and values as the API does.
    pub fn new(key: impl Into<String>, operator: Operator, values: Vec<String>) -> Result<Self, Error> {
        let made = Self { key: key.into(), operator, values };
        made.validate()?;
        Ok(made)
    }

    fn validate(&self) -> Result<(), Error> {
        validate_key(&self.key)?;
        let count = self.values.len();
        match self.operator {
            Operator::In | Operator::NotIn if count == 0 => {
                return error(
                    "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
                );
            }
            Operator::Exists | Operator::DoesNotExist if count > 0 => {
                let values = self.values.join("\",\"");
                return error(format!(
                    "values: Invalid value: [\"{values}\"]: values set must be empty for exists and does not exist"
                ));
            }
            Operator::Gt | Operator::Lt => {
                let [value] = self.values.as_slice() else {
                    return error(
                        "values: Invalid value: []: for 'Gt', 'Lt' operators, exactly one value is required",
                    );
                };
                if value.parse::<i64>().is_err() {
                    return error(format!(
                        "values[0]: Invalid value: \"{value}\": for 'Gt', 'Lt' operators, the value must be an integer"
                    ));
                }
            }
            _ => {}
        }
        for (place, value) in self.values.iter().enumerate() {
            if let Some(problem) = label_value_problem(value) {
                return error(format!(
                    "values[{place}][{}]: Invalid value: \"{value}\": {problem}",
                    self.key
                ));
            }
        }
        Ok(())
    }

    /// Whether an object on which the label has this value (`None`: no such label) satisfies it.
    pub fn matches_value(&self, value: Option<&str>) -> bool {
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.iter().any(|one| one == value)),
            Operator::NotIn => !value.is_some_and(|value| self.values.iter().any(|one| one == value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => self.compared(value).is_some_and(|(value, bound)| value > bound),
            Operator::Lt => self.compared(value).is_some_and(|(value, bound)| value < bound),
        }
    }

    fn compared(&self, value: Option<&str>) -> Option<(i64, i64)> {
        Some((value?.parse().ok()?, self.values.first()?.parse().ok()?))
    }
}

/// A selection of objects by their labels. The default selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct LabelSelector {
    nothing: bool,
    requirements: Vec<Requirement>,
}

impl LabelSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    /// What a selector field that is absent means to most kinds.
    pub fn nothing() -> Self {
        Self { nothing: true, requirements: Vec::new() }
    }

    /// All of these hold.
    pub fn new(requirements: Vec<Requirement>) -> Self {
        Self { nothing: false, requirements }
    }

    /// Each of these labels has its value: `matchLabels`, or a Service's selector.
    pub fn labels(labels: &BTreeMap<String, String>) -> Self {
        let one = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.clone()],
        };
        Self::new(labels.iter().map(one).collect())
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// As [`LabelSelector::matches`] for labels held in any other way.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|one| one.matches_value(label(&one.key)))
    }
}

/// The object form, `{matchLabels, matchExpressions}`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ObjectForm {
    #[serde(deserialize_with = "crate::view::or_default")]
    match_labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "crate::view::or_default")]
    match_expressions: Vec<Requirement>,
}

impl<'de> Deserialize<'de> for LabelSelector {
    /// From the object form. An empty object selects everything.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = ObjectForm::deserialize(deserializer)?;
        let mut selector = Self::labels(&form.match_labels);
        selector.requirements.extend(form.match_expressions);
        Ok(selector)
    }
}

impl TryFrom<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector> for LabelSelector {
    type Error = Error;

    fn try_from(form: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector) -> Result<Self, Error> {
        let mut requirements = Vec::new();
        for (key, value) in form.match_labels.iter().flatten() {
            requirements.push(Requirement::new(key, Operator::In, vec![value.clone()])?);
        }
        for one in form.match_expressions.iter().flatten() {
            let operator = match one.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return error(format!("\"{other}\" is not a valid label selector operator")),
            };
            requirements.push(Requirement::new(&one.key, operator, one.values.clone().unwrap_or_default())?);
        }
        Ok(Self::new(requirements))
    }
}

impl FromStr for LabelSelector {
    type Err = Error;

    /// From the string form: `a=b,c in (x,y),!d,e!=f`. The empty text selects everything.
    fn from_str(text: &str) -> Result<Self, Error> {
        Parser { rest: text }.selector()
    }
}

impl fmt::Display for LabelSelector {
    /// The string form.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, Requirement { key, operator, values }) in self.requirements.iter().enumerate() {
            if place > 0 {
                out.write_str(",")?;
            }
            match (operator, values.as_slice()) {
                (Operator::In, [value]) => write!(out, "{key}={value}")?,
                (Operator::NotIn, [value]) => write!(out, "{key}!={value}")?,
                (Operator::In, values) => write!(out, "{key} in ({})", values.join(","))?,
                (Operator::NotIn, values) => write!(out, "{key} notin ({})", values.join(","))?,
                (Operator::Exists, _) => out.write_str(key)?,
                (Operator::DoesNotExist, _) => write!(out, "!{key}")?,
                (Operator::Gt, values) => write!(out, "{key}>{}", values.concat())?,
                (Operator::Lt, values) => write!(out, "{key}<{}", values.concat())?,
            }
        }
        Ok(())
    }
}

/// A word, or one of the marks; the end is the empty mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Mark(&'static str),
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Word(text) => text,
            Self::Mark(text) => text,
        }
    }
}

const END: Token<'_> = Token::Mark("");
const COMMA: Token<'_> = Token::Mark(",");
const OPEN: Token<'_> = Token::Mark("(");
const CLOSE: Token<'_> = Token::Mark(")");
/// Longer before shorter where one starts the other.
const MARKS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Token<'a> {
        let (token, rest) = self.scan();
        self.rest = rest;
        token
    }

    fn peek(&self) -> Token<'a> {
        self.scan().0
    }

    fn scan(&self) -> (Token<'a>, &'a str) {
        let rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if rest.is_empty() {
            return (END, rest);
        }
        for mark in MARKS {
            if let Some(rest) = rest.strip_prefix(mark) {
                return (Token::Mark(mark), rest);
            }
        }
        let end = rest.find(|c| "=!(),>< \t\r\n".contains(c)).unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        (Token::Word(word), rest)
    }

    fn selector(mut self) -> Result<LabelSelector, Error> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Mark("!") => {
                    let one =
                        self.requirement().map_err(|e| Error(format!("unable to parse requirement: {e}")))?;
                    requirements.push(one);
                    match self.next() {
                        END => break,
                        COMMA => match self.peek() {
                            Token::Word(_) | Token::Mark("!") => {}
                            other => {
                                return error(format!(
                                    "found '{}', expected: identifier after ','",
                                    other.text()
                                ));
                            }
                        },
                        other => {
                            return error(format!(
                                "found '{}', expected: ',' or 'end of string'",
                                other.text()
                            ));
                        }
                    }
                }
                END => break,
                other => {
                    return error(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        other.text()
                    ));
                }
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector::new(requirements))
    }

    fn requirement(&mut self) -> Result<Requirement, Error> {
        let absent = self.peek() == Token::Mark("!");
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return error(format!("found '{}', expected: identifier", other.text())),
        };
        validate_key(key)?;
        if absent {
            return Requirement::new(key, Operator::DoesNotExist, vec![]);
        }
        if matches!(self.peek(), END | COMMA) {
            return Requirement::new(key, Operator::Exists, vec![]);
        }
        let (operator, values) = match self.next() {
            Token::Word("in") => (Operator::In, self.values()?),
            Token::Word("notin") => (Operator::NotIn, self.values()?),
            Token::Mark("=" | "==") => (Operator::In, vec![self.value()?]),
            Token::Mark("!=") => (Operator::NotIn, vec![self.value()?]),
            Token::Mark(">") => (Operator::Gt, vec![self.value()?]),
            Token::Mark("<") => (Operator::Lt, vec![self.value()?]),
            other => return error(format!("found '{}', expected: {OPERATORS}", other.text())),
        };
        Requirement::new(key, operator, values)
    }

    fn value(&mut self) -> Result<String, Error> {
        if matches!(self.peek(), END | COMMA) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(value) => Ok(value.to_owned()),
            other => error(format!("found '{}', expected: identifier", other.text())),
        }
    }

    /// `(a,b)`; an empty place between commas is the empty value.
    fn values(&mut self) -> Result<Vec<String>, Error> {
        match self.next() {
            OPEN => {}
            other => return error(format!("found '{}' expected: '('", other.text())),
        }
        let mut values = BTreeSet::new();
        match self.peek() {
            CLOSE => {
                self.next();
                return Ok(Vec::new());
            }
            Token::Word(_) | COMMA => {}
            other => return error(format!("found '{}', expected: ',', ')' or identifier", other.text())),
        }
        loop {
            match self.peek() {
                Token::Word(value) => {
                    self.next();
                    values.insert(value.to_owned());
                }
                COMMA | CLOSE => {
                    values.insert(String::new());
                }
                other => return error(format!("found '{}', expected: ',', or identifier", other.text())),
            }
            match self.next() {
                COMMA => {}
                CLOSE => return Ok(values.into_iter().collect()),
                other => return error(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
    }
}

const NAME_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const PREFIX_RULE: &str = "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// What is wrong with a label's (or annotation's, or finalizer's) key, in Kubernetes' words.
pub fn qualified_name_problem(key: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        None => (None, key),
        Some((_, name)) if name.contains('/') => {
            return Some(format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                NAME_RULE.trim_start_matches("name part ")
            ));
        }
        Some((prefix, name)) => (Some(prefix), name),
    };
    match prefix {
        Some("") => return Some("prefix part must be non-empty".to_owned()),
        Some(prefix) if prefix.len() > 253 => {
            return Some("prefix part must be no more than 253 bytes".to_owned());
        }
        Some(prefix) if !is_subdomain(prefix) => return Some(PREFIX_RULE.to_owned()),
        _ => {}
    }
    if name.is_empty() {
        Some("name part must be non-empty".to_owned())
    } else if name.len() > 63 {
        Some("name part must be no more than 63 bytes".to_owned())
    } else if !is_label_text(name) {
        Some(NAME_RULE.to_owned())
    } else {
        None
    }
}

/// What is wrong with a label's value, in Kubernetes' words.
pub fn label_value_problem(value: &str) -> Option<String> {
    if value.len() > 63 {
        Some("must be no more than 63 bytes".to_owned())
    } else if !value.is_empty() && !is_label_text(value) {
        Some(VALUE_RULE.to_owned())
    } else {
        None
    }
}

fn validate_key(key: &str) -> Result<(), Error> {
    match qualified_name_problem(key) {
        Some(problem) => error(format!("key: Invalid value: \"{key}\": {problem}")),
        None => Ok(()),
    }
}

fn is_label_text(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    text.bytes().all(inner) && outer(text.as_bytes().first()) && outer(text.as_bytes().last())
}

fn is_subdomain(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.split('.').all(|part| {
        !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    })
}

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

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_operator_matches_what_it_says() {
        let have = labels(&[("app", "cart"), ("tier", "web"), ("size", "5")]);
        for (text, expected) in [
            ("", true),
            ("app=cart", true),
            ("app==cart", true),
            ("app = cart , tier = web", true),
            ("app=shop", false),
            ("app!=shop", true),
            ("missing!=shop", true),
            ("app in (cart, shop)", true),
            ("app in ()", false),
            ("app notin (cart)", false),
            ("missing notin (cart)", true),
            ("app", true),
            ("!app", false),
            ("!missing,tier", true),
            ("size>4", true),
            ("size<5", false),
            ("app>1", false),
            ("app in (,cart)", true),
            ("empty=", false),
            ("example.com/app!=x", true),
        ] {
            match text.parse::<LabelSelector>() {
                Ok(selector) => assert_eq!(selector.matches(&have), expected, "{text}"),
                Err(_) => assert_eq!(text, "app in ()", "an empty set is refused, nothing else"),
            }
        }
        assert!(!LabelSelector::nothing().matches(&have));
    }

    #[test]
    fn bad_label_selectors_are_refused_in_kubernetes_words() {
        for (text, message) in [
            (",a", "found ',', expected: !, identifier, or 'end of string'"),
            ("a=b,", "found '', expected: identifier after ','"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("!=a", "found '!=', expected: !, identifier, or 'end of string'"),
            ("!,a", "unable to parse requirement: found ',', expected: identifier"),
            ("a==(", "unable to parse requirement: found '(', expected: identifier"),
            (
                "a in ()",
                "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
            ),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(text.parse::<LabelSelector>().unwrap_err().to_string(), message, "{text}");
        }
        let message = "-a=b".parse::<LabelSelector>().unwrap_err().to_string();
        assert!(
            message.starts_with("unable to parse requirement: key: Invalid value: \"-a\": name part must"),
            "{message}"
        );
        let message = "a=-b".parse::<LabelSelector>().unwrap_err().to_string();
        assert!(
            message.starts_with(
                "unable to parse requirement: values[0][a]: Invalid value: \"-b\": a valid label must"
            ),
            "{message}"
        );
    }

    #[test]
    fn the_object_form_means_the_same() {
        let text = r#"{"matchLabels":{"a":"b"},"matchExpressions":[{"key":"c","operator":"In","values":["x","y"]},{"key":"d","operator":"DoesNotExist"}]}"#;
        let selector: LabelSelector = serde_json::from_str(text).unwrap();
        assert_eq!(selector, "a=b,c in (x,y),!d".parse().unwrap());
        let typed = serde_json::from_str(text).unwrap();
        assert_eq!(
            LabelSelector::try_from(&typed as &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector)
                .unwrap(),
            selector
        );
        assert!(serde_json::from_str::<LabelSelector>("{}").unwrap().is_everything());
    }

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
        fn printed_selectors_parse_to_the_same(
            parts in proptest::collection::btree_map("[a-z]{1,5}", (0..5_u8, proptest::collection::btree_set("[a-z0-9]{1,3}", 1..4)), 0..4)
        ) {
            let requirements = parts.into_iter().map(|(key, (operator, values))| {
                let values: Vec<String> = values.into_iter().collect();
                let (operator, values) = match operator {
                    0 => (Operator::In, values),
                    1 => (Operator::NotIn, values),
                    2 => (Operator::Exists, vec![]),
                    3 => (Operator::DoesNotExist, vec![]),
                    _ => (Operator::Gt, vec!["7".to_owned()]),
                };
                Requirement::new(key, operator, values).unwrap()
            }).collect();
            let selector = LabelSelector::new(requirements);
            prop_assert_eq!(selector.to_string().parse::<LabelSelector>().unwrap(), selector);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = text.parse::<LabelSelector>();
            let _ = text.parse::<FieldSelector>();
        }

        #[test]
        fn field_values_survive_printing(value in "\\PC{0,12}") {
            let selector = FieldSelector { terms: vec![FieldTerm { field: "f".into(), equal: true, value }] };
            prop_assert_eq!(selector.to_string().parse::<FieldSelector>().unwrap(), selector);
        }
    }
}
