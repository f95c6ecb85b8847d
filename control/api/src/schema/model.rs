//! The types themselves: read once from the text files, then looked up by reference.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use serde_json::Value;

/// Facts about Kubernetes' types, generated.
const TYPES: &str = include_str!("../../schema/types.txt");
/// The types of `metrics.k8s.io`, which Kubernetes keeps elsewhere; by hand.
const METRICS: &str = include_str!("../../schema/metrics.txt");
/// Static defaults, and what Go always writes; kept by hand.
const DEFAULTS: &str = include_str!("../../schema/defaults.txt");

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::parse(&[TYPES, METRICS], DEFAULTS));

/// All types of the API. There is one, made at the first [`Schema::get`] (some milliseconds).
pub struct Schema {
    types: Vec<TypeDef>,
    by_name: HashMap<&'static str, usize>,
    by_kind: HashMap<(&'static str, &'static str, &'static str), usize>,
}

/// A group, version and kind; the group of the core kinds is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gvk {
    /// `apps`, or nothing for the core group.
    pub group: &'static str,
    /// `v1`
    pub version: &'static str,
    /// `Deployment`
    pub kind: &'static str,
}

impl Gvk {
    fn parse(text: &'static str) -> Gvk {
        let mut parts = text.rsplitn(3, '/');
        let kind = parts.next().unwrap_or_default();
        let version = parts.next().unwrap_or_default();
        Gvk { group: parts.next().unwrap_or_default(), version, kind }
    }

    /// As objects carry it: `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

impl fmt::Display for Gvk {
    /// As Kubernetes prints it in messages: `apps/v1, Kind=Deployment`, `/v1, Kind=Pod`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

impl Schema {
    /// The schema of this build.
    pub fn get() -> &'static Schema {
        &SCHEMA
    }

    /// The type of a kind; the core group is `""`.
    pub fn kind(&'static self, group: &str, version: &str, kind: &str) -> Option<Type> {
        self.by_kind.get(&(group, version, kind)).map(|&at| Type(&self.types[at]))
    }

    /// A type by its short name, such as `core.v1.PodSpec` or `meta.v1.ObjectMeta`.
    pub fn named(&'static self, name: &str) -> Option<Type> {
        self.by_name.get(name).map(|&at| Type(&self.types[at]))
    }

    /// Every kind with its type, in no order.
    pub fn kinds(&'static self) -> impl Iterator<Item = (&'static Gvk, Type)> {
        self.types.iter().flat_map(|def| def.kinds.iter().map(move |kind| (kind, Type(def))))
    }

    /// The files are part of the build and read by every test, so a fault in them panics.
    fn parse(types: &[&'static str], defaults: &'static str) -> Schema {
        let mut defs: Vec<TypeDef> = Vec::new();
        let mut by_name = HashMap::new();
        let mut raw_fields: Vec<(usize, &'static str, &'static str)> = Vec::new();
        let mut package = "";
        // Names first, so that fields can refer to types further down.
        for line in types.iter().flat_map(|file| file.lines()) {
            if let Some(name) = line.strip_prefix('@') {
                package = name;
            } else if let Some(field) = line.strip_prefix(' ') {
                let at = defs.len().checked_sub(1).expect("a field stands below its type");
                raw_fields.push((at, package, field));
            } else if !line.is_empty() && !line.starts_with('#') {
                let def = TypeDef::parse(line, package);
                by_name.insert(def.name, defs.len());
                defs.push(def);
            }
        }
        for (at, package, line) in raw_fields {
            let field = Field::parse(line, package, &defs, &by_name);
            defs[at].fields.push(field);
        }
        for def in &mut defs {
            def.fields.sort_by_key(|field| field.name);
            assert!(def.fields.len() <= 128, "the decoder's set of seen fields has 128 bits");
        }
        for line in defaults.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            apply_line(line, &mut defs, &by_name);
        }
        let managed = by_name["meta.v1.ObjectMeta"];
        for field in &mut defs[managed].fields {
            field.tracked = field.name != "managedFields";
        }
        mark_work(&mut defs);
        let by_kind = defs
            .iter()
            .enumerate()
            .flat_map(|(at, def)| {
                def.kinds.iter().map(move |kind| ((kind.group, kind.version, kind.kind), at))
            })
            .collect();
        Schema { types: defs, by_name, by_kind }
    }
}

/// One line of `defaults.txt`.
fn apply_line(line: &'static str, defs: &mut [TypeDef], by_name: &HashMap<&'static str, usize>) {
    let (word, rest) = line.split_once(' ').unwrap_or_else(|| panic!("defaults.txt: {line}"));
    let (path, value) = rest.split_once(' ').unwrap_or((rest, ""));
    let (name, field) = path.rsplit_once('.').unwrap_or_else(|| panic!("defaults.txt: {line}"));
    let at = *by_name.get(name).unwrap_or_else(|| panic!("defaults.txt: no type {name}"));
    let field = defs[at].fields.iter_mut().find(|candidate| candidate.name == field);
    let field = field.unwrap_or_else(|| panic!("defaults.txt: no field {path}"));
    match word {
        "default" => {
            field.default =
                Some(serde_json::from_str(value).unwrap_or_else(|error| panic!("{line}: {error}")));
        }
        "present" => field.presence = Presence::EmptyObject,
        "null" => field.presence = Presence::Null,
        _ => panic!("defaults.txt: {line}"),
    }
}

/// Finds the types in which defaulting has something to do, so that it need not walk the others.
fn mark_work(defs: &mut [TypeDef]) {
    fn leads_to(shape: &Shape, busy: &[bool]) -> bool {
        match shape {
            Shape::Struct(at) => busy[*at],
            Shape::List(item) | Shape::Map(item) => leads_to(item, busy),
            _ => false,
        }
    }
    let own = |field: &Field| {
        field.default.is_some()
            || matches!(field.presence, Presence::EmptyObject)
            || matches!(field.shape, Shape::List(_) | Shape::Map(_))
    };
    let mut busy: Vec<bool> =
        defs.iter().map(|def| super::default::has_rule(def.name) || def.fields.iter().any(own)).collect();
    loop {
        let more: Vec<usize> = (0..defs.len())
            .filter(|&at| !busy[at] && defs[at].fields.iter().any(|field| leads_to(&field.shape, &busy)))
            .collect();
        if more.is_empty() {
            break;
        }
        for at in more {
            busy[at] = true;
        }
    }
    for (def, busy) in defs.iter_mut().zip(busy) {
        def.defaulted = busy;
    }
}

/// What is known of one type.
pub(super) struct TypeDef {
    name: &'static str,
    fields: Vec<Field>,
    kinds: Vec<Gvk>,
    form: Option<Shape>,
    atomic: bool,
    status: bool,
    pub(super) defaulted: bool,
}

impl TypeDef {
    fn parse(line: &'static str, package: &'static str) -> TypeDef {
        let mut words = line.split(' ');
        let last = words.next().unwrap_or_default();
        let mut def = TypeDef {
            // A few hundred short names, once in the life of the process.
            name: Box::leak(format!("{package}.{last}").into_boxed_str()),
            fields: Vec::new(),
            kinds: Vec::new(),
            form: None,
            atomic: false,
            status: false,
            defaulted: false,
        };
        for word in words {
            match word {
                "atomic" => def.atomic = true,
                "status" => def.status = true,
                "is:any" => def.form = Some(Shape::Any),
                "is:object" => def.form = Some(Shape::Object),
                "is:quantity" => def.form = Some(Shape::Quantity),
                "is:int-or-string" => def.form = Some(Shape::IntOrString),
                "is:time" => def.form = Some(Shape::Time),
                "is:microtime" => def.form = Some(Shape::MicroTime),
                kind => def.kinds.push(Gvk::parse(kind)),
            }
        }
        def
    }
}

/// One type; cheap to copy, equal if it is the same.
#[derive(Clone, Copy)]
pub struct Type(pub(super) &'static TypeDef);

impl PartialEq for Type {
    fn eq(&self, other: &Type) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Type {}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Type({})", self.0.name)
    }
}

impl Type {
    /// The short name: `apps.v1.DeploymentSpec`.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// All fields, sorted by name.
    pub fn fields(self) -> &'static [Field] {
        &self.0.fields
    }

    /// The field of this name.
    pub fn field(self, name: &str) -> Option<&'static Field> {
        self.field_index(name).map(|at| &self.0.fields[at])
    }

    pub(super) fn field_index(self, name: &str) -> Option<usize> {
        self.0.fields.binary_search_by(|field| field.name.cmp(name)).ok()
    }

    /// The (first) kind that this type is; `None` for a part of an object.
    pub fn gvk(self) -> Option<&'static Gvk> {
        self.0.kinds.first()
    }

    /// Every kind that this type is.
    pub fn kinds(self) -> &'static [Gvk] {
        &self.0.kinds
    }

    /// Whether values are merged as a whole.
    pub fn is_atomic(self) -> bool {
        self.0.atomic
    }

    /// Whether objects of this kind have a `/status` subresource.
    pub fn has_status(self) -> bool {
        self.0.status
    }

    /// As Go prints it: `v1.DeploymentSpec`.
    pub(super) fn go_name(self) -> &'static str {
        let name = self.0.name;
        name.rmatch_indices('.').nth(1).map_or(name, |(at, _)| &name[at + 1..])
    }

    /// As Go names the struct of a field: `DeploymentSpec`.
    pub(super) fn go_struct(self) -> &'static str {
        self.0.name.rsplit('.').next().unwrap_or_default()
    }

    /// How values of this type are merged where nothing else is said.
    pub(super) fn node(self) -> Node {
        if self.0.atomic { Node::Leaf } else { Node::Struct(self) }
    }
}

/// What a value may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// Text.
    String,
    /// True or false.
    Bool,
    /// A whole number that fits 32 bits.
    Int32,
    /// A whole number that fits 64 bits.
    Int64,
    /// A number.
    Double,
    /// Bytes as base64 text.
    Bytes,
    /// An amount such as `250m` or `1Gi`.
    Quantity,
    /// A number or text such as `25%`.
    IntOrString,
    /// RFC 3339 in whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// Anything at all.
    Any,
    /// An object whose content is not described.
    Object,
    /// A type of the schema, by its place in it.
    Struct(usize),
    /// A list.
    List(Box<Shape>),
    /// An object with free keys.
    Map(Box<Shape>),
}

impl Shape {
    fn parse(text: &str, package: &str, defs: &[TypeDef], by_name: &HashMap<&'static str, usize>) -> Shape {
        if let Some(item) = text.strip_prefix("[]") {
            return Shape::List(Box::new(Shape::parse(item, package, defs, by_name)));
        }
        if let Some(item) = text.strip_prefix("{}") {
            return Shape::Map(Box::new(Shape::parse(item, package, defs, by_name)));
        }
        match text {
            "string" => Shape::String,
            "bool" => Shape::Bool,
            "int32" => Shape::Int32,
            "int64" => Shape::Int64,
            "double" => Shape::Double,
            "bytes" => Shape::Bytes,
            name => {
                let full = if name.contains('.') { name.to_owned() } else { format!("{package}.{name}") };
                let at = *by_name.get(full.as_str()).unwrap_or_else(|| panic!("types.txt: no type {full}"));
                defs[at].form.clone().unwrap_or(Shape::Struct(at))
            }
        }
    }

    /// The type, if this is one.
    pub fn as_type(&self) -> Option<Type> {
        match self {
            Shape::Struct(at) => Some(Type(&Schema::get().types[*at])),
            _ => None,
        }
    }

    /// How values of this shape are merged where no field says otherwise: lists as a whole, maps by key.
    pub(super) fn node(&'static self) -> Node {
        match self {
            Shape::Struct(at) => Type(&Schema::get().types[*at]).node(),
            Shape::Map(item) => Node::Map(item),
            Shape::Any | Shape::Object => Node::Deduced,
            _ => Node::Leaf,
        }
    }

    /// As Go prints it in an error.
    pub(super) fn go_name(&self) -> String {
        match self {
            Shape::String => "string".to_owned(),
            Shape::Bool => "bool".to_owned(),
            Shape::Int32 => "int32".to_owned(),
            Shape::Int64 => "int64".to_owned(),
            Shape::Double => "float64".to_owned(),
            Shape::Bytes => "[]uint8".to_owned(),
            Shape::Quantity => "resource.Quantity".to_owned(),
            Shape::IntOrString => "intstr.IntOrString".to_owned(),
            Shape::Time => "v1.Time".to_owned(),
            Shape::MicroTime => "v1.MicroTime".to_owned(),
            Shape::Any | Shape::Object => "runtime.RawExtension".to_owned(),
            Shape::Struct(at) => Type(&Schema::get().types[*at]).go_name().to_owned(),
            Shape::List(item) => format!("[]{}", item.go_name()),
            Shape::Map(item) => format!("map[string]{}", item.go_name()),
        }
    }
}

/// How a list is merged.
#[derive(Clone, Debug, PartialEq)]
pub enum ListType {
    /// As one value.
    Atomic,
    /// By item: an item is there or not.
    Set,
    /// By item, recognised by these fields of it.
    Map(Vec<&'static str>),
}

/// What strategic merge patch does with a field.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PatchStrategy {
    /// Merge a list item by item; `Some("")` for lists of plain values, else the field that tells items apart.
    pub merge: Option<&'static str>,
    /// `$retainKeys` is understood here.
    pub retain_keys: bool,
    /// Replace an object instead of merging into it.
    pub replace: bool,
}

/// Whether Go writes a field that nobody set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Optional,
    EmptyObject,
    Null,
}

/// One field of a type.
#[derive(Debug)]
pub struct Field {
    /// As it is written in JSON.
    pub name: &'static str,
    /// What it holds.
    pub shape: Shape,
    /// The API refuses objects without it.
    pub required: bool,
    /// How it is merged if it is a list.
    pub list: ListType,
    /// What strategic merge patch does with it.
    pub patch: PatchStrategy,
    /// What it is if nobody says.
    pub default: Option<Value>,
    granular: Option<bool>,
    pub(super) presence: Presence,
    /// False for managedFields alone: nobody owns them.
    pub(super) tracked: bool,
}

impl Field {
    fn parse(
        line: &'static str,
        package: &str,
        defs: &[TypeDef],
        by_name: &HashMap<&'static str, usize>,
    ) -> Field {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let shape = Shape::parse(words.next().unwrap_or_default(), package, defs, by_name);
        let mut field = Field {
            name,
            shape,
            required: false,
            list: ListType::Atomic,
            patch: PatchStrategy::default(),
            default: None,
            granular: None,
            presence: Presence::Optional,
            tracked: true,
        };
        for word in words {
            match word.split_once(':') {
                None if word == "!" => field.required = true,
                None if word == "atomic" => field.granular = Some(false),
                None if word == "granular" => field.granular = Some(true),
                None if word == "set" => field.list = ListType::Set,
                None if word == "retain" => field.patch.retain_keys = true,
                None if word == "replace" => field.patch.replace = true,
                Some(("map", keys)) => {
                    let mut keys: Vec<_> = keys.split(',').collect();
                    keys.sort_unstable(); // the order in which Kubernetes prints them
                    field.list = ListType::Map(keys);
                }
                Some(("merge", key)) => field.patch.merge = Some(key),
                _ => panic!("types.txt: {line}"),
            }
        }
        field
    }

    /// What the field says of merging its map or object: key by key, as a whole, or nothing.
    pub fn granular(&self) -> Option<bool> {
        self.granular
    }

    /// How values of this field are merged, compared and owned.
    pub(super) fn node(&'static self) -> Node {
        match (&self.shape, self.granular) {
            (_, Some(false)) => Node::Leaf,
            (Shape::Struct(_), Some(true)) => self.shape.as_type().map_or(Node::Leaf, Node::Struct),
            (Shape::List(item), _) => match &self.list {
                ListType::Atomic => Node::Leaf,
                ListType::Set => Node::Set,
                ListType::Map(keys) => match item.as_type() {
                    Some(item) => Node::Keyed(item, keys),
                    None => Node::Leaf,
                },
            },
            _ => self.shape.node(),
        }
    }
}

/// How a value takes part in server-side apply.
#[derive(Clone, Copy, Debug)]
pub(super) enum Node {
    /// One value, owned as a whole.
    Leaf,
    /// Field by field.
    Struct(Type),
    /// Key by key.
    Map(&'static Shape),
    /// Item by item.
    Set,
    /// Item by item, told apart by these fields.
    Keyed(Type, &'static [&'static str]),
    /// Not described: objects key by key, anything else as a whole.
    Deduced,
}
