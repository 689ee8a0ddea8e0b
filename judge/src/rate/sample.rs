//! Draws a sample of systems and prompts to be rated by people.

use std::collections::{BTreeMap, BTreeSet};

use instructions::prompt::Response;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// What to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleSettings {
    /// Prompts a language, at most.
    pub prompts: usize,
    /// Systems, at most; all unless given. They are drawn once and not for each language.
    pub systems: Option<usize>,
    /// The seed: the same one draws the same sample.
    pub seed: u64,
}

/// A sample, and what it had to be drawn from.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The responses to rate: every drawn system's response to each prompt drawn.
    pub responses: Vec<Response>,
    /// For each language how many prompts were drawn, and how many could have been: those that every drawn system
    /// with responses in the language answered.
    pub prompts: BTreeMap<String, Drawn>,
}

/// How many prompts of a language were drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// Drawn.
    pub drawn: usize,
    /// Answered by all systems.
    pub shared: usize,
    /// Answered by any.
    pub answered: usize,
}

/// Draws systems, and then prompts of each language out of those that all of that language's systems answered: a
/// prompt that one did not answer cannot be compared. Parallel prompts are drawn alike in every language.
pub fn draw_sample(responses: &[Response], settings: SampleSettings) -> Sample {
    let systems = draw_systems(responses, settings);
    let mut languages: BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for response in responses.iter().filter(|response| systems.contains(response.system.as_str())) {
        let language = languages.entry(response.prompt.language.code()).or_default();
        language.entry(&response.prompt.id).or_default().insert(&response.system);
    }
    let mut chosen = BTreeSet::new();
    let mut prompts = BTreeMap::new();
    for (language, ids) in &languages {
        let shared = draw_prompts(ids, settings);
        let drawn = shared.len().min(settings.prompts);
        prompts.insert((*language).to_owned(), Drawn { drawn, shared: shared.len(), answered: ids.len() });
        chosen.extend(shared.into_iter().take(drawn).map(|id| (*language, id)));
    }
    let is_chosen = |response: &&Response| {
        systems.contains(response.system.as_str())
            && chosen.contains(&(response.prompt.language.code(), response.prompt.id.as_str()))
    };
    Sample { responses: responses.iter().filter(is_chosen).cloned().collect(), prompts }
}

fn draw_systems(responses: &[Response], settings: SampleSettings) -> BTreeSet<&str> {
    let all: BTreeSet<&str> = responses.iter().map(|response| response.system.as_str()).collect();
    let mut systems: Vec<&str> = all.into_iter().collect();
    systems.shuffle(&mut ChaCha8Rng::seed_from_u64(settings.seed));
    systems.into_iter().take(settings.systems.unwrap_or(usize::MAX)).collect()
}

/// The ids that all systems answered, in the order in which they are drawn.
fn draw_prompts<'a>(ids: &BTreeMap<&'a str, BTreeSet<&str>>, settings: SampleSettings) -> Vec<&'a str> {
    let systems: BTreeSet<&str> = ids.values().flatten().copied().collect();
    let mut shared: Vec<&str> =
        ids.iter().filter(|(_, answered)| **answered == systems).map(|(id, _)| *id).collect();
    shared.shuffle(&mut ChaCha8Rng::seed_from_u64(settings.seed));
    shared
}
