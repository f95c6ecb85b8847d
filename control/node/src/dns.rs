//! A pod's resolver configuration and hosts file.

use k8s_openapi::api::core::v1::{HostAlias, PodSpec};
use wharf_cri::v1::DnsConfig;

/// Reads a resolv.conf: `nameserver`, the last `search`, `options`.
pub fn parse(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
        let Some(keyword) = words.next() else { continue };
        let rest = words.map(str::to_owned);
        match keyword {
            "nameserver" => config.servers.extend(rest.take(1)),
            "search" => config.searches = rest.collect(),
            "options" => config.options.extend(rest),
            _ => {}
        }
    }
    config
}

/// What a pod is told: the node's own unless `dnsPolicy` is `None`; `dnsConfig` is added to either. (`ClusterFirst` will
/// differ as soon as the cluster has a DNS service.)
pub fn for_pod(spec: &PodSpec, node: &DnsConfig) -> DnsConfig {
    let mut config =
        if spec.dns_policy.as_deref() == Some("None") { DnsConfig::default() } else { node.clone() };
    let Some(own) = &spec.dns_config else { return config };
    let add = |to: &mut Vec<String>, from: Option<&Vec<String>>| {
        for item in from.into_iter().flatten() {
            if !to.contains(item) {
                to.push(item.clone());
            }
        }
    };
    add(&mut config.servers, own.nameservers.as_ref());
    add(&mut config.searches, own.searches.as_ref());
    for option in own.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        config.options.retain(|have| have.split(':').next() != Some(name));
        config.options.push(match option.value.as_deref() {
            Some(value) if !value.is_empty() => format!("{name}:{value}"),
            _ => name.clone(),
        });
    }
    config
}

/// `/etc/hosts` of a pod's containers.
pub fn hosts_file(
    ips: &[String],
    hostname: &str,
    domain: Option<&str>,
    aliases: Option<&Vec<HostAlias>>,
) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        match domain {
            Some(domain) => text += &format!("{ip}\t{hostname}.{domain}\t{hostname}\n"),
            None => text += &format!("{ip}\t{hostname}\n"),
        }
    }
    let aliases: Vec<_> = aliases.into_iter().flatten().collect();
    if !aliases.is_empty() {
        text += "\n# Entries added by HostAliases.\n";
    }
    for alias in aliases {
        text += &format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resolver_files_are_read_and_merged() {
        let node = parse(
            "# c\nnameserver 10.0.0.2\nnameserver 10.0.0.3 # two\nsearch a.b\nsearch c.d e\noptions ndots:2 edns0\n",
        );
        assert_eq!(node.servers, ["10.0.0.2", "10.0.0.3"]);
        assert_eq!(node.searches, ["c.d", "e"]);
        let own = json!({"nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "5"}, {"name": "single"}]});
        let spec: PodSpec = serde_json::from_value(json!({"containers": [], "dnsConfig": own})).unwrap();
        let pod = for_pod(&spec, &node);
        assert_eq!(pod.servers, ["10.0.0.2", "10.0.0.3", "1.1.1.1"]);
        assert_eq!(pod.options, ["edns0", "ndots:5", "single"]);
        let spec: PodSpec =
            serde_json::from_value(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": own})).unwrap();
        assert_eq!(for_pod(&spec, &node).servers, ["1.1.1.1"]);
    }

    #[test]
    fn the_hosts_file_names_the_pod_and_its_aliases() {
        let aliases =
            vec![HostAlias { ip: "9.9.9.9".into(), hostnames: Some(vec!["nine".into(), "neuf".into()]) }];
        let text = hosts_file(&["10.1.2.3".into()], "web", Some("sub.ns.svc"), Some(&aliases));
        assert!(text.contains("\n10.1.2.3\tweb.sub.ns.svc\tweb\n"), "{text}");
        assert!(text.ends_with("9.9.9.9\tnine\tneuf\n"), "{text}");
    }
}
