//! Tuning: batches, optimizer, schedule, validation, checkpoints and resume.
//!
//! Reading order: [`settings`] (what a run is), [`rows`] (records as tokens), [`order`] (which row when), [`prefixes`]
//! (rows that begin alike), [`schedule`], `trained` (what the optimizer moves), `sharded` (weights that are divided among processes), `checkpoint`, [`cost`] and [`memory`] (what a run takes, told
//! beforehand), [`tensorboard`], and [`run`], which puts them together; [`verify`] tests a model beforehand.

mod checkpoint;
pub mod collective;
pub mod cost;
mod error;
pub mod memory;
pub mod metrics;
pub mod order;
pub mod prefixes;
pub mod rows;
pub mod run;
pub mod schedule;
pub mod settings;
mod sharded;
pub mod tensorboard;
mod trained;
pub mod verify;

pub use error::{Error, Result};
pub use metrics::{Progress, Quiet, UpdateMetrics, ValidationMetrics};
pub use rows::{Rows, TokenCounter, TrainingRow, count_tokens};
pub use run::{Loss, Outcome, Places, loss, pretrain, tune, tune_together};
pub use settings::{
    BestOver, FrozenWeights, Keep, Length, MOST_UPDATES, Method, Order, Preset, Schedule, SettingProblem,
    Settings, Supervise,
};
