//! Sampling: temperature, then the best k, then the least set of probability p, then one draw.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::processors::process;
use crate::scores::{Candidate, best};
use crate::settings::{Decoding, Sampling};

/// The draws for one prompt: step `n`'s depends on the seed, the prompt's id and `n`, and on nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Draws {
    seed: [u8; 32],
}

impl Draws {
    pub(crate) fn new(seed: u64, id: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(id.as_bytes());
        Self { seed: *hasher.finalize().as_bytes() }
    }

    /// Uniform in `0.0..1.0`.
    fn uniform(&self, step: usize) -> f64 {
        let mut random = ChaCha8Rng::from_seed(self.seed);
        random.set_stream(step as u64);
        (random.next_u64() >> 11) as f64 * (-53f64).exp2()
    }
}

/// One token drawn from a row of logits; none where no logit is a number.
pub(crate) fn choose(
    decoding: &Decoding,
    sampling: &Sampling,
    draws: &Draws,
    step: usize,
    history: &[u32],
    logits: &mut [f32],
) -> Vec<Candidate> {
    process(decoding, history, logits);
    heat(sampling.temperature, logits);
    let kept = keep_probability(sampling.top_p, keep_best(sampling.top_k, logits));
    draw(&kept, draws.uniform(step)).into_iter().collect()
}

/// Divides by the temperature. Where that would leave no number for the highest logit, as at a temperature below about
/// 1e-37, it is subtracted first, which changes no probability; elsewhere not, as it can make two logits level.
fn heat(temperature: f32, logits: &mut [f32]) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let less = if (highest / temperature).is_finite() { 0.0 } else { highest };
    logits.iter_mut().for_each(|logit| *logit = (*logit - less) / temperature);
}

/// The `top_k` best tokens, and those level with the last of them, by id.
fn keep_best(top_k: usize, logits: &[f32]) -> Vec<Candidate> {
    let least = match top_k {
        0 => f32::NEG_INFINITY,
        _ => best(logits, top_k.min(logits.len())).last().map_or(f32::NEG_INFINITY, |last| last.score),
    };
    let all =
        logits.iter().enumerate().map(|(token, score)| Candidate { token: token as u32, score: *score });
    all.filter(|candidate| candidate.score >= least && candidate.score > f32::NEG_INFINITY).collect()
}

/// Leaves out the least likely tokens, as long as their probabilities together are at most `1 - top_p`; never all.
fn keep_probability(top_p: f32, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    if top_p >= 1.0 {
        return candidates;
    }
    candidates.sort_by(|a, b| a.score.total_cmp(&b.score));
    let weights = weights(&candidates);
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let dropped = weights.iter().take_while(|weight| {
        sum += **weight / total;
        sum <= 1.0 - f64::from(top_p)
    });
    let dropped = dropped.count().min(candidates.len().saturating_sub(1));
    candidates.split_off(dropped)
}

/// The candidate at which the cumulated probability passes `uniform`.
fn draw(candidates: &[Candidate], uniform: f64) -> Option<Candidate> {
    let weights = weights(candidates);
    let aim = uniform * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let place = weights.iter().position(|weight| {
        sum += weight;
        sum > aim
    });
    place.map(|place| candidates[place]).or(candidates.last().copied())
}

/// Probabilities, but for a factor.
fn weights(candidates: &[Candidate]) -> Vec<f64> {
    let highest = candidates.iter().fold(f32::NEG_INFINITY, |highest, other| highest.max(other.score));
    candidates.iter().map(|candidate| f64::from(candidate.score - highest).exp()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(top_k: usize, top_p: f32, probabilities: &[f32]) -> Vec<u32> {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
        let mut tokens: Vec<u32> =
            keep_probability(top_p, keep_best(top_k, &logits)).iter().map(|kept| kept.token).collect();
        tokens.sort_unstable();
        tokens
    }

    /// Worked out by hand from transformers' TopKLogitsWarper and TopPLogitsWarper.
    #[test]
    fn the_best_k_then_the_probability_p() {
        let probabilities = [0.1, 0.4, 0.05, 0.25, 0.2];
        assert_eq!(kept(0, 1.0, &probabilities), [0, 1, 2, 3, 4]);
        assert_eq!(kept(2, 1.0, &probabilities), [1, 3]);
        assert_eq!(kept(0, 0.6, &probabilities), [1, 3]);
        assert_eq!(kept(0, 0.7, &probabilities), [1, 3, 4]);
        assert_eq!(kept(0, 0.0, &probabilities), [1]);
        // p is of what k left: 0.4 / 0.65 = 0.615.
        assert_eq!(kept(2, 0.6, &probabilities), [1]);
        assert_eq!(kept(1, 1.0, &[0.5, 0.5]), [0, 1]);
    }

    #[test]
    fn at_the_lowest_temperatures_the_best_is_drawn() {
        let (decoding, draws) = (Decoding::greedy(), Draws::new(1, "a"));
        for temperature in [1e-40, f32::MIN_POSITIVE, 1e-20] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            for logits in [[5.0, 20.0, 3.0], [-20.0, -5.0, f32::NEG_INFINITY]] {
                let chosen = choose(&decoding, &sampling, &draws, 0, &[], &mut logits.clone());
                assert_eq!(chosen.first().map(|chosen| chosen.token), Some(1), "{temperature} {logits:?}");
                assert!(chosen[0].score.is_finite());
            }
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_depend_on_the_id() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let decoding = Decoding::greedy();
        let (sampling, draws) = (Sampling::default(), Draws::new(1, "a"));
        let mut counts = [0u32; 3];
        for step in 0..4000 {
            let chosen = choose(&decoding, &sampling, &draws, step, &[], &mut logits.clone());
            counts[chosen[0].token as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([2000.0, 1200.0, 800.0]) {
            // Five standard deviations of a binomial count.
            assert!((f64::from(*count) - expected).abs() < 5.0 * 32.0, "{counts:?}");
        }
        assert_ne!(Draws::new(1, "a").uniform(0), Draws::new(1, "b").uniform(0));
        assert_ne!(Draws::new(1, "a").uniform(0), Draws::new(2, "a").uniform(0));
    }
}
