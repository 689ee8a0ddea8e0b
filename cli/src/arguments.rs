//! The flags that every command has.

use std::num::NonZero;

use clap::{Parser, ValueEnum};

use crate::commands::Command;

/// Find out how to instruction-tune a base model for several languages under a fixed budget
#[derive(Debug, Parser)]
#[command(name = "polypaca", version = env!("POLYPACA_VERSION"), propagate_version = true, max_term_width = 100)]
pub(crate) struct Arguments {
    /// What is to be done
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Print one JSON object on standard output where a result is a figure
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// When to use colours; NO_COLOR turns them off as well
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub(crate) color: Color,

    /// Threads to compute with; as many as there are cores unless given. Results do not depend on it
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<NonZero<usize>>,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}
