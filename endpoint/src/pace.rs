//! When the next request may go out, and how long to wait after a failure.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rand::RngExt;
use tokio::time::Instant;

/// A rate limit for all workers together: two sendings lie at least `gap` apart, tries again included.
#[derive(Debug)]
pub struct Pace {
    gap: Duration,
    /// Before this, nobody sends: the last sending plus the gap.
    next: tokio::sync::Mutex<Instant>,
    /// Before this, nobody sends: the server asked for it.
    paused: Mutex<Instant>,
}

impl Pace {
    /// `per_minute` requests at most in any minute; no limit where there is none.
    pub fn new(per_minute: Option<f64>) -> Pace {
        let gap = per_minute.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(60.0 / rate));
        Pace { gap, next: tokio::sync::Mutex::new(Instant::now()), paused: Mutex::new(Instant::now()) }
    }

    /// Waits until a request may be sent.
    pub async fn turn(&self) {
        // Held while waiting, so that the gap is kept between the sendings themselves and not between plans
        // for them: a worker that wakes late pushes the next one back.
        let mut next = self.next.lock().await;
        loop {
            let due = (*next).max(self.paused());
            if due <= Instant::now() {
                break;
            }
            tokio::time::sleep_until(due).await;
        }
        *next = Instant::now() + self.gap;
    }

    /// Nobody sends for this long.
    pub fn pause(&self, wait: Duration) {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        *paused = (*paused).max(Instant::now() + wait);
    }

    fn paused(&self) -> Instant {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long to wait after failure number `failures` (from 1): doubled each time, up to a minute, and then a random
/// share of it from a half to the whole, so that workers that failed together do not come back together.
pub fn backoff(first: Duration, failures: u32) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    let longest = first.max(Duration::from_secs(60));
    doubled.min(longest).mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// What a Retry-After header asks for: seconds, or a date (RFC 9110, 10.2.3).
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after("7", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("0.5", now), Some(Duration::from_millis(500)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        for nonsense in ["", "soon", "-1", "NaN", "inf"] {
            assert_eq!(retry_after(nonsense, now), None, "{nonsense}");
        }
    }

    #[test]
    fn backoff_doubles_up_to_a_minute() {
        for tried in 1..200 {
            let wait = backoff(Duration::from_secs(1), tried).as_secs_f64();
            let whole = 2_f64.powi(tried as i32 - 1).min(60.0);
            assert!((whole / 2.0..=whole).contains(&wait), "try {tried}: {wait}");
        }
    }
}
