//! Histories of what clients did to single keys: whether one order of what happened to a key explains every answer, and
//! whether watches tell what happened.
//!
//! The search is Wing and Gong's with Lowe's memory ("Testing for linearizability", 2017): take any operation that may
//! come first, go on with the rest, and remember sets of operations and states that led nowhere.

use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A sound history of this test's size takes some hundred steps; more than this would fill the memory.
const MOST_STEPS: usize = 1_000_000;

/// What one key holds: the number that a client wrote, which no other write had.
pub type State = Option<u64>;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Get,
    /// Make it with this number.
    Create(u64),
    /// Put the second number where the first is.
    Replace(u64, u64),
    Delete,
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// A read found this.
    Found(State),
    /// 409: it is there already, or no longer holds that number.
    Conflict,
    /// 404.
    Missing,
    /// Nobody knows: the connection broke, or the server could not tell.
    Unknown,
}

/// One operation; times are of one clock.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub from: u64,
    pub to: u64,
    pub ask: Ask,
    pub answer: Answer,
}

impl Operation {
    /// What the key holds afterwards, if the operation can happen at `state` with its answer.
    fn apply(&self, state: State) -> Option<State> {
        let done = matches!(self.answer, Answer::Done | Answer::Unknown);
        match (self.ask, self.answer) {
            (Ask::Get, Answer::Found(found)) => (found == state).then_some(state),
            (Ask::Create(number), _) if done => state.is_none().then_some(Some(number)),
            (Ask::Create(_), Answer::Conflict) => state.is_some().then_some(state),
            (Ask::Replace(old, new), _) if done => (state == Some(old)).then_some(Some(new)),
            (Ask::Replace(old, _), Answer::Conflict) => (state != Some(old)).then_some(state),
            (Ask::Delete, _) if done => state.is_some().then_some(None),
            (Ask::Replace(..) | Ask::Delete, Answer::Missing) => state.is_none().then_some(state),
            _ => None,
        }
    }
}

/// Whether some order of the operations, each between its start and its end, explains all answers from an empty
/// key on. An unknown write may have happened at any time after its start, or never.
pub fn linearizable(operations: &[Operation]) -> bool {
    let mut operations: Vec<_> = operations.to_vec();
    for operation in &mut operations {
        if operation.answer == Answer::Unknown {
            operation.to = u64::MAX;
        }
    }
    operations.sort_by_key(|operation| operation.from);
    let words = operations.len().div_ceil(64).max(1);
    let mut seen = HashSet::new();
    let mut steps = 0_usize;
    let mut open = vec![(vec![0u64; words], None)];
    while let Some((taken, state)) = open.pop() {
        steps += 1;
        assert!(steps < MOST_STEPS, "the search has no end: are too many outcomes unknown?");
        let left = |at: &usize| taken[at / 64] >> (at % 64) & 1 == 0;
        // Whatever comes next starts before the first end of those that are left.
        let end = (0..operations.len()).filter(left).map(|at| operations[at].to).min().unwrap_or(u64::MAX);
        if end == u64::MAX {
            return true;
        }
        for at in (0..operations.len()).filter(left).take_while(|&at| operations[at].from <= end) {
            let Some(next) = operations[at].apply(state) else { continue };
            let mut taken = taken.clone();
            taken[at / 64] |= 1 << (at % 64);
            if seen.insert((taken.clone(), next)) {
                open.push((taken, next));
            }
        }
    }
    false
}

/// One event of a watch: the revision, the key, and what it holds now.
pub type Seen = (u64, String, State);

/// Whether watches over all keys, from before the history on, tell what happened: in order, the same to all, every
/// acknowledged write at its revision, every acknowledged delete, and nothing that nobody asked for.
///
/// # Errors
/// What is wrong, and where.
pub fn check_watches(
    watches: &[Vec<Seen>],
    history: &BTreeMap<String, Vec<Operation>>,
    written: &[Seen],
) -> Result<(), String> {
    let Some(seen) = watches.first() else { return Err("there is no watch".to_owned()) };
    if let Some(other) = watches.iter().find(|other| *other != seen) {
        return Err(format!("watches differ: {seen:?} and {other:?}"));
    }
    if let Some(pair) = seen.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
        return Err(format!("revisions do not grow: {pair:?}"));
    }
    let told: BTreeSet<&Seen> = seen.iter().collect();
    if let Some(lost) = written.iter().find(|event| !told.contains(event)) {
        return Err(format!("a gap: {lost:?} was acknowledged"));
    }
    for (name, operations) in history {
        // What each event needs: a write that was done, or whose outcome nobody knows.
        let done = |answer| matches!(answer, Answer::Done | Answer::Unknown);
        let may = || operations.iter().filter(|one| done(one.answer));
        let mut held: State = None;
        let mut deletes = 0;
        for (revision, _, now) in seen.iter().filter(|(_, of, _)| of == name) {
            let asked = match now {
                None => held.is_some(),
                Some(number) => may().any(|one| match one.ask {
                    Ask::Create(new) => new == *number && held.is_none(),
                    Ask::Replace(old, new) => new == *number && held == Some(old),
                    Ask::Get | Ask::Delete => false,
                }),
            };
            if !asked {
                return Err(format!("nobody made {name} into {now:?} at {revision}, where it was {held:?}"));
            }
            deletes += usize::from(now.is_none());
            held = *now;
        }
        let asked = may().filter(|one| one.ask == Ask::Delete);
        let (least, most) = asked
            .fold((0, 0), |(least, most), one| (least + usize::from(one.answer == Answer::Done), most + 1));
        if !(least..=most).contains(&deletes) {
            return Err(format!("{deletes} deletes of {name} were told; {least} to {most} were done"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(from: u64, to: u64, ask: Ask, answer: Answer) -> Operation {
        Operation { from, to, ask, answer }
    }

    #[test]
    fn overlapping_operations_may_happen_in_either_order() {
        let create = operation(0, 10, Ask::Create(1), Answer::Done);
        for found in [None, Some(1)] {
            assert!(linearizable(&[create, operation(5, 6, Ask::Get, Answer::Found(found))]));
        }
    }

    #[test]
    fn a_read_after_a_write_finds_it() {
        let history = |found| {
            [
                operation(0, 1, Ask::Create(1), Answer::Done),
                operation(2, 3, Ask::Replace(1, 2), Answer::Done),
                operation(4, 5, Ask::Get, Answer::Found(found)),
            ]
        };
        assert!(linearizable(&history(Some(2))));
        assert!(!linearizable(&history(Some(1))), "a stale read");
        assert!(!linearizable(&history(None)), "a lost write");
        assert!(!linearizable(&history(Some(7))), "a write of nobody");
    }

    #[test]
    fn one_of_two_conditional_writes_wins() {
        let mut history = vec![
            operation(0, 1, Ask::Create(1), Answer::Done),
            operation(2, 9, Ask::Replace(1, 2), Answer::Done),
            operation(2, 9, Ask::Replace(1, 3), Answer::Done),
        ];
        assert!(!linearizable(&history), "both replaced the same");
        history[2].answer = Answer::Conflict;
        assert!(linearizable(&history));
        history.push(operation(10, 11, Ask::Delete, Answer::Missing));
        assert!(!linearizable(&history), "it is there");
    }

    #[test]
    fn reads_do_not_go_back() {
        assert!(!linearizable(&[
            operation(0, 1, Ask::Create(1), Answer::Done),
            operation(2, 20, Ask::Replace(1, 2), Answer::Done),
            operation(3, 4, Ask::Get, Answer::Found(Some(2))),
            operation(5, 6, Ask::Get, Answer::Found(Some(1))),
        ]));
    }

    #[test]
    fn an_unknown_write_happened_late_or_never_but_once() {
        let unknown = operation(0, 1, Ask::Create(1), Answer::Unknown);
        let read = |from, found| operation(from, from + 1, Ask::Get, Answer::Found(found));
        assert!(linearizable(&[unknown, read(10, None)]));
        assert!(linearizable(&[unknown, read(10, None), read(20, Some(1))]));
        assert!(!linearizable(&[unknown, read(10, Some(1)), read(20, None)]));
        let before = operation(5, 6, Ask::Create(1), Answer::Unknown);
        assert!(!linearizable(&[read(0, Some(1)), before]), "it had not begun");
    }

    #[test]
    fn a_watch_tells_what_happened_and_nothing_else() {
        let key = || "k".to_owned();
        let history = BTreeMap::from([(
            key(),
            vec![
                operation(0, 1, Ask::Create(1), Answer::Done),
                operation(2, 3, Ask::Replace(1, 2), Answer::Unknown),
                operation(2, 3, Ask::Replace(1, 3), Answer::Conflict),
                operation(4, 5, Ask::Delete, Answer::Done),
            ],
        )]);
        let written = [(10, key(), Some(1))];
        let event = |revision, state| (revision, key(), state);
        let check = |seen: &[Seen]| check_watches(&[seen.to_vec(), seen.to_vec()], &history, &written);
        let sound = [event(10, Some(1)), event(11, Some(2)), event(12, None)];
        assert_eq!(check(&sound), Ok(()));
        assert_eq!(check(&[event(10, Some(1)), event(12, None)]), Ok(()), "what is unknown was not done");
        for (what, seen) in [
            ("a gap", vec![event(11, Some(2)), event(12, None)]),
            ("another revision", vec![event(9, Some(1)), event(12, None)]),
            ("an order", vec![event(10, Some(1)), event(12, Some(2)), event(11, None)]),
            ("a refused write", vec![event(10, Some(1)), event(11, Some(3)), event(12, None)]),
            ("a write of nobody", vec![event(10, Some(1)), event(11, Some(7)), event(12, None)]),
            ("a lost delete", vec![event(10, Some(1))]),
            ("a delete of nothing", vec![event(10, Some(1)), event(11, None), event(12, None)]),
            ("a write told twice", vec![event(10, Some(1)), event(11, Some(2)), event(12, Some(2))]),
        ] {
            assert!(check(&seen).is_err(), "{what} is refused");
        }
        let two = [sound.to_vec(), sound[..2].to_vec()];
        assert!(check_watches(&two, &history, &written).is_err(), "watches that differ are refused");
    }
}
