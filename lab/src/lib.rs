//! The experiment file, its plan, the store of finished cells, and the runners.
//!
//! Read in this order: [`experiment`], [`inputs`], [`store`], [`plan`], [`progress`], [`run`].

pub mod experiment;
pub mod inputs;
pub mod plan;
pub mod progress;
pub mod run;
pub mod store;
