//! The messages of all kinds: read once from `protobuf.txt`, then looked up by reference.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Facts about Kubernetes' types, generated.
const TEXT: &str = include_str!("../../schema/protobuf.txt");
/// The package of kinds that clients name with any group's version, such as `apps/v1, Kind=DeleteOptions`.
const EVERY_GROUP: &str = "meta.v1";

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(TEXT));

/// All messages. There is one, made at the first [`Table::get`] (some milliseconds).
pub struct Table {
    messages: Vec<Message>,
    /// By `apps/v1/Deployment`, `v1/Pod`.
    kinds: HashMap<&'static str, usize>,
}

/// One type as a message.
pub struct Message {
    every_group: bool,
    /// In the order of their numbers.
    fields: Vec<Field>,
}

/// One field of a message.
pub struct Field {
    pub number: u32,
    /// Its name in JSON.
    pub name: &'static str,
    pub shape: Shape,
    /// Its fields stand in the object around it in JSON; the field itself has no name there.
    pub inline: bool,
    /// Written only where it is set, then also with an empty value; others are always written.
    pub pointer: bool,
    /// In Go's JSON even if it is empty.
    pub always: bool,
}

/// What a field holds.
#[derive(Clone, Debug)]
pub enum Shape {
    String,
    Bool,
    Int32,
    Int64,
    /// Base64 in JSON.
    Bytes,
    /// A message with an amount in text, text in JSON.
    Quantity,
    /// A message with a number, a text, and which of them it is.
    IntOrString,
    /// A message with seconds since 1970, RFC 3339 in JSON. Empty: no time.
    Time,
    /// The same with nanoseconds, of which microseconds count.
    MicroTime,
    /// A message with JSON text in it, JSON in JSON.
    Json,
    /// A message with a list of text in it, a list of text in JSON.
    Items,
    /// A message, by its place in the table.
    Message(usize),
    List(Box<Shape>),
    /// An object with free keys; entries of key and value.
    Map(Box<Shape>),
}

impl Table {
    /// The table of this build.
    pub fn get() -> &'static Self {
        &TABLE
    }

    /// The message of a kind; `None` if it has no protobuf form.
    pub fn kind(&'static self, api_version: &str, kind: &str) -> Option<&'static Message> {
        let find = |version: &str| {
            let at = self.kinds.get(format!("{version}/{kind}").as_str())?;
            Some(&self.messages[*at])
        };
        find(api_version).or_else(|| find("v1").filter(|message| message.every_group))
    }

    /// The file is part of the build and read by tests, so a fault in it panics.
    fn parse(text: &'static str) -> Self {
        let mut table = Self { messages: Vec::new(), kinds: HashMap::new() };
        let mut by_name = HashMap::new();
        let mut lines: Vec<(usize, &str, &str)> = Vec::new();
        let mut package = "";
        // Names first, so that fields can refer to types further down.
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('@') {
                package = name;
            } else if let Some(field) = line.strip_prefix(' ') {
                let at = table.messages.len().checked_sub(1).expect("a field stands below its type");
                lines.push((at, package, field));
            } else if !line.starts_with('#') {
                let mut words = line.split(' ');
                let at = table.messages.len();
                by_name.insert(format!("{package}.{}", words.next().unwrap_or_default()), at);
                table.kinds.extend(words.map(|kind| (kind, at)));
                table.messages.push(Message { every_group: package == EVERY_GROUP, fields: Vec::new() });
            }
        }
        for (at, package, line) in lines {
            table.messages[at].fields.push(Field::parse(line, package, &by_name));
        }
        table
    }

    #[cfg(test)]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }
}

impl Message {
    /// The message at a place that [`Shape::Message`] names.
    pub fn at(place: usize) -> &'static Self {
        &Table::get().messages[place]
    }

    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    pub fn field(&self, number: u32) -> Option<&Field> {
        let at = self.fields.binary_search_by_key(&number, |field| field.number).ok()?;
        Some(&self.fields[at])
    }

    /// For a list: its items' number and message.
    pub fn items(&self) -> Option<(u32, &'static Self)> {
        let field = self.fields.last().filter(|field| field.name == "items")?;
        match &field.shape {
            Shape::List(item) => match **item {
                Shape::Message(item) => Some((field.number, Self::at(item))),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Field {
    fn parse(line: &'static str, package: &str, by_name: &HashMap<String, usize>) -> Self {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_else(|| panic!("protobuf.txt: {line}"));
        let number = word().parse().unwrap_or_else(|_| panic!("protobuf.txt: {line}"));
        let name = word();
        let shape = Shape::parse(word(), package, by_name);
        let marks: Vec<&str> = words.collect();
        Self {
            number,
            name,
            shape,
            inline: name == "-",
            pointer: marks.contains(&"*"),
            always: marks.contains(&"!"),
        }
    }
}

impl Shape {
    fn parse(text: &str, package: &str, by_name: &HashMap<String, usize>) -> Self {
        if let Some(item) = text.strip_prefix("[]") {
            return Self::List(Box::new(Self::parse(item, package, by_name)));
        }
        if let Some(item) = text.strip_prefix("{}") {
            return Self::Map(Box::new(Self::parse(item, package, by_name)));
        }
        match text {
            "string" => Self::String,
            "bool" => Self::Bool,
            "int32" => Self::Int32,
            "int64" => Self::Int64,
            "bytes" => Self::Bytes,
            "quantity" => Self::Quantity,
            "int-or-string" => Self::IntOrString,
            "time" => Self::Time,
            "microtime" => Self::MicroTime,
            "json" => Self::Json,
            "items" => Self::Items,
            name => {
                let full = if name.contains('.') { name.to_owned() } else { format!("{package}.{name}") };
                Self::Message(*by_name.get(&full).unwrap_or_else(|| panic!("protobuf.txt: no type {full}")))
            }
        }
    }
}
