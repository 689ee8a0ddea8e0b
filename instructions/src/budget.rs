//! Budgets: what recipes are held equal in, and C, the cost of one monolingual run.

use std::fmt;

use anyhow::{Result, anyhow, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::record::Record;

/// What recipes are held equal in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    /// Rows of the mix (the paper's way).
    #[default]
    Rows,
    /// Tokens of the mix's rows.
    Tokens,
    /// Updates of the optimizer: rows are drawn as for `rows`, and the manifest says how many updates to train.
    Updates,
    /// Floating-point operations of one pass over the mix.
    Flops,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rows => "rows",
            Self::Tokens => "tokens",
            Self::Updates => "updates",
            Self::Flops => "FLOPs",
        })
    }
}

/// `[budget]` of a recipe or experiment file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// What is held equal.
    pub held: Held,
    /// C in that unit. Where it is not given, C is what the smallest set costs, its validation rows set aside; for
    /// updates, what `epochs` passes over that many rows take.
    pub c: Option<u64>,
    /// For updates: sequences an update.
    pub batch: u64,
    /// For updates: passes over the smallest set.
    pub epochs: u64,
}

impl Default for Budget {
    /// The paper's LoRA setting: rows, C the smallest set, batch 128, 5 epochs.
    fn default() -> Self {
        Self { held: Held::Rows, c: None, batch: 128, epochs: 5 }
    }
}

impl Budget {
    /// Whether a run can have it.
    ///
    /// # Errors
    /// Names the key, and what was expected.
    pub fn check(&self) -> Result<()> {
        for (key, value) in [("c", self.c.unwrap_or(1)), ("batch", self.batch), ("epochs", self.epochs)] {
            if value == 0 {
                bail!("[budget]: `{key}` is 0: expected at least 1");
            }
        }
        Ok(())
    }
}

/// Counts a record's tokens: prompt and response, as they are trained on.
pub type CountTokens<'a> = &'a (dyn Fn(&Record) -> usize + Sync);

/// The FLOPs of training on one sequence of so many tokens.
pub type CountFlops<'a> = &'a (dyn Fn(usize) -> u64 + Sync);

/// What a row costs, in the budget's unit.
#[derive(Clone, Copy)]
pub(crate) struct Meter<'a> {
    held: Held,
    tokens: Option<CountTokens<'a>>,
    flops: Option<CountFlops<'a>>,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(
        held: Held,
        tokens: Option<CountTokens<'a>>,
        flops: Option<CountFlops<'a>>,
    ) -> Result<Self> {
        if held == Held::Flops && (flops.is_none() || tokens.is_none()) {
            bail!("a budget in FLOPs needs a base model, for its tokenizer and its size; none was given");
        }
        if held == Held::Tokens && tokens.is_none() {
            bail!("a budget in tokens needs a tokenizer, and none was given");
        }
        Ok(Self { held, tokens, flops })
    }

    /// A record's tokens, where they are counted, and what it costs; a row where rows or updates are held.
    pub(crate) fn measure(&self, record: &Record) -> Measured {
        let tokens = self.tokens.map(|tokens| tokens(record) as u64);
        let cost = match (self.held, tokens, self.flops) {
            (Held::Tokens, Some(tokens), _) => tokens,
            (Held::Flops, Some(tokens), Some(flops)) => flops(tokens as usize),
            _ => 1,
        };
        Measured { tokens, cost }
    }

    /// Measures many records, on all threads: counting tokens is most of a mix's work.
    pub(crate) fn measure_all(&self, records: &[&Record]) -> Vec<Measured> {
        records.par_iter().map(|record| self.measure(record)).collect()
    }

    /// Whether every row costs the same.
    pub(crate) fn counts_rows(&self) -> bool {
        matches!(self.held, Held::Rows | Held::Updates)
    }
}

/// What a record comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    /// Its tokens, where they are counted.
    pub(crate) tokens: Option<u64>,
    /// Its cost in the budget's unit.
    pub(crate) cost: u64,
}

/// An amount as budgets are counted: in 64 bits, which rows and tokens never fill, and the FLOPs of a large model on
/// millions of rows do.
///
/// # Errors
/// Where it is more; `what` says what comes to it.
pub(crate) fn counted(amount: u128, held: Held, what: impl FnOnce() -> String) -> Result<u64> {
    u64::try_from(amount).map_err(|_| {
        anyhow!(
            "{} comes to {amount} {held}, and budgets are counted up to {}: set a lower C, or hold tokens",
            what(),
            u64::MAX
        )
    })
}

/// Splits `total` by weight, exactly: each part is its share rounded down, and what is left goes to the largest
/// remainders, the earlier first (Hamilton's method). In whole numbers, so that every machine splits alike.
pub(crate) fn apportion(total: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let exact = |weight: &u64| u128::from(total) * u128::from(*weight);
    // Each part is at most `total`, so it fits.
    let mut parts: Vec<u64> = weights.iter().map(|weight| (exact(weight) / sum) as u64).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(exact(&weights[*index]) % sum), *index));
    let left = total - parts.iter().sum::<u64>();
    for index in order.into_iter().take(left as usize) {
        parts[index] += 1;
    }
    parts
}

/// A share as a whole-number weight: a billionth is the finest share that is told apart.
pub(crate) fn weight(share: f64) -> u64 {
    const BILLION: f64 = 1e9;
    (share * BILLION).round().clamp(0.0, 1e18) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_goes_to_the_largest_remainders() {
        assert_eq!(apportion(5000, &[1, 1, 1]), [1667, 1667, 1666]);
        assert_eq!(apportion(10, &[weight(0.3), weight(0.3), weight(0.4)]), [3, 3, 4]);
        assert_eq!(apportion(7, &[0, 5]), [0, 7]);
        assert_eq!(apportion(7, &[0, 0]), [0, 0]);
        assert_eq!(apportion(1, &[1, 3, 3]), [0, 1, 0]);
    }

    proptest::proptest! {
        #[test]
        fn parts_add_up_and_are_within_one_of_their_share(
            total in 0u64..1_000_000, weights in proptest::collection::vec(0u64..1000, 1..60),
        ) {
            let parts = apportion(total, &weights);
            let sum: u64 = weights.iter().sum();
            proptest::prop_assume!(sum > 0);
            proptest::prop_assert_eq!(parts.iter().sum::<u64>(), total);
            for (part, weight) in parts.iter().zip(&weights) {
                let share = total as f64 * *weight as f64 / sum as f64;
                proptest::prop_assert!((*part as f64 - share).abs() < 1.0 + 1e-6);
            }
        }
    }
}
