//! What an experiment folder holds, and what the report reads: the data contract.
//!
//! A folder `DIR` has three files, all UTF-8:
//!
//! | file | holds |
//! | --- | --- |
//! | `experiment.json` | one [`Experiment`]: what was compared, with which settings |
//! | `systems.jsonl` | a [`System`] a line: every tuning, untuned base model, adapter and endpoint, failed ones too |
//! | `scores.jsonl` | a [`Score`] a line: one system's response to one prompt, gated and rated |
//!
//! Unknown keys are refused, so that a misspelt key is an error and not a silently empty column. Keys with
//! a default may be left out.
//!
//! Two rules about absence:
//!
//! - What was never planned has no line: `monolingual` has no system for an unseen language.
//! - What was planned and is not there has a line that says so: `status` is `failed` or `missing` (systems),
//!   `unrated`, `failed` or `missing` (scores). None of these ever counts as a zero.
//!
//! `english` is `monolingual` in English: one tuning, written once, as a system of either recipe with
//! `languages` = `["en"]`. The report shows it under both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The name of the file that holds the [`Experiment`].
pub const EXPERIMENT_FILE: &str = "experiment.json";
/// The name of the file that holds the [`System`]s.
pub const SYSTEMS_FILE: &str = "systems.jsonl";
/// The name of the file that holds the [`Score`]s.
pub const SCORES_FILE: &str = "scores.jsonl";

/// What was compared: `experiment.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// The experiment's name, the page's title.
    pub name: String,
    /// A sentence about it, if its author wrote one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When its records were written, as the author wishes to read it (RFC 3339 is usual).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// The languages of the prompts, in the order in which they are shown.
    pub languages: Vec<Language>,
    /// The recipes, in the order in which they are shown.
    pub recipes: Vec<Recipe>,
    /// The methods, in order: `lora`, `full`.
    pub methods: Vec<String>,
    /// The base models, in order.
    pub base_models: Vec<BaseModel>,
    /// The seeds of the tunings.
    pub seeds: Vec<u64>,
    /// How many prompts each language has, by language code.
    pub prompts: BTreeMap<String, usize>,
    /// The least and the greatest rating a judge may give, `[1, 3]` in the paper.
    pub rating_range: [f64; 2],
    /// Who rated.
    pub judge: Judge,
    /// What identified the languages.
    pub gate: Gate,
    /// What the recipes were held equal in.
    pub budget: Budget,
    /// A score that a recipe should reach in every seen language, from 0 to the greatest score. Without one the
    /// report takes half of the greatest score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_score: Option<f64>,
    /// Program and library versions, by name.
    #[serde(default)]
    pub versions: BTreeMap<String, String>,
    /// Hashes of everything read (`blake3:...`, `sha256:...`), by what was hashed.
    #[serde(default)]
    pub hashes: BTreeMap<String, String>,
    /// Every setting of the experiment, by its dotted name, `tune.learning_rate`.
    #[serde(default)]
    pub settings: BTreeMap<String, serde_json::Value>,
    /// The machine's parts, by name: `cpu`, `memory`, `gpu`.
    #[serde(default)]
    pub hardware: BTreeMap<String, String>,
    /// Licences of data and models, by what is licensed.
    #[serde(default)]
    pub licences: BTreeMap<String, String>,
    /// Named problems of the input, shown on the page.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// A language of the prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// ISO 639-1, else 639-3.
    pub code: String,
    /// The English name, `Bulgarian`.
    pub name: String,
    /// The language's own name, `български`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native_name: Option<String>,
    /// Whether instruction data of this language was in the experiment.
    pub seen: bool,
}

/// A recipe: how sets become a mix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `monolingual`, `multilingual`, `english`, `downsampled`, or one's own.
    pub name: String,
    /// What it does, in a sentence.
    #[serde(default)]
    pub description: String,
    /// Whether it tunes one system a language (as `monolingual` does), each answering in its language alone.
    #[serde(default)]
    pub per_language: bool,
}

/// A pretrained model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseModel {
    /// The name by which systems refer to it, `bloom-560m`.
    pub name: String,
    /// Its family, `BLOOM`: models of one family are joined by a line.
    pub family: String,
    /// How many parameters it has.
    pub parameters: u64,
    /// Tokens a word (or a character, where the language writes no spaces) by language code, if measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fertility: BTreeMap<String, f64>,
}

/// Who rated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    /// The judge's name, `gpt-3.5-turbo-0613` or `chrF++ against the reference`.
    pub name: String,
    /// What kind of judge it is.
    pub kind: JudgeKind,
    /// A caption that must stand wherever ratings are shown, `ratings by a stand-in`. The reference judge and a
    /// stand-in are captioned even where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption: Option<String>,
}

/// Kinds of judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JudgeKind {
    /// An OpenAI-compatible endpoint.
    Openai,
    /// A local model.
    Local,
    /// Agreement with the reference answer: no model of quality.
    Reference,
    /// A stand-in of tests: its ratings mean nothing.
    StandIn,
}

/// What identified the languages of the responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// The identifier's name, `lid.176.ftz`.
    pub identifier: String,
    /// What else is to be known about it, `no accepts no, nb and nob`.
    #[serde(default)]
    pub description: String,
}

/// What the recipes were held equal in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// C in what was held: the cost of one monolingual run.
    #[serde(alias = "rows")]
    pub c: u64,
    /// What was held equal: `rows`, `tokens`, `updates` or `flops`.
    pub held: String,
    /// How it was held, in a sentence: `C is the smallest set; larger sets were cut to it.`
    #[serde(default)]
    pub description: String,
}

impl Budget {
    /// C with its unit: `512 rows`.
    pub fn cost(&self) -> String {
        let unit = if self.held == "flops" { "FLOPs" } else { &self.held };
        format!("{} {unit}", self.c)
    }
}

/// A named problem of the input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// The file, with its line if there is one, `prompts/hi.jsonl:50`.
    pub place: String,
    /// What was found, and what was done about it.
    pub message: String,
}

/// One system: a line of `systems.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// A name that no other system has.
    pub id: String,
    /// What it is.
    pub kind: SystemKind,
    /// The [`BaseModel::name`] it was tuned from; may be absent for an endpoint.
    #[serde(default)]
    pub base_model: Option<String>,
    /// `lora` or `full`; absent unless tuned.
    #[serde(default)]
    pub method: Option<String>,
    /// The [`Recipe::name`]; absent unless tuned.
    #[serde(default)]
    pub recipe: Option<String>,
    /// The languages of its mix; empty unless tuned.
    #[serde(default)]
    pub languages: Vec<String>,
    /// The tuning's seed; absent unless tuned.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Whether it is there.
    pub status: SystemStatus,
    /// Why it failed or is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What its tuning took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// Its tuning's metrics, in the order of updates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learning_curve: Vec<CurvePoint>,
    /// The update whose checkpoint was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_update: Option<u64>,
}

/// Kinds of systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SystemKind {
    /// A base model as it was published.
    Base,
    /// A base model tuned in this experiment.
    Tuned,
    /// An adapter that was there before.
    Adapter,
    /// A system behind an OpenAI-compatible endpoint.
    Endpoint,
}

/// Whether a system is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SystemStatus {
    /// Tuned, or as published.
    Done,
    /// It was tried and failed: [`System::message`] says why.
    Failed,
    /// It was planned and has not been run.
    Missing,
}

/// What a tuning took.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Rows of the mix, each counted once.
    pub rows: u64,
    /// Real tokens trained on, every epoch counted.
    #[serde(default)]
    pub tokens: u64,
    /// Updates of the optimizer.
    #[serde(default)]
    pub updates: u64,
    /// Floating-point operations, counted from the shapes.
    #[serde(default)]
    pub flops: f64,
    /// Wall-clock seconds of the tuning.
    #[serde(default)]
    pub seconds: f64,
    /// The same in units of C, the cost of one monolingual run.
    pub in_c: f64,
}

/// One measurement of a tuning.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CurvePoint {
    /// How many updates had been done.
    pub update: u64,
    /// Mean training loss at this update (nats a supervised token).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_loss: Option<f64>,
    /// Validation loss over all languages of the mix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Validation loss by language code.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub validation_loss_by_language: BTreeMap<String, f64>,
}

/// One response of one system to one prompt, gated and rated: a line of `scores.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// The [`System::id`].
    pub system: String,
    /// The prompt's language code: where its answer is expected.
    pub language: String,
    /// The prompt's id. Parallel prompts share it over languages.
    pub prompt_id: String,
    /// The prompt's text.
    pub prompt: String,
    /// The reference answer, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The response; absent if the system gave none.
    #[serde(default)]
    pub response: Option<String>,
    /// 1 if the response is in the prompt's language, else 0; absent if it was not gated.
    #[serde(default)]
    pub gate: Option<u8>,
    /// The identifier's own label, `bg` or `bul_Cyrl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The label as a language code of this project, `bg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identified: Option<String>,
    /// The label's probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// The judge's rating; absent if there is none, and then [`Score::reason`] says why.
    #[serde(default)]
    pub rating: Option<f64>,
    /// Why there is no rating or no response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The judge's explanation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
    /// How far it came.
    pub status: ScoreStatus,
}

/// How far a response came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreStatus {
    /// Answered, gated and rated.
    Rated,
    /// Answered and gated; the judge gave no rating that could be read.
    Unrated,
    /// The system gave no response, or it could not be gated.
    Failed,
    /// Not answered yet.
    Missing,
}

impl Judge {
    /// The caption that stands wherever ratings are shown, if there must be one.
    pub fn caption(&self) -> Option<String> {
        self.caption.clone().or_else(|| match self.kind {
            JudgeKind::Reference => Some("ratings by agreement with the reference answers".to_owned()),
            JudgeKind::StandIn => {
                Some(format!("ratings by a stand-in ({}): they measure nothing", self.name))
            }
            JudgeKind::Openai | JudgeKind::Local => None,
        })
    }
}
