//! Sets of fields, as managers own them, and their JSON form (FieldsV1).
//!
//! A set is a tree: each entry names one step of a path, says whether the path up to here is a member, and holds
//! the members below it. Entries are sorted as Kubernetes sorts them, and no entry is empty.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use serde_json::{Map, Value};

/// One step of a path.
#[derive(Clone, Debug)]
pub enum Element {
    /// A field of an object or a key of a map: `.name`, `f:name`.
    Field(Cow<'static, str>),
    /// An item of a list of objects, by the fields that tell them apart, sorted by name: `[name="x"]`, `k:{…}`.
    Key(Box<[(Cow<'static, str>, Value)]>),
    /// An item of a list of plain values: `[="x"]`, `v:…`.
    Value(Value),
    /// An item by its place: `[0]`, `i:0`. Kubernetes reads this form and writes it nowhere.
    Index(i64),
}

impl Element {
    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }

    /// Reads the form that FieldsV1 has: `f:…`, `k:…`, `v:…`, `i:…`.
    fn parse(text: &str) -> Result<Element, Error> {
        let malformed = || Error(text.to_owned());
        let (kind, rest) = text.split_once(':').ok_or_else(malformed)?;
        Ok(match kind {
            "f" => Self::Field(Cow::Owned(rest.to_owned())),
            "v" => Self::Value(serde_json::from_str(rest).map_err(|_| malformed())?),
            "i" => Self::Index(rest.parse().map_err(|_| malformed())?),
            "k" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).map_err(|_| malformed())?;
                if keys.is_empty() {
                    return Err(malformed());
                }
                let mut keys: Box<[_]> =
                    keys.into_iter().map(|(name, value)| (Cow::Owned(name), value)).collect();
                keys.sort_by(|(a, _), (b, _): &(Cow<'_, str>, Value)| a.cmp(b));
                Self::Key(keys)
            }
            _ => return Err(malformed()),
        })
    }

    /// The form that FieldsV1 has.
    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(at) => format!("i:{at}"),
            Self::Key(keys) => {
                let mut text = String::from("k:{");
                for (at, (name, value)) in keys.iter().enumerate() {
                    if at > 0 {
                        text.push(',');
                    }
                    text.push_str(&Value::from(name.as_ref()).to_string());
                    text.push(':');
                    text.push_str(&value.to_string());
                }
                text.push('}');
                text
            }
        }
    }
}

impl fmt::Display for Element {
    /// As in messages: `.replicas`, `[name="x"]`, `[="a"]`, `[0]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(at) => write!(f, "[{at}]"),
            Self::Key(keys) => {
                for (at, (name, value)) in keys.iter().enumerate() {
                    write!(f, "{}{name}={value}", if at == 0 { "[" } else { "," })?;
                }
                f.write_str("]")
            }
        }
    }
}

impl Ord for Element {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Value(a), Self::Value(b)) => compare_values(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => {
                for ((a_name, a_value), (b_name, b_value)) in a.iter().zip(b.iter()) {
                    let order = a_name.cmp(b_name).then_with(|| compare_values(a_value, b_value));
                    if order.is_ne() {
                        return order;
                    }
                }
                a.len().cmp(&b.len())
            }
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Element {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Element {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Element {}

/// Numbers by value, then text, then the rest: a total order.
fn compare_values(a: &Value, b: &Value) -> Ordering {
    fn rank(value: &Value) -> u8 {
        match value {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => x.cmp(&y),
            _ => x.as_f64().unwrap_or_default().total_cmp(&y.as_f64().unwrap_or_default()),
        },
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        (Value::Array(x), Value::Array(y)) => {
            let pairs = x.iter().zip(y).map(|(x, y)| compare_values(x, y));
            pairs.fold(Ordering::Equal, Ordering::then).then(x.len().cmp(&y.len()))
        }
        (Value::Object(_), Value::Object(_)) => a.to_string().cmp(&b.to_string()),
        _ => rank(a).cmp(&rank(b)),
    }
}

/// A FieldsV1 key that is none.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no field path")]
pub struct Error(String);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    element: Element,
    member: bool,
    below: FieldSet,
}

/// A set of field paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(Vec<Entry>);

impl FieldSet {
    /// The set with nothing in it.
    pub const fn new() -> FieldSet {
        FieldSet(Vec::new())
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads a FieldsV1 object.
    ///
    /// # Errors
    /// If it is no object, or a key has none of the known forms.
    pub fn from_value(value: &Value) -> Result<FieldSet, Error> {
        let Value::Object(object) = value else { return Err(Error(value.to_string())) };
        let mut set = FieldSet(Vec::with_capacity(object.len()));
        for (key, value) in object {
            if key == "." {
                continue; // said of the entry above
            }
            let below = FieldSet::from_value(value)?;
            let member = below.is_empty() || value.get(".").is_some();
            set.0.push(Entry { element: Element::parse(key)?, member, below });
        }
        set.sort();
        Ok(set)
    }

    /// The FieldsV1 object.
    pub fn to_value(&self) -> Value {
        Value::Object(self.encode(false))
    }

    fn encode(&self, member: bool) -> Map<String, Value> {
        let mut object = Map::new();
        if member && !self.is_empty() {
            object.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for entry in &self.0 {
            object.insert(entry.element.encode(), Value::Object(entry.below.encode(entry.member)));
        }
        object
    }

    /// Adds an entry while building; [`FieldSet::sort`] must follow where entries may come out of order.
    pub(super) fn push(&mut self, element: Element, member: bool, below: FieldSet) {
        if member || !below.is_empty() {
            self.0.push(Entry { element, member, below });
        }
    }

    /// Puts entries in order and joins those of the same path.
    pub(super) fn sort(&mut self) {
        if self.0.windows(2).all(|pair| pair[0].element < pair[1].element) {
            return;
        }
        self.0.sort_by(|a, b| a.element.cmp(&b.element));
        self.0.dedup_by(|from, into| {
            let same = from.element == into.element;
            if same {
                into.member |= from.member;
                into.below = into.below.union(&from.below);
            }
            same
        });
    }

    /// Adds one path, given as field names.
    pub fn insert_fields(&mut self, path: &[&'static str]) {
        let Some((first, rest)) = path.split_first() else { return };
        let element = Element::Field(Cow::Borrowed(*first));
        let at = match self.0.binary_search_by(|entry| entry.element.cmp(&element)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, Entry { element, member: false, below: FieldSet::new() });
                at
            }
        };
        if rest.is_empty() {
            self.0[at].member = true;
        } else {
            self.0[at].below.insert_fields(rest);
        }
    }

    fn find(&self, element: &Element) -> Option<&Entry> {
        self.0.binary_search_by(|entry| entry.element.cmp(element)).ok().map(|at| &self.0[at])
    }

    /// What the set says of one step: whether it is a member, and the set below it.
    pub(super) fn step(&self, element: &Element) -> Option<(bool, &FieldSet)> {
        self.find(element).map(|entry| (entry.member, &entry.below))
    }

    /// Everything that is in either.
    pub fn union(&self, other: &FieldSet) -> FieldSet {
        if self.is_empty() {
            return other.clone();
        }
        let mut out = Vec::with_capacity(self.0.len().max(other.0.len()));
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            match a.element.cmp(&b.element) {
                Ordering::Less => out.extend(left.next().cloned()),
                Ordering::Greater => out.extend(right.next().cloned()),
                Ordering::Equal => {
                    out.push(Entry {
                        element: a.element.clone(),
                        member: a.member || b.member,
                        below: a.below.union(&b.below),
                    });
                    left.next();
                    right.next();
                }
            }
        }
        out.extend(left.cloned());
        out.extend(right.cloned());
        FieldSet(out)
    }

    /// What is in both.
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut out = FieldSet::new();
        for entry in &self.0 {
            if let Some(found) = other.find(&entry.element) {
                let below = entry.below.intersection(&found.below);
                out.push(entry.element.clone(), entry.member && found.member, below);
            }
        }
        out
    }

    /// Takes out what is in `other`, path by path.
    pub fn subtract(&mut self, other: &FieldSet) {
        if other.is_empty() {
            return;
        }
        self.0.retain_mut(|entry| {
            if let Some(found) = other.find(&entry.element) {
                entry.member &= !found.member;
                entry.below.subtract(&found.below);
            }
            entry.member || !entry.below.is_empty()
        });
    }

    /// Takes out what is in `other` and everything below it.
    pub fn subtract_trees(&mut self, other: &FieldSet) {
        if other.is_empty() {
            return;
        }
        self.0.retain_mut(|entry| match other.find(&entry.element) {
            Some(found) if found.member => false,
            Some(found) => {
                entry.below.subtract_trees(&found.below);
                entry.member || !entry.below.is_empty()
            }
            None => true,
        });
    }

    /// Every path, as Kubernetes prints and orders them: `.spec.replicas`.
    pub fn paths(&self) -> Vec<String> {
        fn gather(set: &FieldSet, prefix: &str, out: &mut Vec<String>) {
            for entry in set.0.iter().filter(|entry| entry.member) {
                out.push(format!("{prefix}{}", entry.element));
            }
            for entry in set.0.iter().filter(|entry| !entry.below.is_empty()) {
                gather(&entry.below, &format!("{prefix}{}", entry.element), out);
            }
        }
        let mut out = Vec::new();
        gather(self, "", &mut out);
        out
    }
}

impl fmt::Display for FieldSet {
    /// FieldsV1 with its keys in Kubernetes' order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn write(set: &FieldSet, member: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("{")?;
            let own = member && !set.is_empty();
            if own {
                f.write_str(r#"".":{}"#)?;
            }
            for (at, entry) in set.0.iter().enumerate() {
                let comma = if at > 0 || own { "," } else { "" };
                write!(f, "{comma}{}:", Value::from(entry.element.encode()))?;
                write(&entry.below, entry.member, f)?;
            }
            f.write_str("}")
        }
        write(self, false, f)
    }
}
