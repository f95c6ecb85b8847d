//! client-go's typed clients as any Go program uses them, in protobuf: WHARF_GO_TOUR is tests/compat/protobuf, built.

use std::process::{Command, ExitCode};

use wharf_tests::{Space, only_test, take_tour};

/// What the tour tells, a line a step.
const STEPS: usize = 7;

fn main() -> ExitCode {
    only_test("client_go_takes_its_tour_in_protobuf", "WHARF_GO_TOUR", "WHARF_NO_GO", |tour| {
        let space = Space::new("go");
        take_tour(Command::new(tour).arg(space.name), &space, STEPS);
    })
}
