//! The plan: an experiment's cells as a graph, each with the hash of everything that determines it.
//!
//! What several cells share is one cell: `english`, and `monolingual` in English, are one tuning; a mix serves
//! all base models and methods; a base model trained from scratch serves all its systems. Cells stand in an
//! order in which each comes after those that it needs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use instructions::language::Language;
use instructions::mix::Mix;
use serde_json::Value;

use crate::experiment::{self, Experiment, ExtraSystem, JudgeKind, Method};
use crate::inputs::{Inputs, content_hash, value_hash};
use crate::mixes::Mixing;
use crate::settings as resolve;
use crate::store::{Determinants, Key, Store};

/// Each counts up when what computes cells of that kind computes something else.
const BASE_MODEL_VERSION: u32 = 1;
const MIX_VERSION: u32 = 1;
const TUNING_VERSION: u32 = 1;
const ANSWERS_VERSION: u32 = 1;
const SCORES_VERSION: u32 = 1;

/// All cells of an experiment, and the systems that they make.
#[derive(Debug, Default)]
pub struct Plan {
    /// Each after those that it needs.
    pub cells: Vec<Cell>,
    /// In the order of the report.
    pub systems: Vec<System>,
    /// C, in what is held.
    pub c: u64,
    /// The content hash of each `[[base_model]]` from files.
    pub base_hashes: BTreeMap<String, String>,
    /// The content hashes of other models that were there before, by what they are: `the judge's model`.
    pub model_hashes: BTreeMap<String, String>,
    /// What is worth a warning, and stops nothing.
    pub warnings: Vec<String>,
    places: BTreeMap<Key, usize>,
}

/// One unit of planned work.
#[derive(Debug)]
pub struct Cell {
    /// What it is found by in the store.
    pub key: Key,
    /// What determines it.
    pub determinants: Determinants,
    /// The places in [`Plan::cells`] of the cells whose results it reads.
    pub needs: Vec<usize>,
    /// What is to be done.
    pub work: Work,
}

/// What a cell does. Numbers are places in the experiment's lists, or in [`Plan::cells`] where it says cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Trains a base model from scratch.
    BaseModel {
        /// In [`Experiment::base_model`].
        base_model: usize,
    },
    /// Writes a mix down.
    Mix {
        /// The mix.
        name: String,
        /// By which it is made.
        recipe: String,
        /// For its draws.
        seed: u64,
    },
    /// Tunes a base model.
    Tuning {
        /// In [`Experiment::base_model`].
        base_model: usize,
        /// The cell of the base model, where it is trained from scratch.
        base_cell: Option<usize>,
        /// The cell of the mix.
        mix: usize,
        /// How.
        method: Method,
        /// For the order of rows, the adapter's first weights and dropout.
        seed: u64,
    },
    /// Answers the prompts of one language.
    Answers {
        /// Who.
        answerer: Answerer,
        /// Which prompts.
        language: Language,
    },
    /// Gates and rates the responses of one language.
    Scores {
        /// The cell of the responses.
        answers: usize,
        /// Whose prompts.
        language: Language,
    },
}

/// Who answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answerer {
    /// A base model as it is, or under an adapter or weights that a tuning made.
    Model {
        /// In [`Experiment::base_model`].
        base_model: usize,
        /// The cell of the base model, where it is trained from scratch.
        base_cell: Option<usize>,
        /// The cell of the tuning.
        tuning: Option<usize>,
        /// In [`Experiment::system`]: an adapter that was there before.
        adapter: Option<usize>,
    },
    /// In [`Experiment::system`]: an endpoint.
    Endpoint(usize),
}

/// A system of the report, and the cells that make it.
#[derive(Debug, Clone, PartialEq)]
pub struct System {
    /// `pythia-70m/lora/multilingual/seed-0`.
    pub id: String,
    /// What it is.
    pub kind: report::records::SystemKind,
    /// The base model's name.
    pub base_model: Option<String>,
    /// How it was tuned.
    pub method: Option<Method>,
    /// The recipe's name.
    pub recipe: Option<String>,
    /// The languages of its mix.
    pub languages: Vec<Language>,
    /// The tuning's seed.
    pub seed: Option<u64>,
    /// The cells that make it: the base model's, the mix's, the tuning's.
    pub made_by: Vec<usize>,
    /// The cell of its tuning.
    pub tuning: Option<usize>,
    /// The mix's cost in units of C, and its rows.
    pub cost: Option<(f64, u64)>,
    /// For each language that it answers: the cells of its responses and of their scores.
    pub answers: Vec<(Language, usize, usize)>,
}

/// How a cell stands in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is there.
    Done,
    /// It is there, and the next run goes on with it: why.
    Incomplete(String),
    /// It is not there, and no cell of its name is.
    Missing,
    /// A cell of its name is there, and was determined by something else: what differs.
    Stale(Vec<String>),
}

/// What is hashed once for all cells.
struct Hashes {
    prompts: BTreeMap<Language, PromptHashes>,
    gate: String,
    judge_template: Option<String>,
    /// The content of a judge on this machine.
    judge_model: Option<String>,
}

/// The hashes of one language's prompts.
struct PromptHashes {
    /// Of what systems are asked.
    asked: String,
    /// Of all that the prompts say, references too.
    whole: String,
}

/// One recipe's mix under one seed, without its rows.
struct PlannedMix {
    name: String,
    recipe: String,
    languages: Vec<Language>,
    answers: Option<Language>,
    in_c: f64,
    rows: u64,
    /// How many updates it is trained for, where updates are held.
    updates: Option<u64>,
    cell: usize,
}

/// Who answers, as its cells refer to it.
struct Asked<'a> {
    /// The system's name.
    id: &'a str,
    answerer: Answerer,
    /// What determines who it is, by name.
    who: &'a [(&'a str, String)],
    /// The cells that make it.
    needs: &'a [usize],
}

/// A base model, as cells refer to it.
struct Base {
    number: usize,
    name: String,
    cell: Option<usize>,
    determinant: String,
}

/// A recipe of an experiment that cannot be mixed from its sets.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
pub struct Unmixed {
    /// The recipe's name.
    pub recipe: String,
    /// Why.
    pub error: anyhow::Error,
}

impl Plan {
    /// Plans an experiment whose inputs are read.
    ///
    /// # Errors
    /// A file that cannot be read or hashed; a set that is too small for C.
    pub fn new(experiment: &Experiment, inputs: &Inputs, mixing: &Mixing) -> Result<Self> {
        let mut plan = Self::default();
        let hashes = Hashes::new(experiment, inputs)?;
        let judge = hashes.judge_model.iter().map(|hash| ("the judge's model".to_owned(), hash.clone()));
        plan.model_hashes.extend(judge);
        let bases = plan.base_models(experiment)?;
        let mut mixes = Vec::new();
        for &seed in &experiment.experiment.seeds {
            mixes.push((seed, plan.mixes(experiment, inputs, mixing, seed)?));
        }
        for base in &bases {
            if experiment.experiment.include_base {
                plan.untuned(experiment, base, &hashes)?;
            }
            for method in experiment.methods_of(&experiment.base_model[base.number]) {
                for (seed, mixes) in &mixes {
                    for mix in mixes {
                        plan.tuned(experiment, base, method, *seed, mix, &hashes)?;
                    }
                }
            }
        }
        for (number, system) in experiment.system.iter().enumerate() {
            plan.extra(experiment, &bases, number, system, &hashes)?;
        }
        plan.warnings = plan.doubtful_tunings(experiment, mixes.iter().flat_map(|(_, mixes)| mixes));
        Ok(plan)
    }

    /// Tunings that end before their learning rate has risen, and those that do not see all rows that their recipe is told
    /// to cost.
    fn doubtful_tunings<'m>(
        &self,
        experiment: &Experiment,
        mixes: impl Iterator<Item = &'m PlannedMix>,
    ) -> Vec<String> {
        let mixes: BTreeMap<usize, &PlannedMix> = mixes.map(|mix| (mix.cell, mix)).collect();
        let (mut short, mut partial) = (Vec::new(), Vec::new());
        for cell in &self.cells {
            let Work::Tuning { mix, method, seed, .. } = cell.work else { continue };
            let Some(mix) = mixes.get(&mix) else { continue };
            let given = experiment.tune.for_method(method).with_updates(mix.updates);
            let settings = resolve::tuning(experiment.experiment.preset, method, &given, seed);
            let label = &cell.determinants.label;
            let told = settings.ends_in_warmup(mix.rows as usize);
            short.extend(told.map(|told| format!("{label}: {told}")));
            let seen = settings.updates(mix.rows as usize).saturating_mul(settings.batch as u64);
            if mix.updates.is_none() && seen < mix.rows {
                partial.push(format!(
                    "{label}: its updates see {seen} of the mix's {} rows, and the recipe's cost is told of all",
                    mix.rows
                ));
            }
        }
        [short, partial].into_iter().filter_map(first_of_many).collect()
    }

    /// How a cell stands in a store. `known` are the manifests of [`Store::list`].
    pub fn state(&self, cell: &Cell, store: &Store, known: &[Determinants]) -> State {
        if store.has(&cell.key) {
            return store.incomplete(&cell.key).map_or(State::Done, State::Incomplete);
        }
        // Of all earlier cells of this name, the one that differs least explains best.
        let earlier = known
            .iter()
            .filter(|other| other.kind == cell.determinants.kind && other.label == cell.determinants.label);
        let differences = earlier.map(|other| cell.determinants.differences(other)).min_by_key(Vec::len);
        differences.map_or(State::Missing, State::Stale)
    }

    /// Adds a cell, or finds the one that is determined by the same.
    fn add(&mut self, determinants: Determinants, needs: Vec<usize>, work: Work) -> usize {
        let key = determinants.key();
        *self.places.entry(key).or_insert_with(|| {
            self.cells.push(Cell { key, determinants, needs, work });
            self.cells.len() - 1
        })
    }

    fn base_models(&mut self, experiment: &Experiment) -> Result<Vec<Base>> {
        let mut bases = Vec::new();
        for (number, model) in experiment.base_model.iter().enumerate() {
            let name = model.name.clone();
            let base = if let Some(path) = &model.path {
                let hash = content_hash(path).with_context(|| format!("base model `{name}`"))?;
                self.base_hashes.insert(name.clone(), hash.clone());
                Base { number, name, cell: None, determinant: hash }
            } else {
                let mut determinants = from_scratch(model)?;
                device(&mut determinants, experiment);
                let determinant = determinants.key().to_string();
                let cell = self.add(determinants, Vec::new(), Work::BaseModel { base_model: number });
                Base { number, name, cell: Some(cell), determinant }
            };
            bases.push(base);
        }
        Ok(bases)
    }

    fn mixes(
        &mut self,
        experiment: &Experiment,
        inputs: &Inputs,
        mixing: &Mixing,
        seed: u64,
    ) -> Result<Vec<PlannedMix>> {
        let asked = languages(experiment)?;
        let mut planned = Vec::new();
        for name in &experiment.experiment.recipes {
            let recipe = experiment.recipe(name).with_context(|| format!("unknown recipe `{name}`"))?;
            let mixes = mixing.of(&recipe, &inputs.sets, seed);
            for mix in mixes.map_err(|error| Unmixed { recipe: name.clone(), error })? {
                self.c = mix.manifest.cost.c;
                // Nobody asks a system of a language that is trained on alone.
                if mix.answers.as_ref().is_none_or(|language| asked.contains(language)) {
                    planned.push(self.mix(&mix, seed));
                }
            }
        }
        Ok(planned)
    }

    fn mix(&mut self, mix: &Mix, seed: u64) -> PlannedMix {
        let label = format!("mix/{}/seed-{seed}", mix.name);
        let mut determinants = Determinants::new("mix", MIX_VERSION, &label);
        // The rows themselves: two recipes that come to the same rows are one mix.
        determinants.add("content", &mix.manifest.hash);
        if let Some(updates) = mix.manifest.updates {
            determinants.add("updates", updates);
        }
        let work = Work::Mix { name: mix.name.clone(), recipe: mix.recipe.clone(), seed };
        PlannedMix {
            name: mix.name.clone(),
            recipe: mix.recipe.clone(),
            languages: mix.languages.clone(),
            answers: mix.answers.clone(),
            in_c: mix.manifest.cost.in_c,
            rows: mix.rows.len() as u64,
            updates: mix.manifest.updates,
            cell: self.add(determinants, Vec::new(), work),
        }
    }

    fn untuned(&mut self, experiment: &Experiment, base: &Base, hashes: &Hashes) -> Result<()> {
        let answerer =
            Answerer::Model { base_model: base.number, base_cell: base.cell, tuning: None, adapter: None };
        let id = format!("{}/base", base.name);
        let who = [("base_model", base.determinant.clone())];
        let needs: Vec<usize> = base.cell.into_iter().collect();
        let asked = Asked { id: &id, answerer, who: &who, needs: &needs };
        let answers = self.answers(experiment, &asked, &languages(experiment)?, hashes)?;
        self.systems.push(System {
            id,
            kind: report::records::SystemKind::Base,
            base_model: Some(base.name.clone()),
            method: None,
            recipe: None,
            languages: Vec::new(),
            seed: None,
            made_by: needs,
            tuning: None,
            cost: None,
            answers,
        });
        Ok(())
    }

    fn tuned(
        &mut self,
        experiment: &Experiment,
        base: &Base,
        method: Method,
        seed: u64,
        mix: &PlannedMix,
        hashes: &Hashes,
    ) -> Result<()> {
        let id = format!("{}/{}/{}/seed-{seed}", base.name, method.name(), mix.name);
        let tuning = self.tuning(experiment, &id, base, method, seed, mix)?;
        let answerer = Answerer::Model {
            base_model: base.number,
            base_cell: base.cell,
            tuning: Some(tuning),
            adapter: None,
        };
        let languages = match &mix.answers {
            Some(language) => vec![language.clone()],
            None => languages(experiment)?,
        };
        let who = [("tuning", self.cells[tuning].key.to_string())];
        let needs: Vec<usize> = base.cell.into_iter().chain([tuning]).collect();
        let asked = Asked { id: &id, answerer, who: &who, needs: &needs };
        let answers = self.answers(experiment, &asked, &languages, hashes)?;
        let system = System {
            id,
            kind: report::records::SystemKind::Tuned,
            base_model: Some(base.name.clone()),
            method: Some(method),
            recipe: Some(mix.recipe.clone()),
            languages: mix.languages.clone(),
            seed: Some(seed),
            made_by: base.cell.into_iter().chain([mix.cell, tuning]).collect(),
            tuning: Some(tuning),
            cost: Some((mix.in_c, mix.rows)),
            answers,
        };
        // A tuning that serves two recipes is one system, under the recipe in which it answers more languages.
        match self.systems.iter_mut().find(|other| other.tuning == Some(tuning)) {
            Some(other) if other.answers.len() < system.answers.len() => *other = system,
            Some(_) => {}
            None => self.systems.push(system),
        }
        Ok(())
    }

    /// The cell of a tuning.
    fn tuning(
        &mut self,
        experiment: &Experiment,
        id: &str,
        base: &Base,
        method: Method,
        seed: u64,
        mix: &PlannedMix,
    ) -> Result<usize> {
        let mut determinants = Determinants::new("tuning", TUNING_VERSION, &format!("tuning/{id}"));
        determinants.add("base_model", &base.determinant);
        determinants.add("mix", self.cells[mix.cell].key);
        determinants.add("method", method.name());
        determinants.add("seed", seed);
        device(&mut determinants, experiment);
        let given = experiment.tune.for_method(method).with_updates(mix.updates);
        let preset = experiment.experiment.preset;
        let mut resolved = serde_json::to_value(resolve::tuning(preset, method, &given, seed))?;
        if let Some(resolved) = resolved.as_object_mut() {
            // How often a checkpoint is written changes no result.
            resolved.remove("checkpoint_every");
        }
        let template = resolve::template(preset, Some(method), given.template.as_deref());
        resolved["template"] = template.to_string().into();
        settings(&mut determinants, "tune", &resolved)?;
        let needs = base.cell.into_iter().chain([mix.cell]).collect();
        let (base_model, base_cell) = (base.number, base.cell);
        Ok(self.add(determinants, needs, Work::Tuning { base_model, base_cell, mix: mix.cell, method, seed }))
    }

    fn extra(
        &mut self,
        experiment: &Experiment,
        bases: &[Base],
        number: usize,
        extra: &ExtraSystem,
        hashes: &Hashes,
    ) -> Result<()> {
        let base = bases.iter().find(|base| Some(&base.name) == extra.base_model.as_ref());
        let (kind, answerer, who, needs) = match (&extra.adapter, base) {
            (Some(adapter), Some(base)) => {
                let hash = content_hash(adapter).with_context(|| format!("adapter `{}`", extra.name))?;
                self.model_hashes.insert(format!("the adapter {}", extra.name), hash.clone());
                let answerer = Answerer::Model {
                    base_model: base.number,
                    base_cell: base.cell,
                    tuning: None,
                    adapter: Some(number),
                };
                let who = vec![("base_model", base.determinant.clone()), ("adapter", hash)];
                (report::records::SystemKind::Adapter, answerer, who, base.cell.into_iter().collect())
            }
            _ => {
                let endpoint = extra.endpoint.clone().unwrap_or_default();
                let who = vec![("endpoint", endpoint), ("model", extra.model.clone().unwrap_or_default())];
                let kind = report::records::SystemKind::Endpoint;
                (kind, Answerer::Endpoint(number), who, Vec::<usize>::new())
            }
        };
        let asked = Asked { id: &extra.name, answerer, who: &who, needs: &needs };
        let answers = self.answers(experiment, &asked, &languages(experiment)?, hashes)?;
        self.systems.push(System {
            id: extra.name.clone(),
            kind,
            base_model: extra.base_model.clone(),
            method: None,
            recipe: None,
            languages: Vec::new(),
            seed: None,
            made_by: needs,
            tuning: None,
            cost: None,
            answers,
        });
        Ok(())
    }

    /// A system's responses in each language, and their scores.
    fn answers(
        &mut self,
        experiment: &Experiment,
        asked: &Asked,
        languages: &[Language],
        hashes: &Hashes,
    ) -> Result<Vec<(Language, usize, usize)>> {
        let mut cells = Vec::new();
        for language in languages {
            let answers = self.responses(experiment, asked, language, hashes)?;
            let scores = self.scores(experiment, asked.id, answers, language, hashes)?;
            cells.push((language.clone(), answers, scores));
        }
        Ok(cells)
    }

    fn responses(
        &mut self,
        experiment: &Experiment,
        asked: &Asked,
        language: &Language,
        hashes: &Hashes,
    ) -> Result<usize> {
        let label = format!("answers/{}/{language}", asked.id);
        let mut determinants = Determinants::new("answers", ANSWERS_VERSION, &label);
        for (name, value) in asked.who {
            determinants.add(*name, value);
        }
        determinants.add("prompts", &hashes.prompts(language)?.asked);
        match &asked.answerer {
            Answerer::Model { tuning, .. } => {
                device(&mut determinants, experiment);
                let resolved = self.decoding(experiment, *tuning)?;
                settings(&mut determinants, "answer", &resolved)?;
            }
            Answerer::Endpoint(_) => {
                settings(&mut determinants, "answer", &resolve::endpoint_decoding(&experiment.answer))?;
            }
        }
        let work = Work::Answers { answerer: asked.answerer.clone(), language: language.clone() };
        Ok(self.add(determinants, asked.needs.to_vec(), work))
    }

    /// All that determines how a model on this machine decodes.
    fn decoding(&self, experiment: &Experiment, tuning: Option<usize>) -> Result<Value> {
        let method = tuning.and_then(|tuning| match self.cells[tuning].work {
            Work::Tuning { method, .. } => Some(method),
            _ => None,
        });
        let given = &experiment.answer;
        let preset = experiment.experiment.preset;
        let mut resolved = serde_json::to_value(resolve::decoding(preset, method, given))?;
        if let Some(resolved) = resolved.as_object_mut() {
            // How much is in flight at once changes no response.
            resolved.remove("batch_tokens");
            resolved.remove("cache_bytes");
        }
        let template = given.template.as_ref().or(experiment.tune.template.as_ref());
        resolved["template"] =
            resolve::template(preset, method, template.map(String::as_str)).to_string().into();
        Ok(resolved)
    }

    fn scores(
        &mut self,
        experiment: &Experiment,
        id: &str,
        answers: usize,
        language: &Language,
        hashes: &Hashes,
    ) -> Result<usize> {
        let label = format!("scores/{id}/{language}");
        let mut determinants = Determinants::new("scores", SCORES_VERSION, &label);
        determinants.add("answers", self.cells[answers].key);
        determinants.add("prompts", &hashes.prompts(language)?.whole);
        determinants.add("gate.lid", &hashes.gate);
        determinants.add("gate.set_aside_code", experiment.gate.set_aside_code);
        judge(&mut determinants, &experiment.judge, hashes);
        let work = Work::Scores { answers, language: language.clone() };
        Ok(self.add(determinants, vec![answers], work))
    }
}

impl Hashes {
    fn new(experiment: &Experiment, inputs: &Inputs) -> Result<Self> {
        let mut prompts = BTreeMap::new();
        for (language, list) in &inputs.prompts {
            // A changed reference asks for new scores, not for new responses.
            let asked: Vec<_> =
                list.iter().map(|prompt| (&prompt.id, &prompt.prompt, &prompt.response_language)).collect();
            let hashes = PromptHashes { asked: value_hash(&asked)?, whole: value_hash(list)? };
            prompts.insert(language.clone(), hashes);
        }
        let gate = match &experiment.gate.lid {
            Some(path) => content_hash(path)?,
            None => "lingua".to_owned(),
        };
        let judge_template = experiment.judge.prompt_template.as_deref().map(content_hash).transpose()?;
        let judge_model = experiment.judge.path.as_deref().map(content_hash).transpose()?;
        Ok(Self { prompts, gate, judge_template, judge_model })
    }

    fn prompts(&self, language: &Language) -> Result<&PromptHashes> {
        self.prompts.get(language).with_context(|| format!("no prompts in `{language}`"))
    }
}

/// The first of some warnings, with the number of the others.
fn first_of_many(warnings: Vec<String>) -> Option<String> {
    let first = warnings.first()?;
    Some(match warnings.len() - 1 {
        0 => first.clone(),
        others => format!("{first} (and {others} other tunings)"),
    })
}

fn languages(experiment: &Experiment) -> Result<Vec<Language>> {
    let parse = |code: &str| code.parse().with_context(|| format!("the language code `{code}`"));
    experiment.all_languages().map(parse).collect()
}

/// A GPU's products are in fewer bits, and so its results are others. The processor goes without saying.
fn device(determinants: &mut Determinants, experiment: &Experiment) {
    if experiment.experiment.device == experiment::Device::Cuda {
        determinants.add("device", "cuda");
    }
}

fn from_scratch(model: &experiment::BaseModel) -> Result<Determinants> {
    let label = format!("base-model/{}", model.name);
    let mut determinants = Determinants::new("base-model", BASE_MODEL_VERSION, &label);
    let config = model.config.as_deref().context("a base model has neither `path` nor `config`")?;
    determinants.add("config", content_hash(config)?);
    for (code, files) in &model.text {
        let hashes: Result<Vec<String>, _> = files.iter().map(|path| content_hash(path)).collect();
        determinants.add(format!("text.{code}"), hashes?.join(","));
    }
    determinants.add("tokenizer_vocabulary", model.tokenizer_vocabulary.unwrap_or_default());
    settings(&mut determinants, "pretraining", &model.pretraining)?;
    Ok(determinants)
}

fn judge(determinants: &mut Determinants, judge: &experiment::Judge, hashes: &Hashes) {
    let template = hashes.judge_template.as_ref();
    match judge.kind {
        JudgeKind::Local => {
            determinants.add("judge.kind", "local");
            determinants.add("judge.model", hashes.judge_model.as_deref().unwrap_or_default());
            determinants.add("judge.prompt_template", template.map_or("built-in", String::as_str));
        }
        JudgeKind::Openai => {
            determinants.add("judge.kind", "openai");
            determinants.add("judge.endpoint", judge.endpoint.as_deref().unwrap_or_default());
            determinants.add("judge.model", judge.model.as_deref().unwrap_or_default());
            determinants.add("judge.prompt_template", template.map_or("built-in", String::as_str));
        }
        JudgeKind::Reference => {
            determinants.add("judge.kind", "reference");
            determinants.add("judge.thresholds", format!("{:?}", judge.thresholds));
        }
    }
}

/// Adds every setting that is given, by its dotted name. A template file counts by its content.
fn settings(determinants: &mut Determinants, section: &str, value: &impl serde::Serialize) -> Result<()> {
    for (name, value) in flattened(section, &serde_json::to_value(value)?) {
        let template = value.as_str().filter(|_| name.ends_with(".template")).map(Path::new);
        match template.filter(|path| path.is_file()) {
            Some(path) => determinants.add(name, content_hash(path)?),
            None => determinants.add(name, value),
        }
    }
    Ok(())
}

/// The leaves of a JSON value by their dotted names; `null` is left out.
pub fn flattened(section: &str, value: &Value) -> BTreeMap<String, Value> {
    let mut leaves = BTreeMap::new();
    match value {
        Value::Object(values) => {
            for (name, value) in values {
                leaves.extend(flattened(&format!("{section}.{name}"), value));
            }
        }
        Value::Null => {}
        leaf => {
            leaves.insert(section.to_owned(), leaf.clone());
        }
    }
    leaves
}
