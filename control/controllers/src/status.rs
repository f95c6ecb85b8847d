//! Small things that the loops' writes share.

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
