//! What the lab asks of the rooms that compute, so that its own tests need neither a model nor a minute.

use std::path::Path;

use anyhow::Result;
use instructions::mix::Mix;
use instructions::prompt::Prompt;
use report::records::CurvePoint;
use serde::{Deserialize, Serialize};

use crate::experiment::{Answer, BaseModel, Method, Preset, Tune};
use crate::progress::CellProgress;

/// Trains base models from scratch, and tunes base models.
pub trait Tuner: Sync {
    /// Trains a base model from its `config`, `text` and `pretraining` into `folder/model`, a Hugging Face folder.
    /// Whatever it needs to go on after a kill it keeps in `folder`, and removes when it is done.
    ///
    /// # Errors
    /// Why it could not be trained.
    fn pretrain(&self, model: &BaseModel, folder: &Path, progress: &CellProgress) -> Result<()>;

    /// Tunes a base model on a mix into `folder/system`, a PEFT folder (`lora`) or a Hugging Face folder (`full`).
    /// Whatever it needs to go on after a kill it keeps in `folder`, and removes when it is done.
    ///
    /// # Errors
    /// Why it could not be tuned.
    fn tune(&self, job: &TuningJob, folder: &Path, progress: &CellProgress) -> Result<TuningRecord>;
}

/// One tuning.
#[derive(Debug, Clone, Copy)]
pub struct TuningJob<'a> {
    /// A Hugging Face folder or a GGUF file.
    pub base: &'a Path,
    /// What it is tuned on.
    pub mix: &'a Mix,
    /// How.
    pub method: Method,
    /// For the order of rows, the first weights of the adapter, and dropout.
    pub seed: u64,
    /// Where settings come from that are not given.
    pub preset: Preset,
    /// The settings that are given.
    pub settings: &'a Tune,
    /// Whether TensorBoard's event files are wanted beside the metrics.
    pub tensorboard: bool,
}

/// What a tuning took and how it went.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuningRecord {
    /// Rows trained on, each counted once.
    pub rows: u64,
    /// Real tokens trained on, every epoch counted.
    pub tokens: u64,
    /// Updates of the optimizer.
    pub updates: u64,
    /// Floating-point operations, counted from the shapes.
    pub flops: f64,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// The update whose checkpoint was kept.
    pub best_update: Option<u64>,
    /// Training and validation losses, in the order of updates.
    pub curve: Vec<CurvePoint>,
}

/// Answers prompts.
pub trait Answerer: Sync {
    /// The responses to a job's prompts, in their order.
    ///
    /// # Errors
    /// Why they could not be answered.
    fn answer(&self, job: &AnswerJob, progress: &CellProgress) -> Result<Vec<String>>;

    /// Gives back what it keeps between two jobs: a cell that needs the memory for itself comes next.
    fn rest(&self) {}
}

/// Prompts of one language for one system.
#[derive(Debug, Clone, Copy)]
pub struct AnswerJob<'a> {
    /// A Hugging Face folder or a GGUF file.
    pub model: &'a Path,
    /// A PEFT folder.
    pub adapter: Option<&'a Path>,
    /// How the system was tuned here, if it was; under the preset `paper` it decides on the repetition penalty.
    pub method: Option<Method>,
    /// Where settings come from that are not given.
    pub preset: Preset,
    /// What is asked.
    pub prompts: &'a [Prompt],
    /// The settings that are given.
    pub settings: &'a Answer,
    /// A file for the responses as they come, which the next attempt goes on from.
    pub kept: &'a Path,
}
