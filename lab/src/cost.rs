//! What a plan's cells take: tokens, floating-point operations, memory, hours, a judge's price, disk.
//!
//! A tuning's tokens and operations are exact: its rows are cut into tokens by its own tokenizer, and the rooms count
//! by the same functions when they work. Answers and judging are bounded from above: every response as long as it may
//! be, of the longest tokens, on every beam; every search begun once, and every rating asked for once. (What asking again
//! costs, the judge's `cap` bounds.) Hours come from finished cells of the kind, or from a
//! [`calibration`].

pub mod calibration;
mod rows;
mod within;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use answer::Limits;
use anyhow::{Context, Result};
use engine::WorkspacePlan;
use engine::decoder::cache::PAGE_SIZE;
use engine::decoder::config::DecoderConfig;
use engine::decoder::cost::{self as passes, Lengths, ModuleShape};
use instructions::mix::Mix;
use instructions::prompt::Prompt;
use judge::prompt_template::PromptTemplate;
use model::BaseModel;
use serde::Serialize;
use tune::cost::{RowLength, Shape};

pub use calibration::{Calibration, Rate};
pub use within::{Budget, Drops, drops};

use crate::experiment::{JudgeKind, Method};
use crate::local::Prepared;
use crate::plan::{Answerer, Cell, Work};
use crate::rooms::{self, NewModel};
use crate::run::side_by_side;
use crate::settings;
use crate::store::Store;
use crate::work::{MODEL_FOLDER, SMALL_MODEL, TUNING_FILE, TuningRecord, bytes, read_scores};
use rows::{Encoder, RowLengths};

/// What one cell takes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CellCost {
    /// Tokens that go through a model: trained on, read or written.
    pub tokens: u64,
    /// Floating-point operations, a multiply-add counted as two.
    pub flops: f64,
    /// Those of a tuning's measurements of the validation loss, which are not among `flops` and take time all the same.
    pub validation_flops: f64,
    /// Whether tokens and operations are upper bounds; otherwise they are exact.
    pub at_most: bool,
    /// The process at its largest, in bytes; 0 where the work is small.
    pub memory_bytes: u64,
    /// Seconds of work, where there is something to tell them from.
    pub seconds: Option<f64>,
    /// How many such cells are worked on at once on this machine.
    pub at_once: usize,
    /// Requests to a judge, or to a system, over a network.
    pub requests: u64,
    /// A judge's price at most, in dollars; none where the judge has no price.
    pub dollars: Option<f64>,
    /// What it leaves on the disk, in bytes.
    pub disk_bytes: u64,
}

impl CellCost {
    /// The operations that take the cell's time.
    fn timed_flops(&self) -> f64 {
        self.flops + self.validation_flops
    }
}

/// Works costs out, cell by cell.
pub struct Estimator<'a> {
    prepared: &'a Prepared,
    store: &'a Store,
    calibration: &'a Calibration,
    threads: usize,
    process: u64,
    encoder: Encoder,
    bases: BTreeMap<usize, Base>,
    shapes: BTreeMap<(usize, Method, tune::FrozenWeights), Shape>,
    mixes: BTreeMap<(String, u64), Mix>,
    /// Seconds by operation of finished cells of a kind and base model: `(seconds, operations)` in all.
    finished: BTreeMap<(String, usize), (f64, f64)>,
}

/// A base model as it is, or as it will be.
struct Base {
    model: BaseModel,
    small: bool,
    /// What is held of it beside its weights, in bytes: the tokenizer above all.
    opened: u64,
    /// The bytes of the longest text that one token comes to.
    longest_token: u64,
    /// For a model that is not trained yet.
    new: Option<NewModel>,
}

impl<'a> Estimator<'a> {
    /// For the cells of an experiment on `threads` threads.
    ///
    /// # Errors
    /// A mix that cannot be made.
    pub fn new(
        prepared: &'a Prepared,
        store: &'a Store,
        calibration: &'a Calibration,
        threads: usize,
    ) -> Result<Self> {
        let mut mixes = BTreeMap::new();
        let experiment = &prepared.experiment;
        for &seed in &experiment.experiment.seeds {
            for name in &experiment.experiment.recipes {
                let recipe = experiment.recipe(name).with_context(|| format!("unknown recipe `{name}`"))?;
                for mix in prepared.mixing.of(&recipe, &prepared.inputs.sets, seed)? {
                    mixes.insert((mix.name.clone(), seed), mix);
                }
            }
        }
        Ok(Self {
            prepared,
            store,
            calibration,
            threads,
            process: program_bytes(),
            encoder: Encoder::default(),
            bases: BTreeMap::new(),
            shapes: BTreeMap::new(),
            mixes,
            finished: BTreeMap::new(),
        })
    }

    /// What every cell takes, in the plan's order.
    ///
    /// # Errors
    /// A model that cannot be opened, a text that cannot be cut into tokens.
    pub fn all(&mut self) -> Result<Vec<CellCost>> {
        let cells = &self.prepared.plan.cells;
        let mut costs = Vec::with_capacity(cells.len());
        for cell in cells {
            let cost = self.cell(cell).with_context(|| cell.determinants.label.clone())?;
            self.learn(cell, &cost);
            costs.push(cost);
        }
        // Hours last: a cell late in the plan may be finished, and tell of those before it.
        for (cell, cost) in cells.iter().zip(&mut costs) {
            cost.seconds = self.seconds(cell, cost);
        }
        Ok(costs)
    }

    /// What one cell takes, its seconds apart.
    fn cell(&mut self, cell: &Cell) -> Result<CellCost> {
        match &cell.work {
            Work::BaseModel { base_model } => self.base_model(*base_model),
            Work::Mix { name, seed, .. } => self.mix(name, *seed),
            Work::Tuning { base_model, mix, method, seed, .. } => {
                self.tuning(*base_model, *mix, *method, *seed)
            }
            Work::Answers { answerer, language } => {
                let prompts = self.prepared.inputs.prompts.get(language).map(Vec::as_slice);
                self.answers(answerer, prompts.unwrap_or_default())
            }
            Work::Scores { answers, language, .. } => {
                let prompts = self.prepared.inputs.prompts.get(language).map(Vec::as_slice);
                self.scores(*answers, &self.to_rate(cell, prompts.unwrap_or_default())?)
            }
        }
    }

    /// The prompts whose responses a judge is still asked to rate: all, or where a finished cell is gone on with, those
    /// that it has no rating of.
    fn to_rate<'p>(&self, cell: &Cell, prompts: &'p [Prompt]) -> Result<Cow<'p, [Prompt]>> {
        if self.store.incomplete(&cell.key).is_none() {
            return Ok(Cow::Borrowed(prompts));
        }
        let scores = read_scores(&self.store.cell_folder(&cell.key))?;
        let rated = scores.iter().filter(|score| score.rating.is_some());
        let rated: BTreeSet<&str> = rated.map(|score| score.prompt_id.as_str()).collect();
        let left = prompts.iter().filter(|prompt| !rated.contains(prompt.id.as_str()));
        Ok(left.cloned().collect())
    }

    fn base_model(&mut self, number: usize) -> Result<CellCost> {
        let given = &self.prepared.experiment.base_model[number];
        let pretraining = given.pretraining.as_ref().context("`pretraining` is missing")?;
        let settings = settings::pretraining(pretraining);
        let documents = rooms::documents(given)?;
        let threads = self.threads;
        let base = self.base(number)?;
        let rows = tune::Rows::from_text(&documents, base.model.tokenizer(), settings.cutoff)?;
        let shape = Shape::of(&base.model, &settings)?;
        let cost = tune::cost::cost(&shape, &RowLength::of(&rows.rows), &[], &settings, threads);
        let opened = base.opened;
        Ok(CellCost {
            tokens: cost.tokens,
            flops: cost.flops,
            memory_bytes: self.process + opened + cost.memory.total(),
            at_once: 1,
            disk_bytes: cost.result_bytes,
            ..CellCost::default()
        })
    }

    fn mix(&self, name: &str, seed: u64) -> Result<CellCost> {
        let mix = self.mixes.get(&(name.to_owned(), seed)).context("the mix is not made")?;
        let rows = mix.rows.iter().chain(&mix.validation);
        let disk_bytes =
            rows.map(|row| serde_json::to_vec(row).map_or(0, |json| json.len() as u64 + 1)).sum();
        Ok(CellCost { at_once: 1, disk_bytes, ..CellCost::default() })
    }

    fn tuning(&mut self, number: usize, mix: usize, method: Method, seed: u64) -> Result<CellCost> {
        let job = self.tuning_job(number, mix, method, seed)?;
        let threads = self.threads;
        let shape = self.shape(number, method, &job.settings)?;
        let (training, validation) = (&job.lengths.training, &job.lengths.validation);
        let cost = tune::cost::cost(shape, training, validation, &job.settings, threads);
        Ok(CellCost {
            tokens: cost.tokens,
            flops: cost.flops,
            validation_flops: cost.validation_flops,
            memory_bytes: self.process + self.base(number)?.opened + cost.memory.total(),
            at_once: self.at_once(number),
            disk_bytes: cost.result_bytes,
            ..CellCost::default()
        })
    }

    /// A tuning's settings and rows.
    fn tuning_job(&mut self, number: usize, mix: usize, method: Method, seed: u64) -> Result<Job> {
        let experiment = &self.prepared.experiment;
        let preset = experiment.experiment.preset;
        let Work::Mix { name, seed: mix_seed, .. } = &self.prepared.plan.cells[mix].work else {
            anyhow::bail!("a tuning without a mix");
        };
        let key = (name.clone(), *mix_seed);
        self.base(number)?;
        let (base, mix) = (self.bases.get(&number), self.mixes.get(&key));
        let (base, mix) = (base.context("no base model")?, mix.context("the mix is not made")?);
        let given = experiment.tune.for_method(method).with_updates(mix.manifest.updates);
        let settings = settings::tuning(preset, method, &given, seed);
        let template = settings::template(preset, Some(method), given.template.as_deref());
        let lengths = self.encoder.lengths(&base.model, &template, &settings, mix)?;
        Ok(Job { settings, lengths })
    }

    fn shape(&mut self, number: usize, method: Method, settings: &tune::Settings) -> Result<&Shape> {
        let key = (number, method, settings.weights);
        if !self.shapes.contains_key(&key) {
            let shape = Shape::of(&self.base(number)?.model, settings)?;
            self.shapes.insert(key, shape);
        }
        self.shapes.get(&key).context("no shape")
    }

    fn answers(&mut self, answerer: &Answerer, prompts: &[Prompt]) -> Result<CellCost> {
        let experiment = &self.prepared.experiment;
        let preset = experiment.experiment.preset;
        let Answerer::Model { base_model, tuning, .. } = answerer else {
            // Somebody else's machine computes, and the project knows no price of it.
            let requests = prompts.len() as u64;
            return Ok(CellCost { at_once: 1, at_most: true, requests, ..CellCost::default() });
        };
        let method = tuning.and_then(|cell| match self.prepared.plan.cells[cell].work {
            Work::Tuning { method, .. } => Some(method),
            _ => None,
        });
        let decoding = settings::decoding(preset, method, &experiment.answer);
        let given = experiment.answer.template.as_ref().or(experiment.tune.template.as_ref());
        let template = settings::template(preset, method, given.map(String::as_str)).load(None)?;
        let modules = match method {
            Some(Method::Lora) => {
                let given = experiment.tune.for_method(Method::Lora);
                let settings = settings::tuning(preset, Method::Lora, &given, 0);
                self.shape(*base_model, Method::Lora, &settings)?.modules.clone().unwrap_or_default()
            }
            _ => Vec::new(),
        };
        let given = experiment.tune.for_method(Method::Lora);
        // Whatever the tuning kept them in, answers are given with the weights as they were published, and full tuning
        // writes them in f32.
        let weights = match method {
            Some(Method::Full) => tune::FrozenWeights::F32,
            _ => tune::FrozenWeights::Published,
        };
        let lora = tune::Settings { weights, ..settings::tuning(preset, Method::Lora, &given, 0) };
        let weights = self.shape(*base_model, Method::Lora, &lora)?.weight_bytes();
        let process = self.process;
        let base = self.base(*base_model)?;
        let (model, longest_token) = (&base.model, base.longest_token);
        let config = model.config();
        let (mut tokens, mut flops) = (0, 0u128);
        let mut lengths = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let read = answer::prompt_tokens(model.tokenizer(), &template, prompt)?.len() as u64;
            lengths.push(read as usize);
            let of_prompt = bound(config, &modules, &decoding, read);
            tokens += of_prompt.0;
            flops += of_prompt.1;
        }
        let held = answering_bytes(config, &modules, &decoding, &lengths, weights);
        Ok(CellCost {
            tokens,
            flops: flops as f64,
            at_most: true,
            memory_bytes: process + base.opened + weights as u64 + held,
            at_once: 1,
            disk_bytes: kept_bytes(prompts, decoding.new_tokens as u64 * longest_token),
            ..CellCost::default()
        })
    }

    fn scores(&mut self, answers: usize, prompts: &[Prompt]) -> Result<CellCost> {
        let longest_token = match &self.prepared.plan.cells[answers].work {
            Work::Answers { answerer: Answerer::Model { base_model, .. }, .. } => {
                self.base(*base_model)?.longest_token
            }
            _ => ENDPOINT_TOKEN_BYTES,
        };
        let experiment = &self.prepared.experiment;
        let judge = &experiment.judge;
        let preset = experiment.experiment.preset;
        let new_tokens = settings::decoding(preset, None, &experiment.answer).new_tokens as u64;
        let mut cost = CellCost { at_once: 1, at_most: true, ..CellCost::default() };
        let response_bytes = new_tokens * longest_token;
        cost.disk_bytes = kept_bytes(prompts, response_bytes + JUDGE_TOKENS * ENDPOINT_TOKEN_BYTES);
        if judge.kind == JudgeKind::Reference {
            return Ok(cost);
        }
        let template = match &judge.prompt_template {
            Some(path) => PromptTemplate::from_file(path)?,
            None => PromptTemplate::default(),
        };
        // A judge on this machine is asked nothing over a network.
        cost.requests = if judge.kind == JudgeKind::Openai { prompts.len() as u64 } else { 0 };
        let asked = prompts.iter().map(|prompt| template.fill(&prompt.prompt, "").len() as u64);
        // Every byte a token: no byte-level tokenizer makes more of them.
        let read = asked.sum::<u64>() + prompts.len() as u64 * response_bytes;
        let written = prompts.len() as u64 * JUDGE_TOKENS;
        cost.tokens = read + written;
        cost.dollars = judge.price.map(|price| price.of(read, written) as f64 / 1e9);
        Ok(cost)
    }

    /// Opens a base model. One that is not trained yet gets its tokenizer and random weights.
    fn base(&mut self, number: usize) -> Result<&Base> {
        if !self.bases.contains_key(&number) {
            let base = self.open(number)?;
            self.bases.insert(number, base);
        }
        self.bases.get(&number).context("no base model")
    }

    fn open(&self, number: usize) -> Result<Base> {
        let given = &self.prepared.experiment.base_model[number];
        let of_this = |cell: &&Cell| cell.work == Work::BaseModel { base_model: number };
        let finished = self.prepared.plan.cells.iter().find(of_this).filter(|cell| self.store.has(&cell.key));
        let path: Option<PathBuf> = match (&given.path, finished) {
            (Some(path), _) => Some(path.clone()),
            (None, Some(cell)) => Some(self.store.cell_folder(&cell.key).join(MODEL_FOLDER)),
            (None, None) => None,
        };
        if let Some(path) = path {
            let small = bytes(&path) <= SMALL_MODEL;
            let (model, opened) = opened(|| BaseModel::open(&path))?;
            let longest_token = model.tokenizer().longest_token() as u64;
            return Ok(Base { model, small, opened, longest_token, new: None });
        }
        let seed = given.pretraining.as_ref().map_or(0, |pretraining| pretraining.seed);
        let new = NewModel::make(given)?;
        let (model, opened) = opened(|| BaseModel::fresh(&new.config, new.folder.path(), seed))?;
        let small = 4 * model.parameters() as u64 <= SMALL_MODEL;
        let longest_token = model.tokenizer().longest_token() as u64;
        Ok(Base { model, small, opened, longest_token, new: Some(new) })
    }

    /// How many tunings of a base model are worked on at once: as [`crate::work::Rooms`] has it.
    fn at_once(&self, number: usize) -> usize {
        let small = self.bases.get(&number).is_some_and(|base| base.small);
        if small && self.prepared.experiment.experiment.device.is_cpu() {
            side_by_side(self.threads)
        } else {
            1
        }
    }

    /// Takes note of how long a finished cell took.
    fn learn(&mut self, cell: &Cell, cost: &CellCost) {
        let Some(number) = base_of(cell) else { return };
        if cost.flops <= 0.0 || !self.store.has(&cell.key) {
            return;
        }
        let seconds = match &cell.work {
            Work::Tuning { .. } => {
                let path = self.store.cell_folder(&cell.key).join(TUNING_FILE);
                let record: Option<TuningRecord> =
                    std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
                record.map(|record| record.seconds)
            }
            _ => self.store.manifest(&cell.key).ok().map(|manifest| manifest.seconds),
        };
        let sums = self.finished.entry((kind(cell), number)).or_default();
        if let Some(seconds) = seconds.filter(|seconds| *seconds > 0.0) {
            sums.0 += seconds;
            // A tuning's record has the seconds of its updates alone.
            sums.1 += cost.flops;
        }
    }

    /// How long a cell takes: by finished cells of its kind and base model, else by the calibration.
    fn seconds(&self, cell: &Cell, cost: &CellCost) -> Option<f64> {
        let Some(number) = base_of(cell) else {
            return matches!(cell.work, Work::Mix { .. }).then_some(0.0);
        };
        let kind = kind(cell);
        let finished = self.finished.get(&(kind.clone(), number)).filter(|(seconds, _)| *seconds > 0.0);
        if let Some((seconds, flops)) = finished {
            return Some(cost.timed_flops() * seconds / flops);
        }
        let rate = self.calibration.rate(&self.identity(number), &kind)?;
        Some(cost.timed_flops() * rate.seconds_per_flop)
    }

    /// A base model's content: the hash of its files, or the key of the cell that trains it.
    pub(crate) fn identity(&self, number: usize) -> String {
        let name = &self.prepared.experiment.base_model[number].name;
        let of_this = |cell: &&Cell| cell.work == Work::BaseModel { base_model: number };
        let plan = &self.prepared.plan;
        let trained = || plan.cells.iter().find(of_this).map(|cell| cell.key.to_string());
        plan.base_hashes.get(name).cloned().or_else(trained).unwrap_or_default()
    }

    /// Each base model with each kind of work that the plan has for it, and a cell to measure it on.
    pub(crate) fn to_measure(&self) -> Vec<(&'a Cell, usize, String)> {
        let mut found: BTreeMap<(String, usize), &Cell> = BTreeMap::new();
        for cell in &self.prepared.plan.cells {
            if let Some(number) = base_of(cell) {
                found.entry((kind(cell), number)).or_insert(cell);
            }
        }
        found.into_iter().map(|((kind, number), cell)| (cell, number, kind)).collect()
    }
}

/// Tokens and floating-point operations of a response at most, to a prompt of `read` tokens: the prompt is read once,
/// the first new token comes of it, and each later one is a row of every beam that attends to all before it.
pub(crate) fn bound(
    config: &DecoderConfig,
    modules: &[ModuleShape],
    decoding: &answer::Decoding,
    read: u64,
) -> (u64, u128) {
    let beams = decoding.beams as u64;
    let rows = (decoding.new_tokens as u64).saturating_sub(1);
    let last = read + rows;
    let pairs = last * (last + 1) / 2 - read * (read + 1) / 2;
    let mut all = Lengths::of(read, 0);
    all += Lengths { tokens: beams * rows, pairs: beams * pairs, supervised: 1 + beams * rows };
    (all.tokens, 2 * passes::loss(config, modules, all))
}

/// What answering holds beside the weights, in bytes, at most: keys and values, an adapter, and a pass's buffers.
fn answering_bytes(
    config: &DecoderConfig,
    modules: &[ModuleShape],
    decoding: &answer::Decoding,
    prompts: &[usize],
    weights: usize,
) -> u64 {
    // A key and a value a layer, key-value head and place, in f32.
    let page = PAGE_SIZE * 8 * config.layers * config.key_value_heads * config.head_size;
    let affordable = decoding.key_value_bytes(weights) / page.max(1);
    // What all prompts begin with is no longer than the shortest of them.
    let beginning = prompts.iter().min().map_or(0, |shortest| shortest.div_ceil(PAGE_SIZE) + 1);
    let cache = page * (Limits::pages_for(prompts, decoding, affordable) + beginning);
    let tokens = decoding.batch_tokens.max(decoding.beams);
    let plan = WorkspacePlan { tokens, training: false, recompute: false };
    let ranks = modules.iter().map(|module| module.rank).sum();
    // As many rows of logits as there are beams at once, or what 32 MiB hold, or 32.
    let rows = tokens.min(decoding.beams * prompts.len()).min(((8 << 20) / config.vocabulary.max(1)).max(32));
    // A product's left-hand side lies packed beside it.
    let widest = config.hidden.max(config.intermediate).max(config.query_key_value_rows());
    let adapter: usize = modules.iter().map(ModuleShape::parameters).sum();
    let floats = plan.floats(config, ranks) + rows * config.vocabulary + tokens * widest + adapter;
    (cache + 4 * floats) as u64
}

/// A tuning to be reckoned or measured.
pub(crate) struct Job {
    pub(crate) settings: tune::Settings,
    pub(crate) lengths: RowLengths,
}

/// What is written of each prompt: the prompt itself, so much text made for it, and what stands beside them. In JSON a
/// byte of text takes six at most (`\u0000`).
fn kept_bytes(prompts: &[Prompt], made: u64) -> u64 {
    let of_prompt = |prompt: &Prompt| JSON_BYTES * (prompt.prompt.len() as u64 + made) + RECORD_BYTES;
    prompts.iter().map(of_prompt).sum()
}

const JSON_BYTES: u64 = 6;
/// What is written beside a prompt and what was made for it.
const RECORD_BYTES: u64 = 1024;
/// The bytes of a token whose vocabulary is not known, seldom reached on the average of a text.
const ENDPOINT_TOKEN_BYTES: u64 = 16;
/// As long as a judge's answer may be.
const JUDGE_TOKENS: u64 = 512;

/// The base model that a cell computes with.
fn base_of(cell: &Cell) -> Option<usize> {
    match &cell.work {
        Work::BaseModel { base_model } | Work::Tuning { base_model, .. } => Some(*base_model),
        Work::Answers { answerer: Answerer::Model { base_model, .. }, .. } => Some(*base_model),
        _ => None,
    }
}

/// Cells of one kind have one speed.
fn kind(cell: &Cell) -> String {
    match &cell.work {
        Work::Tuning { method, .. } => format!("tuning/{}", method.name()),
        _ => cell.determinants.kind.clone(),
    }
}

/// Opens a model, and tells by how much the process has grown: no shape says what a tokenizer takes.
fn opened(open: impl FnOnce() -> model::Result<BaseModel>) -> Result<(BaseModel, u64)> {
    let before = tune::memory::resident_bytes();
    let model = open()?;
    Ok((model, tune::memory::resident_bytes().saturating_sub(before)))
}

/// What this process held when it was first asked: the program, before any model. Later it would count what a
/// calibration has left behind. 0 where the system does not say.
fn program_bytes() -> u64 {
    static AT_FIRST: OnceLock<u64> = OnceLock::new();
    *AT_FIRST.get_or_init(tune::memory::resident_bytes)
}

/// Where a store keeps its calibrations.
pub fn calibration_file(store: &Path) -> PathBuf {
    store.join("calibration.json")
}

/// Seconds until all of these cells are done one after the other, or side by side where they fit.
pub fn wall_seconds<'c>(costs: impl Iterator<Item = &'c CellCost>) -> Option<f64> {
    costs.map(|cost| cost.seconds.map(|seconds| seconds / cost.at_once.max(1) as f64)).sum()
}
