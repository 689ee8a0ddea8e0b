//! The arithmetic: kernels, and one decoder whose forward and backward are written by hand.
//!
//! Reading order: [`kernels`] (the contract), [`cpu`] and [`cuda`] (backends), [`batch`] and [`arena`] (what a step works on),
//! [`decoder`] (the forward and backward passes).

pub mod arena;
mod attention_shape;
pub mod batch;
pub mod counting;
pub mod cpu;
pub mod cuda;
pub mod decoder;
mod dropout_key;
pub mod kernels;

pub use arena::{Workspace, WorkspacePlan};
pub use batch::{Batch, BatchRow, Sequence};
pub use cpu::Cpu;
pub use cuda::Cuda;
pub use decoder::Decoder;
