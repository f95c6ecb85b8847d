//! Takes a kubectl through the areas, each in a namespace of its own, in one cluster of two nodes.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail};
use wharf_tests::{Cluster, eventually};

use crate::areas::{self, Area};
use crate::guide::{Guide, Sums};
use crate::skips::Skips;

const SKIPS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/compat/kubectl/skips.txt");

/// Takes the tour of the named areas; of all if none is named.
pub fn take(kubectl: &Path, names: &[String]) -> anyhow::Result<ExitCode> {
    let all = areas::all();
    if let Some(name) = names.iter().find(|name| all.iter().all(|area| area.name != **name)) {
        bail!("there is no area {name:?}; there is {}", all.map(|area| area.name).join(", "));
    }
    let skips = Skips::read(Path::new(SKIPS))?;
    skips.fit(all.iter().flat_map(|area| (area.rows)()).map(|row| row.line))?;
    let cluster = Cluster::of_nodes(2, "40s");
    cluster.push_images();
    let guide = guide(kubectl, &cluster)?;
    let (mut sums, began) = (Sums::default(), Instant::now());
    for area in all.iter().filter(|area| names.is_empty() || names.iter().any(|name| name == area.name)) {
        visit(area, &cluster, &guide, &skips, &mut sums)?;
    }
    Ok(sums.tell(guide.name, began))
}

fn guide(kubectl: &Path, cluster: &Cluster) -> anyhow::Result<Guide> {
    let dir = cluster.dir().join("tour");
    std::fs::create_dir(&dir)?;
    // The tour changes its kubeconfig.
    let kubeconfig = dir.join("kubeconfig");
    std::fs::copy(cluster.kubeconfig(), &kubeconfig)?;
    for (name, content) in areas::FILES {
        let file = dir.join(name);
        std::fs::create_dir_all(file.parent().context("a file is in a folder")?)?;
        std::fs::write(file, content)?;
    }
    let environment = ("KUBECONFIG", kubeconfig);
    Ok(Guide { name: "kubectl", program: kubectl.to_owned(), dir, environment })
}

fn visit(
    area: &Area,
    cluster: &Cluster,
    guide: &Guide,
    skips: &Skips,
    sums: &mut Sums,
) -> anyhow::Result<()> {
    println!("\n{}", area.name);
    let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {}}}}}", area.name);
    cluster.wctl_reading(&["apply", "-f", "-"], &namespace).ok();
    eventually("the namespace has its service account", || {
        let said = cluster.wctl(&["-n", area.name, "get", "sa", "default", "-o", "name"]);
        if said.code == Some(0) { Ok(()) } else { Err(said.to_string()) }
    });
    guide.rows(&["-n", area.name], (area.rows)(), skips, sums)?;
    let gone = cluster.wctl(&["delete", "namespace", area.name]);
    if gone.code != Some(0) {
        println!("  the namespace was not deleted: {gone}");
    }
    Ok(())
}
