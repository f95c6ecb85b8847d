//! A cluster in which nothing happens does nearly nothing.

use std::time::{Duration, Instant};

use wharf_tests::{Cluster, assets};

/// Long enough to see what is done every ten seconds.
const WATCHED: Duration = Duration::from_secs(12);
/// Of D4, for each node.
const MOST_A_SECOND: f64 = 2.0;

async fn requests(client: &kube::Client) -> f64 {
    let request = http::Request::get("/metrics").body(Vec::new()).expect("a request");
    let text = client.request_text(request).await.expect("the metrics");
    let counts = text.lines().filter(|line| line.starts_with("apiserver_request_total{"));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test]
async fn an_idle_cluster_makes_at_most_two_api_requests_a_second() {
    let cluster = Cluster::up();
    cluster.push_images();
    let folder = assets::manifests().display().to_string();
    cluster.wctl(&["apply", "-f", &folder, "--wait", "--timeout", "60s"]).ok();
    let client = cluster.client().await;
    tokio::time::sleep(Duration::from_secs(2)).await; // what follows readiness (statuses, events) is not idling
    let (before, began) = (requests(&client).await, Instant::now());
    tokio::time::sleep(WATCHED).await; // the measure is over time itself
    let made = requests(&client).await - before - 1.0; // our own
    let rate = made / began.elapsed().as_secs_f64();
    println!("{rate:.2} requests/s");
    assert!(rate <= MOST_A_SECOND, "{rate:.2} requests/s");
}
