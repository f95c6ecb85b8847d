//! Tells the time as JSON over HTTP, with the standard library alone (and `nix`, for signals).
//!
//! Listens on `PORT`, else 8080. Build it static, so that an image holds nothing else:
//! `RUSTFLAGS="-C target-feature=+crt-static" cargo build -p clock --release --target x86_64-unknown-linux-gnu`.

use nix::sys::signal::{SigSet, Signal};
use std::{
    io::{BufRead, BufReader, Read, Result, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::exit,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Of one request's line and headers.
const LONGEST_HEAD: u64 = 16 << 10;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    exit_on_signal()?;
    let port = match std::env::var("PORT") {
        Ok(port) => {
            port.parse().map_err(|_| std::io::Error::other(format!("PORT={port:?} is not a port")))?
        }
        Err(_) => 8080,
    };
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    println!("listening on port {port}");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            let _ = serve(stream); // what goes wrong on one connection is that client's matter
        });
    }
    Ok(())
}

/// Pid 1 of a container gets no default action for a signal, so it must take its end itself.
fn exit_on_signal() -> Result<()> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block()?; // before any other thread, so that all inherit it
    thread::spawn(move || {
        let signal = ends.wait();
        println!("ending: {signal:?}");
        exit(0);
    });
    Ok(())
}

fn serve(stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = reader.by_ref().take(LONGEST_HEAD);
        let mut request = String::new();
        if head.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let (mut close, mut length) = (request.trim_end().ends_with("HTTP/1.0"), 0);
        loop {
            let mut line = String::new();
            if head.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            match line.split_once(':') {
                None => break, // the empty line after the headers
                Some(("connection", value)) => close = value.trim() == "close",
                Some(("content-length", value)) => length = value.trim().parse().unwrap_or(0),
                Some(_) => {}
            }
        }
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
        let (status, body) = answer(&request);
        let connection = if close { "close" } else { "keep-alive" };
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: {connection}\r\n\r\n{body}",
            body.len()
        );
        out.write_all(answer.as_bytes())?;
        if close {
            return Ok(());
        }
    }
}

fn answer(request: &str) -> (&'static str, String) {
    let mut words = request.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match (method, target.split('?').next().unwrap_or_default()) {
        ("GET", "/") => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            ("200 OK", format!("{{\"time\":\"{}\",\"runtime\":\"oci\"}}\n", utc(now.as_secs())))
        }
        ("GET", "/healthz") => ("200 OK", "{\"status\":\"ok\"}\n".to_owned()),
        ("GET", _) => ("404 Not Found", "{\"error\":\"there is / and /healthz\"}\n".to_owned()),
        _ => ("405 Method Not Allowed", "{\"error\":\"only GET is answered\"}\n".to_owned()),
    }
}

/// Seconds since 1970 as RFC 3339. Years are counted from March, so that the odd day comes last.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097); // of 400 years
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_735_689_599), "2024-12-31T23:59:59Z");
    }
}
