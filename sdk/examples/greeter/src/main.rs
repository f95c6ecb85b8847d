//! A small JSON API on `wasi:http`.
//!
//! Its greeting comes from a file of a ConfigMap volume (`/etc/greeter/greeting`), else from the variable `GREETING`,
//! else from here. Build: `cargo build -p greeter --target wasm32-wasip2 --profile guest`.

use serde::Serialize;
use wstd::http::{Body, Error, Method, Request, Response, StatusCode};

/// Where a ConfigMap with the key `greeting` is mounted.
const FILE: &str = "/etc/greeter/greeting";

#[derive(Serialize)]
struct Greeting {
    message: String,
    runtime: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
}

#[derive(Serialize)]
struct Problem {
    error: &'static str,
}

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return json(StatusCode::METHOD_NOT_ALLOWED, &Problem { error: "only GET is answered" });
    }
    match request.uri().path() {
        "/" => {
            let message = format!("{} from a wasm component", greeting());
            let pod = std::env::var("POD_NAME").ok();
            json(StatusCode::OK, &Greeting { message, runtime: "wasm", pod })
        }
        "/healthz" => Ok(Response::new("ok\n".to_owned().into())),
        _ => json(StatusCode::NOT_FOUND, &Problem { error: "there is / and /healthz" }),
    }
}

fn greeting() -> String {
    let file = std::fs::read_to_string(FILE).ok().map(|text| text.trim().to_owned());
    file.or_else(|| std::env::var("GREETING").ok()).unwrap_or_else(|| "Hello".to_owned())
}

fn json(status: StatusCode, body: &impl Serialize) -> Result<Response<Body>, Error> {
    let body = serde_json::to_string(body)?;
    Ok(Response::builder().status(status).header("content-type", "application/json").body(body.into())?)
}
