//! After `wctl down --purge` the machine is as it was before `wctl up`.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_tests::{Census, Cluster, assets};

/// A cluster on which everything of the demo has run.
fn used(census: &Census) -> Cluster {
    let cluster = Cluster::up_in(census);
    cluster.push_images();
    let folder = assets::manifests().display().to_string();
    cluster.wctl(&["apply", "-f", &folder, "--wait", "--timeout", "60s"]).ok();
    cluster.wctl(&["scale", "deployment/clock", "--replicas=2"]).ok();
    cluster.wctl(&["rollout", "status", "deployment/clock", "--timeout", "60s"]).ok();
    cluster
}

// One test: two would count each other's clusters.
#[test]
fn nothing_is_left_behind() {
    let before = Census::take();

    let cluster = used(&before);
    cluster.purge();
    assert!(!cluster.local().data.exists() && !cluster.local().run.exists());
    before.assert_unchanged();

    // Nor is it when the keeper did not live to tidy up.
    let cluster = used(&before);
    let keeper = cluster.local().keeper().expect("it runs");
    kill(Pid::from_raw(keeper), Signal::SIGKILL).expect("it ran");
    cluster.purge();
    before.assert_unchanged();
    cluster.wctl(&["down", &cluster.name]).fails_with(&["there is no cluster"]);
}
