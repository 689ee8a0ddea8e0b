//! The experiment file, its plan, the store of finished cells, and the runners.
//!
//! Read in this order: [`experiment`].

pub mod experiment;
