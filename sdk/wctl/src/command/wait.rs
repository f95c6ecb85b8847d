//! `wctl wait`: until objects are as asked.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::stream::{FuturesUnordered, StreamExt as _};
use serde_json::Value;
use serde_json_path::JsonPath;

use crate::api::Api;
use crate::command::duration;
use crate::resource::{Resource, Resources, chosen};
use crate::{Global, output, rollout};

#[derive(clap::Args)]
pub struct Options {
    /// `pod/NAME`, `pod NAME`, or a type with --all or --selector
    #[arg(required = true, value_name = "TYPE[/NAME]")]
    what: Vec<String>,
    /// condition=NAME[=VALUE], delete, create, or jsonpath={.PATH}[=VALUE]
    #[arg(long = "for", value_name = "WHAT")]
    wanted: Wanted,
    /// Every object of the type in the namespace
    #[arg(long)]
    all: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// How long to wait for each
    #[arg(long, default_value = "30s", value_parser = duration)]
    timeout: Duration,
}

/// What is waited for.
#[derive(Clone, Debug)]
enum Wanted {
    Condition {
        name: String,
        value: String,
    },
    Path {
        path: JsonPath,
        /// Any value where none is given.
        value: Option<String>,
    },
    Create,
    Delete,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "delete" => Ok(Self::Delete),
            None if text == "create" => Ok(Self::Create),
            Some(("condition", condition)) if !condition.is_empty() => {
                let (name, value) = condition.split_once('=').unwrap_or((condition, "True"));
                Ok(Self::Condition { name: name.to_owned(), value: value.to_owned() })
            }
            Some(("jsonpath", expression)) => {
                // An equals sign inside the braces is a filter's.
                let end = expression.rfind('}').map_or(0, |at| at + 1);
                let split = expression[end..].find('=').map(|at| end + at);
                let (path, value) = match split {
                    Some(at) => (&expression[..at], Some(expression[at + 1..].to_owned())),
                    None => (expression, None),
                };
                Ok(Self::Path { path: json_path(path)?, value })
            }
            _ => Err("write condition=NAME[=VALUE], delete, create, or jsonpath={.PATH}[=VALUE]".to_owned()),
        }
    }
}

/// kubectl's `{.status.phase}` as the standard's `$.status.phase` (RFC 9535).
fn json_path(text: &str) -> Result<JsonPath, String> {
    let bare = text.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    let dot = if bare.starts_with(['.', '[']) { "" } else { "." };
    JsonPath::parse(&format!("${dot}{bare}")).map_err(|error| format!("{text:?} is no path: {error}"))
}

impl Wanted {
    fn holds(&self, object: &Value) -> bool {
        match self {
            Self::Create => true,
            Self::Delete => false,
            Self::Condition { name, value } => {
                // What an older generation's status says is not about this one.
                let behind = object["status"]["observedGeneration"].as_i64().is_some_and(|observed| {
                    object["metadata"]["generation"].as_i64().is_some_and(|generation| observed < generation)
                });
                let conditions = object["status"]["conditions"].as_array();
                !behind
                    && conditions.into_iter().flatten().any(|condition| {
                        let is = |field: &str, text: &str| {
                            condition[field].as_str().is_some_and(|value| value.eq_ignore_ascii_case(text))
                        };
                        is("type", name) && is("status", value)
                    })
            }
            Self::Path { path, value } => path.query(object).iter().any(|found| match (found, value) {
                (_, None) => true,
                (Value::String(text), Some(value)) => text == value,
                (other, Some(value)) => other.to_string() == *value,
            }),
        }
    }
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let resources = Resources::discover(&api).await?;
    let chosen = chosen(&api, &resources, &options.what, options.all, options.selector.as_deref()).await?;
    if chosen.is_empty() {
        match options.wanted {
            Wanted::Delete => return Ok(()),
            _ => bail!("no object was found to wait for"),
        }
    }
    let mut waits: FuturesUnordered<_> =
        chosen.iter().map(|(resource, name)| wait(&api, resource, name, &options)).collect();
    let mut late = Vec::new();
    while let Some(done) = waits.next().await {
        match done {
            Ok(met) => output::line(&met),
            Err(error) => late.push(error),
        }
    }
    let Some(last) = late.pop() else { return Ok(()) };
    for error in late {
        eprintln!("error: {}", output::describe(&error));
    }
    Err(last)
}

async fn wait(api: &Api, resource: &Resource, name: &str, options: &Options) -> anyhow::Result<String> {
    let label = format!("{}/{name}", resource.name());
    match &options.wanted {
        Wanted::Delete => {
            rollout::gone(api, resource, &api.namespace, name, options.timeout).await?;
            return Ok(format!("{label} is gone"));
        }
        Wanted::Create => {}
        // What is not there is an error at once rather than waited for.
        _ => drop(api.get(&resource.object(&api.namespace, name)).await?),
    }
    let bar = output::spinner(format!("{label} …"));
    let path = resource.list_of(&api.namespace, name);
    let seen = rollout::until(api, &path, |object| options.wanted.holds(object).then_some(()));
    let seen = tokio::time::timeout(options.timeout, seen).await;
    bar.finish_and_clear();
    seen.with_context(|| format!("{label} was not as asked within {} s", options.timeout.as_secs()))??;
    Ok(match options.wanted {
        Wanted::Create => format!("{label} is there"),
        _ => format!("{label} condition met"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_waited_for_is_read_as_kubectl_reads_it() {
        let pod = json!({"metadata": {"generation": 1}, "status": {"phase": "Running", "restarts": 2,
            "conditions": [{"type": "Ready", "status": "True"}],
            "list": [{"name": "a", "ready": true}, {"name": "b", "ready": false}]}});
        for (text, holds) in [
            ("condition=Ready", true),
            ("condition=ready=true", true),
            ("condition=Ready=False", false),
            ("condition=Other", false),
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath={.status.phase}=Pending", false),
            ("jsonpath=.status.restarts=2", true),
            ("jsonpath={.status.missing}", false),
            ("jsonpath={.status.phase}", true),
            (r#"jsonpath={.status.list[?(@.name=="b")].ready}=false"#, true),
            ("create", true),
            ("delete", false),
        ] {
            assert_eq!(text.parse::<Wanted>().expect(text).holds(&pod), holds, "{text}");
        }
        for text in ["", "ready", "condition=", "jsonpath={.a[}", "deleted"] {
            assert!(text.parse::<Wanted>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_status_of_an_older_generation_tells_nothing() {
        let wanted: Wanted = "condition=Available".parse().unwrap();
        let with = |observed: i64| {
            json!({"metadata": {"generation": 2}, "status": {"observedGeneration": observed,
                "conditions": [{"type": "Available", "status": "True"}]}})
        };
        assert!(!wanted.holds(&with(1)));
        assert!(wanted.holds(&with(2)));
    }
}
