//! A command that does what its first argument says.

use std::{hint::black_box, process::ExitCode, time::Duration};

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
        Some("sleep") => std::thread::sleep(Duration::from_millis(number(1))),
        other => {
            eprintln!("unknown: {other:?}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
