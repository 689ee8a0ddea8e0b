//! What can go wrong in a tuning.

use std::path::PathBuf;

/// The result of a tuning's steps.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a tuning.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model, tokenizer or adapter could not be read or written.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The decoder could not be built from the model.
    #[error("{model}: {reason}")]
    Decoder {
        /// The model's name.
        model: String,
        /// What does not fit.
        reason: String,
    },
    /// A template could not be rendered.
    #[error("record {id} ({language}): {reason}")]
    Template {
        /// The record.
        id: String,
        /// Its language.
        language: String,
        /// What the template said.
        reason: String,
    },
    /// Settings that contradict each other or the data.
    #[error("{0}")]
    Settings(String),
    /// The loss stopped being a number.
    #[error(
        "the loss became {loss} at update {update}; the largest gradient was {gradient}; the records of the \
         update were {records}. Checkpoints from before it are kept: lower the learning rate, or look at the records"
    )]
    NotFinite {
        /// The update, counted from 1.
        update: u64,
        /// NaN or infinite.
        loss: f64,
        /// The tensor with the largest gradient, or the first whose gradient is no number, and the gradient's norm.
        gradient: String,
        /// Ids of the update's records.
        records: String,
    },
    /// The loss of a model that is not tuned is no number.
    #[error("{model}: the loss is {loss}: its weights or the adapter's are damaged, or overflow")]
    LossNotFinite {
        /// The model's name.
        model: String,
        /// NaN or infinite.
        loss: f64,
    },
    /// A validation loss is no number.
    #[error(
        "the validation loss became {loss} after update {update}. Checkpoints from before it are kept: lower the learning rate"
    )]
    ValidationNotFinite {
        /// Updates done.
        update: u64,
        /// NaN or infinite.
        loss: f64,
    },
    /// The last update left values that are no numbers.
    #[error(
        "after update {update} some tuned values are no numbers or infinite, and nothing was written: lower the learning rate"
    )]
    ValuesNotFinite {
        /// The update, counted from 1.
        update: u64,
    },
    /// A checkpoint belongs to another run.
    #[error(
        "{path}: the checkpoint there is of another run: {differences}. Remove the folder to begin anew, or choose another \
         one"
    )]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// What differs, in words.
        differences: String,
    },
    /// A checkpoint is damaged.
    #[error("{path}: the checkpoint cannot be read: {reason}. Remove it to begin anew")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A process that takes part is gone, never came, or does something else.
    #[error("{0}")]
    Collective(String),
    /// The run would not fit into memory.
    #[error("{0}")]
    Memory(String),
    /// The caller asked to stop; a checkpoint was written.
    #[error("stopped at update {update}; run again to go on from there")]
    Stopped {
        /// Updates done.
        update: u64,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// Names the file in a system's error.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// What the system said, of an error that names the file itself.
pub(crate) fn system_error(error: anyhow::Error) -> std::io::Error {
    error.downcast().unwrap_or_else(|error| std::io::Error::other(error.root_cause().to_string()))
}
