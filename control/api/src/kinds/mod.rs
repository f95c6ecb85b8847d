//! The kinds the server serves: each is one [`Kind`] row in `table` and, where it has rules of its own, one
//! [`Strategy`] in a file beside it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::Error;
use crate::reviews::Review;
use crate::schema::{Schema, Type};
use crate::status::FieldError;
use crate::usage::UsageOf;
use crate::validate;

mod certificate;
pub mod columns;
mod config;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
pub mod ephemeral;
mod event;
mod job;
mod lease;
mod limits;
mod namespace;
mod node;
pub mod pod;
pub mod pod_spec;
mod pod_volumes;
pub mod priority_class;
mod rbac;
mod replicaset;
mod resource_names;
mod revision;
mod runtimeclass;
mod service;
mod statefulset;
mod table;

pub use columns::{Column, Priority};

/// Subresources beside the object itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    Status,
    Scale,
    Binding,
    Eviction,
    Log,
    PortForward,
    Exec,
    Attach,
    Finalize,
    Token,
    Approval,
    Proxy,
    EphemeralContainers,
}

impl Subresource {
    pub const ALL: [Self; 13] = [
        Self::Status,
        Self::Scale,
        Self::Binding,
        Self::Eviction,
        Self::Log,
        Self::PortForward,
        Self::Exec,
        Self::Attach,
        Self::Finalize,
        Self::Token,
        Self::Approval,
        Self::Proxy,
        Self::EphemeralContainers,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::Log => "log",
            Self::PortForward => "portforward",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::Finalize => "finalize",
            Self::Token => "token",
            Self::Approval => "approval",
            Self::Proxy => "proxy",
            Self::EphemeralContainers => "ephemeralcontainers",
        }
    }

    /// Whether it is a connection that becomes the client's own, and no object.
    pub fn connects(self) -> bool {
        matches!(self, Self::PortForward | Self::Exec | Self::Attach)
    }

    /// Whether it is a part of the object, read and written as the object is.
    pub fn is_part(self) -> bool {
        matches!(self, Self::Status | Self::Approval | Self::EphemeralContainers)
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sub| sub.as_str() == name)
    }
}

/// A row of the table: one kind at one version.
#[derive(Clone)]
pub struct Kind {
    /// Empty for the core group.
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    pub kind: Cow<'static, str>,
    /// The name in paths: `deployments`.
    pub plural: Cow<'static, str>,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub subresources: &'static [Subresource],
    /// What field selectors may name besides `metadata.name` and `metadata.namespace`: `spec.nodeName`.
    pub fields: &'static [&'static str],
    /// What `Table` shows besides the name and, by default, the age.
    pub columns: &'static [Column],
    pub strategy: &'static dyn Strategy,
    /// For kinds that are answered instead of stored.
    pub(crate) review: Option<Review>,
    /// For kinds that are measured instead of stored.
    pub(crate) usage: Option<UsageOf>,
    /// Found by [`Kind::new`]; a kind without a schema is refused at start.
    ty: Option<Type>,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.group, self.version, self.kind)
    }
}

impl Kind {
    /// A namespaced kind with a status and no rules of its own.
    pub fn new(
        group: impl Into<Cow<'static, str>>,
        version: impl Into<Cow<'static, str>>,
        kind: impl Into<Cow<'static, str>>,
        plural: impl Into<Cow<'static, str>>,
    ) -> Self {
        let (group, version, kind) = (group.into(), version.into(), kind.into());
        Self {
            ty: Schema::get().kind(&group, &version, &kind),
            group,
            version,
            kind,
            plural: plural.into(),
            short_names: &[],
            categories: &[],
            namespaced: true,
            subresources: &[],
            fields: &[],
            columns: &[],
            strategy: &Plain,
            review: None,
            usage: None,
        }
    }

    pub fn short_names(self, short_names: &'static [&'static str]) -> Self {
        Self { short_names, ..self }
    }

    pub fn categories(self, categories: &'static [&'static str]) -> Self {
        Self { categories, ..self }
    }

    pub fn cluster_wide(self) -> Self {
        Self { namespaced: false, ..self }
    }

    pub fn subresources(self, subresources: &'static [Subresource]) -> Self {
        Self { subresources, ..self }
    }

    pub fn fields(self, fields: &'static [&'static str]) -> Self {
        Self { fields, ..self }
    }

    pub fn columns(self, columns: &'static [Column]) -> Self {
        Self { columns, ..self }
    }

    pub fn strategy(self, strategy: &'static dyn Strategy) -> Self {
        Self { strategy, ..self }
    }

    /// A kind that can be created alone, and is answered at once.
    pub(crate) fn review(self, review: Review) -> Self {
        Self { review: Some(review), ..self }
    }

    /// A kind that can be read alone, and is measured when it is.
    pub(crate) fn usage(self, of: UsageOf) -> Self {
        Self { usage: Some(of), ..self }
    }

    /// The schema of its objects.
    pub(crate) fn ty(&self) -> Type {
        self.ty.expect("`Kinds::new` refuses kinds without a schema")
    }

    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    pub fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }

    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// What the keys of all its objects start with.
    pub fn prefix(&self) -> String {
        let group = if self.group.is_empty() { "core" } else { &self.group };
        format!("{group}/{}/", self.plural)
    }

    /// What the keys of its objects in `namespace` start with; all namespaces if that is empty.
    pub fn prefix_in(&self, namespace: &str) -> String {
        let prefix = self.prefix();
        if namespace.is_empty() { prefix } else { format!("{prefix}{namespace}/") }
    }

    pub fn key(&self, namespace: &str, name: &str) -> wharf_store::Key {
        wharf_store::Key(format!("{}{name}", self.prefix_in(namespace)).into())
    }

    /// The selectable fields' JSON pointers: name and namespace, then [`Kind::fields`].
    pub fn field_pointers(&self) -> Vec<String> {
        let own = self.fields.iter().map(|field| format!("/{}", field.replace('.', "/")));
        ["/metadata/name".to_owned(), "/metadata/namespace".to_owned()].into_iter().chain(own).collect()
    }
}

/// The rules of a kind. Every method has a default that fits a kind without rules.
///
/// Objects come decoded and defaulted, so fields have their types; what is checked is their meaning.
pub trait Strategy: Send + Sync + 'static {
    /// Puts a new object in order before admission. Its status was dropped already where the kind has that
    /// subresource.
    fn prepare_create(&self, _new: &mut Value) {}

    /// Puts a changed object in order before admission; status or the rest was taken from `old` already.
    fn prepare_update(&self, _new: &mut Value, _old: &Value, _subresource: Option<Subresource>) {}

    /// Why `name` is no name for this kind; `prefix` if it is a generateName.
    fn check_name(&self, name: &str, prefix: bool) -> Result<(), String> {
        validate::dns_subdomain(name, prefix)
    }

    /// Checks a new object, and a changed one before [`Strategy::validate_update`].
    fn validate(&self, _new: &Value, _errors: &mut Vec<FieldError>) {}

    /// Checks what a new object may not bring, though it may get it later.
    fn validate_create(&self, _new: &Value, _errors: &mut Vec<FieldError>) {}

    /// Checks what may not change.
    fn validate_update(&self, _new: &Value, _old: &Value, _errors: &mut Vec<FieldError>) {}

    /// Checks an object whose status was written.
    fn validate_status(&self, _new: &Value, _old: &Value, _errors: &mut Vec<FieldError>) {}

    /// Whether a new object may bring its status.
    fn keeps_new_status(&self) -> bool {
        false
    }

    /// Whether something beside the finalizers keeps an object that is being deleted.
    fn holds(&self, _object: &Value) -> bool {
        false
    }

    /// How long the object lives on after a delete, in seconds; `None` for kinds that go at once.
    /// `asked` is what the request says.
    fn grace(&self, _object: &Value, _asked: Option<i64>) -> Option<i64> {
        None
    }

    /// Marks an object that is about to be deleted but lives on.
    fn prepare_delete(&self, _object: &mut Value) {}

    /// Whether metadata.generation follows changes outside metadata and status.
    fn has_generation(&self) -> bool {
        false
    }

    /// Whether a PUT to a name that does not exist makes the object.
    fn create_on_update(&self) -> bool {
        false
    }
}

/// A kind without rules.
pub struct Plain;

impl Strategy for Plain {}

/// All kinds served, by group, version and plural.
pub struct Kinds {
    rows: Vec<Arc<Kind>>,
    by_path: BTreeMap<(String, String, String), Arc<Kind>>,
}

impl Kinds {
    /// The built-in kinds and `more`.
    pub fn new(more: Vec<Kind>) -> Result<Self, Error> {
        let rows: Vec<Arc<Kind>> = table::rows().into_iter().chain(more).map(Arc::new).collect();
        let mut by_path = BTreeMap::new();
        for kind in &rows {
            if kind.ty.is_none() {
                return Err(Error::NoSchema(format!("{kind:?}")));
            }
            let path = (kind.group.to_string(), kind.version.to_string(), kind.plural.to_string());
            if by_path.insert(path, kind.clone()).is_some() {
                return Err(Error::Duplicate(format!("{}/{}", kind.api_version(), kind.plural)));
            }
        }
        Ok(Self { rows, by_path })
    }

    pub fn rows(&self) -> &[Arc<Kind>] {
        &self.rows
    }

    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// The built-in kind of this plural; there is no such kind only if the table lost its row.
    pub fn builtin(&self, group: &str, plural: &str) -> &Arc<Kind> {
        self.get(group, "v1", plural).expect("the table has every kind the server itself uses")
    }
}
