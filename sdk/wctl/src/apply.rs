//! Server-side apply of objects from files, for good or as a dry run.

use std::path::PathBuf;

use http::Method;
use serde_json::Value;

use crate::api::Api;
use crate::manifest::Manifest;
use crate::resource::{Resource, name_of};
use crate::uri::with_query;

/// What is applied, and how.
#[derive(clap::Args)]
pub struct Apply {
    /// File, folder, or `-` for standard input; may be repeated
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    pub filenames: Vec<PathBuf>,
    /// Take over fields that others own
    #[arg(long)]
    force_conflicts: bool,
    /// The name under which fields are owned
    #[arg(long, default_value = "wctl")]
    field_manager: String,
}

impl Apply {
    /// The object as it was, if it was there, and as it is or would be.
    pub async fn send(
        &self,
        api: &Api,
        resource: &Resource,
        namespace: &str,
        manifest: &Manifest,
        dry_run: bool,
    ) -> anyhow::Result<(Option<Value>, Value)> {
        let path = resource.object(namespace, name_of(&manifest.object));
        let before = api.find(&path).await?;
        let asked = [("fieldManager", self.field_manager.as_str()), ("fieldValidation", "Strict")];
        let force = self.force_conflicts.then_some(("force", "true"));
        let dry_run = dry_run.then_some(("dryRun", "All"));
        let path = with_query(&path, asked.into_iter().chain(force).chain(dry_run));
        let headers = [("content-type", "application/apply-patch+yaml")];
        let after = api.call(Method::PATCH, &path, &headers, serde_json::to_vec(&manifest.object)?).await?;
        Ok((before, after))
    }
}
