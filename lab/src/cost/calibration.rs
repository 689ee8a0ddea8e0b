//! How fast this machine is, from short measurements on the experiment's own models and rows.
//!
//! A store keeps what was measured, machine by machine: `calibration.json`.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Context, Result};
use engine::kernels::Kernels;
use instructions::prompt::Prompt;
use model::BaseModel;
use serde::{Deserialize, Serialize};
use tune::{Keep, Length, Places, Rows, Settings, UpdateMetrics, ValidationMetrics};

use super::{Estimator, calibration_file};
use crate::experiment::Device;
use crate::plan::{Answerer, Work};
use crate::store::write_atomically;

/// The speed of one kind of work with one base model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Seconds a floating-point operation, as costs count them.
    pub seconds_per_flop: f64,
}

/// What was measured on one machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// By base model (the hash of its content, or of what it is trained from) and kind of work.
    rates: BTreeMap<String, Rate>,
}

/// All machines that a store has measurements of.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Machines(BTreeMap<String, Calibration>);

/// Updates of a measurement. The first warms caches and memory, and does not count.
const UPDATES: u64 = 4;
/// Micro-batches of a measured update.
const MICRO_BATCHES: usize = 4;
/// Prompts that a measurement answers, and the most new tokens of each.
const PROMPTS: usize = 8;
const NEW_TOKENS: usize = 32;

impl Calibration {
    /// What a store has of this machine; nothing where it has nothing.
    ///
    /// # Errors
    /// A file that is not one of calibrations.
    pub fn read(store: &Path, device: &str) -> Result<Self> {
        Ok(Machines::read(store)?.0.remove(device).unwrap_or_default())
    }

    /// Keeps it in a store.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn write(&self, store: &Path, device: &str) -> Result<()> {
        let mut machines = Machines::read(store)?;
        machines.0.insert(device.to_owned(), self.clone());
        std::fs::create_dir_all(store)
            .with_context(|| format!("cannot make the folder {}", store.display()))?;
        Ok(write_atomically(&calibration_file(store), &serde_json::to_vec_pretty(&machines)?)?)
    }

    /// The rate of a base model and kind of work, where it was measured.
    pub fn rate(&self, base: &str, kind: &str) -> Option<Rate> {
        self.rates.get(&name(base, kind)).copied()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.rates.is_empty()
    }
}

impl Machines {
    fn read(store: &Path) -> Result<Self> {
        let path = calibration_file(store);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| {
                format!("{}: expected calibrations; remove it to measure anew", path.display())
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

fn name(base: &str, kind: &str) -> String {
    format!("{base} {kind}")
}

/// The name of what an experiment computes on here: the processor and the threads that are computed with, or a GPU.
pub fn device(threads: usize, device: Device) -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let processor = model.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let cores = available_parallelism().map_or(threads, std::num::NonZero::get);
    let gpu = if device == Device::Cuda { ", cuda" } else { "" };
    format!("{processor}, {threads} of {cores} threads{gpu}")
}

impl Estimator<'_> {
    /// Measures each base model at each kind of work that the plan has for it, on a backend: some updates of a tuning on
    /// its own rows, some prompts answered. Takes seconds for small models, minutes for large ones.
    ///
    /// # Errors
    /// What a tuning or an answer fails with.
    pub fn calibrate<K: Kernels + Clone>(
        &mut self,
        kernels: &K,
        told: &mut dyn FnMut(&str),
    ) -> Result<Calibration> {
        let mut calibration = self.calibration.clone();
        for (cell, number, kind) in self.to_measure() {
            let label = self.prepared.experiment.base_model[number].name.clone();
            told(&format!("{label}: {kind}"));
            let rate = match &cell.work {
                Work::BaseModel { base_model } => self.measure_pretraining(kernels, *base_model)?,
                Work::Tuning { base_model, mix, method, seed, .. } => {
                    let job = self.tuning_job(*base_model, *mix, *method, *seed)?;
                    self.measure_tuning(kernels, *base_model, *mix, *method, &job.settings)?
                }
                Work::Answers { answerer, language } => {
                    let prompts = self.prepared.inputs.prompts.get(language).map(Vec::as_slice);
                    self.measure_answers(kernels, answerer, prompts.unwrap_or_default())?
                }
                Work::Mix { .. } | Work::Scores { .. } => continue,
            };
            calibration.rates.insert(name(&self.identity(number), &kind), rate);
        }
        Ok(calibration)
    }

    fn measure_pretraining<K: Kernels + Clone>(&mut self, kernels: &K, number: usize) -> Result<Rate> {
        let given = &self.prepared.experiment.base_model[number];
        let settings = crate::settings::pretraining(given.pretraining.as_ref().context("no `pretraining`")?);
        let documents = crate::rooms::documents(given)?;
        let base = &self.base(number)?.model;
        let rows = Rows::from_text(&documents, base.tokenizer(), settings.cutoff)?;
        measure(kernels, base, &rows, &settings)
    }

    fn measure_tuning<K: Kernels + Clone>(
        &mut self,
        kernels: &K,
        number: usize,
        mix: usize,
        method: crate::experiment::Method,
        settings: &Settings,
    ) -> Result<Rate> {
        let experiment = &self.prepared.experiment;
        let Work::Mix { name, seed, .. } = &self.prepared.plan.cells[mix].work else {
            anyhow::bail!("a tuning without a mix");
        };
        let given = experiment.tune.for_method(method);
        let choice =
            crate::settings::template(experiment.experiment.preset, Some(method), given.template.as_deref());
        let template = choice.load(None)?;
        self.base(number)?;
        let (base, mix) = (self.bases.get(&number), self.mixes.get(&(name.clone(), *seed)));
        let (base, mix) = (base.context("no base model")?, mix.context("the mix is not made")?);
        // Enough for what is measured, in the mix's own proportions: its rows are shuffled.
        let enough = settings.batch.saturating_mul(UPDATES as usize).min(mix.rows.len()).min(1024);
        let rows = Rows::encode(&mix.rows[..enough], &template, base.model.tokenizer(), settings)?;
        let at_once = self.at_once(number);
        if at_once == 1 {
            return measure(kernels, &base.model, &rows, settings);
        }
        // As many side by side as there will be, a thread each.
        let rates: Vec<Result<Rate>> = std::thread::scope(|scope| {
            let measuring = || {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
                pool.install(|| measure(kernels, &base.model, &rows, settings))
            };
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(measuring)).collect();
            let joined = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a measurement broke off")))
            });
            joined.collect()
        });
        let rates: Vec<Rate> = rates.into_iter().collect::<Result<_>>()?;
        let sum: f64 = rates.iter().map(|rate| rate.seconds_per_flop).sum();
        Ok(Rate { seconds_per_flop: sum / rates.len().max(1) as f64 })
    }

    fn measure_answers<K: Kernels + Clone>(
        &mut self,
        kernels: &K,
        answerer: &Answerer,
        prompts: &[Prompt],
    ) -> Result<Rate> {
        let Answerer::Model { base_model, .. } = answerer else {
            anyhow::bail!("an endpoint is not measured")
        };
        let experiment = &self.prepared.experiment;
        let preset = experiment.experiment.preset;
        let template = crate::settings::template(preset, None, None).load(None)?;
        let mut decoding = crate::settings::decoding(preset, None, &experiment.answer);
        decoding.new_tokens = decoding.new_tokens.min(NEW_TOKENS);
        let prompts = &prompts[..prompts.len().min(PROMPTS)];
        let base = self.base(*base_model)?;
        let folder;
        // A model that is not trained yet is written down, to be opened as any other.
        let path = match &base.new {
            None => base.model.path(),
            Some(_) => {
                folder = tempfile::tempdir().context("cannot make a temporary folder")?;
                model::folder::copy(folder.path(), &base.model, model::folder::Precision::F32)?;
                folder.path()
            }
        };
        let model = answer::AnswerModel::load(kernels.clone(), BaseModel::open(path)?, &[])?;
        let begin = Instant::now();
        let mut flops = 0u128;
        let systems = [answer::System::base("")];
        answer::respond(&model, &systems, prompts, &template, &decoding, &mut |_, _| {})?;
        let seconds = begin.elapsed().as_secs_f64();
        for prompt in prompts {
            let read = answer::prompt_tokens(model.base.tokenizer(), &template, prompt)?.len() as u64;
            flops += super::bound(model.base.config(), &[], &decoding, read).1;
        }
        Ok(Rate { seconds_per_flop: seconds / (flops as f64).max(1.0) })
    }
}

/// Some updates of a tuning, whose result is thrown away.
fn measure<K: Kernels + Clone>(
    kernels: &K,
    base: &BaseModel,
    rows: &Rows,
    settings: &Settings,
) -> Result<Rate> {
    let tokens = (rows.tokens() / rows.rows.len().max(1)).max(1);
    let batch = settings.batch.min((MICRO_BATCHES * settings.micro_batch_tokens / tokens).max(1));
    let settings = Settings {
        batch,
        length: Length::Updates(UPDATES),
        keep: Keep::Last,
        checkpoint_every: u64::MAX,
        ..settings.clone()
    };
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let places = Places::under(&folder.path().join("system"));
    let mut clock = Clock::default();
    let outcome = tune::tune(kernels, base, rows, &Rows::default(), None, &settings, &places, &mut clock)?;
    // The operations of the updates that count, by their share of the tokens.
    let flops = outcome.flops * clock.tokens as f64 / outcome.tokens.max(1) as f64;
    Ok(Rate { seconds_per_flop: clock.seconds / flops.max(1.0) })
}

/// Adds up all updates but the first.
#[derive(Debug, Default)]
struct Clock {
    seconds: f64,
    tokens: u64,
}

impl tune::Progress for Clock {
    fn update(&mut self, metrics: &UpdateMetrics) {
        if metrics.update > 1 {
            self.seconds += metrics.seconds;
            self.tokens += metrics.tokens as u64;
        }
    }

    fn validation(&mut self, _: &ValidationMetrics) {}

    fn note(&mut self, _: &str) {}
}
