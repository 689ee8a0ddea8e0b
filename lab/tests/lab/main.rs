//! The lab from outside: the experiment file, the plan, and the runner.

mod common;
mod experiment_file;
mod gpu;
mod plan;
mod run;
mod schema;
mod slurm;
