//! Label and field selectors of a request, matched against the facts that the cache keeps of each object.

use wharf_kit::selector::{FieldSelector, LabelSelector};

use crate::encode::Facts;
use crate::kinds::Kind;
use crate::request::Query;
use crate::status::{Result, Status};

/// Which objects of a collection are meant.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    labels: Option<LabelSelector>,
    /// Place in [`Facts::fields`], whether it is to be equal, and the value.
    fields: Vec<(usize, bool, String)>,
    /// The `field=value` terms as they were written.
    exact: Vec<(String, String)>,
}

impl Selection {
    /// # Errors
    /// 400 with Kubernetes' words for a selector that does not parse or a field that cannot be selected by.
    pub fn parse(kind: &Kind, query: &Query) -> Result<Self> {
        let labels = match query.text("labelSelector") {
            None => None,
            Some(text) => {
                let parsed: LabelSelector =
                    text.parse().map_err(|error| Status::bad_request(format!("{error}")))?;
                (!parsed.is_everything()).then_some(parsed)
            }
        };
        let mut selection = Self { labels, ..Self::default() };
        if let Some(text) = query.text("fieldSelector") {
            let parsed: FieldSelector =
                text.parse().map_err(|error| Status::bad_request(format!("{error}")))?;
            for term in parsed.terms() {
                let place = match term.field.as_str() {
                    "metadata.name" => 0,
                    "metadata.namespace" => 1,
                    other => match kind.fields.iter().position(|field| *field == other) {
                        Some(place) => place + 2,
                        None if kind.fields.is_empty() => {
                            return Err(Status::bad_request(format!(
                                "{other:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                            )));
                        }
                        None => {
                            return Err(Status::bad_request(format!(
                                "Unable to find {:?} that match label selector \"{}\", field selector {text:?}: field label not supported: {other}",
                                format!("{}/{}, Resource={}", kind.group, kind.version, kind.plural),
                                query.get("labelSelector").unwrap_or_default()
                            )));
                        }
                    },
                };
                selection.fields.push((place, term.equal, term.value.clone()));
                if term.equal {
                    selection.exact.push((term.field.clone(), term.value.clone()));
                }
            }
        }
        Ok(selection)
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_none() && self.fields.is_empty()
    }

    pub fn matches(&self, facts: &Facts) -> bool {
        self.labels.as_ref().is_none_or(|labels| labels.matches(&facts.labels))
            && self.fields.iter().all(|(place, equal, value)| {
                (facts.fields.get(*place).map_or("", String::as_str) == value) == *equal
            })
    }

    /// The `field=value` terms, for authorization.
    pub fn exact(&self) -> &[(String, String)] {
        &self.exact
    }

    /// The one name that is selected, if it is one.
    pub fn name(&self) -> Option<&str> {
        self.exact.iter().find(|(field, _)| field == "metadata.name").map(|(_, value)| value.as_str())
    }
}
