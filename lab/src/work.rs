//! What each kind of cell does: the rooms' work, on a cell's folder.
//!
//! | cell | its folder holds |
//! | --- | --- |
//! | base model | `model/`: a Hugging Face folder |
//! | mix | `rows.jsonl`, `validation.jsonl`, `manifest.json` |
//! | tuning | `system/`: a PEFT or a Hugging Face folder; `tuning.json`; `metrics.jsonl` |
//! | answers | `responses.jsonl` |
//! | scores | `scores.jsonl`: the report's records; `ratings.jsonl`: the judge's |

mod endpoint;
mod scores;
mod seams;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use instructions::language::Language;
use instructions::mix::Mix;
use instructions::prompt::{Prompt, Response, write_responses};

pub use scores::{RATINGS_FILE, SCORES_FILE, read_scores};
pub use seams::{AnswerJob, Answerer as AnswerRoom, Tuner, TuningJob, TuningRecord};

use crate::experiment::{Experiment, Method};
use crate::inputs::Inputs;
use crate::mixes::Mixing;
use crate::plan::{Answerer, Cell, Plan, Work};
use crate::progress::CellProgress;
use crate::run::{Needs, Threads, Worker};
use crate::store::write_atomically;

/// In a tuning's folder: the adapter or the weights.
pub const SYSTEM_FOLDER: &str = "system";
/// In a tuning's folder: a [`TuningRecord`].
pub const TUNING_FILE: &str = "tuning.json";
/// In the folder of a base model trained from scratch: the model.
pub const MODEL_FOLDER: &str = "model";
/// In an answers folder: the responses.
pub const RESPONSES_FILE: &str = "responses.jsonl";
/// In the work folder of answers: responses as they come, until all are there.
const KEPT_FILE: &str = "responses.partial.jsonl";

/// Does the cells of one experiment with the rooms.
pub struct Rooms<'a> {
    /// What is asked for.
    pub experiment: &'a Experiment,
    /// Its sets and prompts.
    pub inputs: &'a Inputs,
    /// What its mixes are made under.
    pub mixing: &'a Mixing,
    /// Its cells.
    pub plan: &'a Plan,
    /// Trains base models and tunes them.
    pub tuner: &'a dyn Tuner,
    /// Answers prompts with them.
    pub answerer: &'a dyn AnswerRoom,
    /// Identifies the languages of responses.
    pub identifier: &'a dyn judge::identify::Identifier,
    /// Rates responses.
    pub judge: &'a (dyn judge::judging::Judge + Sync),
}

/// A base model of at most so many bytes does not fill a second thread: two tunings of it at once take less time than
/// one after the other (BENCHMARKS.md), and so small a model's memory does not matter.
pub(crate) const SMALL_MODEL: u64 = 64 << 20;

impl Worker for Rooms<'_> {
    fn threads(&self, cell: &Cell, needs: &Needs) -> Threads {
        match cell.work {
            // A GPU is not divided.
            Work::Tuning { base_model, base_cell, .. }
                if self.experiment.experiment.device.is_cpu()
                    && self
                        .base(base_model, base_cell, needs)
                        .is_ok_and(|base| bytes(&base) <= SMALL_MODEL) =>
            {
                Threads::One
            }
            _ => Threads::All,
        }
    }

    fn make_room(&self, cell: &Cell) {
        // A model that was kept for further answers would stand beside the one that is trained.
        if matches!(cell.work, Work::BaseModel { .. } | Work::Tuning { .. }) {
            self.answerer.rest();
        }
    }

    fn work(&self, cell: &Cell, needs: &Needs, folder: &Path, progress: &CellProgress) -> Result<()> {
        match &cell.work {
            Work::BaseModel { base_model } => {
                self.tuner.pretrain(&self.experiment.base_model[*base_model], folder, progress)
            }
            Work::Mix { name, recipe, seed } => self.mix(name, recipe, *seed)?.write(folder),
            Work::Tuning { base_model, base_cell, mix, method, seed } => {
                let base = self.base(*base_model, *base_cell, needs)?;
                let mix = Mix::read(needs.folder(*mix)?)?;
                let settings = self.experiment.tune.for_method(*method).with_updates(mix.manifest.updates);
                let job = TuningJob {
                    base: &base,
                    mix: &mix,
                    method: *method,
                    seed: *seed,
                    preset: self.experiment.experiment.preset,
                    settings: &settings,
                    tensorboard: self.experiment.tracking.tensorboard,
                };
                let record = self.tuner.tune(&job, folder, progress)?;
                write_atomically(&folder.join(TUNING_FILE), &serde_json::to_vec_pretty(&record)?)?;
                Ok(())
            }
            Work::Answers { answerer, language } => {
                let prompts = self.prompts(language)?;
                let kept = folder.join(KEPT_FILE);
                let texts = self.answer(answerer, prompts, needs, &kept, progress)?;
                anyhow::ensure!(
                    texts.len() == prompts.len(),
                    "{} responses to {} prompts",
                    texts.len(),
                    prompts.len()
                );
                let responses: Vec<Response> = prompts
                    .iter()
                    .zip(texts)
                    // Under which name a system is reported is the experiment's choice; its cell has its own.
                    .map(|(prompt, response)| Response {
                        prompt: prompt.clone(),
                        response,
                        system: cell.key.short(),
                    })
                    .collect();
                write_responses(&folder.join(RESPONSES_FILE), &responses)?;
                match fs::remove_file(&kept) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        Err(error).with_context(|| format!("cannot remove {}", kept.display()))
                    }
                    _ => Ok(()),
                }
            }
            Work::Scores { answers, language } => {
                let prompts = self.prompts(language)?;
                scores::score(self, needs.folder(*answers)?, prompts, folder, progress)
            }
        }
    }
}

impl Rooms<'_> {
    /// Makes one of a recipe's mixes.
    fn mix(&self, name: &str, recipe: &str, seed: u64) -> Result<Mix> {
        let recipe = self.experiment.recipe(recipe).with_context(|| format!("unknown recipe `{recipe}`"))?;
        let mixes = self.mixing.of(&recipe, &self.inputs.sets, seed)?;
        let found = mixes.into_iter().find(|mix| mix.name == name);
        let mut mix = found.with_context(|| format!("the recipe `{}` makes no mix `{name}`", recipe.name))?;
        for (language, problems) in &self.inputs.unread {
            if mix.manifest.languages.contains_key(language) {
                mix.manifest.add_unread(language, problems);
            }
        }
        for left in &self.inputs.left_out {
            if mix.manifest.languages.contains_key(&left.language) {
                mix.manifest.left_out.push(left.clone());
            }
        }
        Ok(mix)
    }

    fn prompts(&self, language: &Language) -> Result<&[Prompt]> {
        let prompts = self.inputs.prompts.get(language);
        prompts.map(Vec::as_slice).with_context(|| format!("no prompts in `{language}`"))
    }

    /// Where a base model lies.
    fn base(&self, number: usize, cell: Option<usize>, needs: &Needs) -> Result<PathBuf> {
        match cell {
            Some(cell) => Ok(needs.folder(cell)?.join(MODEL_FOLDER)),
            None => {
                let model = &self.experiment.base_model[number];
                model.path.clone().with_context(|| format!("base model `{}` has no path", model.name))
            }
        }
    }

    fn answer(
        &self,
        answerer: &Answerer,
        prompts: &[Prompt],
        needs: &Needs,
        kept: &Path,
        progress: &CellProgress,
    ) -> Result<Vec<String>> {
        let (base_model, base_cell, tuning, adapter) = match answerer {
            Answerer::Endpoint(number) => {
                let system = &self.experiment.system[*number];
                return endpoint::answer(system, &self.experiment.answer, prompts, kept, progress);
            }
            Answerer::Model { base_model, base_cell, tuning, adapter } => {
                (*base_model, *base_cell, *tuning, *adapter)
            }
        };
        let base = self.base(base_model, base_cell, needs)?;
        let tuned =
            tuning.map(|cell| needs.folder(cell).map(|folder| folder.join(SYSTEM_FOLDER))).transpose()?;
        let method = tuning.and_then(|cell| match self.plan.cells[cell].work {
            Work::Tuning { method, .. } => Some(method),
            _ => None,
        });
        let adapter = match adapter {
            Some(number) => self.experiment.system[number].adapter.clone(),
            None => tuned.clone().filter(|_| method == Some(Method::Lora)),
        };
        let model = tuned.filter(|_| method == Some(Method::Full)).unwrap_or(base);
        let mut settings = self.experiment.answer.clone();
        settings.template = settings.template.or(self.experiment.tune.template.clone());
        let job = AnswerJob {
            model: &model,
            adapter: adapter.as_deref(),
            method,
            preset: self.experiment.experiment.preset,
            prompts,
            settings: &settings,
            kept,
        };
        self.answerer.answer(&job, progress)
    }
}

/// The bytes of a file, or of the files in a folder.
pub(crate) fn bytes(path: &Path) -> u64 {
    let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| length(&entry.path())).sum(),
        Err(_) => length(path),
    }
}

/// Reads what a tuning took, from its cell's folder.
///
/// # Errors
/// Where the file cannot be read.
pub fn read_tuning(folder: &Path) -> Result<TuningRecord> {
    let path = folder.join(TUNING_FILE);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}
