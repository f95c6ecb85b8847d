//! `wctl top`: what nodes and pods use, from metrics.k8s.io.

use std::collections::HashMap;

use anyhow::bail;
use clap::{Subcommand, ValueEnum};
use serde_json::Value;

use crate::Global;
use crate::api::{Api, is_missing};
use crate::output;
use crate::resource::name_of;
use crate::uri::{segment, with_query};

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// What nodes use, and how much that is of what they have to give
    #[command(visible_aliases = ["node", "no"])]
    Nodes(Nodes),
    /// What pods use
    #[command(visible_aliases = ["pod", "po"])]
    Pods(Pods),
}

#[derive(clap::Args)]
struct Chosen {
    /// Only this one
    name: Option<String>,
    /// Only those with these labels, for example app=web,tier!=db
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "name")]
    selector: Option<String>,
    /// What uses most of it first, instead of by name
    #[arg(long, value_enum)]
    sort_by: Option<Most>,
    /// Leave the headings out
    #[arg(long)]
    no_headers: bool,
}

#[derive(clap::Args)]
struct Nodes {
    #[command(flatten)]
    chosen: Chosen,
}

#[derive(clap::Args)]
struct Pods {
    #[command(flatten)]
    chosen: Chosen,
    /// A line for each container
    #[arg(long)]
    containers: bool,
    /// In all namespaces
    #[arg(short = 'A', long, conflicts_with = "name")]
    all_namespaces: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Most {
    Cpu,
    Memory,
}

const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";

pub async fn run(options: Options, global: &Global) -> anyhow::Result<()> {
    let api = Api::connect(global).await?;
    match options.what {
        What::Nodes(options) => nodes(&api, &options.chosen).await,
        What::Pods(options) => pods(&api, &options).await,
    }
}

/// Cores and bytes.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
struct Usage {
    cpu: f64,
    memory: f64,
}

impl Usage {
    fn of(quantities: &Value) -> Self {
        let read = |name: &str| quantity(quantities[name].as_str().unwrap_or_default()).unwrap_or(0.0);
        Self { cpu: read("cpu"), memory: read("memory") }
    }

    fn plus(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, memory: self.memory + other.memory }
    }

    /// As kubectl rounds: thousandths of a core up, mebibytes down.
    fn cells(self) -> [String; 2] {
        // A sum of decimal fractions is a little off.
        let millis = (self.cpu * 1000.0 - 1e-6).ceil().max(0.0);
        [format!("{millis}m"), format!("{}Mi", (self.memory / 1_048_576.0).floor())]
    }
}

/// The number that a quantity stands for: `250m`, `1500000n`, `64Mi`, `2e3`.
fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 14] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let scaled = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
        .or_else(|| text.strip_suffix('E').map(|number| (number, 1e18)));
    let (number, factor) = scaled.unwrap_or((text, 1.0));
    Some(number.parse::<f64>().ok()? * factor)
}

/// The measurements that are meant.
async fn measured(api: &Api, path: &str, chosen: &Chosen) -> anyhow::Result<Vec<Value>> {
    let asked = match &chosen.name {
        Some(name) => api.get(&format!("{path}/{}", segment(name))).await.map(|one| vec![one]),
        None => {
            let selector = chosen.selector.as_deref().map(|text| ("labelSelector", text));
            let list = api.get(&with_query(path, selector)).await;
            list.map(|list| list["items"].as_array().cloned().unwrap_or_default())
        }
    };
    match asked {
        // Of a cluster without the API, not of a thing that is not there.
        Err(error) if is_missing(&error) && api.find(METRICS).await?.is_none() => {
            bail!("the cluster does not serve metrics.k8s.io; install metrics-server")
        }
        asked => asked,
    }
}

fn sort<T>(rows: &mut [T], by: Option<Most>, usage: impl Fn(&T) -> Usage) {
    match by {
        None => {}
        Some(Most::Cpu) => rows.sort_by(|a, b| usage(b).cpu.total_cmp(&usage(a).cpu)),
        Some(Most::Memory) => rows.sort_by(|a, b| usage(b).memory.total_cmp(&usage(a).memory)),
    }
}

fn print(headings: &[&str], rows: Vec<Vec<String>>, chosen: &Chosen) {
    let headings = headings.iter().map(|&heading| heading.to_owned()).collect();
    let all: Vec<Vec<String>> =
        Some(headings).filter(|_| !chosen.no_headers).into_iter().chain(rows).collect();
    output::columns(&all).iter().for_each(|row| output::line(row));
}

async fn nodes(api: &Api, chosen: &Chosen) -> anyhow::Result<()> {
    let found = measured(api, &format!("{METRICS}/nodes"), chosen).await?;
    let usage: HashMap<&str, Usage> =
        found.iter().map(|one| (name_of(one), Usage::of(&one["usage"]))).collect();
    let nodes = match &chosen.name {
        Some(name) => vec![api.get(&format!("/api/v1/nodes/{}", segment(name))).await?],
        None => {
            let selector = chosen.selector.as_deref().map(|text| ("labelSelector", text));
            let list = api.get(&with_query("/api/v1/nodes", selector)).await?;
            list["items"].as_array().cloned().unwrap_or_default()
        }
    };
    // Those that do not tell come last.
    let (mut told, silent): (Vec<_>, Vec<_>) =
        nodes.iter().partition(|node| usage.contains_key(name_of(node)));
    sort(&mut told, chosen.sort_by, |node| usage.get(name_of(node)).copied().unwrap_or_default());
    let rows = told.into_iter().chain(silent).map(|node| {
        let Some(used) = usage.get(name_of(node)) else {
            return [name_of(node), "<unknown>", "<unknown>", "<unknown>", "<unknown>"]
                .map(str::to_owned)
                .to_vec();
        };
        let has = Usage::of(&node["status"]["allocatable"]);
        let percent = |used: f64, has: f64| match has > 0.0 {
            true => format!("{}%", (used / has * 100.0).floor()),
            false => "<unknown>".to_owned(),
        };
        let [cpu, memory] = used.cells();
        let (of_cpu, of_memory) = (percent(used.cpu, has.cpu), percent(used.memory, has.memory));
        vec![name_of(node).to_owned(), cpu, of_cpu, memory, of_memory]
    });
    print(&["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"], rows.collect(), chosen);
    Ok(())
}

async fn pods(api: &Api, options: &Pods) -> anyhow::Result<()> {
    let chosen = &options.chosen;
    let path = match options.all_namespaces {
        true => format!("{METRICS}/pods"),
        false => format!("{METRICS}/namespaces/{}/pods", segment(&api.namespace)),
    };
    let found = measured(api, &path, chosen).await?;
    if found.is_empty() {
        let place = match options.all_namespaces {
            true => String::new(),
            false => format!(" in the namespace {:?}", api.namespace),
        };
        eprintln!("no pod is measured{place}");
        return Ok(());
    }
    let mut headings = vec![if options.containers { "POD" } else { "NAME" }];
    if options.containers {
        headings.push("NAME");
    }
    if options.all_namespaces {
        headings.insert(0, "NAMESPACE");
    }
    headings.extend(["CPU(cores)", "MEMORY(bytes)"]);
    let mut rows: Vec<(Vec<String>, Usage)> = Vec::new();
    for pod in &found {
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let mut names = vec![name_of(pod).to_owned()];
        if options.all_namespaces {
            names.insert(0, namespace.to_owned());
        }
        let containers = || pod["containers"].as_array().into_iter().flatten();
        if options.containers {
            rows.extend(containers().map(|one| {
                let name = one["name"].as_str().unwrap_or_default().to_owned();
                ([names.clone(), vec![name]].concat(), Usage::of(&one["usage"]))
            }));
        } else {
            let sum = containers().map(|one| Usage::of(&one["usage"])).fold(Usage::default(), Usage::plus);
            rows.push((names, sum));
        }
    }
    sort(&mut rows, chosen.sort_by, |(_, usage)| *usage);
    let rows = rows.into_iter().map(|(names, usage)| [names, usage.cells().to_vec()].concat());
    print(&headings, rows.collect(), chosen);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_numbers_with_a_suffix() {
        for (text, want) in [
            ("0", Some(0.0)),
            ("250m", Some(0.25)),
            ("1500000n", Some(0.0015)),
            ("1.5", Some(1.5)),
            ("64Mi", Some(67_108_864.0)),
            ("2e3", Some(2000.0)),
            ("1E", Some(1e18)),
            ("3k", Some(3000.0)),
            ("", None),
            ("Mi", None),
        ] {
            assert_eq!(quantity(text), want, "{text}");
        }
    }

    #[test]
    fn usage_is_rounded_as_kubectl_does() {
        let cells = |cpu, memory| Usage { cpu, memory }.cells();
        assert_eq!(cells(0.0, 0.0), ["0m", "0Mi"]);
        assert_eq!(cells(0.000_001, 1_048_575.0), ["1m", "0Mi"]);
        assert_eq!(cells(0.1 + 0.2, 3.5 * 1_048_576.0), ["300m", "3Mi"]);
        assert_eq!(cells(2.0, 1e9), ["2000m", "953Mi"]);
    }

    #[test]
    fn the_greatest_come_first() {
        let usage = |cpu, memory| Usage { cpu, memory };
        let mut rows = [("a", usage(1.0, 1.0)), ("b", usage(2.0, 0.5)), ("c", usage(0.5, 2.0))];
        sort(&mut rows, Some(Most::Cpu), |row| row.1);
        assert_eq!(rows.map(|row| row.0), ["b", "a", "c"]);
        sort(&mut rows, Some(Most::Memory), |row| row.1);
        assert_eq!(rows.map(|row| row.0), ["c", "a", "b"]);
    }
}
