//! The kinds that a cluster serves, found by any of their names.

use anyhow::{Context as _, bail};
use kube::core::discovery::v2::APIGroupDiscoveryList;
use serde_json::Value;

use crate::api::Api;
use crate::uri::{segment, with_query};

/// A kind of object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
}

impl Resource {
    /// `pod`, `deployment.apps`: how output names it.
    pub fn name(&self) -> String {
        let singular =
            if self.singular.is_empty() { self.kind.to_lowercase() } else { self.singular.clone() };
        if self.group.is_empty() { singular } else { format!("{singular}.{}", self.group) }
    }

    /// The URL path of all its objects, in a namespace or everywhere.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let base = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => {
                format!("{base}/{}/namespaces/{}/{}", self.version, segment(namespace), self.plural)
            }
            None => format!("{base}/{}/{}", self.version, self.plural),
        }
    }

    /// The URL path of the list that has one object alone, which can be watched.
    pub fn list_of(&self, namespace: &str, name: &str) -> String {
        let field = format!("metadata.name={name}");
        with_query(&self.path(Some(namespace)), [("fieldSelector", field.as_str())])
    }

    /// The URL path of one object.
    pub fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.path(Some(namespace)), segment(name))
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    fn is_called(&self, name: &str) -> bool {
        let (name, group) = name.split_once('.').map_or((name, None), |(name, group)| (name, Some(group)));
        let known =
            [&self.plural, &self.singular].into_iter().chain(&self.short_names).any(|known| known == name)
                || self.kind.eq_ignore_ascii_case(name);
        known
            && group.is_none_or(|group| {
                self.group == group || format!("{}.{}", self.version, self.group) == group
            })
    }
}

/// Every kind that a cluster serves.
pub struct Resources(Vec<Resource>);

impl Resources {
    /// Asks the cluster, in two requests.
    pub async fn discover(api: &Api) -> anyhow::Result<Self> {
        let (core, groups) = tokio::try_join!(
            api.client.list_core_api_versions_aggregated(),
            api.client.list_api_groups_aggregated()
        )
        .map_err(crate::api::unreachable)?;
        Ok(Self(resources(core).chain(resources(groups)).collect()))
    }

    /// The kinds that a word of the command line means: `pods`, `po`, `deployments.apps`, `pods,services`, `all`.
    pub fn named(&self, names: &str) -> anyhow::Result<Vec<&Resource>> {
        let mut found: Vec<&Resource> = Vec::new();
        for name in names.split(',') {
            let lower = name.to_lowercase();
            match self.0.iter().find(|resource| resource.is_called(&lower)) {
                Some(resource) => found.push(resource),
                None => {
                    let before = found.len();
                    found.extend(self.0.iter().filter(|resource| resource.categories.contains(&lower)));
                    if found.len() == before {
                        bail!("the cluster has no resource type {name:?}{}", self.like(&lower));
                    }
                }
            }
        }
        Ok(found)
    }

    /// The kind of an object by its apiVersion and kind.
    pub fn of(&self, api_version: &str, kind: &str) -> anyhow::Result<&Resource> {
        let found =
            self.0.iter().find(|resource| resource.api_version() == api_version && resource.kind == kind);
        found.with_context(|| {
            let elsewhere = self.0.iter().find(|resource| resource.kind == kind);
            match elsewhere {
                Some(there) => format!(
                    "the cluster has no kind {kind:?} in {api_version:?}; it has one in {:?}",
                    there.api_version()
                ),
                None => format!(
                    "the cluster has no kind {kind:?} in {api_version:?}{}",
                    self.like(&kind.to_lowercase())
                ),
            }
        })
    }

    /// A hint to a name that is nearly this one.
    fn like(&self, name: &str) -> String {
        let near = self.0.iter().find(|resource| {
            let kind = resource.kind.to_lowercase();
            let common = kind.chars().zip(name.chars()).take_while(|(a, b)| a == b).count();
            common >= 4 || (kind.len().abs_diff(name.len()) <= 1 && common >= 2)
        });
        near.map(|resource| format!("; did you mean {:?}?", resource.kind)).unwrap_or_default()
    }
}

fn resources(list: APIGroupDiscoveryList) -> impl Iterator<Item = Resource> {
    list.items.into_iter().flat_map(|group| {
        let name = group.metadata.and_then(|meta| meta.name).unwrap_or_default();
        // The first version is the preferred one.
        group.versions.into_iter().flat_map(move |version| {
            let (group, number) = (name.clone(), version.version.unwrap_or_default());
            version.resources.into_iter().map(move |resource| Resource {
                group: group.clone(),
                version: number.clone(),
                kind: resource.response_kind.and_then(|kind| kind.kind).unwrap_or_default(),
                plural: resource.resource.unwrap_or_default(),
                singular: resource.singular_resource.unwrap_or_default(),
                short_names: resource.short_names,
                categories: resource.categories,
                namespaced: resource.scope.as_deref() == Some("Namespaced"),
            })
        })
    })
}

/// Objects as the command line names them: `TYPE NAME…`, `TYPE/NAME…`, `TYPE`.
pub fn targets<'a>(
    resources: &'a Resources,
    words: &[String],
) -> anyhow::Result<Vec<(&'a Resource, Option<String>)>> {
    let Some((first, names)) = words.split_first() else { bail!("name a type, for example `pods`") };
    if words.iter().any(|word| word.contains('/')) {
        let pairs = words.iter().map(|word| {
            let (kind, name) = word
                .split_once('/')
                .with_context(|| format!("write {word:?} as TYPE/NAME, as the others are"))?;
            match resources.named(kind)?[..] {
                [resource] => Ok((resource, Some(name.to_owned()))),
                _ => bail!("{kind:?} means several types; name one"),
            }
        });
        return pairs.collect();
    }
    let kinds = resources.named(first)?;
    if names.is_empty() {
        return Ok(kinds.into_iter().map(|kind| (kind, None)).collect());
    }
    let [kind] = kinds[..] else { bail!("names need one type, not {first:?}") };
    Ok(names.iter().map(|name| (kind, Some(name.clone()))).collect())
}

/// The names of the objects that a command is about: those named, or with `all` or a selector those that are there.
pub async fn chosen<'a>(
    api: &Api,
    resources: &'a Resources,
    words: &[String],
    all: bool,
    selector: Option<&str>,
) -> anyhow::Result<Vec<(&'a Resource, String)>> {
    let mut chosen = Vec::new();
    for (resource, name) in targets(resources, words)? {
        match name {
            Some(name) => chosen.push((resource, name)),
            None if all || selector.is_some() => {
                let selector = selector.map(|text| ("labelSelector", text));
                let list = api.get(&with_query(&resource.path(Some(&api.namespace)), selector)).await?;
                let items = list["items"].as_array().into_iter().flatten();
                chosen.extend(items.map(|item| (resource, name_of(item).to_owned())));
            }
            None => bail!("name the objects, or say --all or --selector"),
        }
    }
    Ok(chosen)
}

/// Whether a condition of an object holds.
pub fn is_true(object: &Value, condition: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|one| one["type"] == condition && one["status"] == "True")
}

/// The name of an object.
pub fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
