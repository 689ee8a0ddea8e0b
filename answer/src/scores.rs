//! Over a whole vocabulary, for every row of every step: these loops are written so that they vectorise.

use multiversion::multiversion;

/// Sums and maxima are taken in so many lanes, folded at the end: their order depends on the length alone.
const LANES: usize = 16;

/// A token that may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) token: u32,
    /// Its processed score.
    pub(crate) score: f32,
}

/// Logits to log-probabilities: `x - max - ln Σ exp(x - max)`.
#[multiversion(targets = "simd")]
pub(crate) fn log_softmax(row: &mut [f32]) {
    let highest = highest(row);
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += exp(x - highest);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += exp(x - highest);
    }
    let log_sum = sums.iter().sum::<f32>().ln();
    for x in row {
        *x = *x - highest - log_sum;
    }
}

#[inline(always)]
fn highest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |highest, x| highest.max(*x))
}

/// The `count` best tokens, best first; the lower id first among equals. Fewer where there are fewer numbers: what is
/// not a number is never chosen.
#[multiversion(targets = "simd")]
pub(crate) fn best(row: &[f32], count: usize) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::with_capacity(count + 1);
    for (block, scores) in row.chunks(8 * LANES).enumerate() {
        // Most blocks hold nothing better than the last one found, and one pass without a branch shows it.
        if found.len() == count && found.last().is_some_and(|last| highest(scores) <= last.score) {
            continue;
        }
        for (place, &score) in scores.iter().enumerate() {
            let full = found.len() == count;
            if score.is_nan() || (full && found.last().is_none_or(|last| score <= last.score)) {
                continue;
            }
            let rank = found.partition_point(|other| other.score >= score);
            found.insert(rank, Candidate { token: (block * 8 * LANES + place) as u32, score });
            found.truncate(count);
        }
    }
    found
}

/// eˣ for x ≤ 0, to 2 units in the last place; 0 below -87.3. Straight-line arithmetic: a call would stop
/// vectorisation.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| ≤ ln 2 / 2; eʳ by Cephes' polynomial, 2ⁿ by its bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it leaves the nearest integer
    let clamped = x.max(-87.3);
    let n = clamped * std::f32::consts::LOG2_E + ROUND - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let polynomial = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_3e-1]
        .into_iter()
        .fold(1.987_569_1e-4, |sum: f32, coefficient| sum * r + coefficient);
    let scale = f32::from_bits(((n as i32 + 127) << 23) as u32);
    if x < -87.3 { 0.0 } else { (polynomial * r * r + r + 1.0) * scale }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn log_probabilities_are_those_of_the_formula(row in prop::collection::vec(-60.0f32..60.0, 1..200)) {
            let highest = row.iter().copied().fold(f64::NEG_INFINITY, |a, b| a.max(f64::from(b)));
            let sum: f64 = row.iter().map(|x| (f64::from(*x) - highest).exp()).sum();
            let mut found = row.clone();
            log_softmax(&mut found);
            for (found, x) in found.iter().zip(&row) {
                let expected = f64::from(*x) - highest - sum.ln();
                // A few roundings of numbers up to 120.
                prop_assert!((f64::from(*found) - expected).abs() < 3e-5, "{found} {expected}");
            }
        }

        #[test]
        fn the_best_are_those_of_a_stable_sort(
            row in prop::collection::vec(-3i8..4, 1..600), count in 1usize..12
        ) {
            let row: Vec<f32> = row.into_iter().map(f32::from).collect();
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            order.truncate(count);
            let found: Vec<usize> = best(&row, count).iter().map(|best| best.token as usize).collect();
            prop_assert_eq!(found, order);
        }
    }

    #[test]
    fn forbidden_tokens_come_last_and_no_numbers_never() {
        let row = [f32::NEG_INFINITY, f32::NAN, 1.0, f32::NEG_INFINITY];
        let tokens: Vec<u32> = best(&row, 3).iter().map(|best| best.token).collect();
        assert_eq!(tokens, [2, 0, 3]);
        assert_eq!(best(&row, 4).len(), 3);
    }
}
