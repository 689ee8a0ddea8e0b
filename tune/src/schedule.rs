//! The learning rate of each update.

use crate::settings::{Schedule, Settings};

/// Updates over which the rate rises; a setting below 1 is a share of all updates, rounded up as transformers does.
pub fn warmup_updates(warmup: f64, updates: u64) -> u64 {
    if warmup < 1.0 { (warmup * updates as f64).ceil() as u64 } else { warmup as u64 }
}

/// The learning rate of update `update` (counted from 0) of `updates`: transformers' `get_linear_schedule_with_warmup`
/// and its siblings.
pub fn learning_rate(settings: &Settings, update: u64, updates: u64) -> f64 {
    let warmup = warmup_updates(settings.warmup, updates);
    if update < warmup {
        return settings.learning_rate * update as f64 / warmup as f64;
    }
    let left = updates.saturating_sub(warmup).max(1) as f64;
    let done = (update - warmup) as f64 / left;
    settings.learning_rate
        * match settings.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => (1.0 - done).max(0.0),
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Method, Preset};

    #[test]
    fn rates_are_those_of_transformers() {
        // transformers 5.23: get_linear_schedule_with_warmup(optimizer, 4, 10), get_cosine_schedule_with_warmup.
        let mut settings = Settings::preset(Preset::Paper, Method::Lora);
        (settings.learning_rate, settings.warmup) = (1.0, 4.0);
        let rates = |settings: &Settings| (0..10).map(|u| learning_rate(settings, u, 10)).collect::<Vec<_>>();
        let close = |found: Vec<f64>, expected: [f64; 10]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-12, "{found} {expected}");
            }
        };
        let (fifth, fourth, second, first) = (
            0.833_333_333_333_333_4,
            0.666_666_666_666_666_6,
            0.333_333_333_333_333_3,
            0.166_666_666_666_666_66,
        );
        close(rates(&settings), [0.0, 0.25, 0.5, 0.75, 1.0, fifth, fourth, 0.5, second, first]);
        settings.schedule = Schedule::Cosine;
        let (fifth, first) = (0.933_012_701_892_219_3, 0.066_987_298_107_780_65);
        close(rates(&settings), [0.0, 0.25, 0.5, 0.75, 1.0, fifth, 0.75, 0.5, 0.25, first]);
    }
}
