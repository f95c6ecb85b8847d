//! What a request asks for: path and query, taken apart once.

use http::{Method, Uri};
use percent_encoding::percent_decode_str;

use crate::status::{Result, Status};

/// A path below `/api/v1` or `/apis/GROUP/VERSION`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    pub group: String,
    pub version: String,
    /// Empty for cluster-wide kinds and for lists over all namespaces.
    pub namespace: String,
    /// The plural; empty for discovery of the group version.
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource.
    pub rest: Vec<String>,
}

/// Undoes percent-encoding; `None` if it is not UTF-8 or an escape is cut: in Kubernetes no name may hold a `%`.
fn decode(segment: &str) -> Option<String> {
    let text = percent_decode_str(segment).decode_utf8().ok()?;
    (!text.contains('%')).then(|| text.into_owned())
}

impl ResourcePath {
    /// `Ok(None)` if the path is not one of a resource.
    pub fn parse(path: &str) -> Result<Option<Self>> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut segments = path.split('/').skip(1);
        let (group, version) = match segments.next() {
            Some("api") => (Some(""), segments.next()),
            Some("apis") => (segments.next(), segments.next()),
            _ => return Ok(None),
        };
        let (Some(group), Some(version)) = (group, version) else { return Ok(None) };
        let bad = || Status::bad_request("the path is not well-formed");
        let mut rest = segments.map(decode).collect::<Option<Vec<_>>>().ok_or_else(bad)?.into_iter();
        let mut found = Self { group: group.to_owned(), version: version.to_owned(), ..Self::default() };
        let Some(mut first) = rest.next() else { return Ok(Some(found)) };
        if first == "namespaces" {
            let namespace = rest.next();
            match (namespace, rest.next()) {
                (None, _) => {}
                // The namespace itself, or a subresource of it.
                (Some(name), None) => found.name = name,
                (Some(name), Some(sub)) if matches!(sub.as_str(), "status" | "finalize") => {
                    found.name = name;
                    found.subresource = sub;
                }
                (Some(namespace), Some(resource)) => {
                    found.namespace = namespace;
                    first = resource;
                }
            }
            // An object `x` of namespaces lies in namespace `x` for authorization.
            if first == "namespaces" {
                found.resource = first;
                found.rest = rest.collect();
                return if found.rest.is_empty() { Ok(Some(found)) } else { Err(Status::no_route()) };
            }
        }
        found.resource = first;
        found.name = rest.next().unwrap_or_default();
        found.subresource = rest.next().unwrap_or_default();
        found.rest = rest.collect();
        Ok(Some(found))
    }
}

/// The query, decoded.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(uri: &Uri) -> Result<Self> {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Status::bad_request(format!("the query is not well-formed: {error}")))?;
        Ok(Self(pairs.0))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The value unless it is absent or empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// True for the words that Go's ParseBool takes, and for a key without a value.
    pub fn flag(&self, name: &str) -> Result<bool> {
        Ok(self.maybe_flag(name)?.unwrap_or(false))
    }

    pub fn maybe_flag(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some("" | "1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
            Some(other) => Err(Status::bad_request(format!(
                "strconv.ParseBool: parsing {other:?}: invalid syntax ({name})"
            ))),
        }
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        match self.text(name) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax ({name})"))
            }),
        }
    }
}

/// Verbs as authorization and discovery know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Create,
    Get,
    List,
    Watch,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// `None` for methods that no resource has.
    pub fn of(method: &Method, path: &ResourcePath, query: &Query) -> Result<Option<Self>> {
        let named = !path.name.is_empty();
        Ok(match *method {
            Method::POST => Some(Self::Create),
            Method::GET | Method::HEAD if named => Some(Self::Get),
            Method::GET | Method::HEAD if query.flag("watch")? => Some(Self::Watch),
            Method::GET | Method::HEAD => Some(Self::List),
            Method::PUT => Some(Self::Update),
            Method::PATCH => Some(Self::Patch),
            Method::DELETE if named => Some(Self::Delete),
            Method::DELETE => Some(Self::DeleteCollection),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let cases = [
            ("/api/v1/pods", "||pods||"),
            ("/api/v1/namespaces", "||namespaces||"),
            ("/api/v1/namespaces/a", "||namespaces|a|"),
            ("/api/v1/namespaces/a/finalize", "||namespaces|a|finalize"),
            ("/api/v1/namespaces/a/pods", "|a|pods||"),
            ("/api/v1/namespaces/a/pods/x/log", "|a|pods|x|log"),
            ("/apis/apps/v1/namespaces/a/deployments/x/scale/", "apps|a|deployments|x|scale"),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "rbac.authorization.k8s.io||clusterroles|system:node|",
            ),
            ("/api/v1", "||||"),
        ];
        for (path, want) in cases {
            let found = ResourcePath::parse(path).unwrap().unwrap();
            let got = format!(
                "{}|{}|{}|{}|{}",
                found.group, found.namespace, found.resource, found.name, found.subresource
            );
            assert_eq!(got, want, "{path}");
        }
        assert_eq!(ResourcePath::parse("/healthz").unwrap(), None);
        assert_eq!(ResourcePath::parse("/apis").unwrap(), None);
        assert_eq!(ResourcePath::parse("/apis/apps").unwrap(), None);
        assert!(ResourcePath::parse("/api/v1/pods/%zz").is_err());
    }
}
