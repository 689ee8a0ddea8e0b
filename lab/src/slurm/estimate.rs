//! What a cell is thought to take, before any of its kind has been tried: rough, and on the safe side. The cluster's own
//! verdict (killed for want of memory, or of time) corrects it.

use std::fs;
use std::path::Path;

use super::Estimate;
use crate::experiment::{Experiment, JudgeKind, Method};
use crate::inputs::Inputs;
use crate::plan::{Answerer, Cell, Plan, Work};
use crate::settings;
use crate::work::{SMALL_MODEL, bytes};

/// What the program takes without a model: its own data, and the identifier's.
const PROGRAM: u64 = 2 << 30;
/// Held for each byte of a model's file: the weights as they are, packed, and as f32 where they are half as wide.
const FROZEN: u64 = 4;
/// The same where every weight is trained: with gradients and both moments.
const TRAINED: u64 = 12;
/// Floating-point operations a second of one core: a tenth of what a good one reaches.
const SPEED: f64 = 1e10;
/// The bytes of a parameter in a file.
const BYTES: f64 = 2.0;
/// A base model that is yet to be trained is thought to be small.
const FROM_SCRATCH: u64 = 64 << 20;

/// What a cell is thought to take on so many cores.
pub fn estimate(
    experiment: &Experiment,
    inputs: &Inputs,
    plan: &Plan,
    cell: &Cell,
    cores: usize,
) -> Estimate {
    let size = |number: usize| experiment.base_model[number].path.as_deref().map_or(FROM_SCRATCH, bytes);
    let speed = SPEED * cores.max(1) as f64;
    let preset = experiment.experiment.preset;
    match &cell.work {
        Work::Mix { .. } => of(0, 1.0, false),
        Work::BaseModel { base_model } => {
            let model = &experiment.base_model[*base_model];
            let text: u64 = model.text.values().flat_map(|files| files.iter()).map(|path| length(path)).sum();
            let given = model.pretraining.as_ref();
            let tokens = given.map_or(0.0, |given| match given.updates {
                Some(updates) => updates as f64 * (given.batch * given.cutoff) as f64,
                // A token is some three bytes of text.
                None => given.epochs.unwrap_or(1.0) * text as f64 / 3.0,
            });
            let size = size(*base_model);
            of(size * TRAINED, 6.0 * tokens * size as f64 / BYTES / speed, false)
        }
        Work::Tuning { base_model, method, seed, .. } => {
            let tune = settings::tuning(preset, *method, &experiment.tune.for_method(*method), *seed);
            let updates = match tune.length {
                tune::Length::Updates(updates) => updates as f64,
                tune::Length::Epochs(epochs) => {
                    let largest = inputs.sets.iter().map(|set| set.records.len()).sum::<usize>();
                    epochs * largest.min(plan.c as usize * experiment.experiment.languages.len()) as f64
                        / tune.batch as f64
                }
            };
            let tokens = updates * (tune.batch * tune.cutoff) as f64;
            let size = size(*base_model);
            let (held, products) = match method {
                Method::Lora => (FROZEN, 4.0),
                Method::Full => (TRAINED, 6.0),
            };
            let small = size <= SMALL_MODEL;
            // Beside others it has one core.
            let speed = if small { SPEED } else { speed };
            of(size * held, products * tokens * size as f64 / BYTES / speed, small)
        }
        Work::Answers { answerer, language } => {
            let size = match answerer {
                Answerer::Model { base_model, .. } => size(*base_model),
                Answerer::Endpoint(_) => 0,
            };
            let decoding = settings::decoding(preset, None, &experiment.answer);
            let prompts = inputs.prompts.get(language).map_or(0, Vec::len);
            let tokens = (prompts * decoding.new_tokens * decoding.beams.max(1)) as f64;
            of(size * FROZEN, 2.0 * tokens * size as f64 / BYTES / speed, false)
        }
        Work::Scores { .. } => {
            let judge =
                experiment.judge.path.as_deref().filter(|_| experiment.judge.kind == JudgeKind::Local);
            let size = judge.map_or(0, bytes);
            // A local judge writes some 500 tokens to each of some 50 responses.
            of(size * FROZEN, 5.0 + 2.0 * 25_000.0 * size as f64 / BYTES / speed, false)
        }
    }
}

/// Bytes of a model and seconds of work, with what the program itself takes.
fn of(bytes: u64, seconds: f64, small: bool) -> Estimate {
    Estimate { memory: (PROGRAM + bytes).div_ceil(1 << 20), seconds: 10.0 + seconds, small }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}
