//! The decision.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::filter::{FILTERS, Filter, Reason, Verdict};
use crate::pending::{Change, Changes};
use crate::prepared::Prepared;
use crate::score::{MAX, SCORES, Scale};
use crate::view::PodView;

/// With fewer nodes than this every node is looked at, as in Kubernetes.
const LOOK_AT_LEAST: usize = 100;

/// The node for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub node: Arc<str>,
    pub score: i64,
    /// How many nodes fit, of those that were looked at.
    pub fitting: usize,
}

/// Why no node will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unschedulable {
    /// For people, as Kubernetes words it: `0/3 nodes are available: 1 Insufficient cpu, ….`
    pub message: String,
    /// Only these changes can help.
    pub wakes_on: Changes,
}

/// Chooses a node for the pod. No I/O, no clock, no randomness but `seed`: same input, same choice.
///
/// Of equally good nodes the seed decides. In large clusters not every node is looked at: from a place that the
/// seed decides, until enough of them fit to choose from.
pub fn choose(pod: &PodView, cluster: &Cluster, seed: u64) -> Result<Choice, Unschedulable> {
    let nodes = cluster.nodes();
    let prepared = Prepared::new(pod, cluster);
    let enough = enough(nodes.len());
    let start = if nodes.is_empty() { 0 } else { (seed % nodes.len() as u64) as usize };
    let mut fitting = Vec::new();
    for node in nodes[start..].iter().chain(&nodes[..start]) {
        if FILTERS.iter().all(|filter| filter.check(pod, node, &prepared) == Verdict::Fits) {
            fitting.push(node);
            if fitting.len() >= enough {
                break;
            }
        }
    }
    if fitting.is_empty() {
        return Err(explain(pod, cluster, &prepared));
    }
    let mut totals = vec![0_i64; fitting.len()];
    let mut raw = Vec::with_capacity(fitting.len());
    for score in SCORES.iter().filter(|score| score.matters(pod, &prepared)) {
        raw.clear();
        raw.extend(fitting.iter().map(|node| score.score(pod, node, &prepared)));
        scale(score.scale(), &mut raw);
        for (total, one) in totals.iter_mut().zip(&raw) {
            *total += one * score.weight();
        }
    }
    let best = totals.iter().copied().max().unwrap_or(0);
    let ties = totals.iter().filter(|total| **total == best).count();
    let nth = (mix(seed) % ties as u64) as usize;
    let (winner, _) = fitting
        .iter()
        .zip(&totals)
        .filter(|(_, total)| **total == best)
        .nth(nth)
        .expect("nth is below the number of ties");
    Ok(Choice { node: winner.name().clone(), score: best, fitting: fitting.len() })
}

/// How many fitting nodes are enough: half of them at 100 nodes, a tenth at 5,000, never under 5 % or 100.
fn enough(nodes: usize) -> usize {
    if nodes < LOOK_AT_LEAST {
        return nodes.max(1);
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(LOOK_AT_LEAST)
}

fn scale(scale: Scale, scores: &mut [i64]) {
    let least = scores.iter().copied().min().unwrap_or(0);
    let most = scores.iter().copied().max().unwrap_or(0);
    let span = most - least;
    for score in scores {
        *score = match scale {
            Scale::Given => *score,
            Scale::Most | Scale::Least if span == 0 => 0, // tells no node apart
            Scale::Most => (*score - least) * MAX / span,
            Scale::Least => (most - *score) * MAX / span,
        };
    }
}

/// Spreads a seed's bits (the finalizer of splitmix64), since its low ones chose the start already.
fn mix(seed: u64) -> u64 {
    let x = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn explain(pod: &PodView, cluster: &Cluster, prepared: &Prepared) -> Unschedulable {
    let mut wakes_on = Changes::of(Change::NodeAdded);
    let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
    for node in cluster.nodes() {
        let refusal = FILTERS.iter().find_map(|filter| match filter.check(pod, node, prepared) {
            Verdict::Fits => None,
            Verdict::NotNow(reason) | Verdict::Never(reason) => Some((filter, reason)),
        });
        if let Some((filter, reason)) = refusal {
            wakes_on.extend(Filter::wakes_on(*filter).iter().copied().collect());
            *reasons.entry(reason).or_default() += 1;
        }
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (reason, count) in reasons {
        for text in reason.texts() {
            *counts.entry(text).or_default() += count;
        }
    }
    let mut texts: Vec<String> = counts.into_iter().map(|(text, count)| format!("{count} {text}")).collect();
    texts.sort();
    let message = if texts.is_empty() {
        "no nodes available to schedule pods".to_owned()
    } else {
        format!("0/{} nodes are available: {}.", cluster.nodes().len(), texts.join(", "))
    };
    Unschedulable { message, wakes_on }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use wharf_kit::view::View;

    fn pod(name: &str, spec: Value) -> PodView {
        let metadata = json!({"name": name, "namespace": "ns", "labels": {"app": name.split('-').next()}});
        let mut pod: PodView = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        pod.prepare();
        pod
    }

    fn asking(name: &str, cpu: &str) -> PodView {
        pod(name, json!({"containers": [{"resources": {"requests": {"cpu": cpu}}}]}))
    }

    fn node(name: &str, cpu: &str, spec: Value) -> Arc<crate::NodeView> {
        let mut node: crate::NodeView = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": &name[..1]}},
            "spec": spec,
            "status": {"allocatable": {"cpu": cpu, "memory": "16Gi", "pods": "110", "ephemeral-storage": "10Gi"}},
        }))
        .unwrap();
        node.prepare();
        Arc::new(node)
    }

    fn cluster(nodes: &[(&str, &str)]) -> Cluster {
        let mut cluster = Cluster::default();
        for (name, cpu) in nodes {
            cluster.set_node(node(name, cpu, json!({})));
        }
        cluster
    }

    fn chosen(pod: &PodView, cluster: &Cluster) -> String {
        let nodes: std::collections::BTreeSet<_> = (0..20)
            .map(|seed| choose(pod, cluster, seed).map(|choice| choice.node.to_string()))
            .map(|one| match one {
                Ok(node) => node,
                Err(unschedulable) => unschedulable.message,
            })
            .collect();
        nodes.into_iter().collect::<Vec<_>>().join(" or ")
    }

    #[test]
    fn five_cpus_are_asked_the_node_of_four_is_filtered_and_the_one_of_fifteen_wins() {
        let cluster = cluster(&[("four", "4"), ("ten", "10"), ("fifteen", "15")]);
        let pod = asking("web", "5");
        assert_eq!(chosen(&pod, &cluster), "fifteen");
        assert_eq!(choose(&pod, &cluster, 0).unwrap().fitting, 2);
    }

    #[test]
    fn promised_amounts_count_until_the_pod_is_gone() {
        let mut cluster = cluster(&[("a", "4")]);
        let first = Arc::new(asking("first", "3"));
        cluster.place(first.clone(), &"a".into());
        let second = asking("second", "2");
        assert_eq!(chosen(&second, &cluster), "0/1 nodes are available: 1 Insufficient cpu.");
        assert!(cluster.displace(&first.metadata.key()));
        assert_eq!(chosen(&second, &cluster), "a");
        assert_eq!(cluster.node("a").unwrap().promised, crate::Resources::default());
    }

    #[test]
    fn refusals_are_worded_and_counted_as_in_kubernetes() {
        let mut cluster = cluster(&[("a1", "1"), ("a2", "1")]);
        cluster.set_node(node(
            "b",
            "8",
            json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}),
        ));
        cluster.set_node(node("c", "8", json!({"unschedulable": true})));
        let mut pod = asking("web", "2");
        pod.requests.memory = 1 << 40;
        assert_eq!(
            chosen(&pod, &cluster),
            "0/4 nodes are available: 1 node(s) had untolerated taint {k: v}, 1 node(s) were unschedulable, \
             2 Insufficient cpu, 2 Insufficient memory."
        );
        let wakes_on = choose(&pod, &cluster, 0).unwrap_err().wakes_on;
        for change in [Change::NodeAdded, Change::NodeTaints, Change::NodeGrew, Change::PodGone] {
            assert!(wakes_on.meets(Changes::of(change)), "{change:?}");
        }
        assert!(!wakes_on.meets(Changes::of(Change::NodeLabels)));
        assert_eq!(chosen(&pod, &Cluster::default()), "no nodes available to schedule pods");
    }

    #[test]
    fn each_rule_moves_the_choice() {
        let mut cluster = cluster(&[("a", "1"), ("b", "64"), ("c", "64")]);
        cluster.set_node(node("c", "64", json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]})));
        let resources = json!({"requests": {"memory": "512Mi"}});
        let web =
            pod("web-1", json!({"containers": [{"ports": [{"hostPort": 80}], "resources": resources}]}));
        cluster.place(Arc::new(web), &"b".into());
        let term = |app: &str, key: &str| json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key});
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        let nowhere = "0/3 nodes are available: ";
        for (spec, expected) in [
            (json!({}), "b".to_owned()),
            (json!({"tolerations": [{"operator": "Exists"}]}), "c".to_owned()),
            (json!({"nodeSelector": {"zone": "a"}}), "a".to_owned()),
            (
                json!({"nodeSelector": {"zone": "x"}}),
                format!("{nowhere}3 node(s) didn't match Pod's node affinity/selector."),
            ),
            (
                json!({"affinity": {"nodeAffinity": {preferred: [{"weight": 100, "preference":
                    {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}}]}}}),
                "a".to_owned(),
            ),
            (json!({"containers": [{"ports": [{"hostPort": 80}]}]}), "a".to_owned()),
            (json!({"containers": [{"ports": [{"hostPort": 80, "protocol": "UDP"}]}]}), "b".to_owned()),
            (json!({"affinity": {"podAffinity": {required: [term("web", "zone")]}}}), "b".to_owned()),
            (
                json!({"affinity": {"podAffinity": {required: [term("db", "zone")]}}}),
                format!("{nowhere}3 node(s) didn't match pod affinity rules."),
            ),
            (json!({"affinity": {"podAffinity": {required: [term("new", "zone")]}}}), "b".to_owned()),
            (json!({"affinity": {"podAntiAffinity": {required: [term("web", "zone")]}}}), "a".to_owned()),
            (
                json!({"affinity": {"podAntiAffinity": {preferred: [{"weight": 100, "podAffinityTerm": term("web", "zone")}]}},
                    "tolerations": [{"operator": "Exists"}]}),
                "c".to_owned(),
            ),
            (
                json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"app": "web"}}}]}),
                "a".to_owned(),
            ),
        ] {
            let mut with_container = spec.clone();
            if with_container.get("containers").is_none() {
                with_container["containers"] = json!([{}]);
            }
            assert_eq!(chosen(&pod("new-1", with_container), &cluster), expected, "{spec}");
        }
    }

    #[test]
    fn a_placed_pod_keeps_those_away_whom_it_avoids() {
        let mut cluster = cluster(&[("a", "4"), ("b", "4")]);
        let lonely = pod(
            "db-1",
            json!({"affinity": {"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "zone"}]}}}),
        );
        cluster.place(Arc::new(lonely), &"a".into());
        assert_eq!(chosen(&asking("web-1", "1"), &cluster), "b");
        cluster.remove_node("b");
        assert_eq!(
            chosen(&asking("web-1", "1"), &cluster),
            "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."
        );
    }

    #[test]
    fn hard_spread_keeps_domains_within_the_skew() {
        let mut cluster = cluster(&[("a1", "4"), ("a2", "4"), ("b1", "4")]);
        let spec = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
        let mut zones = BTreeMap::new();
        for number in 0..6 {
            let pod = Arc::new(pod(&format!("web-{number}"), spec.clone()));
            let choice = choose(&pod, &cluster, number).unwrap();
            *zones.entry(choice.node[..1].to_owned()).or_insert(0) += 1;
            cluster.place(pod, &choice.node);
        }
        assert_eq!(zones, BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 3)]));
    }

    #[test]
    fn pods_without_requests_spread_too() {
        let mut cluster = cluster(&[("a", "4"), ("b", "4"), ("c", "4")]);
        for number in 0..9 {
            let pod = Arc::new(pod(&format!("web-{number}"), json!({"containers": [{}]})));
            let choice = choose(&pod, &cluster, number).unwrap();
            cluster.place(pod, &choice.node);
        }
        assert!(cluster.nodes().iter().all(|node| node.pods.len() == 3));
    }

    #[test]
    fn pods_on_a_node_that_comes_later_are_counted_there() {
        let mut cluster = Cluster::default();
        cluster.place(Arc::new(asking("early", "3")), &"a".into());
        cluster.set_node(node("a", "4", json!({})));
        assert_eq!(cluster.node("a").unwrap().promised.cpu, 3000);
        cluster.remove_node("a");
        cluster.set_node(node("a", "4", json!({})));
        assert_eq!(cluster.node("a").unwrap().promised.cpu, 3000);
    }

    /// Prints a rate; `cargo test --release -p wharf-scheduler -- --ignored --nocapture rate`.
    #[test]
    #[ignore = "a measurement, not a check"]
    fn rate_of_choices_on_five_thousand_nodes() {
        let mut cluster = Cluster::default();
        for number in 0..5000 {
            cluster.set_node(node(&format!("n{number}"), "64", json!({})));
        }
        let pods: Vec<_> =
            (0..20_000).map(|number| Arc::new(asking(&format!("p-{number}"), "100m"))).collect();
        let start = std::time::Instant::now();
        for (number, pod) in pods.iter().enumerate() {
            let choice = choose(pod, &cluster, number as u64 * 0x9e37).unwrap();
            cluster.place(pod.clone(), &choice.node);
        }
        println!("{:.0} pods/s", pods.len() as f64 / start.elapsed().as_secs_f64());
    }

    proptest! {
        #[test]
        fn no_node_is_ever_promised_more_than_it_has(
            nodes in proptest::collection::vec(1..16_i64, 1..12),
            pods in proptest::collection::vec(1..8_i64, 1..60),
            seed in any::<u64>(),
        ) {
            let mut cluster = Cluster::default();
            for (number, cpu) in nodes.iter().enumerate() {
                cluster.set_node(node(&format!("n{number}"), &cpu.to_string(), json!({})));
            }
            for (number, cpu) in pods.iter().enumerate() {
                let pod = Arc::new(asking(&format!("p-{number}"), &cpu.to_string()));
                let free = |cluster: &Cluster| cluster.nodes().iter()
                    .map(|node| node.view.allocatable.cpu - node.promised.cpu).max().unwrap();
                match choose(&pod, &cluster, seed.wrapping_add(number as u64)) {
                    Ok(choice) => cluster.place(pod, &choice.node),
                    Err(_) => prop_assert!(free(&cluster) < cpu * 1000, "a node had room"),
                }
                for node in cluster.nodes() {
                    prop_assert!(node.promised.cpu <= node.view.allocatable.cpu);
                }
            }
        }
    }
}
