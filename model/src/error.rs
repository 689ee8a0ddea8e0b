//! What can be wrong with a model's files, said so that a user can mend it.

use std::io;
use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault in a model's files. Each names the file, and the key or tensor where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system would not read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is neither a Hugging Face folder nor a GGUF file.
    #[error("{}: not a base model: {reason}", path.display())]
    NotAModel {
        /// The path that was given.
        path: PathBuf,
        /// What was found there and what was expected.
        reason: String,
    },
    /// A JSON file is not JSON, or not of the kind expected.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's message, with line and column.
        source: serde_json::Error,
    },
    /// A key that a file must have is not there.
    #[error("{}: key `{key}` is missing; expected {expected}", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The absent key.
        key: String,
        /// What it would hold.
        expected: String,
    },
    /// A key's value is of the wrong kind, or out of range.
    #[error("{}: key `{key}` is {found}; expected {expected}", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A key asks for arithmetic that the decoder does not have. Going on would give wrong results.
    #[error("{}: key `{key}` is {found}, which this program does not compute; expected {expected}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is computed.
        expected: String,
    },
    /// A weights file is not valid safetensors, for instance because a download was cut short.
    #[error("{}: not a valid safetensors file: {reason}", path.display())]
    SafeTensors {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A GGUF file is damaged or of an unknown version.
    #[error("{}: not a valid GGUF file: at byte {offset}: {reason}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// Where reading stopped.
        offset: usize,
        /// What was found and what was expected.
        reason: String,
    },
    /// A tensor that the configuration calls for is in none of the files.
    #[error("{}: tensor `{tensor}` is missing; expected shape {expected:?}", path.display())]
    MissingTensor {
        /// The file or folder searched.
        path: PathBuf,
        /// The tensor's published name.
        tensor: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// The file has a tensor that the configuration has no place for, so that leaving it out would change results.
    #[error("{}: tensor `{tensor}` has no place in the model that the configuration describes", path.display())]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// A result's folder holds one of another kind.
    #[error("{}: holds {found}; expected an empty folder, or {expected}", path.display())]
    OtherResult {
        /// The folder.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// What it may hold.
        expected: String,
    },
    /// A tensor's shape is not the one that the configuration gives.
    #[error("{}: tensor `{tensor}` has shape {found:?}; expected {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The file's shape.
        found: Vec<usize>,
        /// The configuration's shape.
        expected: Vec<usize>,
    },
    /// A tensor's elements are of a type that is not read.
    #[error("{}: tensor `{tensor}` has type {found}; expected {expected}", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The file's type.
        found: String,
        /// The types that are read.
        expected: &'static str,
    },
    /// A tokenizer could not be read, built, trained or applied.
    #[error("{}: tokenizer: {reason}", path.display())]
    Tokenizer {
        /// The file that the tokenizer came from.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// An adapter cannot be put on the base model.
    #[error("{}: adapter: {reason}", path.display())]
    Adapter {
        /// The adapter's folder or file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
}

impl Error {
    /// An [`Error::Io`] for `path`, for use with `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// An [`Error::Json`] for `path`, for use with `map_err`.
    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Json { path, source }
    }

    /// An [`Error::Tokenizer`] for `path`, for use with `map_err` on errors of `tokenizers`.
    pub(crate) fn tokenizer<E: ToString>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |reason| Self::Tokenizer { path, reason: reason.to_string() }
    }
}
