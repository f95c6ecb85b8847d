//! A command that does what its first argument says. Built as a component, and as a core module of WASI 0.1.

use std::{
    fs,
    hint::black_box,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| args.get(index).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    match args.first().map(String::as_str) {
        Some("say") => {
            for (index, word) in args[1..].iter().enumerate() {
                if index % 2 == 0 { println!("{word}") } else { eprintln!("{word}") }
            }
        }
        Some("exit") => return ExitCode::from(number(1) as u8),
        Some("panic") => panic!("asked to"),
        Some("grow") => {
            let mut held: Vec<Vec<u8>> = Vec::new();
            loop {
                held.push(black_box(vec![1; 1 << 20]));
                println!("{} MiB", held.len());
            }
        }
        Some("loop") => {
            let mut turns = 0_u64;
            loop {
                turns = black_box(turns.wrapping_add(1));
            }
        }
        // What comes in goes out, and its end is told.
        Some("cat") => {
            io::copy(&mut io::stdin(), &mut io::stdout()).expect("standard input and output");
            eprintln!("end of input");
        }
        Some("env") => {
            for (name, value) in std::env::vars() {
                println!("{name}={value}");
            }
        }
        Some("read") => match fs::read_to_string(&args[1]) {
            Ok(text) => print!("{text}"),
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        },
        Some("write") => {
            if let Err(error) = fs::write(&args[1], &args[2]) {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        }
        Some("terminal") => {
            println!("{} {}", io::stdin().is_terminal(), io::stdout().is_terminal());
        }
        // As many bytes as asked for.
        Some("flood") => print!("{}", "x".repeat(number(1) as usize)),
        Some("sleep") => std::thread::sleep(Duration::from_millis(number(1))),
        other => {
            eprintln!("unknown: {other:?}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
