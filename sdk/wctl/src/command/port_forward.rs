//! `wctl port-forward`.

use std::net::Ipv4Addr;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use crate::api::Api;
use crate::resource::{Resources, is_true, name_of};
use crate::uri;
use crate::{Global, output};

#[derive(clap::Args)]
pub struct Options {
    /// Pod, or TYPE/NAME such as deployment/web (its first ready pod)
    #[arg(value_name = "POD|TYPE/NAME")]
    what: String,
    /// LOCAL:REMOTE, or one number for both; local 0 takes a free one
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    ports: Vec<String>,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let pod = pod_of(&api, &Resources::discover(&api).await?, &options.what).await?;
    let mut listeners = Vec::new();
    for text in &options.ports {
        let (local, remote) = ports(text)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local)).await.with_context(|| {
            format!("cannot listen on 127.0.0.1:{local}; choose another local port, for example 0:{remote}")
        })?;
        output::line(&format!("Forwarding from {} -> {remote}", listener.local_addr()?));
        listeners.push((listener, remote));
    }
    let mut tasks = tokio::task::JoinSet::new();
    for (listener, remote) in listeners {
        let (api, pod) = (api.clone(), pod.clone());
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await?;
                let _ = stream.set_nodelay(true); // what comes in one piece goes on in one piece
                let (api, pod) = (api.clone(), pod.clone());
                tokio::spawn(async move {
                    if let Err(error) = forward(&api, &pod, remote, stream).await {
                        eprintln!("error: pod {pod}, port {remote}: {}", output::describe(&error));
                    }
                });
            }
        });
    }
    let ended: Option<Result<anyhow::Result<()>, _>> = tasks.join_next().await;
    ended.context("nothing to forward")??
}

/// One connection is one stream of the pod's, so that the end of one does not touch another.
async fn forward(api: &Api, pod: &str, port: u16, mut local: TcpStream) -> anyhow::Result<()> {
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client.clone(), &api.namespace);
    let mut forwarder = pods.portforward(pod, &[port]).await?;
    let mut remote = forwarder.take_stream(port).context("no stream for the port")?;
    let refused = forwarder.take_error(port).context("no stream for errors")?;
    let copied = tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut local, &mut remote) => copied.map(drop),
        Some(why) = refused => bail!("{}", why.trim()),
    };
    drop(remote);
    // A client that goes away early is its own affair.
    if let Err(error) = copied
        && !matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
    {
        return Err(error.into());
    }
    forwarder.abort();
    Ok(())
}

fn ports(text: &str) -> anyhow::Result<(u16, u16)> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let number =
        |text: &str| text.parse::<u16>().with_context(|| format!("{text:?} is no port; write LOCAL:REMOTE"));
    let remote = number(remote)?;
    if remote == 0 {
        bail!("the pod's port cannot be 0");
    }
    Ok((if local.is_empty() { 0 } else { number(local)? }, remote))
}

/// The pod that a word of the command line means: its name, or one of a workload's, ready ones first.
pub async fn pod_of(api: &Api, resources: &Resources, what: &str) -> anyhow::Result<String> {
    let Some((kind, name)) = what.split_once('/') else { return Ok(what.to_owned()) };
    let [resource] = resources.named(kind)?[..] else { bail!("{kind:?} means several types; name one") };
    if resource.kind == "Pod" {
        return Ok(name.to_owned());
    }
    let object = api.get(&resource.object(&api.namespace, name)).await?;
    let selector = &object["spec"]["selector"];
    let labels = selector["matchLabels"].as_object().or_else(|| selector.as_object());
    let labels =
        labels.filter(|labels| !labels.is_empty()).with_context(|| format!("{what} selects no pods"))?;
    let list = api.pods(&api.namespace, &uri::selector(labels)).await?;
    let mut pods: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    pods.sort_by_key(|pod| !is_true(pod, "Ready"));
    pods.first().map(|pod| name_of(pod).to_owned()).with_context(|| format!("{what} has no pods now"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn ports_are_read_as_kubectl_reads_them() {
        for (text, expected) in [("8080", (8080, 8080)), ("1:2", (1, 2)), (":80", (0, 80)), ("0:80", (0, 80))]
        {
            assert_eq!(super::ports(text).unwrap(), expected, "{text}");
        }
        for text in ["", "x", "1:", "1:0", "70000", "1:2:3"] {
            assert!(super::ports(text).is_err(), "{text:?} was taken");
        }
    }
}
