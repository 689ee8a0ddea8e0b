//! Tuning: batches, optimizer, schedule, validation, checkpoints and resume.
//!
//! Reading order: [`settings`] (what a run is), [`rows`] (records as tokens), [`order`] (which row when),
//! [`schedule`], `trained` (what the optimizer moves), `checkpoint`, and [`run`], which puts them together.

mod checkpoint;
mod error;
pub mod metrics;
pub mod order;
pub mod rows;
pub mod run;
pub mod schedule;
pub mod settings;
mod trained;

pub use error::{Error, Result};
pub use metrics::{Progress, Quiet, UpdateMetrics, ValidationMetrics};
pub use rows::{Rows, TrainingRow, count_tokens};
pub use run::{Loss, Outcome, Places, flops, loss, pretrain, tune};
pub use settings::{Keep, Length, Method, Order, Preset, Schedule, Settings, Supervise};
