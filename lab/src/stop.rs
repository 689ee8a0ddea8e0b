//! Ending early without losing work: a signal asks, and what is under way writes its checkpoint and ends.
//!
//! A tuning looks at [`Stop::asked`] after every update. Work that has no such place between two steps, but keeps each
//! of its results as it comes, is left by unwinding: [`leave`].

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Whether the program was asked to end.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    asked: Arc<AtomicBool>,
}

/// The work was ended early, as asked. What it had done is kept.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("stopped as asked; the next run goes on from there")]
pub struct Stopped;

/// Between two looks of [`Stop::sleep`].
const LOOK: Duration = Duration::from_millis(100);

impl Stop {
    /// Asked by the first SIGINT (Ctrl-C), SIGTERM, or SIGUSR1 (which a scheduler sends before a job's time is up). A
    /// second SIGINT or SIGTERM ends the program at once.
    ///
    /// # Errors
    /// Where the system does not let a signal be caught.
    pub fn on_signals() -> std::io::Result<Self> {
        let stop = Self::default();
        #[cfg(unix)]
        {
            use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
            use signal_hook::flag::{register, register_conditional_default};
            for signal in [SIGINT, SIGTERM] {
                // Looked at before the first signal sets it: only the second one finds it set.
                register_conditional_default(signal, Arc::clone(&stop.asked))?;
            }
            for signal in [SIGINT, SIGTERM, SIGUSR1] {
                register(signal, Arc::clone(&stop.asked))?;
            }
        }
        Ok(stop)
    }

    /// Whether the program was asked to end.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Asks it to end.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Sleeps, but not past the moment at which the program is asked to end.
    pub fn sleep(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() && !self.asked() {
            let part = left.min(LOOK);
            std::thread::sleep(part);
            left -= part;
        }
    }
}

/// Leaves the work of a cell from within a callback. The runner catches it; no message is printed.
pub fn leave() -> ! {
    resume_unwind(Box::new(Stopped))
}
