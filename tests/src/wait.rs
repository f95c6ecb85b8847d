use std::time::{Duration, Instant};

/// Nothing here takes long on an idle machine; what takes longer than this has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at something that sends no event.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until there is a result.
///
/// # Panics
/// With what was seen last, after [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(last) => assert!(Instant::now() < until, "never held: {what}; last: {last}"),
        }
        std::thread::sleep(PAUSE);
    }
}

/// As [`eventually`], for looks that are asynchronous.
pub async fn eventually_async<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(last) => assert!(Instant::now() < until, "never held: {what}; last: {last}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
