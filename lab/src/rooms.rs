//! The rooms that compute, behind the lab's seams.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use answer::{AnswerModel, System, respond};
use anyhow::{Context, Result};
use engine::kernels::Kernels;
use instructions::check::fertility;
use instructions::prompt::Prompt;
use model::BaseModel;
use model::init::{NewSpecialTokens, train_tokenizer};
use report::records::CurvePoint;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tune::run::Places;
use tune::{Rows, UpdateMetrics, ValidationMetrics};

use crate::experiment;
use crate::inputs::Prompts;
use crate::progress::CellProgress;
use crate::records::ModelFacts;
use crate::settings;
use crate::stop::{Stopped, leave};
use crate::store::write_atomically;
use crate::work::{AnswerJob, AnswerRoom, MODEL_FOLDER, SYSTEM_FOLDER, Tuner, TuningJob, TuningRecord};

/// In a tuning's folder: a line an update and a measurement.
pub(crate) const METRICS_FILE: &str = "metrics.jsonl";
/// In a tuning's folder, where it is asked for: TensorBoard's event files.
const TENSORBOARD_FOLDER: &str = "tensorboard";
/// In a work folder: where a tuning goes on from.
const CHECKPOINT_FOLDER: &str = "checkpoint";
/// In the work folder of a base model from scratch: its configuration and tokenizer, before it has weights.
const NEW_FOLDER: &str = "new";
/// A report's learning curve has no more points than this.
const CURVE_POINTS: usize = 200;

/// The room `tune`, on a backend.
#[derive(Debug, Clone, Copy)]
pub struct TuneRoom<K>(pub K);

impl<K: Kernels + Clone> Tuner for TuneRoom<K> {
    fn pretrain(&self, model: &experiment::BaseModel, folder: &Path, progress: &CellProgress) -> Result<()> {
        let config = model.config.as_deref().context("a base model has neither `path` nor `config`")?;
        let given = model.pretraining.as_ref().context("`pretraining` is missing")?;
        let documents = documents(model)?;
        let new = folder.join(NEW_FOLDER);
        fs::create_dir_all(&new).with_context(|| format!("cannot make the folder {}", new.display()))?;
        let config = new_model(model, config, &documents, &new)?;
        let base = BaseModel::fresh(&config, &new, given.seed)?;
        let settings = settings::pretraining(given);
        let rows = Rows::from_text(&documents, base.tokenizer(), settings.cutoff)?;
        let places = Places {
            out: folder.join(MODEL_FOLDER),
            checkpoints: folder.join(CHECKPOINT_FOLDER),
            metrics: Some(folder.join(METRICS_FILE)),
            tensorboard: None,
        };
        let trained = tune::pretrain(&self.0, &base, &rows, &settings, &places, &mut Told(progress));
        trained.map_err(stopped)?;
        fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))
    }

    fn tune(&self, job: &TuningJob, folder: &Path, progress: &CellProgress) -> Result<TuningRecord> {
        let base = BaseModel::open(job.base)?;
        let settings = settings::tuning(job.preset, job.method, job.settings, job.seed);
        let choice = settings::template(job.preset, Some(job.method), job.settings.template.as_deref());
        let template = choice.load(None)?;
        let rows = Rows::encode(&job.mix.rows, &template, base.tokenizer(), &settings)?;
        let validation = Rows::encode(&job.mix.validation, &template, base.tokenizer(), &settings)?;
        for (ids, what) in [
            (&rows.shortened, "were cut off at the cutoff"),
            (&rows.unsupervised, "have no token to learn within the cutoff"),
        ] {
            if !ids.is_empty() {
                progress.warn(&format!("{}: {} of {} rows {what}", job.mix.name, ids.len(), rows.rows.len()));
            }
        }
        let metrics = folder.join(METRICS_FILE);
        let places = Places {
            out: folder.join(SYSTEM_FOLDER),
            checkpoints: folder.join(CHECKPOINT_FOLDER),
            metrics: Some(metrics.clone()),
            tensorboard: job.tensorboard.then(|| folder.join(TENSORBOARD_FOLDER)),
        };
        let outcome =
            tune::tune(&self.0, &base, &rows, &validation, None, &settings, &places, &mut Told(progress));
        let outcome = outcome.map_err(stopped)?;
        let (curve, seconds) = read_metrics(&metrics)?;
        Ok(TuningRecord {
            rows: job.mix.rows.len() as u64,
            tokens: outcome.tokens,
            updates: outcome.updates,
            flops: outcome.flops,
            seconds,
            best_update: Some(outcome.kept_update),
            curve,
        })
    }
}

/// The room `answer`, on a backend. Keeps the model that it answered with last: the next cell mostly needs it again.
pub struct Answers<K: Kernels> {
    kernels: K,
    last: Mutex<Option<(PathBuf, AnswerModel<K>)>>,
}

impl<K: Kernels> Answers<K> {
    /// Without a model yet.
    pub fn new(kernels: K) -> Self {
        Self { kernels, last: Mutex::new(None) }
    }
}

impl<K: Kernels + Clone> AnswerRoom for Answers<K> {
    fn answer(&self, job: &AnswerJob, progress: &CellProgress) -> Result<Vec<String>> {
        // A cell that broke off had taken the model out.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, mut model) = match last.take() {
            Some((path, model)) if path == job.model => (path, model),
            _ => {
                let base = BaseModel::open(job.model)?;
                (job.model.to_owned(), AnswerModel::load(self.kernels.clone(), base, &[])?)
            }
        };
        model.adapters.clear();
        let system = match job.adapter {
            Some(folder) => System::adapter("", model.add_adapter("", folder)?),
            None => System::base(""),
        };
        let choice = settings::template(job.preset, job.method, job.settings.template.as_deref());
        let template = choice.load(None)?;
        let decoding = settings::decoding(job.preset, job.method, job.settings);
        let mut kept = Kept::open(job.kept, job.prompts)?;
        let left: Vec<Prompt> = job.prompts.iter().filter(|prompt| !kept.has(prompt)).cloned().collect();
        let mut written = Ok(());
        // What stands beside a prompt in the batch does not change its response, so the rest can be asked alone; on a GPU
        // but for rounding.
        respond(&model, &[system], &left, &template, &decoding, &mut |_, response| {
            if written.is_ok() {
                written = kept.add(&response.prompt.id, &response.response);
            }
            progress.step(kept.len() as u64, job.prompts.len() as u64, "responses");
            if progress.should_stop() {
                leave();
            }
        })?;
        written?;
        *last = Some((path, model));
        kept.in_order(job.prompts)
    }

    fn rest(&self) {
        if let Ok(mut last) = self.last.lock() {
            *last = None;
        }
    }
}

/// The responses of a cell as they come, a line each.
pub(crate) struct Kept {
    path: PathBuf,
    file: File,
    /// By the prompt's id.
    texts: BTreeMap<String, String>,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct KeptLine {
    id: String,
    response: String,
}

impl Kept {
    /// What an earlier attempt has left of these prompts' responses. A line that was cut off by a kill, and all behind
    /// it, is cut away.
    pub(crate) fn open(path: &Path, prompts: &[Prompt]) -> Result<Self> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut texts = BTreeMap::new();
        let mut whole = 0;
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let parsed = line.strip_suffix(b"\n").map(serde_json::from_slice::<KeptLine>);
            let Some(Ok(parsed)) = parsed else { break };
            whole += line.len() as u64;
            if prompts.iter().any(|prompt| prompt.id == parsed.id) {
                texts.insert(parsed.id, parsed.response);
            }
        }
        let open = || {
            let file = File::options().create(true).append(true).open(path)?;
            file.set_len(whole)?;
            Ok::<_, std::io::Error>(file)
        };
        let file = open().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, texts })
    }

    /// Whether a prompt's response is there.
    pub(crate) fn has(&self, prompt: &Prompt) -> bool {
        self.texts.contains_key(&prompt.id)
    }

    /// How many responses there are.
    pub(crate) fn len(&self) -> usize {
        self.texts.len()
    }

    /// The responses in the order of their prompts, each of which has one.
    pub(crate) fn in_order(mut self, prompts: &[Prompt]) -> Result<Vec<String>> {
        let text = |prompt: &Prompt| {
            self.texts.remove(&prompt.id).with_context(|| format!("no response to prompt {:?}", prompt.id))
        };
        prompts.iter().map(text).collect()
    }

    /// Writes a response down.
    pub(crate) fn add(&mut self, id: &str, response: &str) -> Result<()> {
        let mut line = serde_json::to_vec(&KeptLine { id: id.to_owned(), response: response.to_owned() })?;
        line.push(b'\n');
        self.texts.insert(id.to_owned(), response.to_owned());
        let written = self.file.write_all(&line);
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// A tuning that was stopped as asked has not failed.
fn stopped(error: tune::Error) -> anyhow::Error {
    match error {
        tune::Error::Stopped { .. } => Stopped.into(),
        other => other.into(),
    }
}

/// A base model's family and size, and its tokenizer's fertility on prompts; fails where its files are damaged.
///
/// # Errors
/// What [`BaseModel::open`] says, or a prompt that cannot be cut into tokens.
pub fn open_model(path: &Path, prompts: &Prompts) -> Result<ModelFacts> {
    let model = BaseModel::open(path)?;
    let mut of_languages = BTreeMap::new();
    for (language, prompts) in prompts {
        let mut texts = Vec::new();
        for prompt in prompts {
            let tokens = model.tokenizer().encode_plain(&prompt.prompt);
            let tokens = tokens.with_context(|| format!("prompt {:?} in `{language}`", prompt.id))?;
            texts.push((prompt.prompt.as_str(), tokens.len()));
        }
        of_languages.extend(fertility(texts).map(|found| (language.code().to_owned(), found)));
    }
    Ok(ModelFacts {
        family: model.family().to_string(),
        parameters: model.parameters() as u64,
        fertility: of_languages,
    })
}

/// The documents of all languages: a line each.
pub(crate) fn documents(model: &experiment::BaseModel) -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for path in model.text.values().flat_map(experiment::Files::iter) {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the text {} (UTF-8 is expected)", path.display()))?;
        documents.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    anyhow::ensure!(!documents.is_empty(), "the text of base model `{}` is empty", model.name);
    Ok(documents)
}

/// A base model from scratch that is not trained yet: its tokenizer and configuration, in a temporary folder.
#[derive(Debug)]
pub(crate) struct NewModel {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: PathBuf,
}

impl NewModel {
    /// Trains the tokenizer.
    pub(crate) fn make(model: &experiment::BaseModel) -> Result<Self> {
        let config = model.config.as_deref().context("a base model has neither `path` nor `config`")?;
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let config = new_model(model, config, &documents(model)?, folder.path())?;
        Ok(Self { folder, config })
    }
}

/// Writes the tokenizer, and the configuration with the tokenizer's vocabulary; gives the configuration's path.
fn new_model(
    model: &experiment::BaseModel,
    config: &Path,
    documents: &[String],
    folder: &Path,
) -> Result<PathBuf> {
    let special = NewSpecialTokens { bos: Some("<s>"), eos: Some("</s>"), pad: None };
    let vocabulary = model.tokenizer_vocabulary.context("`tokenizer_vocabulary` is missing")?;
    let tokenizer = train_tokenizer(documents.iter().map(String::as_str), vocabulary, &special)?;
    tokenizer.save(folder)?;
    let text = fs::read(config).with_context(|| format!("cannot read {}", config.display()))?;
    let mut json: Value = serde_json::from_slice(&text).with_context(|| config.display().to_string())?;
    let object = json.as_object_mut().with_context(|| format!("{}: expected an object", config.display()))?;
    object.insert("vocab_size".to_owned(), tokenizer.vocabulary().into());
    for (key, id) in [("bos_token_id", tokenizer.special().bos), ("eos_token_id", tokenizer.special().eos)] {
        object.insert(key.to_owned(), id.into());
    }
    let path = folder.join("config.json");
    write_atomically(&path, &serde_json::to_vec_pretty(&json)?)?;
    Ok(path)
}

/// Training and validation losses by update, and the seconds of all updates, whichever program did them.
fn read_metrics(path: &Path) -> Result<(Vec<CurvePoint>, f64)> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut points: BTreeMap<u64, CurvePoint> = BTreeMap::new();
    let mut seconds = 0.0;
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).with_context(|| path.display().to_string())?;
        let Some(update) = line.get("update").and_then(Value::as_u64) else { continue };
        let point = points.entry(update).or_insert_with(|| CurvePoint { update, ..CurvePoint::default() });
        if let Some(loss) = line.get("loss").and_then(Value::as_f64) {
            point.training_loss = Some(loss);
            seconds += line.get("seconds").and_then(Value::as_f64).unwrap_or_default();
        }
        if let Some(loss) = line.get("validation_loss").and_then(Value::as_f64) {
            point.validation_loss = Some(loss);
        }
        if let Some(losses) = line.get("validation_loss_by_language") {
            point.validation_loss_by_language = serde_json::from_value(losses.clone())?;
        }
    }
    let step = points.len().div_ceil(CURVE_POINTS).max(1);
    let last = points.len().saturating_sub(1);
    let kept = points.into_values().enumerate().filter(|(number, point)| {
        point.validation_loss.is_some() || number.is_multiple_of(step) || *number == last
    });
    Ok((kept.map(|(_, point)| point).collect(), seconds))
}

/// Tells the lab's listener what a tuning tells.
struct Told<'a>(&'a CellProgress<'a>);

impl tune::Progress for Told<'_> {
    fn update(&mut self, metrics: &UpdateMetrics) {
        let message = format!("loss {:.4}, {:.0} tokens/s", metrics.loss, metrics.tokens_per_second);
        self.0.step(metrics.update, metrics.updates, &message);
    }

    fn validation(&mut self, metrics: &ValidationMetrics) {
        let message = format!("validation loss {:.4}", metrics.validation_loss);
        self.0.step(metrics.update, metrics.update, &message);
    }

    fn note(&mut self, message: &str) {
        self.0.warn(message);
    }

    fn should_stop(&self) -> bool {
        self.0.should_stop()
    }
}
