//! `polypaca tune`: one tuning.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, anyhow};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use engine::Cpu;
use engine::kernels::Kernels;
use instructions::hub::{Repository, fetch_model};
use instructions::language::Language;
use instructions::record::{Record, Repeats};
use instructions::set_files::SetFiles;
use instructions::template::{Template, TemplateChoice};
use lab::progress;
use model::adapter::{Adapter, CONFIG_FILE};
use model::{BaseModel, Tokenizer};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tune::{
    BestOver, FrozenWeights, Keep, Length, Method, Order, Outcome, Places, Preset, Rows, Schedule, Settings,
    Supervise, UpdateMetrics, ValidationMetrics,
};

use super::places::check_outputs;
use crate::device::{Device, FLAG, cuda};
use crate::failure::Failure;
use crate::output::Output;
use crate::processes::{ProcessArguments, World};

/// Tunes a base model on instruction data. A killed tuning, started again, goes on from its last checkpoint.
/// Settings that are not given are the preset's
#[derive(Debug, Args)]
#[command(after_help = presets())]
pub(crate) struct Tune {
    /// The base model: a Hugging Face folder, a GGUF file, or its name on the Hub: owner/name; with --init-config, a
    /// folder with its tokenizer
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,

    /// A new model with random weights, drawn from the seed, of the shape that this config.json says
    #[arg(long, value_name = "FILE", conflicts_with = "init_adapter")]
    init_config: Option<PathBuf>,

    #[command(flatten)]
    data: DataArguments,

    /// The tuned system's folder: a PEFT folder (lora), or a Hugging Face folder (full)
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// An adapter on the base model, or all weights
    #[arg(long, default_value = "lora", value_parser = named::<Method>(&["lora", "full"]))]
    method: Method,

    /// Settings as the paper's authors ran each method, or the same for both wherever they can be
    #[arg(long, default_value = "paper", value_parser = named::<Preset>(&["paper", "fair"]))]
    preset: Preset,

    /// A PEFT folder to begin with, instead of a new adapter; its rank, alpha and modules hold
    #[arg(long, value_name = "DIR", conflicts_with_all = ["rank", "alpha", "modules"])]
    init_adapter: Option<PathBuf>,

    /// Sequences an update
    #[arg(long, value_name = "N")]
    batch: Option<usize>,

    /// Most sequences that go through the model at once; the result does not depend on it but for rounding
    #[arg(long, value_name = "N")]
    micro_batch: Option<usize>,

    /// Most tokens that go through the model at once; the result does not depend on it but for rounding
    #[arg(long, value_name = "N")]
    micro_batch_tokens: Option<usize>,

    /// Updates of the optimizer
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    updates: Option<u64>,

    /// Passes over the rows
    #[arg(long, value_name = "N")]
    epochs: Option<f64>,

    /// Train on the first N rows only, of those that are not set apart for validation
    #[arg(long, value_name = "N")]
    rows: Option<usize>,

    /// Tokens of the longest sequence; the rest of a longer one is cut off
    #[arg(long, value_name = "TOKENS")]
    cutoff: Option<usize>,

    /// The greatest learning rate
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,

    /// Updates over which the rate rises; a share of them where it is below 1
    #[arg(long, value_name = "N")]
    warmup: Option<f64>,

    /// The way of the rate after that
    #[arg(long, value_parser = named::<Schedule>(&["linear", "cosine", "constant"]))]
    schedule: Option<Schedule>,

    /// AdamW's decay, on matrices
    #[arg(long, value_name = "DECAY")]
    weight_decay: Option<f64>,

    /// Share of an adapter's inputs that is dropped
    #[arg(long, value_name = "SHARE")]
    dropout: Option<f32>,

    /// The gradient's greatest norm
    #[arg(long, value_name = "NORM")]
    clip: Option<f64>,

    /// Take the loss over prompt and response, or over the response alone
    #[arg(long, value_parser = named::<Supervise>(&["all", "response"]))]
    supervise: Option<Supervise>,

    /// Meet the rows in an order drawn anew each epoch, or in the files' own
    #[arg(long, value_parser = named::<Order>(&["shuffle", "file"]))]
    order: Option<Order>,

    /// Set the last N ids of each language apart for validation; a row of the same id in another language goes with
    /// them, so that no translation of a validation row is trained on
    #[arg(long, value_name = "N", default_value_t = 0)]
    validation_rows: usize,

    /// Updates between two measurements of the validation loss
    #[arg(long, value_name = "N")]
    validate_every: Option<u64>,

    /// Which values the result has: those with the lowest validation loss, or the last ones
    #[arg(long, value_parser = named::<Keep>(&["best", "last"]))]
    keep: Option<Keep>,

    /// Compare validation losses over all rows' tokens, or by the mean of the languages' own losses
    #[arg(long, value_parser = named::<BestOver>(&["rows", "languages"]))]
    best_over: Option<BestOver>,

    /// Stop after N measurements of the validation loss without a better one
    #[arg(long, value_name = "N")]
    patience: Option<u32>,

    /// Updates between two checkpoints, from which a killed tuning goes on
    #[arg(long, value_name = "N")]
    checkpoint_every: Option<u64>,

    /// The rank of an adapter's matrices
    #[arg(long, value_name = "N")]
    rank: Option<usize>,

    /// An adapter's product is scaled by this over the rank
    #[arg(long, value_name = "X")]
    alpha: Option<f64>,

    /// The modules that have an adapter: query, key, value of any base model (together the default), or PEFT's names of its
    /// own
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    modules: Option<Vec<String>>,

    /// Scale an adapter's product by alpha over the rank's square root (rsLoRA)
    #[arg(long, conflicts_with = "init_adapter")]
    rslora: bool,

    /// In what the base model's weights are kept under LoRA; 8bit is GGUF's Q8_0, and 4bit is NF4
    #[arg(long, value_parser = named::<FrozenWeights>(&["published", "f32", "bf16", "f16", "8bit", "4bit"]))]
    weights: Option<FrozenWeights>,

    /// Compute activations again on the way back, to save memory
    #[arg(long)]
    recompute: bool,

    /// Compute rows that begin alike each by itself, and draw each one's dropout by itself
    #[arg(long)]
    no_shared_prefixes: bool,

    /// alpaca, stanford-alpaca, chat (the model's own) or a file; under the preset paper each method has its authors' own
    #[arg(long, value_name = "NAME|FILE")]
    template: Option<TemplateChoice>,

    /// For a new adapter's values, the order of the rows, and dropout
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,

    #[command(flatten)]
    processes: ProcessArguments,

    /// A JSON line an update (update, loss, learning_rate, tokens, tokens_per_second, peak_bytes) and a measurement
    #[arg(long, value_name = "FILE.jsonl")]
    metrics: Option<PathBuf>,

    /// The same figures as TensorBoard's event files in DIR
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
}

/// What the presets say, a line a flag.
fn presets() -> String {
    const FLAGS: [(&str, &str); 18] = [
        ("--batch", "/batch"),
        ("--micro-batch-tokens", "/micro_batch_tokens"),
        ("--epochs", "/length/epochs"),
        ("--cutoff", "/cutoff"),
        ("--lr", "/learning_rate"),
        ("--warmup", "/warmup"),
        ("--schedule", "/schedule"),
        ("--weight-decay", "/weight_decay"),
        ("--dropout", "/dropout"),
        ("--clip", "/clip"),
        ("--supervise", "/supervise"),
        ("--order", "/order"),
        ("--validate-every", "/validate_every"),
        ("--keep", "/keep"),
        ("--best-over", "/best_over"),
        ("--checkpoint-every", "/checkpoint_every"),
        ("--rank", "/rank"),
        ("--alpha", "/alpha"),
    ];
    let of = |preset, method| serde_json::to_value(Settings::preset(preset, method)).unwrap_or_default();
    let (paper, fair) = (Preset::Paper, Preset::Fair);
    let (lora, full) = (Method::Lora, Method::Full);
    let columns = [of(paper, lora), of(paper, full), of(fair, lora), of(fair, full)];
    let mut lines =
        vec![format!("{:<24}{:<12}{:<12}{:<12}full", "Presets:", "paper, lora", "full", "fair, lora")];
    for (flag, place) in FLAGS {
        let cells = columns.iter().map(|settings| match settings.pointer(place) {
            Some(Value::String(text)) => text.clone(),
            // Seven digits: as they were written, and not as 32 bits hold them.
            Some(value) => ((value.as_f64().unwrap_or_default() * 1e7).round() / 1e7).to_string(),
            None => String::new(),
        });
        let cells: Vec<String> = cells.collect();
        lines.push(format!("  {flag:<22}{:<12}{:<12}{:<12}{}", cells[0], cells[1], cells[2], cells[3]));
    }
    lines.join("\n")
}

/// The instruction data of `tune` and `loss`.
#[derive(Debug, Args)]
pub(super) struct DataArguments {
    /// Instruction data, several files one after the other: Alpaca's JSON, JSON Lines, Parquet, or chats. fi=FILE
    /// says which language rows are in that name none
    #[arg(long, value_name = "FILE|LANGUAGE=FILE", required = true, num_args = 1..)]
    data: Vec<DataFile>,

    /// The language of rows that name none, in files without LANGUAGE=
    #[arg(long, value_name = "CODE", default_value = "en")]
    language: Language,
}

/// `alpaca_fi.json`, or `fi=alpaca_fi.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DataFile {
    language: Option<Language>,
    path: PathBuf,
}

impl FromStr for DataFile {
    type Err = Infallible;

    /// What stands before `=` and is no language is part of the file's name.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let parsed = text.split_once('=').and_then(|(code, path)| Some((code.parse().ok()?, path)));
        Ok(match parsed {
            Some((language, path)) => Self { language: Some(language), path: path.into() },
            None => Self { language: None, path: text.into() },
        })
    }
}

/// A flag's value by the name that it has in experiment files as well.
pub(super) fn named<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| serde_json::from_value::<T>(Value::String(name)))
}

impl Tune {
    /// Processes on this machine that the tuning is divided among.
    pub(crate) fn processes_here(&self) -> usize {
        self.processes.here()
    }

    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        self.check()?;
        if self.processes.here() > 1 {
            // One fetches what all of them read.
            fetch_by_name(&self.model, output)?;
        }
        let world = self.processes.meet(self.device, output)?;
        let rank = world.collective().rank();
        let ended = if rank == 0 {
            self.run_in(&world, output)
        } else {
            self.run_in(&world, &output.quiet()).map_err(|failure| failure.of_rank(rank))
        };
        world.end(ended, output)
    }

    fn run_in(&self, world: &World, output: &Output) -> Result<ExitCode, Failure> {
        match self.device {
            Device::Cpu => self.run_on(&Cpu, world, output),
            Device::Cuda => self.run_on(&cuda(FLAG, output)?, world, output),
        }
    }

    fn run_on<K: Kernels + Clone>(
        &self,
        kernels: &K,
        world: &World,
        output: &Output,
    ) -> Result<ExitCode, Failure> {
        let (mut records, validation) = set_apart(self.data.read(output)?, self.validation_rows);
        if let Some(rows) = self.rows {
            if rows > records.len() {
                output.warning(format!("--rows {rows}: there are {} to train on", records.len()));
            }
            records.truncate(rows);
        }
        let settings = self.settings();
        let base = self.base(output)?;
        let template = self.template(&base)?;
        let initial = self.init_adapter.as_deref().map(|folder| read_adapter(folder, &base)).transpose()?;
        let rows = encode(&records, &template, &base, &settings, "to train on", output)?;
        let held_out = encode(&validation, &template, &base, &settings, "for validation", output)?;
        if let Some(warning) = settings.ends_in_warmup(rows.rows.len()) {
            output.warning(format!("--warmup: {warning}"));
        }
        let places = Places {
            metrics: self.metrics.clone(),
            tensorboard: self.tensorboard.clone(),
            ..Places::under(&self.out)
        };

        let collective = world.collective();
        let progress =
            if collective.is_first() { progress::on_standard_error() } else { Box::new(progress::Silent) };
        progress.cell("tuning");
        let stop = lab::stop::Stop::on_signals()?;
        let begin = Instant::now();
        let outcome = tune::tune_together(
            kernels,
            collective,
            &base,
            &rows,
            &held_out,
            initial.as_ref(),
            &settings,
            &places,
            &mut Told(progress::CellProgress::new("tuning", &*progress, &stop)),
        );
        progress.end();
        let outcome = outcome.map_err(failure)?;
        if !collective.is_first() {
            return Ok(ExitCode::SUCCESS);
        }
        self.tell(&outcome, &rows, &held_out, begin.elapsed().as_secs_f64(), output)
    }

    /// What the flags' own checks cannot see.
    fn check(&self) -> Result<(), Failure> {
        if let Some(problem) = self.settings().problems().first() {
            let flag = problem.name.replace('_', "-");
            return Err(Failure::wrong_input(anyhow!(
                "--{flag} is {}: expected {}",
                problem.found,
                problem.expected
            )));
        }
        if self.method == Method::Full && self.weights.is_some_and(|weights| weights != FrozenWeights::F32) {
            return Err(Failure::wrong_input(anyhow!(
                "--weights: with --method full all weights are trained and kept in f32; expected --method lora"
            )));
        }
        self.check_idle_flags()?;
        if self.method == Method::Full && self.init_adapter.is_some() {
            return Err(Failure::wrong_input(anyhow!("--init-adapter: expected --method lora, found full")));
        }
        let files = self.data.data.iter().map(|file| file.path.as_path()).chain(self.init_config.as_deref());
        let metrics: Vec<_> = self.metrics.iter().map(|path| ("--metrics", path.clone())).collect();
        check_outputs(&metrics, files)?;
        if self.out.exists() && !self.out.is_dir() {
            return Err(Failure::wrong_input(anyhow!(
                "--out {}: is a file; expected a folder, or a place for one",
                self.out.display()
            )));
        }
        // The weights are read from the base model's files as long as the tuning goes.
        if let (Ok(model), Ok(out)) = (fs::canonicalize(&self.model), fs::canonicalize(&self.out))
            && model == out
        {
            return Err(Failure::wrong_input(anyhow!(
                "--out {}: is the base model's folder; expected another one",
                self.out.display()
            )));
        }
        Ok(())
    }

    /// Flags that would change nothing are refused: whoever gives one means something by it.
    fn check_idle_flags(&self) -> Result<(), Failure> {
        let full = self.method == Method::Full;
        let unmeasured = self.validation_rows == 0;
        let idle = [
            ("--rank", full && self.rank.is_some(), "--method lora"),
            ("--alpha", full && self.alpha.is_some(), "--method lora"),
            ("--modules", full && self.modules.is_some(), "--method lora"),
            ("--rslora", full && self.rslora, "--method lora"),
            ("--dropout", full && self.dropout.is_some_and(|dropout| dropout > 0.0), "--method lora"),
            ("--patience", unmeasured && self.patience.is_some(), "--validation-rows"),
            ("--validate-every", unmeasured && self.validate_every.is_some(), "--validation-rows"),
            ("--best-over", unmeasured && self.best_over.is_some(), "--validation-rows"),
            ("--keep best", unmeasured && self.keep == Some(Keep::Best), "--validation-rows"),
            ("--shard-weights", !full && self.processes.shard_weights(), "--method full"),
            ("--shard-weights", self.processes.alone() && self.processes.shard_weights(), "--processes"),
        ];
        match idle.into_iter().find(|(_, given, _)| *given) {
            Some((flag, _, needed)) => {
                Err(Failure::wrong_input(anyhow!("{flag}: has a meaning with {needed} alone")))
            }
            None => Ok(()),
        }
    }

    /// The preset's settings, with what is given over them.
    fn settings(&self) -> Settings {
        let base = Settings::preset(self.preset, self.method);
        let length = match (self.updates, self.epochs) {
            (Some(updates), _) => Length::Updates(updates),
            (None, Some(epochs)) => Length::Epochs(epochs),
            (None, None) => base.length,
        };
        Settings {
            method: self.method,
            batch: self.batch.unwrap_or(base.batch),
            micro_batch_tokens: self.micro_batch_tokens.unwrap_or(base.micro_batch_tokens),
            micro_batch: self.micro_batch.or(base.micro_batch),
            length,
            cutoff: self.cutoff.unwrap_or(base.cutoff),
            learning_rate: self.lr.unwrap_or(base.learning_rate),
            warmup: self.warmup.unwrap_or(base.warmup),
            schedule: self.schedule.unwrap_or(base.schedule),
            weight_decay: self.weight_decay.unwrap_or(base.weight_decay),
            dropout: self.dropout.unwrap_or(base.dropout),
            clip: self.clip.or(base.clip),
            supervise: self.supervise.unwrap_or(base.supervise),
            order: self.order.unwrap_or(base.order),
            validate_every: self.validate_every.unwrap_or(base.validate_every),
            keep: self.keep.unwrap_or(base.keep),
            best_over: self.best_over.unwrap_or(base.best_over),
            patience: self.patience.or(base.patience),
            rank: self.rank.unwrap_or(base.rank),
            alpha: self.alpha.unwrap_or(base.alpha),
            modules: self.modules.clone().unwrap_or(base.modules),
            rslora: self.rslora || base.rslora,
            weights: self.weights.unwrap_or(base.weights),
            recompute: self.recompute || base.recompute,
            share_prefixes: base.share_prefixes && !self.no_shared_prefixes,
            seed: self.seed,
            checkpoint_every: self.checkpoint_every.unwrap_or(base.checkpoint_every),
            shard_weights: self.processes.shard_weights(),
        }
    }

    /// The base model: as it is published, or a new one.
    fn base(&self, output: &Output) -> Result<BaseModel, Failure> {
        let Some(config) = &self.init_config else { return open(&self.model, output) };
        if self.method == Method::Lora {
            output.warning("--init-config: an adapter on random weights serves measurements alone");
        }
        BaseModel::fresh(config, &self.model, self.seed).map_err(Failure::wrong_input)
    }

    fn template(&self, base: &BaseModel) -> Result<Template, Failure> {
        let preset = match (self.preset, self.method) {
            (Preset::Paper, Method::Full) => TemplateChoice::StanfordAlpaca,
            _ => TemplateChoice::Alpaca,
        };
        load_template(self.template.as_ref().unwrap_or(&preset), Some(base.tokenizer()))
    }

    fn tell(
        &self,
        outcome: &Outcome,
        rows: &Rows,
        validation: &Rows,
        seconds: f64,
        output: &Output,
    ) -> Result<ExitCode, Failure> {
        let lowest = outcome.validations.iter().rfind(|measured| measured.best);
        if output.json() {
            output.object(&json!({
                "out": self.out.display().to_string(),
                "rows": rows.rows.len(),
                "validation_rows": validation.rows.len(),
                "updates": outcome.updates,
                "kept_update": outcome.kept_update,
                "tokens": outcome.tokens,
                "flops": outcome.flops,
                "trained_parameters": outcome.trained_parameters,
                "validation_loss": lowest.map(|measured| measured.validation_loss),
                "validation_loss_by_language": lowest.map(|measured| &measured.validation_loss_by_language),
                "seconds": seconds,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        output.line(format!(
            "{} updates on {} rows, {} tokens, {} parameters trained, {seconds:.1} s",
            outcome.updates,
            rows.rows.len(),
            outcome.tokens,
            outcome.trained_parameters
        ))?;
        if let Some(measured) = lowest {
            output.line(format!(
                "lowest validation loss {:.4} at update {}; kept: update {}",
                measured.validation_loss, measured.update, outcome.kept_update
            ))?;
        }
        output.line(self.out.display().to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl DataArguments {
    /// All files' records. What is wrong with them is told; rows without an output are named and left out.
    pub(super) fn read(&self, output: &Output) -> Result<Vec<Record>, Failure> {
        let mut records = Vec::new();
        // A mix may have rows more than once.
        let mut files = SetFiles::new(Repeats::Kept);
        for DataFile { language, path } in &self.data {
            let language = language.as_ref().unwrap_or(&self.language);
            let origin = |record: &Record| record.origin.unwrap_or_default();
            let reading = files.read(path, language, origin).map_err(Failure::wrong_input)?;
            for problem in &reading.problems {
                output.warning(problem.to_string());
            }
            let mut left_out = reading.dropped();
            for (place, record) in reading.items {
                if record.output.trim().is_empty() {
                    left_out += 1;
                    output.warning(format!(
                        "{}{place}: record {} ({}) has an empty output (left out)",
                        path.display(),
                        record.id,
                        record.language
                    ));
                } else {
                    records.push(record);
                }
            }
            if left_out > 0 {
                output.warning(format!("{}: rows left out: {left_out}", path.display()));
            }
        }
        if records.is_empty() {
            return Err(Failure::wrong_input(anyhow!("--data: there is no row with an output")));
        }
        Ok(records)
    }
}

/// Records to train on, and those for validation: each language's last `ids` ids, and every row of such an id.
fn set_apart(records: Vec<Record>, ids: usize) -> (Vec<Record>, Vec<Record>) {
    let mut apart = HashSet::new();
    let languages: HashSet<&Language> = records.iter().map(|record| &record.language).collect();
    for language in languages {
        let mut of_language = HashSet::new();
        for record in records.iter().rev().filter(|record| record.language == *language) {
            if of_language.len() == ids {
                break;
            }
            of_language.insert(record.id.clone());
        }
        apart.extend(of_language);
    }
    records.into_iter().partition(|record| !apart.contains(&record.id))
}

/// Opens a base model. Where there is no such file or folder, `owner/name` is looked for on the Hugging Face Hub.
pub(super) fn open(path: &Path, output: &Output) -> Result<BaseModel, Failure> {
    let fetched = fetch_by_name(path, output)?;
    BaseModel::open(fetched.as_deref().unwrap_or(path)).map_err(Failure::wrong_input)
}

/// The files of a base model that is named and not there.
fn fetch_by_name(path: &Path, output: &Output) -> Result<Option<PathBuf>, Failure> {
    let name = path.to_str().filter(|name| name.contains('/') && !path.exists());
    let Some(repository) = name.and_then(|name| Repository::parse(name).ok()) else { return Ok(None) };
    fetch_model(&repository, &|file| output.note(format!("{}: {file}", repository.name)))
        .with_context(|| {
            format!("{}: there is no such file or folder, nor was it fetched by this name", path.display())
        })
        .map(Some)
        .map_err(Failure::wrong_input)
}

/// Reads an adapter for a base model.
pub(super) fn read_adapter(folder: &Path, base: &BaseModel) -> Result<Adapter, Failure> {
    Adapter::read(folder, base.family(), base.config()).map_err(Failure::wrong_input)
}

/// Loads a template; `chat` is the model's own.
pub(super) fn load_template(
    choice: &TemplateChoice,
    tokenizer: Option<&Tokenizer>,
) -> Result<Template, Failure> {
    answer::template(choice, tokenizer).context("--template").map_err(Failure::wrong_input)
}

/// Records as tokens; what the cutoff took is told.
pub(super) fn encode(
    records: &[Record],
    template: &Template,
    base: &BaseModel,
    settings: &Settings,
    purpose: &str,
    output: &Output,
) -> Result<Rows, Failure> {
    let rows = Rows::encode(records, template, base.tokenizer(), settings).map_err(Failure::wrong_input)?;
    for (ids, what) in
        [(&rows.shortened, "were cut off"), (&rows.unsupervised, "have no token that the loss is taken over")]
    {
        if let Some(first) = ids.first() {
            output.warning(format!(
                "{} of {} rows {purpose} {what} within --cutoff {}; the first is {first}",
                ids.len(),
                rows.rows.len(),
                settings.cutoff
            ));
        }
    }
    Ok(rows)
}

/// Whether a tuning that failed was asked for something wrong.
pub(crate) fn failure(error: tune::Error) -> Failure {
    match error {
        // The settings' own modules are in no file.
        tune::Error::Model(model::Error::Adapter { path, reason }) if path == Path::new(CONFIG_FILE) => {
            Failure::wrong_input(anyhow!("--modules: {reason}"))
        }
        tune::Error::Settings(_)
        | tune::Error::Decoder { .. }
        | tune::Error::OtherRun { .. }
        | tune::Error::Model(model::Error::Adapter { .. } | model::Error::OtherResult { .. }) => {
            Failure::wrong_input(error)
        }
        other => Failure::failed(other),
    }
}

/// Tells the screen what a tuning tells.
struct Told<'a>(progress::CellProgress<'a>);

impl tune::Progress for Told<'_> {
    fn update(&mut self, metrics: &UpdateMetrics) {
        let message = format!("loss {:.4}, {:.0} tokens/s", metrics.loss, metrics.tokens_per_second);
        self.0.step(metrics.update, metrics.updates, &message);
    }

    fn validation(&mut self, metrics: &ValidationMetrics) {
        self.0.step(
            metrics.update,
            metrics.update,
            &format!("validation loss {:.4}", metrics.validation_loss),
        );
    }

    fn note(&mut self, message: &str) {
        self.0.warn(message);
    }

    fn should_stop(&self) -> bool {
        self.0.should_stop()
    }
}
