//! Selection by labels.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::syntax::{label_value_problem, qualified_name_problem};
use super::{Error, error};

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
        super::parse::selector(text)
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

pub(super) fn validate_key(key: &str) -> Result<(), Error> {
    match qualified_name_problem(key) {
        Some(problem) => error(format!("key: Invalid value: \"{key}\": {problem}")),
        None => Ok(()),
    }
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
        }
    }
}
