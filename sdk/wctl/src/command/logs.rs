//! `wctl logs`.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use futures::{AsyncReadExt as _, StreamExt as _};
use http::Request;

use crate::Global;
use crate::api::{Api, unreachable};
use crate::command::port_forward::pod_of;
use crate::resource::{Resources, name_of};
use crate::uri::{segment, with_query};

#[derive(clap::Args)]
pub struct Options {
    /// Pod, or TYPE/NAME such as deployment/web (its first pod)
    #[arg(value_name = "POD|TYPE/NAME", required_unless_present = "selector")]
    what: Option<String>,
    /// Every pod with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Container, if the pod has several
    #[arg(short, long)]
    container: Option<String>,
    /// Go on printing as it logs
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long)]
    tail: Option<u32>,
    /// Only of the last seconds
    #[arg(long, value_parser = crate::command::duration)]
    since: Option<std::time::Duration>,
    /// With the time of each line
    #[arg(long)]
    timestamps: bool,
    /// Of the container's previous run
    #[arg(short, long)]
    previous: bool,
}

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    let pods = match (&options.what, &options.selector) {
        (_, Some(selector)) => {
            let list = api.pods(&api.namespace, selector).await?;
            list["items"].as_array().into_iter().flatten().map(|pod| name_of(pod).to_owned()).collect()
        }
        (Some(what), None) => vec![pod_of(&api, &Resources::discover(&api).await?, what).await?],
        (None, None) => Vec::new(),
    };
    if pods.is_empty() {
        bail!("no pod has these labels in the namespace {:?}", api.namespace);
    }
    let many = pods.len() > 1;
    let mut prints: futures::stream::FuturesUnordered<_> =
        pods.iter().map(|pod| print(&api, pod, &options, many.then_some(pod.as_str()))).collect();
    while let Some(printed) = prints.next().await {
        printed?;
    }
    Ok(())
}

async fn print(api: &Api, pod: &str, options: &Options, prefix: Option<&str>) -> anyhow::Result<()> {
    let asked = [
        ("follow", Some(options.follow.to_string())),
        ("timestamps", Some(options.timestamps.to_string())),
        ("previous", Some(options.previous.to_string())),
        ("container", options.container.clone()),
        ("tailLines", options.tail.map(|lines| lines.to_string())),
        ("sinceSeconds", options.since.map(|since| since.as_secs().max(1).to_string())),
    ];
    let path = format!("/api/v1/namespaces/{}/pods/{}/log", segment(&api.namespace), segment(pod));
    let path = with_query(&path, asked.iter().filter_map(|(key, value)| Some((*key, value.as_deref()?))));
    let request = Request::get(&path).body(Vec::new())?;
    let stream = match api.client.request_stream(request).await {
        Err(kube::Error::Api(status)) => bail!("{}", status.message),
        stream => stream.map_err(unreachable)?,
    };
    let mut stream = std::pin::pin!(stream);
    let mut out = std::io::stdout();
    let mut chunk = vec![0; 32 * 1024];
    let mut fresh = true;
    loop {
        let read = stream.read(&mut chunk).await.context("the log broke off")?;
        if read == 0 {
            return Ok(());
        }
        let written = match prefix {
            None => out.write_all(&chunk[..read]),
            Some(prefix) => chunk[..read].split_inclusive(|byte| *byte == b'\n').try_for_each(|piece| {
                if fresh {
                    write!(out, "[{prefix}] ")?;
                }
                fresh = piece.ends_with(b"\n");
                out.write_all(piece)
            }),
        };
        if written.and_then(|()| out.flush()).is_err() {
            return Ok(()); // whoever read has read enough
        }
    }
}
