//! Beam search as transformers 5 does it (`GenerationMixin._beam_search`), for one prompt.
//!
//! Its ways are kept where they differ from the textbook: candidates are taken for twice as many beams as there are,
//! only the better half of them may finish, sentinels of -1e9 are added rather than scores replaced, and all sums are
//! `f32`.

use std::sync::Arc;

use crate::processors::process;
use crate::scores::{Candidate, best, log_softmax};
use crate::search::{Finish, Found, NotNumbers, Step, Stops};
use crate::settings::{Decoding, EarlyStopping};

/// What stands for a score that must not be chosen.
const OUT: f32 = -1.0e9;

/// A hypothesis that can go on.
#[derive(Clone, Debug)]
struct Running {
    /// Prompt and new tokens.
    history: Vec<u32>,
    /// Sum of its tokens' log-probabilities.
    score: f32,
}

/// A place among the finished hypotheses.
#[derive(Clone, Debug)]
struct Finished {
    tokens: Vec<u32>,
    /// With the length penalty.
    score: f32,
    /// Why it ended; none in a place that is still free.
    finish: Option<Finish>,
}

/// A running hypothesis and one more token.
struct Extended {
    parent: usize,
    token: u32,
    score: f32,
    history: Vec<u32>,
    finish: Option<Finish>,
}

/// The search for one prompt's response.
pub(crate) struct BeamSearch {
    decoding: Arc<Decoding>,
    prompt_length: usize,
    /// At first one; transformers has copies of it beside it, with a score of -1e9.
    running: Vec<Running>,
    finished: Vec<Finished>,
    /// Whether a running hypothesis may still become better than a finished one.
    improvable: bool,
}

impl BeamSearch {
    pub(crate) fn new(prompt: &[u32], decoding: &Arc<Decoding>) -> Self {
        let free = Finished { tokens: Vec::new(), score: OUT, finish: None };
        Self {
            decoding: Arc::clone(decoding),
            prompt_length: prompt.len(),
            running: vec![Running { history: prompt.to_vec(), score: 0.0 }],
            finished: vec![free; decoding.beams],
            improvable: true,
        }
    }

    /// The best continuations of one hypothesis: as many as could be kept if all were its own.
    pub(crate) fn choose(&self, stops: Stops<'_>, hypothesis: usize, logits: &mut [f32]) -> Vec<Candidate> {
        let running = &self.running[hypothesis];
        log_softmax(logits);
        process(&self.decoding, &running.history, logits);
        let mut candidates = best(logits, self.candidates(stops));
        candidates.iter_mut().for_each(|candidate| candidate.score += running.score);
        candidates
    }

    /// Enough that as many go on as there are beams, even if each ends with every end token.
    fn candidates(&self, stops: Stops<'_>) -> usize {
        (1 + stops.tokens.len()).max(2) * self.decoding.beams
    }

    /// Goes a step on.
    pub(crate) fn advance(
        &mut self,
        stops: Stops<'_>,
        offered: &[Vec<Candidate>],
    ) -> Result<Step, NotNumbers> {
        let extended = self.extend(stops, offered)?;
        let kept = self.go_on(&extended);
        self.finish(&extended);
        self.running = kept
            .iter()
            .map(|(place, score)| Running { history: extended[*place].history.clone(), score: *score })
            .collect();
        if self.is_over(&extended) {
            return Ok(Step::Finished(self.result()));
        }
        let next = kept.iter().map(|(place, _)| (extended[*place].parent, extended[*place].token));
        Ok(Step::Continue(next.collect()))
    }

    /// The best continuations of all hypotheses, best first; equal ones in the order of hypothesis and token.
    fn extend(&self, stops: Stops<'_>, offered: &[Vec<Candidate>]) -> Result<Vec<Extended>, NotNumbers> {
        let mut all: Vec<(usize, Candidate)> = offered
            .iter()
            .enumerate()
            .flat_map(|(parent, row)| row.iter().map(move |candidate| (parent, *candidate)))
            .collect();
        all.sort_by(|(parent, a), (other, b)| {
            b.score.total_cmp(&a.score).then((parent, a.token).cmp(&(other, b.token)))
        });
        all.truncate(self.candidates(stops));
        if all.len() < self.decoding.beams {
            return Err(NotNumbers);
        }
        let extend = |(parent, Candidate { token, score }): (usize, Candidate)| {
            let mut history = self.running[parent].history.clone();
            history.push(token);
            let finish = stops.hit(&self.decoding, &history[self.prompt_length..]);
            Extended { parent, token, score, history, finish }
        };
        Ok(all.into_iter().map(extend).collect())
    }

    /// The places of those that go on, with their scores.
    fn go_on(&self, extended: &[Extended]) -> Vec<(usize, f32)> {
        let scores = extended.iter().map(|one| one.score + if one.finish.is_some() { OUT } else { 0.0 });
        first(self.decoding.beams, scores.enumerate().collect())
    }

    /// Takes in what has finished just now, and keeps the best.
    fn finish(&mut self, extended: &[Extended]) {
        let beams = self.decoding.beams;
        let closed = self.all_finished() && self.decoding.early_stopping == EarlyStopping::Full;
        let generated = extended.first().map_or(1, |one| one.history.len() - self.prompt_length);
        let divisor = self.penalty(generated);
        let new = extended.iter().enumerate().map(|(rank, one)| {
            let finish = one.finish.filter(|_| rank < beams);
            let mut score = one.score / divisor;
            for out in [closed, !self.improvable, finish.is_none()] {
                score += if out { OUT } else { 0.0 };
            }
            Finished { tokens: one.history[self.prompt_length..].to_vec(), score, finish }
        });
        let merged: Vec<Finished> = self.finished.iter().cloned().chain(new).collect();
        let scores = merged.iter().map(|one| one.score).enumerate().collect();
        self.finished = first(beams, scores).into_iter().map(|(place, _)| merged[place].clone()).collect();
    }

    /// Whether nothing better is to be found, or nothing can go on.
    fn is_over(&mut self, extended: &[Extended]) -> bool {
        let decoding = &self.decoding;
        let generated = self.running[0].history.len() - self.prompt_length;
        let farthest = decoding.early_stopping == EarlyStopping::Never && decoding.length_penalty > 0.0;
        let length = if farthest { decoding.new_tokens } else { generated };
        let best_possible = self.running[0].score / self.penalty(length);
        let worst = self.finished.iter().map(|one| one.score).fold(f32::INFINITY, f32::min);
        let worst_finished = self.finished.iter().map(|one| if one.finish.is_some() { worst } else { OUT });
        self.improvable &= worst_finished.into_iter().any(|worst| best_possible > worst);
        let full = self.all_finished() && self.decoding.early_stopping == EarlyStopping::Full;
        !self.improvable || full || extended.iter().all(|one| one.finish.is_some())
    }

    fn all_finished(&self) -> bool {
        self.finished.iter().all(|one| one.finish.is_some())
    }

    fn penalty(&self, generated: usize) -> f32 {
        (generated as f64).powf(self.decoding.length_penalty) as f32
    }

    fn result(&self) -> Found {
        let best = &self.finished[0];
        // A search ends with a finished hypothesis in its first place: what runs out of tokens has finished.
        let finish = best.finish.unwrap_or(Finish::Length);
        Found { tokens: best.tokens.clone(), finish, score: Some(best.score) }
    }
}

/// The best `count`, best first; the earlier one among equals.
fn first(count: usize, mut scores: Vec<(usize, f32)>) -> Vec<(usize, f32)> {
    scores.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    scores.truncate(count);
    scores
}
