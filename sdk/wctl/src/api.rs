//! The cluster that a command speaks to: `kube::Client` with requests by path and answers as JSON.

use std::time::Duration;

use anyhow::Context as _;
use http::{Method, Request, header};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use serde_json::Value;

use crate::Global;
use crate::uri::{segment, with_query};

/// A cluster and the namespace to work in.
#[derive(Clone)]
pub struct Api {
    pub client: Client,
    pub namespace: String,
    /// Its URL, without a slash at the end.
    pub server: String,
}

/// Why the cluster did not do what was asked, in its own words.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub code: u16,
    pub reason: String,
    pub message: String,
    /// When to ask again, if the cluster asks for that.
    pub again: Option<Duration>,
}

/// A request is sent so often while the cluster asks to be asked again, as kubectl does.
const TRIES: u32 = 10;

impl Api {
    /// Takes the context that the command line or the kubeconfig names.
    pub async fn connect(global: &Global) -> anyhow::Result<Self> {
        let options = KubeConfigOptions { context: global.context.clone(), ..Default::default() };
        let config = match Config::from_kubeconfig(&options).await {
            Err(KubeconfigError::ReadConfig(error, path)) if error.kind() == std::io::ErrorKind::NotFound => {
                anyhow::bail!(
                    "there is no kubeconfig at {}; `wctl up` starts a cluster and writes one",
                    path.display()
                )
            }
            Err(KubeconfigError::CurrentContextNotSet | KubeconfigError::LoadContext(_)) => {
                let known: Vec<_> = Kubeconfig::read().map(|k| k.contexts).unwrap_or_default();
                let known: Vec<_> = known.into_iter().map(|context| context.name).collect();
                match &global.context {
                    Some(context) => {
                        anyhow::bail!("the kubeconfig has no context {context:?}; it has {known:?}")
                    }
                    None if known.is_empty() => {
                        anyhow::bail!("the kubeconfig names no cluster; `wctl up` starts one")
                    }
                    None => anyhow::bail!(
                        "the kubeconfig has no current context; choose with --context one of {known:?}"
                    ),
                }
            }
            config => config.context("cannot use the kubeconfig")?,
        };
        Self::over(config, global)
    }

    fn over(mut config: Config, global: &Global) -> anyhow::Result<Self> {
        config.read_timeout = None; // watches and logs are silent for long
        config.default_retry = false; // it hides each 429 and 503 for minutes, also those that no waiting changes
        let namespace = global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).context("cannot use the kubeconfig")?;
        Ok(Self { client, namespace, server })
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::GET, path, &[], Vec::new()).await
    }

    /// What is at `path`, if anything is.
    pub async fn find(&self, path: &str) -> anyhow::Result<Option<Value>> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The list of the pods that have these labels.
    pub async fn pods(&self, namespace: &str, selector: &str) -> anyhow::Result<Value> {
        let path = format!("/api/v1/namespaces/{}/pods", segment(namespace));
        self.get(&with_query(&path, [("labelSelector", selector)])).await
    }

    /// One request, sent again if the cluster asks for that (`Retry-After`); the answer is JSON. `headers` are added.
    ///
    /// # Errors
    /// [`Refusal`] inside, if the cluster says no.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> anyhow::Result<Value> {
        let mut left = TRIES;
        let answer = loop {
            left -= 1;
            let sent = self.send(method.clone(), path, headers, Body::from(body.clone())).await;
            let again = sent.as_ref().err().and_then(|error| refused(error)?.again);
            match again.filter(|_| left > 0) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => break sent?.1,
            }
        };
        let bytes = answer.collect_bytes().await?;
        serde_json::from_slice(&bytes).with_context(|| format!("the answer to {path} is not JSON"))
    }

    /// One request, sent once; the answer's body is left to read.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> anyhow::Result<(http::response::Parts, Body)> {
        let mut request = Request::builder().method(method).uri(path).header(header::USER_AGENT, USER_AGENT);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.client.send(request.body(body)?).await.map_err(unreachable)?;
        let (parts, body) = response.into_parts();
        if parts.status.is_client_error() || parts.status.is_server_error() {
            let bytes = body.collect_bytes().await.unwrap_or_default();
            return Err(refusal(&parts, &bytes).into());
        }
        for warning in parts.headers.get_all(header::WARNING).iter().filter_map(|value| value.to_str().ok()) {
            // `299 - "text"`
            let text =
                warning.splitn(3, ' ').nth(2).unwrap_or(warning).trim_matches('"').replace("\\\"", "\"");
            eprintln!("warning: {text}");
        }
        Ok((parts, body))
    }
}

const USER_AGENT: &str = concat!("wctl/", env!("CARGO_PKG_VERSION"));

/// What to tell when no answer came at all.
pub fn unreachable(error: kube::Error) -> anyhow::Error {
    anyhow::Error::new(error).context("the cluster cannot be reached; `wctl status` tells what runs here")
}

fn refusal(parts: &http::response::Parts, body: &[u8]) -> Refusal {
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    // The registry speaks OCI's errors, all else Kubernetes' Status.
    let registry = &said["errors"][0];
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let plain = || String::from_utf8_lossy(body).trim().to_owned();
    let message = text(&said["message"]).or_else(|| {
        Some(format!("{}: {}", registry["code"].as_str()?, registry["message"].as_str().unwrap_or_default()))
    });
    let message = message
        .or_else(|| Some(plain()).filter(|text| !text.is_empty()))
        .unwrap_or_else(|| parts.status.to_string());
    let reason = text(&said["reason"]).unwrap_or_default();
    let again = parts.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Refusal { code: parts.status.as_u16(), reason, message, again: again.map(Duration::from_secs) }
}

/// Whether the cluster refused because there is no such thing.
pub fn is_missing(error: &anyhow::Error) -> bool {
    refused(error).is_some_and(|refusal| refusal.code == 404)
}

/// The cluster's refusal behind an error, if it is one.
pub fn refused(error: &anyhow::Error) -> Option<&Refusal> {
    error.downcast_ref()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use http::Response;

    use super::*;

    /// A cluster that is too busy for the first `busy` requests, with this Retry-After, and how often it was asked.
    fn cluster(busy: u32, again: Option<&'static str>) -> (Api, Arc<AtomicU32>) {
        let asked = Arc::new(AtomicU32::new(0));
        let counted = asked.clone();
        let service = tower::service_fn(move |_: Request<Body>| {
            let mut response = Response::new(Body::from(b"{}".to_vec()));
            if counted.fetch_add(1, Ordering::Relaxed) < busy {
                *response.status_mut() = http::StatusCode::TOO_MANY_REQUESTS;
                if let Some(again) = again {
                    response.headers_mut().insert(header::RETRY_AFTER, again.parse().unwrap());
                }
            }
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let client = Client::new(service, "default");
        (Api { client, namespace: "default".to_owned(), server: String::new() }, asked)
    }

    #[tokio::test]
    async fn a_request_is_sent_again_while_the_cluster_asks_for_it_and_no_longer() {
        for (busy, again, answered, requests) in [
            (2, Some("0"), true, 3),
            (2, None, false, 1),
            (2, Some("Thu, 01 Jan 1970 00:00:00 GMT"), false, 1),
            (u32::MAX, Some("0"), false, TRIES),
        ] {
            let (api, asked) = cluster(busy, again);
            let answer = api.get("/version").await;
            assert_eq!(
                (answer.is_ok(), asked.load(Ordering::Relaxed)),
                (answered, requests),
                "{busy} {again:?}"
            );
            let code = answer.err().and_then(|error| refused(&error).map(|no| no.code));
            assert_eq!(code, (!answered).then_some(429));
        }
    }
}
