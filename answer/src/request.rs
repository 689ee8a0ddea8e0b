//! What is asked of a model, and what comes back.

use serde::{Deserialize, Serialize};

pub use crate::search::Finish;

/// A prompt as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names it in messages, and seeds its sampling.
    pub id: String,
    /// The prompt's tokens, a begin token among them where the model has one.
    pub prompt_tokens: Vec<u32>,
    /// The place of its adapter in the model; none: the base model answers.
    pub adapter: Option<usize>,
}

/// A model's answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The request's id.
    pub id: String,
    /// The new tokens, the end token included.
    pub tokens: Vec<u32>,
    /// Their text, without special tokens, cut in front of a stop text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// A beam search's score: log-probability by new tokens to the power of the length penalty.
    pub score: Option<f32>,
    /// The number of tokens that were asked.
    pub prompt_tokens: usize,
}
