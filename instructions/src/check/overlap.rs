//! Test prompts found in rows to train on.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::text::words;
use crate::prompt::Prompt;
use crate::record::Record;

/// Runs of so many words are compared.
const RUN: usize = 5;

/// The test prompts by their words and runs of words.
pub(super) struct TestPrompts<'a> {
    prompts: &'a [Prompt],
    whole: HashMap<Vec<String>, usize>,
    runs: HashMap<u64, Vec<usize>>,
    runs_of: Vec<usize>,
}

impl<'a> TestPrompts<'a> {
    pub(super) fn new(prompts: &'a [Prompt]) -> Self {
        let mut whole = HashMap::new();
        let mut runs: HashMap<u64, Vec<usize>> = HashMap::new();
        let mut runs_of = Vec::new();
        for (index, prompt) in prompts.iter().enumerate() {
            let words = words(&prompt.prompt);
            let own: BTreeSet<u64> = words.windows(RUN).map(run_hash).collect();
            runs_of.push(own.len());
            for run in own {
                runs.entry(run).or_default().push(index);
            }
            whole.entry(words).or_insert(index);
        }
        Self { prompts, whole, runs, runs_of }
    }

    /// The id of a prompt that a row's instruction (with its input or without) is, or that has at least 60 % of its
    /// runs of words in it.
    pub(super) fn found_in(&self, record: &Record) -> Option<&'a str> {
        if self.prompts.is_empty() {
            return None;
        }
        let mut words = words(&record.instruction);
        if let Some(index) = self.whole.get(&words) {
            return Some(&self.prompts[*index].id);
        }
        words.extend(super::text::words(&record.input));
        if let Some(index) = self.whole.get(&words) {
            return Some(&self.prompts[*index].id);
        }
        let own: BTreeSet<u64> = words.windows(RUN).map(run_hash).collect();
        let mut shared: HashMap<usize, usize> = HashMap::new();
        for index in own.iter().filter_map(|run| self.runs.get(run)).flatten() {
            *shared.entry(*index).or_default() += 1;
        }
        // The first of the prompts, so that the report does not depend on the map's order.
        let found = shared.iter().filter(|(index, shared)| 5 * **shared >= 3 * self.runs_of[**index]);
        found.map(|(index, _)| *index).min().map(|index| self.prompts[index].id.as_str())
    }
}

fn run_hash(run: &[String]) -> u64 {
    let mut hasher = DefaultHasher::new();
    run.hash(&mut hasher);
    hasher.finish()
}
