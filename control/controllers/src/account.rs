//! A ServiceAccount `default` in every namespace, made again when it is deleted.

use serde_json::json;
use wharf_kit::api::{self, Ignored, Rest};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Filter, Key, Store, View};

use crate::Context;
use crate::views::{Namespace, ServiceAccount};

const NAME: &str = "default";

pub(crate) async fn run(context: Context) {
    let namespaces = context.hub.view::<Namespace>();
    let accounts = context.hub.view_of::<ServiceAccount>(Filter::fields(format!("metadata.name={NAME}")));
    tokio::join!(namespaces.ready(), accounts.ready());
    let pass = Accounts { rest: context.rest, namespaces: namespaces.clone(), accounts: accounts.clone() };
    let controller = Controller::new("account", pass)
        .watches(&namespaces, |change| change.new.map(|_| change.key.clone()))
        .watches(&accounts, |change| {
            change.new.is_none().then(|| Key::cluster(change.key.namespace.clone()))
        });
    controller.run(context.stop).await;
}

struct Accounts {
    rest: Rest,
    namespaces: Store<Namespace>,
    accounts: Store<ServiceAccount>,
}

impl Pass for Accounts {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let active = self.namespaces.get(key).is_some_and(|namespace| namespace.is_active());
        if !active || self.accounts.get(&Key::new(key.name.clone(), NAME)).is_some() {
            return Ok(Next::Done);
        }
        let account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": NAME, "namespace": key.name},
        });
        match self.rest.create::<Ignored>(ServiceAccount::KIND, &key.name, &account).await {
            Err(error) if error.is_already_exists() || error.is_not_found() || error.code() == 403 => {
                Ok(Next::Done)
            }
            result => result.map(|_| Next::Done),
        }
    }
}
