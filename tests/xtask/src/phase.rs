//! Steps of the work, each with its time.

use std::time::{Duration, Instant};

use crate::Result;

/// The phases so far.
pub struct Phases {
    done: Vec<(String, Duration)>,
    began: Instant,
}

impl Phases {
    pub fn new() -> Self {
        Self { done: Vec::new(), began: Instant::now() }
    }

    /// Does one step, and tells when it began and how long it took.
    pub fn run<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("==> phase {name}");
        let began = Instant::now();
        let done = work();
        let took = began.elapsed();
        println!(
            "    {name}: {}{:.1} s",
            if done.is_ok() { "" } else { "failed after " },
            took.as_secs_f64()
        );
        self.done.push((name.to_owned(), took));
        done
    }

    /// Prints all phases and their times.
    pub fn summary(&self) {
        println!("\nphases:");
        for (name, took) in &self.done {
            println!("  {name:<28} {:>8.1} s", took.as_secs_f64());
        }
        println!("  {:<28} {:>8.1} s", "all", self.began.elapsed().as_secs_f64());
    }
}
