//! Packed sequences: a micro-batch without padding.

use std::ops::Range;

use crate::kernels::DropoutKey;

/// Rows of a batch that attend to one another, and to what they go on from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Its own rows.
    pub rows: Range<usize>,
    /// The rows of a whole earlier sequence of the batch, itself without a prefix, that this one goes on from; empty:
    /// none.
    pub prefix: Range<usize>,
}

impl Sequence {
    /// A sequence that goes on from nothing.
    pub fn alone(rows: Range<usize>) -> Self {
        Self { rows, prefix: 0..0 }
    }

    /// Tokens up to its end, those of its prefix among them.
    pub fn length(&self) -> usize {
        self.prefix.len() + self.rows.len()
    }

    /// Pairs of an own token and one that it attends to.
    pub fn pairs(&self) -> usize {
        let own = self.rows.len();
        own * self.prefix.len() + own * (own + 1) / 2
    }
}

/// One row to learn.
#[derive(Clone, Copy, Debug)]
pub struct BatchRow<'a> {
    /// Its tokens.
    pub tokens: &'a [u32],
    /// Whether token `i` is to be predicted (from those before it); the first token never is.
    pub supervised: &'a [bool],
    /// Where each token's dropout is drawn.
    pub dropout_keys: &'a [DropoutKey],
}

/// Sequences laid end to end: one row per token, with their boundaries.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids, sequence after sequence.
    pub tokens: Vec<u32>,
    /// Each token's position, counted from where its sequence's prefix begins.
    pub positions: Vec<u32>,
    /// The sequences, in the order of their rows.
    pub sequences: Vec<Sequence>,
    /// Rows whose next token is to be predicted, in order; the last of a prefix is there once for each way to go on.
    pub supervised: Vec<usize>,
    /// The next token of each supervised row.
    pub targets: Vec<u32>,
    /// How many rows to learn each target stands for: those that share its beginning and predict it.
    pub weights: Vec<f32>,
    /// Where each token's dropout is drawn.
    pub dropout_keys: Vec<DropoutKey>,
}

impl Batch {
    /// Adds a sequence. `supervised[i]` says whether token `i` is to be predicted (from those before it); the first
    /// token never is.
    ///
    /// # Panics
    /// If `tokens` and `supervised` differ in length.
    pub fn push(&mut self, tokens: &[u32], supervised: &[bool], dropout_key: DropoutKey) {
        let dropout_keys = dropout_key.of_positions(tokens.len());
        self.push_sharing(0, &[BatchRow { tokens, supervised, dropout_keys: &dropout_keys }]);
    }

    /// Adds rows whose first `shared` tokens are the same, and computed once. Where that is none, each row is a sequence
    /// alone. Dropout at shared tokens is drawn where the first row has it.
    ///
    /// # Panics
    /// If a row's parts differ in length, or a row has no token but the shared ones.
    pub fn push_sharing(&mut self, shared: usize, rows: &[BatchRow<'_>]) {
        let start = self.tokens.len();
        let prefix = start..start + shared;
        if let Some(first) = rows.first().filter(|_| shared > 0) {
            for place in 1..shared {
                let weight = rows.iter().filter(|row| row.supervised[place]).count();
                self.predict(start + place - 1, first.tokens[place], weight);
            }
            // Each row goes on in its own way.
            for row in rows {
                self.predict(prefix.end - 1, row.tokens[shared], usize::from(row.supervised[shared]));
            }
            self.push_rows(first, 0..shared, 0..0);
        }
        for row in rows {
            assert_eq!(row.tokens.len(), row.supervised.len(), "tokens and what is supervised of them");
            assert_eq!(row.tokens.len(), row.dropout_keys.len(), "tokens and where their dropout is drawn");
            let own = self.tokens.len();
            for place in shared + 1..row.tokens.len() {
                self.predict(own + place - shared - 1, row.tokens[place], usize::from(row.supervised[place]));
            }
            self.push_rows(row, shared..row.tokens.len(), if shared > 0 { prefix.clone() } else { 0..0 });
        }
    }

    /// Number of tokens.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// What every loss is multiplied by, so that each row to learn counts the same.
    pub fn scales(&self, scale: f32) -> Vec<f32> {
        self.weights.iter().map(|weight| weight * scale).collect()
    }

    /// The sum of the losses of all rows to learn, from those of the supervised rows.
    pub fn sum_of_losses(&self, losses: &[f32]) -> f64 {
        losses.iter().zip(&self.weights).map(|(loss, weight)| f64::from(*loss) * f64::from(*weight)).sum()
    }

    /// A supervised row, if any row to learn asks for it.
    fn predict(&mut self, row: usize, target: u32, weight: usize) {
        if weight > 0 {
            self.supervised.push(row);
            self.targets.push(target);
            self.weights.push(weight as f32);
        }
    }

    /// A sequence of the tokens at `places` of a row.
    fn push_rows(&mut self, row: &BatchRow<'_>, places: Range<usize>, prefix: Range<usize>) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(&row.tokens[places.clone()]);
        self.dropout_keys.extend_from_slice(&row.dropout_keys[places.clone()]);
        self.positions.extend(places.start as u32..places.end as u32);
        self.sequences.push(Sequence { rows: start..self.tokens.len(), prefix });
    }
}
