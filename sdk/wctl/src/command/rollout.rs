//! `wctl rollout`: follow, stop and undo the changes of workloads, in the words of `kubectl rollout`.

use std::time::Duration;

use anyhow::bail;
use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use crate::api::Api;
use crate::command::{describe, duration};
use crate::history::{self, Revision};
use crate::progress;
use crate::resource::{Resource, Resources, name_of, targets};
use crate::{Global, output, rollout};

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Args)]
struct Named {
    /// Deployments, DaemonSets or StatefulSets
    #[arg(required = true, value_name = "TYPE/NAME")]
    what: Vec<String>,
}

#[derive(Subcommand)]
enum Action {
    /// Follow a rollout until it is done
    Status {
        #[command(flatten)]
        named: Named,
        /// How long to wait
        #[arg(long, default_value = "5m", value_parser = duration)]
        timeout: Duration,
    },
    /// Show the revisions that can be gone back to
    History {
        #[command(flatten)]
        named: Named,
        /// Show the pod template of this one
        #[arg(long)]
        revision: Option<u64>,
    },
    /// Go back to the revision before, or to a given one
    Undo {
        #[command(flatten)]
        named: Named,
        /// The one before, if it is not given or 0
        #[arg(long)]
        to_revision: Option<u64>,
    },
    /// Replace all pods, little by little
    Restart(Named),
    /// Let changes of a Deployment wait
    Pause(Named),
    /// Let changes of a Deployment roll out again
    Resume(Named),
}

impl Action {
    fn named(&self) -> &Named {
        match self {
            Self::Status { named, .. } | Self::History { named, .. } | Self::Undo { named, .. } => named,
            Self::Restart(named) | Self::Pause(named) | Self::Resume(named) => named,
        }
    }
}

/// In the template's annotations: when a restart was asked for. kubectl's, so that all tools know it.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let resources = Resources::discover(&api).await?;
    for (resource, name) in targets(&resources, &options.action.named().what)? {
        let Some(name) = name else { bail!("name what rolls out, for example deployment/web") };
        if !history::is_kept(&resource.kind) {
            bail!(
                "{}/{name} has no rollouts; Deployments, DaemonSets and StatefulSets have",
                resource.name()
            );
        }
        let object = api.get(&resource.object(&api.namespace, &name)).await?;
        let workload = Workload { api: &api, resources: &resources, resource, object };
        match &options.action {
            Action::Status { timeout, .. } => workload.follow(*timeout).await?,
            Action::History { revision, .. } => workload.tell_history(*revision).await?,
            Action::Undo { to_revision, .. } => workload.undo(to_revision.filter(|to| *to > 0)).await?,
            Action::Restart(_) => workload.restart().await?,
            Action::Pause(_) => workload.pause(true).await?,
            Action::Resume(_) => workload.pause(false).await?,
        }
    }
    Ok(())
}

struct Workload<'a> {
    api: &'a Api,
    resources: &'a Resources,
    resource: &'a Resource,
    object: Value,
}

impl Workload<'_> {
    fn name(&self) -> &str {
        name_of(&self.object)
    }

    /// `deployment.apps/web`
    fn label(&self) -> String {
        format!("{}/{}", self.resource.name(), self.name())
    }

    /// `deployments.apps "web"`, as the API server names objects.
    fn in_full(&self) -> String {
        format!("{}.{} {:?}", self.resource.plural, self.resource.group, self.name())
    }

    fn is_paused(&self) -> bool {
        self.object["spec"]["paused"] == true
    }

    async fn follow(&self, timeout: Duration) -> anyhow::Result<()> {
        if self.resource.kind != "Deployment" && !progress::rolls(&self.object) {
            bail!("rollout status is only available for RollingUpdate strategy type");
        }
        let (api, name) = (self.api, self.name());
        let done = rollout::wait(api, self.resource, &api.namespace, name, timeout, output::line).await?;
        output::line(&done.unwrap_or_default());
        Ok(())
    }

    async fn revisions(&self) -> anyhow::Result<Vec<Revision>> {
        history::of(self.api, self.resources, self.resource, &self.object).await
    }

    async fn tell_history(&self, revision: Option<u64>) -> anyhow::Result<()> {
        let all = self.revisions().await?;
        if let Some(number) = revision {
            let Some(one) = all.iter().find(|one| one.number == number) else {
                bail!("unable to find the specified revision");
            };
            output::line(&format!("{} with revision #{number}", self.label()));
            output::line(&describe::template(&one.template));
            return Ok(());
        }
        output::line(&self.label());
        if all.is_empty() {
            output::line("No rollout history found.");
            return Ok(());
        }
        let mut rows = vec![vec!["REVISION".to_owned(), "CHANGE-CAUSE".to_owned()]];
        let cause = |one: &Revision| one.cause.clone().unwrap_or_else(|| "<none>".to_owned());
        rows.extend(all.iter().map(|one| vec![one.number.to_string(), cause(one)]));
        output::columns(&rows).iter().for_each(|row| output::line(row));
        Ok(())
    }

    async fn undo(&self, to: Option<u64>) -> anyhow::Result<()> {
        if self.is_paused() {
            bail!(
                "you cannot rollback a paused deployment; resume it first with 'wctl rollout resume \
                 deployment/{}' and try again",
                self.name()
            );
        }
        let all = self.revisions().await?;
        let chosen = history::earlier(&all, &format!("{} {:?}", self.resource.singular, self.name()), to)?;
        if chosen.template == self.object["spec"]["template"] {
            let why = format!("current template already matches revision {}", chosen.number);
            output::line(&format!("{} skipped rollback ({why})", self.label()));
            return Ok(());
        }
        self.patch("application/json-patch+json", &history::put_back(&self.object, chosen)).await?;
        output::line(&format!("{} rolled back", self.label()));
        Ok(())
    }

    async fn restart(&self) -> anyhow::Result<()> {
        if self.is_paused() {
            bail!("{} can't restart paused deployment (run rollout resume first)", self.in_full());
        }
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let annotations = json!({"annotations": {RESTARTED: now}});
        let patch = json!({"spec": {"template": {"metadata": annotations}}});
        self.patch("application/merge-patch+json", &patch).await?;
        output::line(&format!("{} restarted", self.label()));
        Ok(())
    }

    async fn pause(&self, pause: bool) -> anyhow::Result<()> {
        let (doing, done) = if pause { ("pausing", "paused") } else { ("resuming", "resumed") };
        if self.resource.kind != "Deployment" {
            bail!("{} {doing} is not supported", self.in_full());
        }
        if self.is_paused() == pause {
            bail!("{} is {} paused", self.in_full(), if pause { "already" } else { "not" });
        }
        let value = if pause { json!(true) } else { Value::Null };
        self.patch("application/merge-patch+json", &json!({"spec": {"paused": value}})).await?;
        output::line(&format!("{} {done}", self.label()));
        Ok(())
    }

    async fn patch(&self, form: &str, patch: &Value) -> anyhow::Result<()> {
        let object = self.resource.object(&self.api.namespace, self.name());
        let path = format!("{object}?fieldManager=wctl-rollout");
        self.api
            .call(Method::PATCH, &path, &[("content-type", form)], patch.to_string().into_bytes())
            .await?;
        Ok(())
    }
}
