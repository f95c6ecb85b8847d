//! Bearer tokens: service accounts', bootstrap tokens, and who may have one.

use http::Request;
use serde_json::{Value, json};
use wharf_api::TokenKeys;

use crate::harness::{Harness, call, get, send};

const DEFAULT: &str = "/api/v1/namespaces/default";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

fn pod(name: &str, account: &str, node: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "serviceAccountName": account, "nodeName": node, "terminationGracePeriodSeconds": 0,
        "volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}],
        "containers": [{"name": "c", "image": "i"}]}})
}

async fn make(client: &kube::Client, path: &str, body: Value) -> Value {
    let (code, made) = call(client, "POST", &format!("{DEFAULT}/{path}"), body).await;
    assert_eq!(code, 201, "{made}");
    made
}

async fn account(client: &kube::Client, name: &str) -> Value {
    make(client, "serviceaccounts", json!({"metadata": {"name": name}})).await
}

/// Asks for a token; its text.
async fn token(client: &kube::Client, account: &str, spec: Value) -> String {
    let path = format!("serviceaccounts/{account}/token");
    let made = make(client, &path, json!({"spec": spec})).await;
    made["status"]["token"].as_str().expect("a token").to_owned()
}

/// The claims in a token.
fn claims(token: &str) -> Value {
    use base64::Engine as _;
    let part = token.split('.').nth(1).unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Who the server says the token's holder is; the code alone if it does not.
async fn who(harness: &Harness, token: &str) -> Result<Value, u16> {
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    match call(&harness.bearer(token), "POST", path, json!({})).await {
        (201, review) => Ok(review["status"]["userInfo"].clone()),
        (code, status) => {
            assert_eq!((&status["kind"], &status["reason"]), (&json!("Status"), &json!("Unauthorized")));
            Err(code)
        }
    }
}

#[tokio::test]
async fn a_service_account_is_known_by_its_token() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    let robot = account(&admin, "robot").await;
    let pod = make(&admin, "pods", pod("p", "robot", "")).await;
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod["metadata"]["uid"]});
    let made = token(&admin, "robot", json!({"boundObjectRef": bound})).await;
    let claims = claims(&made);
    let user = who(&harness, &made).await.unwrap();
    assert_eq!(
        user,
        json!({
            "username": "system:serviceaccount:default:robot", "uid": robot["metadata"]["uid"],
            "groups": ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/credential-id": [format!("JTI={}", claims["jti"].as_str().unwrap())],
                "authentication.kubernetes.io/pod-name": ["p"],
                "authentication.kubernetes.io/pod-uid": [pod["metadata"]["uid"]],
            },
        })
    );
    assert_eq!(
        claims["kubernetes.io"],
        json!({
            "namespace": "default", "serviceaccount": {"name": "robot", "uid": robot["metadata"]["uid"]},
            "pod": {"name": "p", "uid": pod["metadata"]["uid"]},
        })
    );
    assert_eq!((&claims["iss"], &claims["aud"]), (&json!(ISSUER), &json!([ISSUER])));
    let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert_eq!(life, 3600);
    // What the volume of every pod asks for lives on for a year, for clients that read it once.
    let volume = json!({"expirationSeconds": 3607, "boundObjectRef": bound});
    let volume = self::claims(&token(&admin, "robot", volume).await);
    let life = volume["exp"].as_i64().unwrap() - volume["iat"].as_i64().unwrap();
    assert_eq!(life, 365 * 24 * 3600);
    assert_eq!(
        volume["kubernetes.io"]["warnafter"].as_i64(),
        volume["iat"].as_i64().map(|issued| issued + 3607)
    );
}

#[tokio::test]
async fn a_token_ends_with_what_it_is_bound_to() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    account(&admin, "robot").await;
    make(&admin, "pods", pod("p", "robot", "")).await;
    make(&admin, "secrets", json!({"metadata": {"name": "s"}})).await;
    let bind = |kind: &str, name: &str| json!({"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": name}, "expirationSeconds": 600});
    let to_pod = token(&admin, "robot", bind("Pod", "p")).await;
    let to_secret = token(&admin, "robot", bind("Secret", "s")).await;
    let to_account = token(&admin, "robot", json!({})).await;
    for token in [&to_pod, &to_secret, &to_account] {
        who(&harness, token).await.unwrap();
    }
    call(&admin, "DELETE", &format!("{DEFAULT}/pods/p"), json!({"gracePeriodSeconds": 0})).await;
    call(&admin, "DELETE", &format!("{DEFAULT}/secrets/s"), json!({})).await;
    assert_eq!(who(&harness, &to_pod).await, Err(401));
    assert_eq!(who(&harness, &to_secret).await, Err(401));
    // Another pod of that name is another pod.
    make(&admin, "pods", pod("p", "robot", "")).await;
    assert_eq!(who(&harness, &to_pod).await, Err(401));
    who(&harness, &to_account).await.unwrap();
    call(&admin, "DELETE", &format!("{DEFAULT}/serviceaccounts/robot"), json!({})).await;
    assert_eq!(who(&harness, &to_account).await, Err(401));
    account(&admin, "robot").await;
    assert_eq!(who(&harness, &to_account).await, Err(401), "an account made anew is another one");
}

#[tokio::test]
async fn tokens_that_are_not_good_are_refused() {
    let keys = TokenKeys::ephemeral();
    let harness = Harness::with(|config| config.service_account_tokens.keys = keys.clone()).await;
    let admin = harness.admin();
    account(&admin, "robot").await;
    let good = claims(&token(&admin, "robot", json!({})).await);
    let now = good["iat"].as_i64().unwrap();
    let with = |changes: Value| {
        let mut claims = good.clone();
        for (key, value) in changes.as_object().unwrap() {
            claims[key] = value.clone();
        }
        claims
    };
    who(&harness, &keys.sign(&with(json!({}))).unwrap()).await.unwrap();
    for changes in [
        json!({"exp": now - 61, "nbf": now - 1000}),
        json!({"nbf": now + 1000}),
        json!({"aud": ["vault"]}),
        json!({"iss": "https://elsewhere"}),
        json!({"sub": "system:serviceaccount:kube-system:robot"}),
        json!({"kubernetes.io": {"namespace": "default", "serviceaccount": {"name": "robot", "uid": "other"}}}),
        json!({"kubernetes.io": {"namespace": "kube-system", "serviceaccount": {"name": "robot", "uid": ""}}}),
    ] {
        assert_eq!(who(&harness, &keys.sign(&with(changes.clone())).unwrap()).await, Err(401), "{changes}");
    }
    let foreign = TokenKeys::ephemeral().sign(&good).unwrap();
    let long = "x".repeat(20_000);
    for token in [foreign.as_str(), "nonsense", "a.b.c", "..", "abcdef.0123456789abcdef", &long] {
        assert_eq!(who(&harness, token).await, Err(401), "{token}");
    }
    // Other schemes are none of ours: who uses them is anonymous.
    let basic = Request::get("/version").header("authorization", "Basic eDp5").body(Vec::new()).unwrap();
    assert_eq!(send(&harness.anonymous(), basic).await.status(), 200);
    // Keys change while the server runs.
    let old = keys.sign(&good).unwrap();
    keys.replace(&[wharf_kit::identity::signing_key().unwrap()]).unwrap();
    assert_eq!(who(&harness, &old).await, Err(401));
    who(&harness, &token(&admin, "robot", json!({})).await).await.unwrap();
}

#[tokio::test]
async fn what_is_asked_of_a_token_is_checked() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    account(&admin, "robot").await;
    account(&admin, "other").await;
    make(&admin, "pods", pod("p", "other", "")).await;
    let ask = async |account: &str, body: Value| {
        let path = format!("{DEFAULT}/serviceaccounts/{account}/token");
        let (code, status) = call(&admin, "POST", &path, body).await;
        (code, status["message"].as_str().unwrap_or_default().to_owned())
    };
    let spec = |spec: Value| json!({"spec": spec});
    let invalid =
        "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: ";
    let pod = |name: &str, uid: &str| {
        spec(json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}}))
    };
    let cases = [
        ("robot", spec(json!({"expirationSeconds": 599})), 422, format!("{invalid}599: may not specify a duration less than 10 minutes")),
        ("robot", spec(json!({"expirationSeconds": 4_294_967_297_i64})), 422, format!("{invalid}4294967297: may not specify a duration larger than 2^32 seconds")),
        ("nobody", spec(json!({})), 404, "serviceaccounts \"nobody\" not found".to_owned()),
        ("robot", pod("missing", ""), 404, "pods \"missing\" not found".to_owned()),
        ("robot", pod("p", ""), 400, "cannot bind token for serviceaccount \"robot\" to pod running with different serviceaccount name.".to_owned()),
        ("other", pod("p", "x"), 409, "the UID in the bound object reference (x) does not match the UID in record. The object might have been deleted and then recreated".to_owned()),
        ("robot", spec(json!({"boundObjectRef": {"kind": "Deployment", "apiVersion": "apps/v1", "name": "d"}})), 400, "cannot bind token to object of type apps/v1, Kind=Deployment".to_owned()),
        ("robot", json!({"metadata": {"name": "x"}, "spec": {}}), 422, "metadata.name: Invalid value: \"x\": must match the service account name if specified".to_owned()),
        ("robot", json!({"kind": "Pod", "apiVersion": "v1"}), 400, "kind".to_owned()),
    ];
    for (account, body, code, message) in cases {
        let (found, text) = ask(account, body.clone()).await;
        assert_eq!(found, code, "{body}: {text}");
        assert!(text.contains(&message), "{body}: {text}");
    }
    let (code, _) = get(&admin, &format!("{DEFAULT}/serviceaccounts/robot/token")).await;
    assert_eq!(code, 405);
}

#[tokio::test]
async fn a_node_gets_tokens_of_its_own_pods_alone() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    for name in ["robot", "other", "idle"] {
        account(&admin, name).await;
    }
    let mine = make(&admin, "pods", pod("mine", "robot", "n1")).await["metadata"]["uid"].clone();
    let also = make(&admin, "pods", pod("theirs", "robot", "n2")).await["metadata"]["uid"].clone();
    make(&admin, "pods", pod("far", "other", "n2")).await;
    let node = harness.client("system:node:n1", &["system:nodes"]);
    let ask = async |account: &str, bound: Value| {
        let path = format!("{DEFAULT}/serviceaccounts/{account}/token");
        let (code, answer) = call(&node, "POST", &path, json!({"spec": {"boundObjectRef": bound}})).await;
        (code, answer["message"].as_str().unwrap_or_default().to_owned())
    };
    let pod = |name: &str, uid: &Value| json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid});
    assert_eq!(ask("robot", pod("mine", &mine)).await.0, 201);
    for (audiences, why) in [
        (json!(["vault"]), "node is not authorized to request tokens for audience"),
        (json!(["vault", "cloud"]), "node may only request 0 or 1 audiences"),
    ] {
        let path = format!("{DEFAULT}/serviceaccounts/robot/token");
        let spec = json!({"boundObjectRef": pod("mine", &mine), "audiences": audiences});
        let (code, answer) = call(&node, "POST", &path, json!({"spec": spec})).await;
        assert_eq!(code, 403, "no volume of the pod names {audiences}: {answer}");
        assert!(answer["message"].as_str().unwrap_or_default().contains(why), "{answer}");
    }
    for (account, bound, why) in [
        ("robot", pod("theirs", &also), "node requested token bound to a pod scheduled on a different node"),
        ("robot", pod("mine", &json!("")), "node requested token with a pod binding without a uid"),
        ("robot", Value::Null, "node requested token not bound to a pod"),
        ("other", pod("mine", &mine), "no relationship found between node 'n1' and this object"),
        ("idle", pod("mine", &mine), "no relationship found between node 'n1' and this object"),
    ] {
        let (code, message) = ask(account, bound.clone()).await;
        assert_eq!(code, 403, "{account} {bound}");
        assert!(message.contains(why), "{message}");
    }
}

#[tokio::test]
async fn bootstrap_tokens_are_secrets_of_their_own_type() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    let secret = json!({
        "metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef",
                       "usage-bootstrap-authentication": "true", "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token"},
    });
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let token = "abcdef.0123456789abcdef";
    assert_eq!(who(&harness, token).await, Err(401));
    assert_eq!(call(&admin, "POST", secrets, secret).await.0, 201);
    let user = who(&harness, token).await.unwrap();
    assert_eq!(user["username"], "system:bootstrap:abcdef");
    assert_eq!(
        user["groups"],
        json!([
            "system:bootstrappers",
            "system:bootstrappers:kubeadm:default-node-token",
            "system:authenticated"
        ])
    );
    assert_eq!(who(&harness, "abcdef.0123456789abcdeg").await, Err(401));
    call(&admin, "DELETE", &format!("{secrets}/bootstrap-token-abcdef"), json!({})).await;
    assert_eq!(who(&harness, token).await, Err(401));
}

#[tokio::test]
async fn others_can_check_tokens_by_discovery() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    account(&admin, "robot").await;
    let token = token(&admin, "robot", json!({})).await;
    let robot = harness.bearer(&token);
    let (code, found) = get(&robot, "/.well-known/openid-configuration").await;
    assert_eq!(
        (code, found),
        (
            200,
            json!({
                "issuer": ISSUER, "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
                "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            })
        )
    );
    let request = Request::get("/openid/v1/jwks").body(Vec::new()).unwrap();
    let keys = send(&robot, request).await;
    assert_eq!(keys.headers()["content-type"], "application/jwk-set+json");
    let keys: Value = serde_json::from_slice(keys.body()).unwrap();
    let key = &keys["keys"][0];
    assert!(key.get("d").is_none(), "the private part stays");
    // Checked as a stranger would: by the published key alone.
    use base64::Engine as _;
    let decode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).unwrap();
    let head: Value = serde_json::from_slice(&decode(token.split('.').next().unwrap())).unwrap();
    assert_eq!(head, json!({"alg": "ES256", "kid": key["kid"]}));
    let point = [vec![4], decode(key["x"].as_str().unwrap()), decode(key["y"].as_str().unwrap())].concat();
    let (message, signature) = token.rsplit_once('.').unwrap();
    ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, point)
        .verify(message.as_bytes(), &decode(signature))
        .expect("the published key checks the token");
    assert_eq!(get(&harness.client("jane", &[]), "/openid/v1/jwks").await.0, 403);
}
