//! What `wctl describe` prints: names and values in aligned blocks, tables, and whole trees.

use serde_json::Value;

use crate::output;

/// A page of text that grows line by line.
#[derive(Default)]
pub struct Page {
    lines: Vec<Line>,
}

enum Line {
    Field { depth: usize, name: String, value: String },
    Text(String),
}

impl Page {
    /// A name and its value; further lines of the value stand below the first.
    pub fn field(&mut self, depth: usize, name: &str, value: impl AsRef<str>) {
        let mut lines = value.as_ref().lines();
        let first = lines.next().unwrap_or_default();
        self.lines.push(Line::Field { depth, name: format!("{name}:"), value: first.to_owned() });
        let more = lines.map(|line| Line::Field { depth, name: String::new(), value: line.to_owned() });
        self.lines.extend(more);
    }

    /// As [`Self::field`], where there is a value.
    pub fn field_if(&mut self, depth: usize, name: &str, value: &Value) {
        let text = scalar(value);
        if !text.is_empty() {
            self.field(depth, name, text);
        }
    }

    /// Several values, one below the other; `<none>` if there is none.
    pub fn list(&mut self, depth: usize, name: &str, values: impl IntoIterator<Item = String>) {
        let values: Vec<String> = values.into_iter().collect();
        let text = if values.is_empty() { "<none>".to_owned() } else { values.join("\n") };
        self.field(depth, name, text);
    }

    /// A heading over what follows.
    pub fn heading(&mut self, depth: usize, name: &str) {
        self.lines.push(Line::Text(format!("{}{name}:", indent(depth))));
    }

    /// Rows below headings; the first row is those headings. Says `<none>` beside its name if it has no other.
    pub fn table(&mut self, depth: usize, name: &str, rows: &[Vec<String>]) {
        if rows.len() < 2 {
            return self.field(depth, name, "<none>");
        }
        self.heading(depth, name);
        let laid = output::columns(rows);
        self.lines.extend(laid.into_iter().map(|row| Line::Text(format!("{}{row}", indent(depth + 1)))));
    }

    /// Everything in a value, in its own order, with names in words.
    pub fn tree(&mut self, depth: usize, name: &str, value: &Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                self.heading(depth, name);
                fields.iter().for_each(|(key, value)| self.tree(depth + 1, &in_words(key), value));
            }
            Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
                self.heading(depth, name);
                for (nth, item) in items.iter().enumerate() {
                    let own = item["name"].as_str().or_else(|| item["type"].as_str());
                    let own = own.map_or_else(|| format!("[{nth}]"), str::to_owned);
                    self.tree(depth + 1, &own, item);
                }
            }
            Value::Array(items) => self.list(depth, name, items.iter().map(scalar)),
            Value::Null => {}
            other => self.field(depth, name, scalar(other)),
        }
    }

    /// The text. Values that follow one another at one depth stand in one column.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut rest = self.lines.as_slice();
        while let Some(first) = rest.first() {
            let together = match first {
                Line::Text(_) => 1,
                Line::Field { depth, .. } => {
                    let same =
                        |line: &&Line| matches!(line, Line::Field { depth: other, .. } if other == depth);
                    rest.iter().take_while(same).count()
                }
            };
            let (block, after) = rest.split_at(together);
            rest = after;
            let width = block.iter().map(Line::name_width).max().unwrap_or(0) + 2;
            for line in block {
                let line = match line {
                    Line::Text(text) => text.clone(),
                    Line::Field { depth, name, value } => format!("{}{name:width$}{value}", indent(*depth)),
                };
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        text
    }
}

impl Line {
    fn name_width(&self) -> usize {
        match self {
            Self::Text(_) => 0,
            Self::Field { name, .. } => name.chars().count(),
        }
    }
}

fn indent(depth: usize) -> String {
    "  ".repeat(depth)
}

/// A scalar as text; nothing for what is not there.
pub fn scalar(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `imagePullPolicy` as `Image Pull Policy`; what is no field's name stays.
pub fn in_words(key: &str) -> String {
    if !key.chars().all(|c| c.is_ascii_alphanumeric()) {
        return key.to_owned();
    }
    let mut words = String::new();
    let mut before = 'A';
    for (nth, letter) in key.chars().enumerate() {
        if nth == 0 {
            words.push(letter.to_ascii_uppercase());
        } else {
            if letter.is_ascii_uppercase() && !before.is_ascii_uppercase() {
                words.push(' ');
            }
            words.push(letter);
        }
        before = letter;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_of_one_block_stand_in_one_column() {
        let mut page = Page::default();
        page.field(0, "Name", "web");
        page.list(0, "Labels", ["a=1".to_owned(), "b=2".to_owned()]);
        page.table(
            0,
            "Conditions",
            &[vec!["Type".into(), "Status".into()], vec!["Ready".into(), "True".into()]],
        );
        page.table(0, "Events", &[vec!["Type".into()]]);
        assert_eq!(
            page.text(),
            "Name:    web\nLabels:  a=1\n         b=2\nConditions:\n  Type    Status\n  Ready   True\nEvents:  <none>\n"
        );
    }

    #[test]
    fn a_tree_tells_everything_in_words() {
        let mut page = Page::default();
        let spec = json!({"imagePullPolicy": "Always", "podIPs": ["1", "2"], "ports": [{"name": "http", "port": 80}],
            "empty": {}, "none": null, "app.kubernetes.io/name": "x"});
        page.tree(0, "Spec", &spec);
        let text = page.text();
        assert!(text.contains("  Image Pull Policy:       Always\n"), "{text}");
        assert!(text.contains("  Ports:\n    http:\n      Name:  http\n      Port:  80\n"), "{text}");
        assert!(text.contains("app.kubernetes.io/name:"), "{text}");
        assert!(text.contains("Pod IPs:") && !text.contains("None"), "{text}");
    }
}
