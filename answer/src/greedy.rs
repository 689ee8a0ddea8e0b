//! Greedy search: the best token at each step.

use crate::processors::process;
use crate::scores::{Candidate, best};
use crate::settings::Decoding;

/// The best token of a row of logits; none where no logit is a number.
pub(crate) fn choose(decoding: &Decoding, history: &[u32], logits: &mut [f32]) -> Vec<Candidate> {
    process(decoding, history, logits);
    best(logits, 1)
}
