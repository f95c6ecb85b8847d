//! One answer of a node: its `/stats/summary`, as the kubelet tells it.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::Deserialize;

/// What a node and its containers had used at a moment.
#[derive(Debug, Default, PartialEq)]
pub struct Look {
    pub node: Option<Sample>,
    /// By the pod's uid and the container's name.
    pub containers: HashMap<(String, String), Sample>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub at: Timestamp,
    /// Since it started.
    pub cpu_nanos: u64,
    pub memory_bytes: u64,
    pub started: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Summary {
    node: Counted,
    #[serde(default)]
    pods: Vec<Pod>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    pod_ref: Reference,
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Reference {
    uid: String,
}

#[derive(Deserialize)]
struct Container {
    name: String,
    #[serde(flatten)]
    counted: Counted,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counted {
    start_time: Option<Timestamp>,
    cpu: Option<Cpu>,
    memory: Option<Memory>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    time: Timestamp,
    usage_core_nano_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    working_set_bytes: Option<u64>,
}

impl Counted {
    /// None if one of the two is not known.
    fn sample(&self) -> Option<Sample> {
        let cpu = self.cpu.as_ref()?;
        Some(Sample {
            at: cpu.time,
            cpu_nanos: cpu.usage_core_nano_seconds?,
            memory_bytes: self.memory.as_ref()?.working_set_bytes?,
            started: self.start_time,
        })
    }
}

impl Look {
    /// # Errors
    /// It is no summary.
    pub fn parse(summary: &[u8]) -> Result<Self, serde_json::Error> {
        let summary: Summary = serde_json::from_slice(summary)?;
        let containers = summary.pods.into_iter().flat_map(|pod| {
            let uid = pod.pod_ref.uid;
            pod.containers
                .into_iter()
                .filter_map(move |one| Some(((uid.clone(), one.name), one.counted.sample()?)))
        });
        Ok(Self { node: summary.node.sample(), containers: containers.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lacks_a_number_is_left_out() {
        let text = br#"{"node": {"nodeName": "n", "cpu": {"time": "2026-11-26T07:00:00Z", "usageCoreNanoSeconds": 5},
            "memory": {"time": "2026-11-26T07:00:00Z", "workingSetBytes": 7}}, "pods": [{"podRef": {"name": "p", "namespace": "d", "uid": "u"},
            "containers": [{"name": "a", "startTime": "2026-11-26T06:00:00Z", "cpu": {"time": "2026-11-26T07:00:00.25Z", "usageCoreNanoSeconds": 1},
              "memory": {"workingSetBytes": 2}}, {"name": "b", "cpu": {"time": "2026-11-26T07:00:00Z"}}]}]}"#;
        let look = Look::parse(text).unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let node = Sample { at: at("2026-11-26T07:00:00Z"), cpu_nanos: 5, memory_bytes: 7, started: None };
        assert_eq!(look.node, Some(node));
        let started = Some(at("2026-11-26T06:00:00Z"));
        let a = Sample { at: at("2026-11-26T07:00:00.25Z"), cpu_nanos: 1, memory_bytes: 2, started };
        assert_eq!(look.containers, HashMap::from([(("u".to_owned(), "a".to_owned()), a)]));
        assert!(Look::parse(b"nothing").is_err());
    }
}
