//! The summary as the kubelet's `/metrics/resource`, in the text form that Prometheus and metrics-server read.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::summary::{Cpu, Memory, Summary};

/// The media type of the text.
pub const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A sample: its labels, its value, and when it was taken, if that matters.
type Sample<'a> = (Vec<(&'a str, &'a str)>, f64, Option<Timestamp>);

fn cpu(cpu: &Option<Cpu>) -> Option<(f64, Option<Timestamp>)> {
    let cpu = cpu.as_ref()?;
    Some((cpu.usage_core_nano_seconds? as f64 / 1e9, Some(cpu.time)))
}

fn memory(memory: &Option<Memory>) -> Option<(f64, Option<Timestamp>)> {
    let memory = memory.as_ref()?;
    Some((memory.working_set_bytes? as f64, Some(memory.time)))
}

/// The text; without a summary it says only that there is none.
pub fn metrics(summary: Option<&Summary>) -> String {
    let mut out = String::new();
    if let Some(summary) = summary {
        all(&mut out, summary);
    }
    let failed = if summary.is_some() { 0.0 } else { 1.0 };
    let help = "Whether what the containers use could not be found out";
    family(&mut out, "resource_scrape_error", "gauge", help, [(Vec::new(), failed, None)].into_iter());
    out
}

fn all(out: &mut String, summary: &Summary) {
    let containers = || {
        summary.pods.iter().flat_map(|pod| {
            let labels = |name| {
                vec![("container", name), ("namespace", &*pod.pod_ref.namespace), ("pod", &*pod.pod_ref.name)]
            };
            pod.containers.iter().map(move |one| (labels(&*one.name), one))
        })
    };
    let pods = || {
        summary.pods.iter().map(|pod| {
            let of = &pod.pod_ref;
            (vec![("namespace", &*of.namespace), ("pod", &*of.name)], pod)
        })
    };
    let sample = |labels, found: Option<(f64, Option<Timestamp>)>| -> Option<Sample<'_>> {
        found.map(|(value, time)| (labels, value, time))
    };
    let cpu_help = |whose: &str| format!("Processor time that {whose} used since it started, in seconds");
    let memory_help = |whose: &str| format!("Memory that {whose} uses now, in bytes");
    let (counter, gauge) = ("counter", "gauge");
    family(
        out,
        "container_cpu_usage_seconds_total",
        counter,
        &cpu_help("a container"),
        containers().filter_map(|(labels, one)| sample(labels, cpu(&one.cpu))),
    );
    family(
        out,
        "container_memory_working_set_bytes",
        gauge,
        &memory_help("a container"),
        containers().filter_map(|(labels, one)| sample(labels, memory(&one.memory))),
    );
    family(
        out,
        "container_start_time_seconds",
        gauge,
        "When a container started, in seconds since the epoch",
        containers()
            .filter_map(|(labels, one)| Some((labels, one.start_time?.as_millisecond() as f64 / 1e3, None))),
    );
    family(
        out,
        "node_cpu_usage_seconds_total",
        counter,
        &cpu_help("the node"),
        cpu(&summary.node.cpu).and_then(|found| sample(Vec::new(), Some(found))).into_iter(),
    );
    family(
        out,
        "node_memory_working_set_bytes",
        gauge,
        &memory_help("the node"),
        memory(&summary.node.memory).and_then(|found| sample(Vec::new(), Some(found))).into_iter(),
    );
    family(
        out,
        "pod_cpu_usage_seconds_total",
        counter,
        &cpu_help("a pod"),
        pods().filter_map(|(labels, pod)| sample(labels, cpu(&pod.cpu))),
    );
    family(
        out,
        "pod_memory_working_set_bytes",
        gauge,
        &memory_help("a pod"),
        pods().filter_map(|(labels, pod)| sample(labels, memory(&pod.memory))),
    );
}

/// One metric with all its samples. One that has none is not named.
fn family<'a>(
    out: &mut String,
    name: &str,
    type_: &str,
    help: &str,
    samples: impl Iterator<Item = Sample<'a>>,
) {
    const FITS: &str = "writing to a string does not fail";
    let mut headed = false;
    for (labels, value, time) in samples {
        if !std::mem::replace(&mut headed, true) {
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} {type_}").expect(FITS);
        }
        out.push_str(name);
        for (nth, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
            write!(out, "{}{label}=\"{text}\"", if nth == 0 { '{' } else { ',' }).expect(FITS);
        }
        if !labels.is_empty() {
            out.push('}');
        }
        write!(out, " {value}").expect(FITS);
        if let Some(time) = time {
            write!(out, " {}", time.as_millisecond()).expect(FITS);
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::summary::{ContainerStats, NodeStats, PodReference, PodStats};

    #[test]
    fn each_sample_has_its_labels_value_and_time() {
        let time = Timestamp::from_millisecond(1_795_600_000_250).unwrap();
        let cpu = |nanos| Some(Cpu { time, usage_nano_cores: None, usage_core_nano_seconds: Some(nanos) });
        let summary = Summary {
            node: NodeStats {
                node_name: "n1".to_owned(),
                start_time: None,
                cpu: cpu(2_000_000_000),
                memory: None,
                fs: None,
                runtime: None,
            },
            pods: vec![PodStats {
                pod_ref: PodReference { name: "p".into(), namespace: "n".into(), uid: "u".into() },
                start_time: None,
                containers: vec![ContainerStats {
                    name: "odd\"\n".into(),
                    start_time: Some(time),
                    cpu: cpu(1_500_000_000),
                    memory: Some(Memory { working_set_bytes: Some(4096), ..Memory::at(time) }),
                    rootfs: None,
                }],
                cpu: cpu(1_500_000_000),
                memory: None,
                network: None,
                process_stats: None,
            }],
        };
        let text = metrics(Some(&summary));
        for line in [
            "# TYPE container_cpu_usage_seconds_total counter",
            r#"container_cpu_usage_seconds_total{container="odd\"\n",namespace="n",pod="p"} 1.5 1795600000250"#,
            r#"container_memory_working_set_bytes{container="odd\"\n",namespace="n",pod="p"} 4096 1795600000250"#,
            r#"container_start_time_seconds{container="odd\"\n",namespace="n",pod="p"} 1795600000.25"#,
            "node_cpu_usage_seconds_total 2 1795600000250",
            r#"pod_cpu_usage_seconds_total{namespace="n",pod="p"} 1.5 1795600000250"#,
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("node_memory"), "what is not known is not named");
        assert!(metrics(None).ends_with("\nresource_scrape_error 1\n"));
    }
}
