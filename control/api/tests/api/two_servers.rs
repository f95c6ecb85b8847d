//! Two API servers over one etcd are one to their clients.

use std::sync::Arc;

use serde_json::{Value, json};
use wharf_api::{ApiServer, Config, UserInfo};
use wharf_store::testing::Members;

use crate::harness::{Lines, call, get};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub struct Pair {
    servers: [ApiServer; 2],
    _members: Members,
    _folder: tempfile::TempDir,
}

impl Pair {
    /// Both begin at the same moment on an empty store.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let members = Members::start(folder.path(), 1);
        let server = async || {
            let store = Arc::new(members.engine().await);
            ApiServer::start(Config::default(), store).await.unwrap()
        };
        let (one, two) = tokio::join!(server(), server());
        Self { servers: [one, two], _members: members, _folder: folder }
    }

    pub fn clients(&self) -> [kube::Client; 2] {
        self.servers.each_ref().map(|server| server.client(UserInfo::admin()))
    }
}

#[tokio::test]
async fn what_one_has_acknowledged_the_other_shows() {
    let pair = Pair::start().await;
    let clients = pair.clients();
    for turn in 0..20 {
        let (here, there) = (&clients[turn % 2], &clients[(turn + 1) % 2]);
        let path = format!("{MAPS}/m{turn}");
        let body = json!({"metadata": {"name": format!("m{turn}")}, "data": {"turn": "0"}});
        let (code, made) = call(here, "POST", MAPS, body).await;
        assert_eq!(code, 201, "{made}");
        let (code, seen) = get(there, &path).await;
        assert_eq!((code, &seen), (200, &made), "a get through the other");
        let (_, list) = get(there, MAPS).await;
        assert!(list["items"].as_array().unwrap().iter().any(|item| item["metadata"] == made["metadata"]));
        let mut changed = seen;
        changed["data"]["turn"] = json!("1");
        let (code, changed) = call(there, "PUT", &path, changed).await;
        assert_eq!(code, 200, "the other's resourceVersion is good here: {changed}");
        let (code, stale) = call(here, "PUT", &path, made).await;
        assert_eq!((code, &stale["reason"]), (409, &json!("Conflict")), "the older one is not");
        assert_eq!(call(here, "DELETE", &path, Value::Null).await.0, 200);
        assert_eq!(get(there, &path).await.0, 404);
        assert_eq!(call(there, "DELETE", &path, Value::Null).await.0, 404);
    }
    // A namespace of the one takes objects through the other at once.
    let space = json!({"metadata": {"name": "fresh"}});
    assert_eq!(call(&clients[0], "POST", "/api/v1/namespaces", space).await.0, 201);
    let (code, made) =
        call(&clients[1], "POST", "/api/v1/namespaces/fresh/configmaps", json!({"metadata": {"name": "a"}}))
            .await;
    assert_eq!(code, 201, "{made}");
}

#[tokio::test]
async fn watches_of_both_tell_the_same_in_the_same_order() {
    const WRITERS: usize = 4;
    const WRITES: usize = 12;
    let pair = Pair::start().await;
    let clients = pair.clients();
    let counter = json!({"metadata": {"name": "counter"}, "data": {"count": "0"}});
    let (_, made) = call(&clients[0], "POST", MAPS, counter).await;
    let from = made["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("{MAPS}?watch=1&resourceVersion={from}");
    let mut watches = Vec::new();
    for client in &clients {
        watches.push(Lines::open(client, &path, "application/json").await);
    }
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let client = clients[writer % 2].clone();
        writers.spawn(async move {
            let path = format!("{MAPS}/counter");
            for _ in 0..WRITES {
                loop {
                    let (_, mut object) = get(&client, &path).await;
                    let count: usize = object["data"]["count"].as_str().unwrap().parse().unwrap();
                    object["data"]["count"] = json!((count + 1).to_string());
                    match call(&client, "PUT", &path, object).await {
                        (200, _) => break,
                        (409, _) => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
        });
    }
    writers.join_all().await;
    for count in 1..=WRITERS * WRITES {
        let [one, two] = &mut watches[..] else { panic!("two") };
        let (one, two) = (one.next().await.unwrap(), two.next().await.unwrap());
        assert_eq!(one, two);
        assert_eq!(
            one["object"]["data"]["count"],
            json!(count.to_string()),
            "no update is lost or told twice"
        );
    }
}
