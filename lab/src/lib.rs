//! The experiment file, its plan, the store of finished cells, and the runners.
//!
//! Read in this order: [`experiment`], [`inputs`], [`store`], [`plan`], [`progress`], [`run`], [`work`], [`records`],
//! [`local`].

pub mod experiment;
pub mod inputs;
pub mod local;
pub mod plan;
pub mod progress;
pub mod records;
pub mod run;
pub mod store;
pub mod work;
