//! What is done to a row of scores before a token is chosen: transformers' logits processors, in its order.

use crate::settings::Decoding;

/// Applies the repetition penalty, then forbids what would repeat an n-gram. `history` is prompt and response so far.
///
/// Beam search gives log-probabilities, greedy search and sampling give logits, as in transformers.
pub(crate) fn process(decoding: &Decoding, history: &[u32], scores: &mut [f32]) {
    if decoding.repetition_penalty != 1.0 {
        penalise_repetition(decoding.repetition_penalty, history, scores);
    }
    if decoding.no_repeat_ngram > 0 {
        forbid_repeated_ngrams(decoding.no_repeat_ngram, history, scores);
    }
}

/// Keskar et al. 2019, with the sign seen to: each token of the history becomes less likely, once.
fn penalise_repetition(penalty: f32, history: &[u32], scores: &mut [f32]) {
    let mut tokens = history.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    for token in tokens {
        if let Some(score) = scores.get_mut(token as usize) {
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}

/// Every token that once followed the last `size - 1` tokens gets a score of minus infinity.
fn forbid_repeated_ngrams(size: usize, history: &[u32], scores: &mut [f32]) {
    if history.len() < size {
        return;
    }
    let suffix = &history[history.len() + 1 - size..];
    for ngram in history.windows(size) {
        if ngram[..size - 1] == *suffix
            && let Some(score) = scores.get_mut(ngram[size - 1] as usize)
        {
            *score = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_token_is_penalised_once_and_by_its_sign() {
        let mut scores = [2.0, -1.0, 3.0, 0.5];
        penalise_repetition(2.0, &[1, 0, 1, 9], &mut scores);
        assert_eq!(scores, [1.0, -2.0, 3.0, 0.5]);
    }

    #[test]
    fn what_followed_the_suffix_before_is_forbidden() {
        let allowed = |size: usize, history: &[u32]| -> Vec<usize> {
            let mut scores = [0.0; 6];
            forbid_repeated_ngrams(size, history, &mut scores);
            (0..6).filter(|token| scores[*token] == 0.0).collect()
        };
        assert_eq!(allowed(3, &[1, 2, 3, 1, 2, 4, 1, 2]), [0, 1, 2, 5]);
        assert_eq!(allowed(1, &[4, 2]), [0, 1, 3, 5]);
        assert_eq!(allowed(3, &[1, 1]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(allowed(2, &[1, 1]), [0, 2, 3, 4, 5]);
    }
}
