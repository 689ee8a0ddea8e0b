//! Draws a sample of prompts to be rated by people.

use std::collections::{BTreeMap, BTreeSet};

use instructions::prompt::Response;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Draws up to `prompts` prompts a language, out of those that all of that language's systems answered, and
/// gives every system's response to them. The same seed draws the same sample.
pub fn draw_sample(responses: &[Response], prompts: usize, seed: u64) -> Vec<Response> {
    let mut languages: BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for response in responses {
        let language = languages.entry(response.prompt.language.code()).or_default();
        language.entry(&response.prompt.id).or_default().insert(&response.system);
    }
    let mut chosen = BTreeSet::new();
    for (language, ids) in &languages {
        let systems: BTreeSet<&str> = ids.values().flatten().copied().collect();
        let mut shared: Vec<&str> =
            ids.iter().filter(|(_, answered)| **answered == systems).map(|(id, _)| *id).collect();
        shared.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        chosen.extend(shared.into_iter().take(prompts).map(|id| (*language, id)));
    }
    let is_chosen = |response: &&Response| {
        chosen.contains(&(response.prompt.language.code(), response.prompt.id.as_str()))
    };
    responses.iter().filter(is_chosen).cloned().collect()
}
