//! What can be wrong with a model file.

use std::path::PathBuf;

/// A model that could not be opened, with the file's name.
#[derive(Debug, thiserror::Error)]
#[error("fastText model {}: {problem}", path.display())]
pub struct ModelError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub problem: Problem,
}

/// What is wrong with a model file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    /// The file ends inside a value.
    #[error("ends at byte {end} inside {what}, which needs {needed} bytes from byte {offset}")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        offset: usize,
        /// How many bytes it takes.
        needed: u64,
        /// The file's length.
        end: usize,
    },
    /// A value that no model can have.
    #[error("{what} at byte {offset} is {found}, expected {expected}")]
    Invalid {
        /// The value's name.
        what: &'static str,
        /// Where it ends in the file.
        offset: usize,
        /// The value found.
        found: String,
        /// What it should have been.
        expected: String,
    },
}
