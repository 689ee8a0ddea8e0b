//! The experiment file: what is compared with what, under which settings.
//!
//! One TOML file says everything. It is checked whole before anything starts, and every problem is named with
//! its file, line and column. Paths are relative to the file's own folder.
//!
//! ```toml
//! [experiment]
//! name = "three-languages"
//! languages = ["en", "fi", "zh"]        # seen: each has instructions and prompts
//! unseen_languages = ["no"]             # prompts alone
//!
//! [[base_model]]
//! name = "smollm2-135m"
//! path = "models/smollm2-135m.gguf"
//!
//! [instructions]
//! en = "alpaca_en.json"
//! fi = "alpaca_fi.json"
//! zh = ["alpaca_zh_1.json", "alpaca_zh_2.json"]
//!
//! [prompts]
//! en = "prompts/en.jsonl"
//! fi = "prompts/fi.jsonl"
//! zh = "prompts/zh.jsonl"
//! no = "prompts/no.jsonl"
//!
//! [judge]
//! kind = "openai"
//! endpoint = "http://localhost:8000/v1"
//! model = "gpt-3.5-turbo"
//! ```

mod check;
mod error;
mod files;
mod named;
mod slurm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use instructions::recipe::Recipe;
use judge::price::Price;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use error::{ExperimentError, Problem, Source};
pub use files::Files;
pub use instructions::files::is_file_name;
pub use slurm::{Memory, Slurm, TimeLimit};
pub use tune::{BestOver, FrozenWeights, Keep, Method, Order, Preset, Schedule, Supervise};

/// A whole experiment file, read and checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Languages, recipes, methods and seeds.
    pub experiment: Grid,
    /// The base models to tune.
    #[serde(default)]
    pub base_model: Vec<BaseModel>,
    /// Recipes of one's own, beside the paper's four.
    #[serde(default)]
    #[schemars(with = "Vec<serde_json::Map<String, serde_json::Value>>")]
    pub recipe: Vec<Recipe>,
    /// Instruction files of each seen language: Alpaca JSON, JSONL or Parquet.
    #[serde(default)]
    pub instructions: BTreeMap<String, Files>,
    /// What the recipes are held equal in.
    #[serde(default)]
    pub budget: Budget,
    /// Prompt files of each language: JSONL with `id` and `prompt`, and `reference` (a text or several) for
    /// the reference judge.
    #[serde(default)]
    pub prompts: BTreeMap<String, Files>,
    /// How systems are tuned.
    #[serde(default)]
    pub tune: Tune,
    /// How systems answer.
    #[serde(default)]
    pub answer: Answer,
    /// What identifies the languages of responses.
    #[serde(default)]
    pub gate: Gate,
    /// Who rates.
    #[serde(default)]
    pub judge: Judge,
    /// Systems to compare with that are not tuned here.
    #[serde(default)]
    pub system: Vec<ExtraSystem>,
    /// How tunings are followed.
    #[serde(default)]
    pub tracking: Tracking,
    /// How cells become jobs of a cluster, for `--runner slurm`.
    #[serde(default)]
    pub slurm: Slurm,
    /// Licences of data and models, by what is licensed; shown in the report.
    #[serde(default)]
    pub licences: BTreeMap<String, String>,
}

/// `[experiment]`: languages, recipes, methods and seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Names the run's folder and the report.
    pub name: String,
    /// A sentence about it, shown in the report.
    #[serde(default)]
    pub description: Option<String>,
    /// Where settings come from that are not given.
    #[serde(default)]
    pub preset: Preset,
    /// The seen languages: each has instructions and prompts.
    pub languages: Vec<String>,
    /// The unseen languages: prompts alone.
    #[serde(default)]
    pub unseen_languages: Vec<String>,
    /// Further languages of the mixes: instructions alone, and nobody is asked in them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub training_languages: Vec<String>,
    /// Recipes by name: the paper's four unless given.
    #[serde(default = "paper_recipes")]
    pub recipes: Vec<String>,
    /// `lora`, `full` or both; `lora` unless given.
    #[serde(default = "lora")]
    pub methods: Vec<Method>,
    /// A tuning of each kind for every seed; `[0]` unless given.
    #[serde(default = "seed_zero")]
    pub seeds: Vec<u64>,
    /// Whether the untuned base models answer as well; true unless given.
    #[serde(default = "yes")]
    pub include_base: bool,
    /// A score that a recipe should reach in every seen language; half of the greatest unless given.
    #[serde(default)]
    pub minimum_score: Option<f64>,
    /// Where base models are trained and tuned and answer; `cpu` unless given.
    #[serde(default, skip_serializing_if = "Device::is_cpu")]
    pub device: Device,
}

/// Where a cell's arithmetic is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The machine's processor, in 32-bit floats.
    #[default]
    Cpu,
    /// An NVIDIA GPU, products in brain floats.
    Cuda,
}

impl Device {
    /// Whether it is the processor.
    pub fn is_cpu(&self) -> bool {
        *self == Self::Cpu
    }
}

/// `[[base_model]]`: a pretrained model from files (`path`), or one trained from scratch (`config`, `text`,
/// `tokenizer_vocabulary`, `[base_model.pretraining]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BaseModel {
    /// By which systems and the report refer to it.
    pub name: String,
    /// Models of one family are joined by a line in figures; the architecture's name unless given.
    #[serde(default)]
    pub family: Option<String>,
    /// A Hugging Face folder or a GGUF file.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The methods that it is tuned by; all of the experiment's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<Method>>,
    /// From scratch: a Hugging Face `config.json`; its `vocab_size` is replaced by the tokenizer's.
    #[serde(default)]
    pub config: Option<PathBuf>,
    /// From scratch: plain-text files of each language, UTF-8, a document a line.
    #[serde(default)]
    pub text: BTreeMap<String, Files>,
    /// From scratch: the pieces of the byte-level BPE tokenizer that is trained on `text`.
    #[serde(default)]
    pub tokenizer_vocabulary: Option<usize>,
    /// From scratch: how it is trained.
    #[serde(default)]
    pub pretraining: Option<Pretraining>,
}

/// `[base_model.pretraining]`: how a base model is trained from scratch. The words are `[tune]`'s.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pretraining {
    /// Updates of the optimizer. Either these or `epochs`.
    #[serde(default)]
    pub updates: Option<u64>,
    /// Passes over the text. Either these or `updates`.
    #[serde(default)]
    pub epochs: Option<f64>,
    /// Sequences an update.
    pub batch: usize,
    /// Tokens of the longest sequence.
    pub cutoff: usize,
    /// The greatest learning rate.
    pub lr: f64,
    /// Updates, or a share of them where it is below 1; 0 unless given.
    #[serde(default)]
    pub warmup: f64,
    /// The way down from the greatest learning rate; `cosine` unless given.
    #[serde(default = "cosine")]
    pub schedule: Schedule,
    /// AdamW's decay; 0 unless given.
    #[serde(default)]
    pub weight_decay: f64,
    /// The gradient's greatest norm; 1 unless given.
    #[serde(default = "one")]
    pub clip: f64,
    /// For the first weights and the order of the text; 0 unless given.
    #[serde(default)]
    pub seed: u64,
}

/// `[budget]`: what the recipes are held equal in.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// C in rows: the rows of one monolingual run. The smallest set's size unless given.
    #[serde(default)]
    pub rows: Option<usize>,
    /// What is held equal; `rows` unless given.
    #[serde(default)]
    pub held: Held,
    /// C in what is held, in the place of `rows`: the cost of one monolingual run. What the smallest set costs
    /// unless given; to be given where updates are held.
    #[serde(default)]
    pub c: Option<u64>,
    /// The base model whose tokenizer counts tokens, and by whose size FLOPs are counted. It may be left out where
    /// there is one base model alone.
    #[serde(default)]
    pub base_model: Option<String>,
    /// How validation rows are set apart; by `id` unless given.
    #[serde(default)]
    pub split: Split,
}

impl Budget {
    /// Whether rows must be cut into tokens to be drawn.
    pub fn counts_tokens(&self) -> bool {
        matches!(self.held, Held::Tokens | Held::Flops)
    }
}

/// What recipes are held equal in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    /// Rows of the mix.
    #[default]
    Rows,
    /// Tokens of the mix, prompts and responses.
    Tokens,
    /// Updates of the optimizer: rows are drawn as for `rows`, and each mix is trained on for its share of updates.
    Updates,
    /// Floating-point operations of one pass over the mix, under the first of the methods.
    Flops,
}

impl Held {
    /// As it is written in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Tokens => "tokens",
            Self::Updates => "updates",
            Self::Flops => "flops",
        }
    }
}

/// How validation rows are set apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// By id: a row validated in one language is trained on in none.
    #[default]
    Id,
    /// By row, each language by itself, as the paper's authors did.
    Row,
}

/// `[tune]`: how systems are tuned, by the names of `polypaca tune`'s flags. What is not given comes from the
/// preset. `[tune.lora]` and `[tune.full]` hold for one method alone.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tune {
    /// Sequences an update.
    pub batch: Option<usize>,
    /// Sequences that go through the model at once; the result does not depend on it.
    pub micro_batch: Option<usize>,
    /// Tokens that go through the model at once.
    pub micro_batch_tokens: Option<usize>,
    /// Updates of the optimizer. Either these or `epochs`.
    pub updates: Option<u64>,
    /// Passes over the mix. Either these or `updates`.
    pub epochs: Option<f64>,
    /// Tokens of the longest sequence.
    pub cutoff: Option<usize>,
    /// The greatest learning rate.
    pub lr: Option<f64>,
    /// Updates, or a share of them where it is below 1.
    pub warmup: Option<f64>,
    /// The way of the learning rate after the warm-up.
    pub schedule: Option<Schedule>,
    /// AdamW's decay.
    pub weight_decay: Option<f64>,
    /// The share of an adapter's inputs that is dropped.
    pub dropout: Option<f64>,
    /// The gradient's greatest norm.
    pub clip: Option<f64>,
    /// Which tokens the loss is taken over.
    pub supervise: Option<Supervise>,
    /// The order in which rows are met.
    pub order: Option<Order>,
    /// Rows of each language held out to choose the checkpoint.
    pub validation_rows: Option<usize>,
    /// Updates between two measurements of the validation loss.
    pub validate_every: Option<u64>,
    /// Which checkpoint is kept.
    pub keep: Option<Keep>,
    /// Over what the validation loss is the mean, where checkpoints are compared: `rows`, or `languages`.
    pub best_over: Option<BestOver>,
    /// Stop after so many measurements of the validation loss without a better one.
    pub patience: Option<u32>,
    /// Updates between two checkpoints, from which a killed tuning goes on.
    pub checkpoint_every: Option<u64>,
    /// The rank of an adapter's matrices.
    pub rank: Option<usize>,
    /// An adapter's product is scaled by this over the rank.
    pub alpha: Option<f64>,
    /// The modules that have an adapter: `query`, `key`, `value` of any base model, or its own names: `o_proj`, ...
    pub modules: Option<Vec<String>>,
    /// Whether an adapter's product is scaled by alpha over the rank's square root.
    pub rslora: Option<bool>,
    /// In what frozen weights are kept: `published`, `f32`, `bf16`, `f16`, `8bit` or `4bit`.
    pub weights: Option<FrozenWeights>,
    /// Whether activations are computed again on the way back, to save memory.
    pub recompute: Option<bool>,
    /// Whether what rows of a micro-batch begin with is computed once; they then share its dropout.
    pub share_prefixes: Option<bool>,
    /// `alpaca`, `stanford-alpaca` or a file.
    pub template: Option<String>,
    /// Settings for `lora` alone.
    pub lora: Option<Box<Tune>>,
    /// Settings for `full` alone.
    pub full: Option<Box<Tune>>,
}

/// `[answer]`: how systems answer, by the names of `polypaca answer`'s flags.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Hypotheses kept at each step; 1 is greedy. The paper's 4 unless given.
    pub beams: Option<usize>,
    /// No sequence of so many tokens occurs twice in a response; 0 is no limit. The paper's 6 unless given.
    pub no_repeat_ngram: Option<usize>,
    /// Tokens met before are made less likely by this; 1 is off.
    pub repetition_penalty: Option<f64>,
    /// The power of its length by which a beam's score is divided; 1 unless given.
    pub length_penalty: Option<f64>,
    /// A response ends in front of the first of these texts.
    pub stop: Option<Vec<String>>,
    /// Tokens of the longest response; the paper's 256 unless given.
    pub new_tokens: Option<usize>,
    /// Draws tokens instead of taking the likeliest.
    pub sample: Option<bool>,
    /// For drawing: flattens (above 1) or sharpens the distribution.
    pub temperature: Option<f64>,
    /// For drawing: the likeliest tokens that hold this share.
    pub top_p: Option<f64>,
    /// For drawing: so many of the likeliest tokens.
    pub top_k: Option<usize>,
    /// For drawing.
    pub seed: Option<u64>,
    /// Tokens in flight at once; the responses do not depend on it.
    pub batch_tokens: Option<usize>,
    /// `alpaca`, `stanford-alpaca` or a file; that of `[tune]` unless given.
    pub template: Option<String>,
}

/// `[gate]`: what identifies the languages of responses.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// A fastText model, `.bin` or `.ftz`; the embedded lingua unless given.
    #[serde(default)]
    pub lid: Option<PathBuf>,
    /// Sets code and URLs aside before identifying; off unless given.
    #[serde(default)]
    pub set_aside_code: bool,
}

impl Gate {
    /// What tells languages, by name: the model's file, or `lingua`.
    pub fn identifier_name(&self) -> String {
        let file = self.lid.as_deref().and_then(Path::file_name);
        file.map_or("lingua".to_owned(), |name| name.to_string_lossy().into_owned())
    }
}

/// `[tracking]`: how tunings are followed. It determines no result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tracking {
    /// Whether TensorBoard's event files are written beside a tuning's metrics; off unless given.
    #[serde(default)]
    pub tensorboard: bool,
}

/// `[judge]`: who rates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    /// `openai`, `local` or `reference`; `reference` unless given.
    #[serde(default)]
    pub kind: JudgeKind,
    /// `openai`: the base URL, `https://api.openai.com/v1`.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// `openai`: the model's name.
    #[serde(default)]
    pub model: Option<String>,
    /// `local`: the model's folder or GGUF file.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// `openai`: the environment variable that holds the key; without it, none is sent.
    #[serde(default)]
    pub key_variable: Option<String>,
    /// `openai` and `local`: a file with the request's wording, instead of the built-in one.
    #[serde(default)]
    pub prompt_template: Option<PathBuf>,
    /// `openai`: requests at the same time; 8 unless given.
    #[serde(default)]
    pub concurrency: Option<usize>,
    /// `openai`: requests that go out in a minute, at most; tries again count. No limit unless given.
    #[serde(default)]
    pub requests_per_minute: Option<f64>,
    /// `openai`: how often a response is asked for before it is left unrated; 6 unless given.
    #[serde(default)]
    pub tries: Option<u32>,
    /// `openai`: seconds of the wait after the first failure, doubled after each further one; 1 unless given.
    #[serde(default)]
    pub backoff: Option<f64>,
    /// `openai`: what a million tokens cost in dollars, `{ prompt = 0.15, completion = 0.60 }`.
    #[serde(default)]
    #[schemars(with = "Option<PriceSchema>")]
    pub price: Option<Price>,
    /// `openai`: the most that may be spent on one experiment, in dollars; needs `price`.
    #[serde(default)]
    pub cap: Option<f64>,
    /// `reference`: the chrF++ from which a response is rated 2, and 3.
    #[serde(default)]
    pub thresholds: Option<[f64; 2]>,
    /// Whether it only stands in for a judge, as in tests: every table then says that its ratings measure nothing.
    #[serde(default)]
    pub stand_in: bool,
    /// A caption that stands wherever ratings are shown, `ratings by a stand-in`.
    #[serde(default)]
    pub caption: Option<String>,
}

/// Dollars for a million tokens.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Price")]
#[expect(dead_code, reason = "it has the form of the judge's own type, which knows of no schema")]
struct PriceSchema {
    /// Of the prompt.
    prompt: f64,
    /// Of the answer.
    completion: f64,
}

/// The JSON schema of experiment files, which editors check and complete by.
///
/// # Errors
/// None that is known: the schema is JSON.
pub fn schema() -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(&schemars::schema_for!(Experiment))
}

/// Kinds of judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JudgeKind {
    /// Any OpenAI-compatible endpoint.
    Openai,
    /// A model on this machine.
    Local,
    /// chrF++ against the reference answer, cut into 1..3: no network, and no model of quality.
    #[default]
    Reference,
}

impl JudgeKind {
    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Local => "local",
            Self::Reference => "reference",
        }
    }
}

/// `[[system]]`: an existing adapter (`base_model`, `adapter`), or an OpenAI-compatible endpoint (`endpoint`,
/// `model`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtraSystem {
    /// By which the report refers to it.
    pub name: String,
    /// Adapter: the name of a `[[base_model]]`.
    #[serde(default)]
    pub base_model: Option<String>,
    /// Adapter: a PEFT folder.
    #[serde(default)]
    pub adapter: Option<PathBuf>,
    /// Endpoint: the base URL.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Endpoint: the model's name.
    #[serde(default)]
    pub model: Option<String>,
    /// Endpoint: the environment variable that holds the key; without it, none is sent.
    #[serde(default)]
    pub key_variable: Option<String>,
    /// Endpoint: requests that go out in a minute, at most; tries again count. No limit unless given.
    #[serde(default)]
    pub requests_per_minute: Option<f64>,
}

impl Experiment {
    /// Reads an experiment file, makes its paths relative to the current folder, and checks it whole.
    ///
    /// # Errors
    /// Every problem found, each with file, line and column.
    pub fn load(path: &Path) -> Result<Self, ExperimentError> {
        let source = Source::read(path)?;
        let mut experiment = Self::parse(&source)?;
        experiment.resolve(path.parent().unwrap_or(Path::new("")));
        let problems = check::check(&experiment, &source);
        if problems.is_empty() { Ok(experiment) } else { Err(ExperimentError::Problems(problems)) }
    }

    /// Parses a source; looks at no other file.
    ///
    /// # Errors
    /// The first problem of form: broken TOML, an unknown key, a value of another type.
    pub fn parse(source: &Source) -> Result<Self, ExperimentError> {
        toml::from_str(&source.text).map_err(|error| ExperimentError::Problems(vec![source.form(&error)]))
    }

    /// Makes every relative path relative to `folder`.
    fn resolve(&mut self, folder: &Path) {
        let under = |path: &mut PathBuf| *path = folder.join(&*path);
        for model in &mut self.base_model {
            model.path.iter_mut().for_each(under);
            model.config.iter_mut().for_each(under);
            model.text.values_mut().for_each(|files| files.iter_mut().for_each(under));
        }
        self.instructions.values_mut().for_each(|files| files.iter_mut().for_each(under));
        self.prompts.values_mut().for_each(|files| files.iter_mut().for_each(under));
        self.gate.lid.iter_mut().for_each(under);
        self.judge.prompt_template.iter_mut().for_each(under);
        self.judge.path.iter_mut().for_each(under);
        self.system.iter_mut().for_each(|system| system.adapter.iter_mut().for_each(under));
        let sections = [&mut self.tune.template, &mut self.answer.template];
        for template in sections.into_iter().flatten() {
            resolve_template(template, folder);
        }
        for method in [&mut self.tune.lora, &mut self.tune.full].into_iter().flatten() {
            method.template.iter_mut().for_each(|template| resolve_template(template, folder));
        }
    }

    /// All languages with prompts: the seen ones, then the unseen.
    pub fn all_languages(&self) -> impl Iterator<Item = &str> {
        self.experiment.languages.iter().chain(&self.experiment.unseen_languages).map(String::as_str)
    }

    /// All languages with instructions: those that are asked in, then those of the mixes alone.
    pub fn tuned_languages(&self) -> impl Iterator<Item = &str> {
        self.experiment.languages.iter().chain(&self.experiment.training_languages).map(String::as_str)
    }

    /// The methods that a base model is tuned by, in the experiment's order.
    pub fn methods_of(&self, model: &BaseModel) -> impl Iterator<Item = Method> {
        let own = model.methods.clone();
        let all = self.experiment.methods.iter().copied();
        all.filter(move |method| own.as_ref().is_none_or(|own| own.contains(method)))
    }

    /// The recipe of this name: the file's own, or one of the paper's four.
    pub fn recipe(&self, name: &str) -> Option<Recipe> {
        self.recipe.iter().find(|recipe| recipe.name == name).cloned().or_else(|| Recipe::paper(name))
    }
}

impl Tune {
    /// These settings for a mix that says itself how many updates it is trained for, where it does.
    #[must_use]
    pub fn with_updates(self, updates: Option<u64>) -> Self {
        match updates {
            Some(updates) => Self { updates: Some(updates), epochs: None, ..self },
            None => self,
        }
    }

    /// The settings that hold for one method: the common ones, with the method's own over them.
    pub fn for_method(&self, method: Method) -> Self {
        let own = match method {
            Method::Lora => &self.lora,
            Method::Full => &self.full,
        };
        let own = own.as_deref().cloned().unwrap_or_default();
        let common = self.clone();
        // Updates and epochs exclude each other: the method's own one puts the common other one aside.
        let (updates, epochs) = if own.updates.is_some() || own.epochs.is_some() {
            (own.updates, own.epochs)
        } else {
            (common.updates, common.epochs)
        };
        Self {
            batch: own.batch.or(common.batch),
            micro_batch: own.micro_batch.or(common.micro_batch),
            micro_batch_tokens: own.micro_batch_tokens.or(common.micro_batch_tokens),
            updates,
            epochs,
            cutoff: own.cutoff.or(common.cutoff),
            lr: own.lr.or(common.lr),
            warmup: own.warmup.or(common.warmup),
            schedule: own.schedule.or(common.schedule),
            weight_decay: own.weight_decay.or(common.weight_decay),
            dropout: own.dropout.or(common.dropout),
            clip: own.clip.or(common.clip),
            supervise: own.supervise.or(common.supervise),
            order: own.order.or(common.order),
            validation_rows: own.validation_rows.or(common.validation_rows),
            validate_every: own.validate_every.or(common.validate_every),
            keep: own.keep.or(common.keep),
            best_over: own.best_over.or(common.best_over),
            patience: own.patience.or(common.patience),
            checkpoint_every: own.checkpoint_every.or(common.checkpoint_every),
            rank: own.rank.or(common.rank),
            alpha: own.alpha.or(common.alpha),
            modules: own.modules.or(common.modules),
            rslora: own.rslora.or(common.rslora),
            weights: own.weights.or(common.weights),
            recompute: own.recompute.or(common.recompute),
            share_prefixes: own.share_prefixes.or(common.share_prefixes),
            template: own.template.or(common.template),
            lora: None,
            full: None,
        }
    }
}

/// What is no template's name is a path.
fn resolve_template(template: &mut String, folder: &Path) {
    if !TEMPLATES.contains(&template.as_str()) {
        *template = folder.join(&*template).to_string_lossy().into_owned();
    }
}

/// The templates that have a name.
const TEMPLATES: [&str; 2] = ["alpaca", "stanford-alpaca"];

fn paper_recipes() -> Vec<String> {
    Recipe::PAPER.iter().map(ToString::to_string).collect()
}

fn lora() -> Vec<Method> {
    vec![Method::Lora]
}

fn seed_zero() -> Vec<u64> {
    vec![0]
}

fn yes() -> bool {
    true
}

fn cosine() -> Schedule {
    Schedule::Cosine
}

fn one() -> f64 {
    1.0
}
