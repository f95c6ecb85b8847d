//! Small things that the loops share.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

/// Now, in whole seconds as the API keeps times.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).expect("now is a valid time")
}

/// A count as typed clients write it: zero is left out, which in a merge patch is null.
pub(crate) fn count(number: impl Into<i64>) -> Value {
    match number.into() {
        0 => Value::Null,
        number => json!(number),
    }
}

/// Has a pass look again after `left`, unless it does so sooner anyway.
pub(crate) fn sooner(again: &mut Option<Duration>, left: Duration) {
    *again = Some(again.map_or(left, |other| other.min(left)));
}
