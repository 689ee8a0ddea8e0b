//! Tuning: batches, optimizer, schedule, validation, checkpoints and resume.
//!
//! Reading order: [`settings`] (what a run is), [`rows`] (records as tokens), [`order`] (which row when),
//! [`schedule`], `trained` (what the optimizer moves), `checkpoint`,
//! [`cost`] (what a run takes, told beforehand), [`tensorboard`], and [`run`], which puts them together.

mod checkpoint;
pub mod cost;
mod error;
pub mod metrics;
pub mod order;
pub mod rows;
pub mod run;
pub mod schedule;
pub mod settings;
pub mod tensorboard;
mod trained;

pub use error::{Error, Result};
pub use metrics::{Progress, Quiet, UpdateMetrics, ValidationMetrics};
pub use rows::{Rows, TrainingRow};
pub use run::{Loss, Outcome, Places, loss, pretrain, tune};
pub use settings::{Keep, Length, Method, Order, Preset, Schedule, Settings, Supervise};
