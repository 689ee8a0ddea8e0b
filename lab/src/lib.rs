//! The experiment file, its plan, the store of finished cells, and the runners.
//!
//! Read in this order: [`experiment`], [`inputs`], [`store`], [`settings`], [`mixes`], [`plan`], [`progress`], [`run`], [`work`], [`rooms`],
//! [`records`],
//! [`local_judge`], [`local`], [`slurm`], [`cost`], [`watch`]. [`stop`] ends any of it early.

pub mod cost;
pub mod experiment;
pub mod inputs;
pub mod local;
pub mod local_judge;
pub mod mixes;
pub mod plan;
pub mod progress;
pub mod records;
pub mod rooms;
pub mod run;
pub mod settings;
pub mod slurm;
pub mod stop;
pub mod store;
pub mod watch;
pub mod work;
