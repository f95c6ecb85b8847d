//! A pod acts as a service account of its namespace, and finds that account's token where in-cluster clients look for
//! it. The controllers make an account `default` in each namespace; a pod that comes before it waits a moment.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use wharf_store::Error;

use super::{Request, World};
use crate::object::{child, entries, list, map, name, terminating, text};
use crate::status::{Result, Status};
use crate::tokens::RENEWABLE_SECONDS;
use crate::validate::generate_name;

const DEFAULT: &str = "default";
/// Where client libraries expect token, CA and namespace.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// What a node makes without the API server, and only shows there.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// An account with this annotation limits its pods to the Secrets that it names.
const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";
/// How long a pod waits for its namespace's first account. Kubernetes asks ten times, up to 200 ms apart.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits for the account of a pod that comes right after its namespace. [`admit`] looks for itself, so it does not
/// matter how this ends.
pub async fn await_default(pod: &Value, namespace: &str, world: &World<'_>) {
    if is_mirror(pod) || account(pod) != DEFAULT {
        return;
    }
    let storage = world.storage;
    let key = world.kinds.builtin("", "serviceaccounts").key(namespace, DEFAULT);
    let from = storage.revision();
    let expected = storage.get(key.as_str()).is_none()
        && world.object("", "namespaces", "", namespace).is_some_and(|namespace| !terminating(&namespace));
    if !expected {
        return;
    }
    let appears = async {
        let mut changes = storage.watch(key.as_str(), from).await?;
        while storage.get(key.as_str()).is_none() {
            changes.next().await?;
        }
        Ok::<_, Error>(())
    };
    let _ = timeout(PATIENCE, appears).await;
}

pub fn admit(request: &mut Request<'_>, world: &World<'_>) -> Result<()> {
    if !request.is_new_pod() {
        return Ok(());
    }
    let deny =
        |request: &Request<'_>, why: &str| Err(Status::forbidden_kind(request.kind, request.name, why));
    if is_mirror(request.object) {
        return match asks_for(request.object) {
            Some(what) => deny(request, &format!("a mirror pod may not {what}")),
            None => Ok(()),
        };
    }
    let wanted = account(request.object).to_owned();
    let spec = child(request.object, "spec");
    spec.insert("serviceAccountName".to_owned(), wanted.as_str().into());
    // The old name of the field is kept the same, as Kubernetes does.
    spec.insert("serviceAccount".to_owned(), wanted.as_str().into());
    let Some(account) = world.object("", "serviceaccounts", request.namespace, &wanted) else {
        let at = format!("{}/{wanted}", request.namespace);
        let why = format!("error looking up service account {at}: serviceaccount {wanted:?} not found");
        return deny(request, &why);
    };
    // The pod's word goes before the account's.
    let automount =
        [&request.object["spec"], &account].map(|of| of["automountServiceAccountToken"].as_bool());
    if automount.into_iter().flatten().next().unwrap_or(true) {
        mount_token(request.object);
    }
    if list(request.object, "/spec/imagePullSecrets").is_empty()
        && let pulls = list(&account, "/imagePullSecrets")
        && !pulls.is_empty()
    {
        child(request.object, "spec").insert("imagePullSecrets".to_owned(), pulls.into());
    }
    let enforced = entries(&account, "/metadata/annotations")
        .any(|(key, value)| key == ENFORCE && value.as_str().is_some_and(|text| text.parse() == Ok(true)));
    match enforced.then(|| not_mountable(request.object, &account)).flatten() {
        Some(why) => deny(request, &why),
        None => Ok(()),
    }
}

fn is_mirror(pod: &Value) -> bool {
    entries(pod, "/metadata/annotations").any(|(key, _)| key == MIRROR)
}

/// The account that a pod asks for, by either name of the field.
fn account(pod: &Value) -> &str {
    let named = ["/spec/serviceAccountName", "/spec/serviceAccount"].map(|pointer| text(pod, pointer));
    named.into_iter().find(|name| !name.is_empty()).unwrap_or(DEFAULT)
}

/// What a pod needs the API server for, in the words of the refusal.
fn asks_for(pod: &Value) -> Option<&'static str> {
    if !text(pod, "/spec/serviceAccountName").is_empty() {
        return Some("reference service accounts");
    }
    let volumes = list(pod, "/spec/volumes");
    let mut projected = volumes.iter().flat_map(|volume| list(volume, "/projected/sources"));
    let of_containers = secrets_of_containers(pod).next().is_some();
    let pulls = !list(pod, "/spec/imagePullSecrets").is_empty();
    let mounts = volumes.iter().any(|volume| volume.get("secret").is_some());
    if of_containers || pulls || mounts || projected.clone().any(|source| source.get("secret").is_some()) {
        return Some("reference secrets");
    }
    let token = projected.any(|source| source.get("serviceAccountToken").is_some());
    token.then_some("use ServiceAccountToken volume projections")
}

/// Mounts the token's volume in each container that has nothing at its place.
fn mount_token(pod: &mut Value) {
    let present = list(pod, "/spec/volumes")
        .iter()
        .map(|volume| text(volume, "/name"))
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let volume = present.clone().unwrap_or_else(|| generate_name(VOLUME_PREFIX));
    let spec = child(pod, "spec");
    let mut mounted = false;
    for containers in ["initContainers", "containers"] {
        let containers = spec.get_mut(containers).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if list(container, "/volumeMounts").iter().any(|mount| text(mount, "/mountPath") == MOUNT_PATH) {
                continue;
            }
            mounted = true;
            let mounts = map(container).entry("volumeMounts").or_insert_with(|| json!([]));
            if let Some(mounts) = mounts.as_array_mut() {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
            }
        }
    }
    if mounted && present.is_none() {
        let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.push(token_volume(&volume));
        }
    }
}

/// Token, CA and namespace. Defaults were filled in before admission, so it is written out in full.
fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": RENEWABLE_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
}

/// The Secrets in containers' environments: the sort of container, its name, the variable (none: all of a Secret),
/// and the Secret's name.
fn secrets_of_containers(pod: &Value) -> impl Iterator<Item = (&'static str, &str, Option<&str>, &str)> {
    let sorts = [("init container", "/spec/initContainers"), ("container", "/spec/containers")];
    let all = sorts.into_iter().flat_map(move |(sort, at)| list(pod, at).iter().map(move |one| (sort, one)));
    all.flat_map(|(sort, one)| {
        let own = text(one, "/name");
        let env = list(one, "/env").iter().filter_map(move |env| {
            let secret = env.pointer("/valueFrom/secretKeyRef")?;
            Some((sort, own, Some(text(env, "/name")), text(secret, "/name")))
        });
        let from = list(one, "/envFrom")
            .iter()
            .filter_map(move |source| Some((sort, own, None, text(source.get("secretRef")?, "/name"))));
        env.chain(from)
    })
}

/// The first Secret of the pod that its account does not name, in Kubernetes' words.
fn not_mountable(pod: &Value, account: &Value) -> Option<String> {
    let of = name(account);
    let named =
        |pointer: &str, secret: &str| list(account, pointer).iter().any(|one| text(one, "/name") == secret);
    let unknown = |secret: &str| !secret.is_empty() && !named("/secrets", secret);
    let tail = format!("is not allowed because service account {of} does not reference that secret");
    for volume in list(pod, "/spec/volumes") {
        let secret = text(volume, "/secret/secretName");
        if unknown(secret) {
            return Some(format!("volume with secret.secretName={secret:?} {tail}"));
        }
    }
    let foreign = secrets_of_containers(pod).find(|(.., secret)| unknown(secret));
    if let Some((sort, container, variable, secret)) = foreign {
        let with = variable.map_or("envFrom".to_owned(), |variable| format!("envVar {variable}"));
        return Some(format!(
            "{sort} {container} with {with} referencing secret.secretName={secret:?} {tail}"
        ));
    }
    let pulls = list(pod, "/spec/imagePullSecrets").iter().map(|pull| text(pull, "/name")).enumerate();
    let mut foreign = pulls.filter(|(_, pull)| !named("/imagePullSecrets", pull));
    let (n, pull) = foreign.next()?;
    Some(format!(
        "imagePullSecrets[{n}].name={pull:?} is not allowed because service account {of} does not reference that imagePullSecret"
    ))
}
