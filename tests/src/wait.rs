//! Waiting for something outside this process that sends no event: asked again every few milliseconds, with an end.

use std::time::{Duration, Instant};

/// Between two looks at tools that cost a process each.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks `look` until it is satisfied (`Ok`) or `limit` is over, and returns how long it took or its last complaint.
///
/// # Errors
/// The last `Err` of `look`.
pub fn until<T, E>(limit: Duration, mut look: impl FnMut() -> Result<T, E>) -> Result<(T, Duration), E> {
    let started = Instant::now();
    loop {
        match look() {
            Ok(value) => return Ok((value, started.elapsed())),
            Err(complaint) if started.elapsed() >= limit => return Err(complaint),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
