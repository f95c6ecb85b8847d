//! One file a command.

pub mod apply;
pub mod attach;
pub mod certificate;
pub mod cp;
pub mod create;
pub mod delete;
pub mod describe;
pub mod diff;
pub mod down;
pub mod edit;
pub mod events;
pub mod exec;
pub mod explain;
pub mod get;
pub mod image;
pub mod logs;
pub mod node;
pub mod port_forward;
pub mod rollout;
pub mod scale;
pub mod status;
pub mod token;
pub mod top;
pub mod up;
pub mod version;
pub mod wait;

use std::time::Duration;

/// `90`, `90s`, `5m`, `1h`: how long a command waits.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{unit:?} is no unit; use s, m or h")),
    };
    let number: u64 = number.parse().map_err(|_| "write a number such as 90s or 5m".to_owned())?;
    Ok(Duration::from_secs(number.saturating_mul(factor)))
}
