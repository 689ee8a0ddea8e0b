//! One prompt's search: which hypotheses are alive, and what a row of scores does to them.

use std::sync::Arc;

use model::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::beam::BeamSearch;
use crate::greedy;
use crate::sample::{self, Draws};
use crate::scores::Candidate;
use crate::settings::Decoding;

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// The model's end token.
    End,
    /// A stop text.
    Stop,
    /// As many new tokens as were allowed.
    Length,
}

/// What ends a response.
#[derive(Clone, Copy)]
pub(crate) struct Stops<'m> {
    pub(crate) tokens: &'m [u32],
    pub(crate) tokenizer: &'m Tokenizer,
}

impl Stops<'_> {
    /// Whether a response ends with the last of these tokens.
    pub(crate) fn hit(&self, decoding: &Decoding, generated: &[u32]) -> Option<Finish> {
        if generated.last().is_some_and(|last| self.tokens.contains(last)) {
            return Some(Finish::End);
        }
        if self.stop_text(decoding, generated) {
            return Some(Finish::Stop);
        }
        (generated.len() >= decoding.new_tokens).then_some(Finish::Length)
    }

    fn stop_text(&self, decoding: &Decoding, generated: &[u32]) -> bool {
        let Some(longest) = decoding.stops.iter().map(String::len).max() else { return false };
        // A token that shows holds a byte at least; a few do not show, and a first token may lose its space.
        let tail = &generated[generated.len().saturating_sub(longest + 16)..];
        // Where the tokens are no text, no stop text is in it.
        let text = self.tokenizer.decode(tail, true).unwrap_or_default();
        decoding.stops.iter().any(|stop| text.contains(stop))
    }
}

/// What is found when a search ends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    /// The new tokens, the end token included.
    pub(crate) tokens: Vec<u32>,
    pub(crate) finish: Finish,
    /// A beam search's score.
    pub(crate) score: Option<f32>,
}

/// What comes after a step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// The hypotheses that live on: which one before each goes on from, and its next token.
    Continue(Vec<(usize, u32)>),
    /// The search is over.
    Finished(Found),
}

/// The scores were no numbers: the weights are damaged, or overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotNumbers;

/// A search for one prompt's response.
pub(crate) enum Search {
    Single(SingleSearch),
    Beam(BeamSearch),
}

impl Search {
    pub(crate) fn new(id: &str, prompt: &[u32], decoding: &Arc<Decoding>) -> Self {
        if decoding.beams > 1 {
            return Self::Beam(BeamSearch::new(prompt, decoding));
        }
        let draws = decoding.sample.map(|sampling| Draws::new(sampling.seed, id));
        let prompt_length = prompt.len();
        Self::Single(SingleSearch {
            decoding: Arc::clone(decoding),
            history: prompt.to_vec(),
            prompt_length,
            draws,
        })
    }

    /// What one hypothesis' logits offer. Overwrites them.
    pub(crate) fn choose(&self, stops: Stops<'_>, hypothesis: usize, logits: &mut [f32]) -> Vec<Candidate> {
        match self {
            Self::Single(single) => single.choose(logits),
            Self::Beam(beam) => beam.choose(stops, hypothesis, logits),
        }
    }

    /// Goes a step on, with what each hypothesis' logits offered.
    pub(crate) fn advance(
        &mut self,
        stops: Stops<'_>,
        offered: &[Vec<Candidate>],
    ) -> Result<Step, NotNumbers> {
        match self {
            Self::Single(single) => single.advance(stops, offered),
            Self::Beam(beam) => beam.advance(stops, offered),
        }
    }
}

/// Greedy search, or sampling.
pub(crate) struct SingleSearch {
    decoding: Arc<Decoding>,
    history: Vec<u32>,
    prompt_length: usize,
    draws: Option<Draws>,
}

impl SingleSearch {
    fn choose(&self, logits: &mut [f32]) -> Vec<Candidate> {
        match (&self.decoding.sample, &self.draws) {
            (Some(sampling), Some(draws)) => {
                let step = self.history.len() - self.prompt_length;
                sample::choose(&self.decoding, sampling, draws, step, &self.history, logits)
            }
            _ => greedy::choose(&self.decoding, &self.history, logits),
        }
    }

    fn advance(&mut self, stops: Stops<'_>, offered: &[Vec<Candidate>]) -> Result<Step, NotNumbers> {
        let token = offered.first().and_then(|row| row.first()).ok_or(NotNumbers)?.token;
        self.history.push(token);
        let generated = &self.history[self.prompt_length..];
        Ok(match stops.hit(&self.decoding, generated) {
            Some(finish) => Step::Finished(Found { tokens: generated.to_vec(), finish, score: None }),
            None => Step::Continue(vec![(0, token)]),
        })
    }
}
