//! An experiment's mixes: its recipes under its budget.

use std::collections::HashMap;
use std::fmt;
use std::sync::RwLock;

use anyhow::{Context, Result};
use instructions::budget::{Budget, CountFlops, CountTokens, Held};
use instructions::language::Language;
use instructions::mix::{Mix, MixOptions, Sets, Split};
use instructions::recipe::Recipe;
use instructions::record::Record;
use instructions::template::Template;
use model::BaseModel;
use tune::TokenCounter;
use tune::cost::{Shape, sequence_flops};

use crate::experiment::{self, Experiment};
use crate::settings;

/// The paper holds 1,000 rows out.
const PAPER_VALIDATION_ROWS: usize = 1000;

/// What all mixes of an experiment are made under.
#[derive(Debug)]
pub struct Mixing {
    languages: Vec<Language>,
    budget: Budget,
    validation_rows: usize,
    split: Split,
    counting: Option<Counting>,
}

/// What a row's tokens and operations are counted by.
struct Counting {
    model: BaseModel,
    template: Template,
    cutoff: usize,
    shape: Shape,
    /// The tokens of each record that was counted, by its hash: every recipe and seed measures the same ones.
    counted: RwLock<HashMap<blake3::Hash, usize>>,
}

impl Mixing {
    /// What an experiment's mixes are made under. Opens the base model that counts, where tokens or FLOPs are held.
    ///
    /// # Errors
    /// A language code that is none; a base model that cannot be opened.
    pub fn new(experiment: &Experiment) -> Result<Self> {
        let languages: Result<Vec<Language>, _> = experiment.tuned_languages().map(str::parse).collect();
        let given = &experiment.budget;
        let budget = Budget {
            held: held(given.held),
            c: given.c.or(given.rows.map(|rows| rows as u64)),
            ..Budget::default()
        };
        Ok(Self {
            languages: languages?,
            budget,
            validation_rows: experiment.tune.validation_rows.unwrap_or(PAPER_VALIDATION_ROWS),
            split: match given.split {
                experiment::Split::Id => Split::Id,
                experiment::Split::Row => Split::Row,
            },
            counting: given.counts_tokens().then(|| Counting::new(experiment)).transpose()?,
        })
    }

    /// A recipe's mixes under one seed.
    ///
    /// # Errors
    /// As [`Recipe::mixes`]; a row that cannot be cut into tokens.
    pub fn of(&self, recipe: &Recipe, sets: &Sets, seed: u64) -> Result<Vec<Mix>> {
        let options = MixOptions {
            languages: self.languages.clone(),
            seed,
            budget: self.budget.clone(),
            validation_rows: self.validation_rows,
            split: self.split,
            ..MixOptions::default()
        };
        let Some(counting) = &self.counting else { return recipe.mixes(sets, &options) };
        let counter = TokenCounter::new(counting.model.tokenizer(), &counting.template, counting.cutoff);
        let count = |record: &Record| counting.count(record, &counter);
        let flops = |tokens: usize| sequence_flops(&counting.shape, tokens) as u64;
        let mixes = recipe.mixes(
            sets,
            &MixOptions { tokens: Some(&count as CountTokens), flops: Some(&flops as CountFlops), ..options },
        );
        counter.finish()?;
        mixes
    }
}

impl Counting {
    fn new(experiment: &Experiment) -> Result<Self> {
        let models = &experiment.base_model;
        let model = match &experiment.budget.base_model {
            Some(name) => models.iter().find(|model| model.name == *name),
            None => models.first(),
        };
        let model = model.context("no base model counts the budget")?;
        let path =
            model.path.as_deref().with_context(|| format!("base model `{}` has no path", model.name))?;
        let base = BaseModel::open(path)
            .with_context(|| format!("base model `{}`, which counts the budget", model.name))?;
        let grid = &experiment.experiment;
        let method = *grid.methods.first().context("no method")?;
        let given = experiment.tune.for_method(method);
        let settings = settings::tuning(grid.preset, method, &given, 0);
        let template = settings::template(grid.preset, Some(method), given.template.as_deref()).load(None)?;
        let shape = Shape::of(&base, &settings)?;
        Ok(Self { model: base, template, cutoff: settings.cutoff, shape, counted: RwLock::default() })
    }

    fn count(&self, record: &Record, counter: &TokenCounter) -> usize {
        let Ok(json) = serde_json::to_vec(record) else { return counter.count(record) };
        let hash = blake3::hash(&json);
        if let Some(tokens) = self.counted.read().ok().and_then(|counted| counted.get(&hash).copied()) {
            return tokens;
        }
        let tokens = counter.count(record);
        if let Ok(mut counted) = self.counted.write() {
            counted.insert(hash, tokens);
        }
        tokens
    }
}

impl fmt::Debug for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counting").field("cutoff", &self.cutoff).finish_non_exhaustive()
    }
}

fn held(held: experiment::Held) -> Held {
    match held {
        experiment::Held::Rows => Held::Rows,
        experiment::Held::Tokens => Held::Tokens,
        experiment::Held::Updates => Held::Updates,
        experiment::Held::Flops => Held::Flops,
    }
}
