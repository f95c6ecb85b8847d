//! What the files of a volume are: gathered from ConfigMaps, Secrets, the pod's own fields and tokens.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, PodSpec, ServiceAccountTokenProjection, VolumeProjection,
};

use super::atomic::{File, Payload};
use super::{Error, Sources};
use crate::env::{self, Facts};
use crate::objects::{Data, ObjectKind, ObjectName, Objects, Seen};
use crate::resources;
use crate::tokens::{DEFAULT_SECONDS, TokenName, Tokens};

/// Gathers the files of one volume.
pub(super) struct Files<'a> {
    pub volume: &'a str,
    pub namespace: &'a str,
    pub objects: &'a Objects,
    pub sources: &'a mut Sources,
    pub facts: &'a Facts<'a>,
    pub tokens: &'a Tokens,
    pub payload: Payload,
}

/// How long the API may take to tell an object before the pod's events say so.
const SYNC: Duration = Duration::from_secs(10);

/// What Kubernetes gives files of these volumes by default.
const DEFAULT_MODE: i32 = 0o644;

impl Files<'_> {
    pub async fn add(
        &mut self,
        kind: ObjectKind,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: Option<i32>,
        optional: Option<bool>,
    ) -> Result<(), Error> {
        let object = ObjectName { kind, namespace: self.namespace.to_owned(), name: name.to_owned() };
        let shared = self.objects.watch(&object);
        let mut changes = shared.changes();
        let known = changes.wait_for(|seen| !matches!(seen, Seen::Unknown));
        if tokio::time::timeout(SYNC, known).await.is_err() {
            return Err(Error::NoAnswer { volume: self.volume.to_owned(), object: Box::new(object) });
        }
        let data = match &*changes.borrow_and_update() {
            Seen::Found(data) => Some(data.clone()),
            Seen::Missing | Seen::Unknown => None,
        };
        self.sources.objects.push((shared, changes));
        let optional = optional == Some(true);
        let Some(data) = data else {
            return if optional {
                Ok(())
            } else {
                Err(Error::MissingObject { volume: self.volume.to_owned(), object: Box::new(object) })
            };
        };
        self.project_keys(&data, object, items, mode.unwrap_or(DEFAULT_MODE), optional)
    }

    fn put(&mut self, path: &str, data: Bytes, mode: i32) {
        let mode = u32::try_from(mode).unwrap_or(DEFAULT_MODE.unsigned_abs());
        self.payload.insert(PathBuf::from(path), File { data, mode, owner: None });
    }

    fn project_keys(
        &mut self,
        data: &Data,
        object: ObjectName,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: bool,
    ) -> Result<(), Error> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            data.text.iter().for_each(|(key, value)| self.put(key, value.clone(), mode));
            return Ok(());
        };
        for item in items {
            match data.text.get(&item.key) {
                Some(value) => self.put(&item.path, value.clone(), item.mode.unwrap_or(mode)),
                None if optional => {}
                None => {
                    return Err(Error::MissingKey {
                        volume: self.volume.to_owned(),
                        key: item.key.clone(),
                        object: Box::new(object),
                    });
                }
            }
        }
        Ok(())
    }

    pub fn fields(
        &mut self,
        items: Option<&[DownwardAPIVolumeFile]>,
        mode: Option<i32>,
    ) -> Result<(), Error> {
        for item in items.into_iter().flatten() {
            let failed = |cause| Error::Field { volume: self.volume.to_owned(), cause: Box::new(cause) };
            let text = if let Some(field) = &item.field_ref {
                env::field(&field.field_path, self.facts).map_err(failed)?
            } else if let Some(of) = &item.resource_field_ref {
                let named = of.container_name.as_deref();
                let container = named.and_then(|name| env::container(self.facts.pod, name));
                let container = container.ok_or_else(|| failed(env::Error::Source(item.path.clone())))?;
                resources::field(&of.resource, of.divisor.as_ref(), container, self.facts.allocatable)
                    .map_err(|error| failed(error.into()))?
            } else {
                continue;
            };
            self.put(&item.path, text.into(), item.mode.or(mode).unwrap_or(DEFAULT_MODE));
        }
        Ok(())
    }

    pub async fn project(&mut self, source: &VolumeProjection, mode: Option<i32>) -> Result<(), Error> {
        if let Some(map) = &source.config_map {
            self.add(ObjectKind::ConfigMap, &map.name, map.items.as_deref(), mode, map.optional).await?;
        } else if let Some(secret) = &source.secret {
            self.add(ObjectKind::Secret, &secret.name, secret.items.as_deref(), mode, secret.optional)
                .await?;
        } else if let Some(downward) = &source.downward_api {
            self.fields(downward.items.as_deref(), mode)?;
        } else if let Some(token) = &source.service_account_token {
            self.token(token, mode).await?;
        } else {
            let what = if source.cluster_trust_bundle.is_some() {
                "a projected ClusterTrustBundle"
            } else {
                "this projected source"
            };
            return Err(Error::Unsupported { volume: self.volume.to_owned(), what });
        }
        Ok(())
    }

    /// A token of the pod's service account. Who else is in the pod's group or is its one user may read it, nobody else.
    async fn token(
        &mut self,
        source: &ServiceAccountTokenProjection,
        mode: Option<i32>,
    ) -> Result<(), Error> {
        let (meta, spec) = (&self.facts.pod.metadata, self.facts.pod.spec.as_ref());
        let account = spec.and_then(|spec| spec.service_account_name.as_deref());
        let name = TokenName {
            namespace: self.namespace.to_owned(),
            account: account.filter(|name| !name.is_empty()).unwrap_or("default").to_owned(),
            pod: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            audience: source.audience.clone().filter(|audience| !audience.is_empty()),
            seconds: source.expiration_seconds.unwrap_or(DEFAULT_SECONDS),
        };
        let token = self.tokens.get(&name).await;
        let token = token.map_err(|cause| Error::Token { volume: self.volume.to_owned(), cause })?;
        self.sources.due = self.sources.due.into_iter().chain([token.renew_at]).min();
        let owner = spec.and_then(one_user);
        let group = spec.and_then(|spec| spec.security_context.as_ref()?.fs_group);
        let mode = if owner.is_some() || group.is_some() {
            0o600
        } else {
            mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(DEFAULT_MODE.unsigned_abs())
        };
        self.payload.insert(PathBuf::from(&source.path), File { data: token.text, mode, owner });
        Ok(())
    }
}

/// The user that all containers of the pod run as, if the pod names one.
fn one_user(spec: &PodSpec) -> Option<u32> {
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let mut users = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|container| container.security_context.as_ref().and_then(|own| own.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(())?;
    u32::try_from(first).ok()
}
