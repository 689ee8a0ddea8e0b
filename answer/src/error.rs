//! What can go wrong while answering.

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The base model, its tokenizer or an adapter could not be read.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The decoder could not be built from the base model's weights.
    #[error("{path}: {reason}")]
    Decoder {
        /// The base model.
        path: String,
        /// What the decoder says.
        reason: String,
    },
    /// A setting of the decoding is out of range.
    #[error("decoding: {0}")]
    Decoding(String),
    /// A request that cannot be answered.
    #[error("prompt {id}: {reason}")]
    Request {
        /// The prompt's id.
        id: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// The model's scores are not numbers.
    #[error("prompt {id}: the model's scores are not numbers: its weights are damaged, or overflow")]
    NotNumbers {
        /// The prompt's id.
        id: String,
    },
    /// The keys and values of one prompt alone do not fit.
    #[error(
        "prompt {id}: the cache of {pages} pages of keys and values is too small for it; give it more bytes"
    )]
    CacheFull {
        /// The prompt's id.
        id: String,
        /// All pages of the cache.
        pages: usize,
    },
}
