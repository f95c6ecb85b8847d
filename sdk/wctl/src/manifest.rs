//! Objects from files: YAML and JSON, many a file, each with the place it came from.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize as _;
use serde_json::Value;

/// Where an object was read.
#[derive(Clone, Debug)]
pub struct Place {
    /// `-` for standard input.
    file: PathBuf,
    /// Counted from 1.
    document: usize,
    /// The document's first line, counted from 1.
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = if self.file == Path::new("-") {
            "standard input".into()
        } else {
            self.file.display().to_string()
        };
        write!(f, "{file}, document {} (line {})", self.document, self.line)
    }
}

/// An object and its place.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub object: Value,
    pub place: Place,
}

impl Manifest {
    pub fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap_or_default()
    }

    pub fn api_version(&self) -> &str {
        self.object["apiVersion"].as_str().unwrap_or_default()
    }
}

/// Reads every object of files, folders (their `.yaml`, `.yml` and `.json` files, by name) and `-`.
pub fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for path in paths {
        for file in files(path)? {
            let text = if file == Path::new("-") {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
                text
            } else {
                std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?
            };
            manifests.extend(parse(&file, &text)?);
        }
    }
    if manifests.is_empty() {
        bail!(
            "no objects in {}",
            paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(manifests)
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if path == Path::new("-") || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.retain(|file| {
        file.extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known))
    });
    files.sort();
    if files.is_empty() {
        bail!("the folder {} has no .yaml, .yml or .json file", path.display());
    }
    Ok(files)
}

/// Splits a text into documents and reads each.
pub fn parse(file: &Path, text: &str) -> anyhow::Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for (nth, (line, document)) in documents(text).into_iter().enumerate() {
        let place = Place { file: file.to_owned(), document: nth + 1, line };
        let value = Value::deserialize(serde_yaml::Deserializer::from_str(document)).map_err(|error| {
            // The parser counts from the document's own first line.
            let at =
                error.location().map(|at| format!(", line {}, column {}", line + at.line() - 1, at.column()));
            let text = error.to_string();
            let text = text.split(" at line ").next().unwrap_or(&text);
            let Place { document, .. } = place;
            let file =
                if file == Path::new("-") { "standard input".into() } else { file.display().to_string() };
            anyhow::anyhow!("{file}, document {document}{}: malformed YAML: {text}", at.unwrap_or_default())
        })?;
        match value {
            Value::Null => {}
            Value::Object(_)
                if value["kind"] == "List"
                    || value["items"].is_array()
                        && value["kind"].as_str().is_some_and(|k| k.ends_with("List")) =>
            {
                let items = value["items"].as_array().cloned().unwrap_or_default();
                for object in items {
                    manifests.push(checked(object, place.clone())?);
                }
            }
            Value::Object(_) => manifests.push(checked(value, place)?),
            _ => bail!("{place}: not an object; a manifest has apiVersion, kind and metadata"),
        }
    }
    Ok(manifests)
}

fn checked(object: Value, place: Place) -> anyhow::Result<Manifest> {
    for field in ["apiVersion", "kind"] {
        if object[field].as_str().is_none_or(str::is_empty) {
            bail!("{place}: {field} is missing");
        }
    }
    if object["metadata"]["name"].as_str().is_none_or(str::is_empty) {
        bail!("{place}: {} has no metadata.name", object["kind"].as_str().unwrap_or_default());
    }
    Ok(Manifest { object, place })
}

/// The documents of a YAML stream with the line each starts on. Those of blanks and comments alone are left out.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first, mut offset) = (0, 1, 0);
    let mut push = |first: usize, document: &'_ str, range: std::ops::Range<usize>| {
        let says = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
        if document.lines().any(says) {
            documents.push((first, range));
        }
    };
    for (nth, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") || bare == "..." {
            push(first, &text[start..offset], start..offset);
            start = offset + line.len();
            first = nth + 2;
        }
        offset += line.len();
    }
    push(first, &text[start..], start..text.len());
    documents.into_iter().map(|(first, range)| (first, &text[range])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_knows_its_place() {
        let text = "# comment only\n---\napiVersion: v1\nkind: A\nmetadata: {name: a}\n---\n\n---\napiVersion: v1\nkind: B\nmetadata:\n  name: b\n";
        let read = parse(Path::new("x.yaml"), text).unwrap();
        let places: Vec<_> = read.iter().map(|m| m.place.to_string()).collect();
        assert_eq!(places, ["x.yaml, document 1 (line 3)", "x.yaml, document 2 (line 9)"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_file_document_and_line() {
        let good = "apiVersion: v1\nkind: A\nmetadata: {name: a}\n---\n";
        for (bad, expected) in [
            ("a: [1\nb: 2\n", "x.yaml, document 2, line "),
            ("just text\n", "x.yaml, document 2 (line 5): not an object"),
            ("apiVersion: v1\nmetadata: {name: b}\n", "x.yaml, document 2 (line 5): kind is missing"),
            ("apiVersion: v1\nkind: A\n", "x.yaml, document 2 (line 5): A has no metadata.name"),
        ] {
            let error = parse(Path::new("x.yaml"), &format!("{good}{bad}")).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn lists_are_their_items() {
        let text = r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"A","metadata":{"name":"a"}}]}"#;
        assert_eq!(parse(Path::new("-"), text).unwrap()[0].kind(), "A");
    }
}
