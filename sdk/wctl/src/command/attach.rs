//! `wctl attach`.

use crate::api::Api;
use crate::command::port_forward::pod_of;
use crate::resource::Resources;
use crate::{Global, remote};
use k8s_openapi::api::core::v1::Pod;

#[derive(clap::Args)]
pub struct Options {
    /// Pod, or TYPE/NAME such as deployment/web (its first ready pod)
    #[arg(value_name = "POD|TYPE/NAME")]
    what: String,
    /// Container, if the pod has several
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input on; the container must have been made with stdin
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Its terminal; the container must have been made with tty
    #[arg(short, long)]
    tty: bool,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let pod = pod_of(&api, &Resources::discover(&api).await?, &options.what).await?;
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client.clone(), &api.namespace);
    let tty = remote::terminal(options.stdin, options.tty);
    let params = remote::params(options.container, options.stdin, tty);
    let process = pods.attach(&pod, &params).await.map_err(remote::refused)?;
    remote::join(process, tty).await
}
