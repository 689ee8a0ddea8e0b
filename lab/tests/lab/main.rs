//! The lab from outside: the experiment file, the plan, and the runner.

mod common;
mod experiment_file;
mod plan;
mod run;
mod schema;
mod slurm;
