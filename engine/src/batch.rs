//! Packed sequences: a micro-batch without padding.

use std::ops::Range;

use crate::kernels::DropoutKey;

/// Sequences laid end to end: one row per token, with their boundaries.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids, sequence after sequence.
    pub tokens: Vec<u32>,
    /// Each token's position in its own sequence.
    pub positions: Vec<u32>,
    /// The rows of each sequence.
    pub sequences: Vec<Range<usize>>,
    /// Rows whose next token is to be predicted, ascending.
    pub supervised: Vec<usize>,
    /// The next token of each supervised row.
    pub targets: Vec<u32>,
    /// Where each sequence's dropout is drawn.
    pub dropout_keys: Vec<DropoutKey>,
}

impl Batch {
    /// Adds a sequence. `supervised[i]` says whether token `i` is to be predicted (from those before it); the first
    /// token never is.
    ///
    /// # Panics
    /// If `tokens` and `supervised` differ in length.
    pub fn push(&mut self, tokens: &[u32], supervised: &[bool], dropout_key: DropoutKey) {
        assert_eq!(tokens.len(), supervised.len(), "tokens and what is supervised of them");
        let start = self.tokens.len();
        for (row, (token, supervised)) in tokens.iter().zip(supervised).enumerate().skip(1) {
            if *supervised {
                self.supervised.push(start + row - 1);
                self.targets.push(*token);
            }
        }
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(0..tokens.len() as u32);
        self.sequences.push(start..self.tokens.len());
        self.dropout_keys.push(dropout_key);
    }

    /// Number of tokens.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }
}
