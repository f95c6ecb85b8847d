//! Objects as bytes: stored without a resourceVersion, which is spliced in at read.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use wharf_store::Revision;

/// What stands before the spliced field in every stored object.
const OPEN: &[u8] = b"\"metadata\":{";

/// An object's fields in the stored order, as a serializer wants them.
struct Stored<'a>(&'a Value);

impl Serialize for Stored<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let head = ["apiVersion", "kind", "metadata"];
        let fields = self.0.as_object().into_iter().flatten();
        let rest = fields.filter(|(key, _)| !head.contains(&key.as_str()));
        let front = ["apiVersion", "kind"].into_iter().filter_map(|key| Some((key, self.0.get(key)?)));
        serializer.collect_map(
            front
                .map(|(key, value)| (key, Field::Plain(value)))
                .chain([("metadata", Field::Metadata(self.0.get("metadata").unwrap_or(&Value::Null)))])
                .chain(rest.map(|(key, value)| (key.as_str(), Field::Plain(value)))),
        )
    }
}

enum Field<'a> {
    Plain(&'a Value),
    Metadata(&'a Value),
}

impl Serialize for Field<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(value) => value.serialize(serializer),
            Self::Metadata(value) => serializer.collect_map(
                value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter(|(key, _)| !matches!(key.as_str(), "resourceVersion" | "selfLink")),
            ),
        }
    }
}

/// The form in which an object is stored: `apiVersion`, `kind` and `metadata` first, resourceVersion left out.
pub fn stored(object: &Value) -> Bytes {
    let mut out = BytesMut::with_capacity(2048).writer();
    serde_json::to_writer(&mut out, &Stored(object))
        .expect("a Value always serializes and memory takes every write");
    out.into_inner().freeze()
}

/// Where the resourceVersion goes: after the `{` of the metadata, which [`stored`] puts near the front. An object
/// that some other writer stored in another order is read as it is.
fn seam(stored: &[u8]) -> Option<usize> {
    stored.windows(OPEN.len()).position(|window| window == OPEN).map(|at| at + OPEN.len())
}

/// The revision of what is not stored: it has no resourceVersion, and no write is ever at this one.
pub const UNSTORED: Revision = Revision(0);

/// Appends the object with its resourceVersion.
pub fn splice_into(out: &mut impl BufMut, stored: &[u8], revision: Revision) {
    let Some(seam) = seam(stored).filter(|_| revision != UNSTORED) else { return out.put_slice(stored) };
    out.put_slice(&stored[..seam]);
    out.put_slice(b"\"resourceVersion\":\"");
    out.put_slice(revision.to_string().as_bytes());
    out.put_slice(if stored.get(seam) == Some(&b'}') { b"\"" } else { b"\"," });
    out.put_slice(&stored[seam..]);
}

pub fn spliced(stored: &[u8], revision: Revision) -> Bytes {
    let mut out = BytesMut::with_capacity(stored.len() + 48);
    splice_into(&mut out, stored, revision);
    out.freeze()
}

/// A stored object, decoded, with its resourceVersion.
pub fn decoded(stored: &[u8], revision: Revision) -> Result<Value, serde_json::Error> {
    let mut object: Value = serde_json::from_slice(stored)?;
    if revision != UNSTORED {
        crate::object::metadata(&mut object)
            .insert("resourceVersion".to_owned(), revision.to_string().into());
    }
    Ok(object)
}

/// What selectors look at, read from an object's bytes without decoding the rest.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Facts {
    pub labels: BTreeMap<String, String>,
    /// The values at the wanted pointers, in their order; empty text where there is none.
    pub fields: Vec<String>,
}

/// Reads labels and the scalars at `pointers` (`/spec/nodeName`), skipping everything else.
pub fn facts(stored: &[u8], pointers: &[&str]) -> Facts {
    let mut facts = Facts { labels: BTreeMap::new(), fields: vec![String::new(); pointers.len()] };
    let wanted: Vec<(usize, Vec<&str>)> =
        pointers.iter().enumerate().map(|(n, pointer)| (n, pointer.split('/').skip(1).collect())).collect();
    let mut reader = serde_json::Deserializer::from_slice(stored);
    let walk = Walk { path: Vec::new(), wanted: &wanted, facts: &mut facts };
    // Bytes that are no JSON have no facts; they never get into the store through this server.
    let _ = reader.deserialize_any(walk);
    facts
}

struct Walk<'a> {
    path: Vec<String>,
    wanted: &'a [(usize, Vec<&'a str>)],
    facts: &'a mut Facts,
}

impl Walk<'_> {
    fn scalar(self, value: String) {
        for (n, segments) in self.wanted {
            if segments.len() == self.path.len() && segments.iter().zip(&self.path).all(|(a, b)| a == b) {
                self.facts.fields[*n].clone_from(&value);
            }
        }
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for Walk<'_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON")
    }
    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.scalar(value.to_owned());
        Ok(())
    }
    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.scalar(value.to_string());
        Ok(())
    }
    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.scalar(value.to_string());
        Ok(())
    }
    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.scalar(value.to_string());
        Ok(())
    }
    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.scalar(value.to_string());
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { mut path, wanted, facts } = self;
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let depth = path.len();
            if depth == 1 && path[0] == "metadata" && key == "labels" {
                facts.labels = map.next_value::<Option<BTreeMap<String, String>>>()?.unwrap_or_default();
                continue;
            }
            let on_way = (depth == 0 && key == "metadata")
                || wanted.iter().any(|(_, segments)| {
                    segments.len() > depth
                        && segments[..depth].iter().zip(&path).all(|(a, b)| a == b)
                        && segments[depth] == key
                });
            if on_way {
                path.push(key.into_owned());
                map.next_value_seed(Walk { path: path.clone(), wanted, facts })?;
                path.pop();
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_resource_version_is_spliced_in() {
        let object = json!({"spec": {"a": [1, null]}, "metadata": {"name": "x", "resourceVersion": "7"}, "kind": "K", "apiVersion": "v1"});
        let bytes = stored(&object);
        assert!(bytes.starts_with(br#"{"apiVersion":"v1","kind":"K","metadata":{"name":"x"}"#));
        let read: Value = serde_json::from_slice(&spliced(&bytes, Revision(12))).unwrap();
        assert_eq!(read["metadata"], json!({"name": "x", "resourceVersion": "12"}));
        assert_eq!(read["spec"], object["spec"]);
        let bare = stored(&json!({"apiVersion": "v1", "kind": "K", "metadata": {}}));
        let read: Value = serde_json::from_slice(&spliced(&bare, Revision(1))).unwrap();
        assert_eq!(read["metadata"]["resourceVersion"], "1");
    }

    #[test]
    fn facts_are_read_without_the_rest() {
        let bytes = stored(&json!({
            "metadata": {"name": "x", "labels": {"a": "b"}, "annotations": {"labels": "no"}},
            "spec": {"nodeName": "n1", "hostNetwork": true, "containers": [{"nodeName": "no"}]},
            "status": {"phase": "Running"},
        }));
        let facts = facts(
            &bytes,
            &["/metadata/name", "/spec/nodeName", "/status/phase", "/spec/none", "/spec/hostNetwork"],
        );
        assert_eq!(facts.fields, ["x", "n1", "Running", "", "true"]);
        assert_eq!(facts.labels, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    }
}
