//! client-go's typed clients as any Go program uses them, in protobuf: WHARF_GO_TOUR is tests/compat/protobuf, built.

use std::process::{Command, ExitCode};

use wharf_tests::{Cluster, eventually, only_test};

/// What the tour tells, a line a step.
const STEPS: usize = 7;

fn main() -> ExitCode {
    only_test("client_go_takes_its_tour_in_protobuf", "WHARF_GO_TOUR", "WHARF_NO_GO", |tour| {
        let cluster = Cluster::up();
        eventually("the default namespace has its service account", || {
            let said = cluster.wctl(&["get", "serviceaccount", "default", "-o", "name"]);
            if said.code == Some(0) { Ok(()) } else { Err(said.to_string()) }
        });
        let output = Command::new(tour)
            .arg("default")
            .env("KUBECONFIG", cluster.kubeconfig())
            .output()
            .expect("the tour runs");
        let (said, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}\n{errors}");
        assert_eq!(said.lines().count(), STEPS, "{said}");
    })
}
