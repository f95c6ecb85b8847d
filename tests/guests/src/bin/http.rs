//! A service that does what its path says, well or badly.

use std::{fs, hint::black_box, time::Duration};
use wstd::{
    http::{Body, Client, Error, Request, Response, StatusCode},
    task::sleep,
};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let number = || query.parse::<u64>().unwrap_or(0);
    match request.uri().path() {
        "/" => text("hello\n"),
        "/env" => text(std::env::var(&query).unwrap_or_default()),
        "/echo" => Ok(Response::new(request.into_body())),
        "/sleep" => {
            sleep(Duration::from_millis(number()).into()).await;
            text("slept\n")
        }
        "/log" => {
            println!("{query}");
            text("logged\n")
        }
        "/read" => told(fs::read_to_string(&query)),
        "/write" => told(fs::write(&query, "written by a guest\n").map(|()| "written\n".to_owned())),
        "/panic" => panic!("asked to"),
        "/loop" => {
            let mut turns = 0_u64;
            loop {
                turns = black_box(turns.wrapping_add(1));
            }
        }
        "/grow" => {
            let held = hold(number());
            text(format!("{}\n", held.len()))
        }
        "/hold" => {
            let (mib, millis) = query.split_once(',').unwrap_or_default();
            let held = hold(mib.parse().unwrap_or(0));
            sleep(Duration::from_millis(millis.parse().unwrap_or(0)).into()).await;
            text(format!("{}\n", held.len()))
        }
        "/fill" => {
            // One instruction for all of it: no epoch interrupts that.
            let mut held = hold(number());
            for round in 0..8 {
                held.fill(round);
                black_box(&held);
            }
            text("filled\n")
        }
        "/fetch" => {
            let request = Request::get(query).body(Body::empty())?;
            match Client::new().send(request).await {
                Ok(_) => text("fetched\n"),
                Err(error) => told(Err(format!("{error:?}"))),
            }
        }
        "/connect" => told(std::net::TcpStream::connect(&query).map(|_| "connected\n".to_owned())),
        _ => Ok(Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty())?),
    }
}

fn text(text: impl Into<String>) -> Result<Response<Body>, Error> {
    Ok(Response::new(text.into().into()))
}

fn told(result: Result<String, impl std::fmt::Display>) -> Result<Response<Body>, Error> {
    match result {
        Ok(said) => text(said),
        Err(error) => {
            Ok(Response::builder().status(StatusCode::FORBIDDEN).body(format!("{error}\n").into())?)
        }
    }
}

fn hold(mib: u64) -> Vec<u8> {
    black_box(vec![1; (mib as usize) << 20])
}
