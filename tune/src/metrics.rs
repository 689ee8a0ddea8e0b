//! What a run tells while it goes: a line an update, and who listens.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateMetrics {
    /// Counted from 1.
    pub update: u64,
    /// Of how many.
    pub updates: u64,
    /// Mean cross-entropy over the batch's supervised tokens, in nats, before the update.
    pub loss: f64,
    /// The rate that the update was made with.
    pub learning_rate: f64,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
    /// Real tokens of the batch; there is no padding.
    pub tokens: usize,
    /// Of them, those that the loss is taken over.
    pub supervised_tokens: usize,
    /// Over the whole update, tokenising and loading apart.
    pub tokens_per_second: f64,
    /// Of the update.
    pub seconds: f64,
    /// The most memory that the process has held so far, or since [`crate::memory::restart_peak`] was last called.
    pub peak_bytes: u64,
    /// The most of a GPU's own memory that was held so far, what NVIDIA's libraries take apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_peak_bytes: Option<u64>,
}

/// One measurement on the validation rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationMetrics {
    /// Updates done.
    pub update: u64,
    /// Mean cross-entropy over all validation rows' supervised tokens, in nats.
    pub validation_loss: f64,
    /// The same for each language's rows.
    pub validation_loss_by_language: BTreeMap<String, f64>,
    /// The mean of the languages' losses, where that is what checkpoints are compared by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss_mean_of_languages: Option<f64>,
    /// Whether it is the lowest so far.
    pub best: bool,
}

impl ValidationMetrics {
    /// The loss that checkpoints are compared by.
    pub fn compared(&self) -> f64 {
        self.validation_loss_mean_of_languages.unwrap_or(self.validation_loss)
    }
}

/// Who listens to a run.
pub trait Progress {
    /// An update is done.
    fn update(&mut self, metrics: &UpdateMetrics);
    /// A measurement is done.
    fn validation(&mut self, metrics: &ValidationMetrics);
    /// Something that the user should know.
    fn note(&mut self, message: &str);
    /// Whether to write a checkpoint and stop.
    fn should_stop(&self) -> bool {
        false
    }
}

/// Nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn update(&mut self, _: &UpdateMetrics) {}
    fn validation(&mut self, _: &ValidationMetrics) {}
    fn note(&mut self, _: &str) {}
}
