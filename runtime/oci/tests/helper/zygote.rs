//! What the tests re-execute: the zygote; or with the arguments `shim STATE-DIR MARK SPECS` a shim that runs these
//! containers one after the other until it is killed.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("shim") => shim(&args[2], &args[3], &args[4]),
        _ => wharf_oci::zygote::main(),
    }
}

fn shim(state_dir: &str, mark: &str, specs: &str) -> ExitCode {
    let specs: Vec<wharf_oci::ContainerSpec> = serde_json::from_str(specs).expect("the test wrote them");
    let config = wharf_oci::Config {
        exe_args: vec![mark.into()],
        cgroup_parent: format!("/{mark}/pods"),
        ..wharf_oci::Config::new(state_dir)
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (oci, _events) = wharf_oci::Oci::start(config).await.expect("start");
        for spec in specs {
            let id = spec.id.clone();
            oci.create(spec).await.expect("create");
            oci.start_container(&id).await.expect("start");
            if id.ends_with('0') {
                oci.remove(&id).await.expect("remove");
            }
        }
        std::future::pending::<()>().await
    });
    ExitCode::SUCCESS
}
