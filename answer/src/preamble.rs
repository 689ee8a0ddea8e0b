//! What all prompts of an adapter begin with is read once.

use engine::decoder::cache::CachedSequence;

/// The common beginning of the prompts of one adapter, and its keys and values.
#[derive(Debug)]
pub(crate) struct Preamble {
    pub(crate) tokens: Vec<u32>,
    pub(crate) sequence: CachedSequence,
}

impl Preamble {
    pub(crate) fn new(tokens: Vec<u32>) -> Self {
        Self { tokens, sequence: CachedSequence::default() }
    }

    /// The tokens that are still to be read.
    pub(crate) fn unread(&self) -> &[u32] {
        &self.tokens[self.sequence.length()..]
    }

    /// Whether it is all read, and a prompt goes on from it by at least one token, whose logits are wanted.
    pub(crate) fn begins(&self, prompt: &[u32]) -> bool {
        self.unread().is_empty() && prompt.len() > self.tokens.len() && prompt.starts_with(&self.tokens)
    }
}

/// The longest beginning that all prompts share and that is shorter than each; empty for fewer than two prompts.
pub(crate) fn common<'a>(mut prompts: impl Iterator<Item = &'a [u32]>) -> &'a [u32] {
    let (Some(first), Some(second)) = (prompts.next(), prompts.next()) else { return &[] };
    let shared = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let all = std::iter::once(second).chain(prompts);
    let length = all.fold(first.len().saturating_sub(1), |length, prompt| {
        length.min(shared(first, prompt)).min(prompt.len().saturating_sub(1))
    });
    &first[..length]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_beginning_leaves_each_prompt_a_token() {
        let common = |prompts: &[&[u32]]| common(prompts.iter().copied()).to_vec();
        assert_eq!(common(&[&[1, 2, 3], &[1, 2, 4, 5]]), [1, 2]);
        assert_eq!(common(&[&[1, 2], &[1, 2]]), [1]);
        assert_eq!(common(&[&[1, 2, 3], &[1, 2], &[1, 2, 3]]), [1]);
        assert_eq!(common(&[&[1], &[2]]), [0u32; 0]);
        assert_eq!(common(&[&[1, 2]]), [0u32; 0]);
    }
}
