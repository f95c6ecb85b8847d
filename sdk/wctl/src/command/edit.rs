//! `wctl edit`: one object in the user's editor.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::Value;

use crate::api::{Api, Refusal, refused};
use crate::command::get::strip_managed_fields;
use crate::resource::{Resource, Resources, targets};
use crate::{Global, manifest, output};

#[derive(clap::Args)]
pub struct Options {
    /// `deployment/NAME` or `deployment NAME`
    #[arg(required = true, value_name = "TYPE/NAME")]
    what: Vec<String>,
}

const HELP: &str = "# Edit the object below; lines that begin with '#' are left out, and an unchanged file changes nothing.\n";

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let resources = Resources::discover(&api).await?;
    let targets = targets(&resources, &options.what)?;
    let [(resource, Some(name))] = targets.as_slice() else {
        bail!("name one object, for example deployment/web");
    };
    let path = resource.object(&api.namespace, name);
    let mut object = api.get(&path).await?;
    strip_managed_fields(&mut object);
    let label = format!("{}/{name}", resource.name());

    // The file's end says what it is, for the editor's sake.
    let mut file = tempfile::Builder::new().prefix("wctl-edit-").suffix(".yaml").tempfile()?;
    let mut shown = format!("{HELP}{}", serde_yaml::to_string(&object)?);
    file.write_all(shown.as_bytes())?;
    loop {
        open_editor(file.path())?;
        let edited = std::fs::read_to_string(file.path()).context("cannot read the edited file again")?;
        if without_comments(&edited).trim().is_empty()
            || without_comments(&edited) == without_comments(&shown)
        {
            if edited.contains(REFUSED) {
                let (_, kept) = file.keep()?;
                bail!("{label} was not changed; the edit is kept in {}", kept.display());
            }
            output::line(&format!("{label} unchanged"));
            return Ok(());
        }
        match put(&api, resource, &path, file.path(), &edited).await {
            Ok(()) => {
                output::line(&format!("{label} edited"));
                return Ok(());
            }
            Err(error) if can_be_mended(&error) => {
                shown = refused_text(&output::describe(&error), without_comments(&edited));
                std::fs::write(file.path(), &shown)?;
            }
            Err(error) => {
                let (_, kept) = file.keep()?;
                return Err(error.context(format!("the edit is kept in {}", kept.display())));
            }
        }
    }
}

const REFUSED: &str = "# This was refused:";

/// What the editor shows after a refusal.
fn refused_text(why: &str, edited: String) -> String {
    let why: String = why.lines().map(|line| format!("#   {line}\n")).collect();
    format!("{HELP}{REFUSED}\n{why}{edited}")
}

fn without_comments(text: &str) -> String {
    text.split_inclusive('\n').filter(|line| !line.starts_with('#')).collect()
}

/// A mistake in the file, as opposed to a cluster that is away or an object that has changed meanwhile.
fn can_be_mended(error: &anyhow::Error) -> bool {
    match refused(error) {
        Some(Refusal { code, .. }) => matches!(code, 400 | 403 | 422),
        None => error.is::<Malformed>(),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Malformed(String);

async fn put(api: &Api, resource: &Resource, path: &str, file: &Path, text: &str) -> anyhow::Result<()> {
    let malformed = |why: String| anyhow::Error::new(Malformed(why));
    let mut read = manifest::parse(file, text).map_err(|error| malformed(output::describe(&error)))?;
    let object: Value = match (read.pop(), read.is_empty()) {
        (Some(only), true) => only.object,
        _ => return Err(malformed("the file must hold one object".to_owned())),
    };
    if object["kind"] != resource.kind.as_str() || object["apiVersion"] != resource.api_version().as_str() {
        let (version, kind) = (resource.api_version(), &resource.kind);
        return Err(malformed(format!("apiVersion and kind must stay {version:?} and {kind:?}")));
    }
    // The resourceVersion in it makes this a conflict if somebody else has changed the object meanwhile.
    let path = format!("{path}?fieldManager=wctl-edit&fieldValidation=Strict");
    let headers = [("content-type", "application/json")];
    api.call(Method::PUT, &path, &headers, serde_json::to_vec(&object)?).await.map(drop)
}

/// Runs `KUBE_EDITOR`, else `EDITOR`, else vi; the variable may hold arguments.
fn open_editor(file: &Path) -> anyhow::Result<()> {
    let editor = ["KUBE_EDITOR", "EDITOR"].iter().find_map(|name| std::env::var(name).ok());
    let editor = editor.filter(|editor| !editor.trim().is_empty()).unwrap_or_else(|| "vi".to_owned());
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(file)
        .status()
        .context("cannot run sh, which starts the editor")?;
    match status.success() {
        true => Ok(()),
        false => bail!("the editor {editor:?} failed ({status}); EDITOR names another"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_no_change_and_a_refusal_is_shown_as_one() {
        let shown = format!("{HELP}kind: A\nspec: 1\n");
        assert_eq!(without_comments(&shown), "kind: A\nspec: 1\n");
        let again = refused_text("spec: must be 2\nat once", without_comments(&shown));
        assert!(
            again.contains("# This was refused:\n#   spec: must be 2\n#   at once\nkind: A\n"),
            "{again}"
        );
        assert_eq!(without_comments(&again), without_comments(&shown));
    }
}
