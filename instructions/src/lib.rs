//! Records, sets, languages, prompt templates, recipes, budgets and mixes.
//!
//! This room knows nothing of tensors. Read in this order: [`language`], [`text`], [`files`], [`lock`], [`record`],
//! [`set_files`], [`hub`], [`prompt`], [`parallel`], [`template`], [`recipe`], [`budget`], [`mix`], [`check`].

pub mod budget;
pub mod check;
pub mod files;
pub mod hub;
pub mod language;
pub mod lock;
pub mod mix;
pub mod parallel;
mod parquet_file;
pub mod prompt;
pub mod recipe;
pub mod record;
pub mod set_files;
pub mod template;
pub mod text;

#[cfg(test)]
mod testing;
