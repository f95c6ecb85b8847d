//! The part of `metadata` that loops read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::Key;

/// An object's metadata without what no loop reads: `managedFields`, and the annotation in which
/// client-side apply keeps a second copy of the object.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub generate_name: Option<Box<str>>,
    pub uid: Arc<str>,
    pub resource_version: Arc<str>,
    pub generation: i64,
    pub creation_timestamp: Option<Timestamp>,
    pub deletion_timestamp: Option<Timestamp>,
    pub deletion_grace_period_seconds: Option<i64>,
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "annotations")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub owner_references: Vec<OwnerRef>,
    #[serde(deserialize_with = "or_default")]
    pub finalizers: Vec<String>,
}

impl Meta {
    pub fn key(&self) -> Key {
        Key { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// The revision as a number; 0 if it is none, which no server of ours sends.
    pub fn revision(&self) -> u64 {
        self.resource_version.parse().unwrap_or(0)
    }

    pub fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// The owner that controls this object, if one does.
    pub fn controller(&self) -> Option<&OwnerRef> {
        self.owner_references.iter().find(|owner| owner.controller == Some(true))
    }

    pub fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == name)
    }
}

/// An entry of `metadata.ownerReferences`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerRef {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

/// For `#[serde(default, deserialize_with = "or_default")]`: null is taken as the default, as the API does.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn annotations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Keep;
    impl<'de> Visitor<'de> for Keep {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("a map of strings")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut kept = BTreeMap::new();
            while let Some(key) = map.next_key::<String>()? {
                if key == "kubectl.kubernetes.io/last-applied-configuration" {
                    map.next_value::<IgnoredAny>()?;
                } else {
                    kept.insert(key, map.next_value()?);
                }
            }
            Ok(kept)
        }
    }
    deserializer.deserialize_any(Keep)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_decodes_with_nulls_unknown_fields_and_without_copies_of_the_object() {
        let text = r#"{"name":"a","namespace":"b","uid":"u","resourceVersion":"7","creationTimestamp":null,
            "labels":null,"annotations":{"x":"1","kubectl.kubernetes.io/last-applied-configuration":"{}"},
            "managedFields":[{"manager":"m"}],"finalizers":["f"],
            "ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"n","uid":"o","controller":true}]}"#;
        let meta: Meta = serde_json::from_str(text).unwrap();
        assert_eq!(meta.key().to_string(), "b/a");
        assert_eq!(meta.revision(), 7);
        assert_eq!(meta.annotations.keys().collect::<Vec<_>>(), ["x"]);
        assert_eq!(&*meta.controller().unwrap().uid, "o");
        assert!(meta.has_finalizer("f") && !meta.is_deleting());
        let meta: Meta = serde_json::from_str(r#"{"annotations":null}"#).unwrap();
        assert!(meta.annotations.is_empty());
    }
}
