//! A run: rows in, a tuned system out.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use engine::decoder::cost::ModuleShape;
use engine::decoder::weights::{HostData, HostTensor, Slot, slots};
use engine::decoder::{Adapter, Decoder, LoadError, LoraModule, Weights};
use engine::kernels::{AdamW, Kernels};
use engine::{Batch, Workspace, WorkspacePlan};
use instructions::lock::{Lock, Sharing, Taken};
use model::BaseModel;
use model::adapter::{Adapter as PeftAdapter, AdapterConfig, Targets};
use model::folder::Precision;

use crate::checkpoint::{Checkpoints, Entry, Fingerprint, State};
use crate::collective::{Alone, Collective, hand_to_first, part};
use crate::cost::{self, RowLength, Shape};
use crate::error::{Error, Result, system_error};
use crate::memory::{self, Room, peak_bytes};
use crate::metrics::{Progress, UpdateMetrics, ValidationMetrics};
use crate::order::RowOrder;
use crate::prefixes;
use crate::rows::{Packing, Rows, TrainingRow, micro_batches, pack};
use crate::schedule::learning_rate;
use crate::settings::{BestOver, FrozenWeights, Keep, Method, Settings};
use crate::sharded;
use crate::tensorboard::EventFile;
use crate::trained::{Kept, Trained};

/// Where a run's files go.
#[derive(Clone, Debug)]
pub struct Places {
    /// The tuned system: a PEFT folder (LoRA) or a Hugging Face folder (full).
    pub out: PathBuf,
    /// The checkpoints, until the run has ended.
    pub checkpoints: PathBuf,
    /// A JSON line an update and a measurement, if wanted.
    pub metrics: Option<PathBuf>,
    /// The folder of TensorBoard's event files, if they are wanted.
    pub tensorboard: Option<PathBuf>,
}

impl Places {
    /// All under `out`.
    pub fn under(out: &Path) -> Self {
        Self { out: out.to_owned(), checkpoints: out.join("checkpoint"), metrics: None, tensorboard: None }
    }
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Outcome {
    /// Updates done.
    pub updates: u64,
    /// The update whose values were kept.
    pub kept_update: u64,
    /// Real tokens trained on, each as often as it was met.
    pub tokens: u64,
    /// Of all updates' matrix products, a multiply-add counted as two operations: see [`crate::cost`].
    pub flops: f64,
    /// Values that were trained.
    pub trained_parameters: usize,
    /// All measurements.
    pub validations: Vec<ValidationMetrics>,
}

/// Tunes `base` on `rows`, on a backend. A checkpoint in `places` is gone on from; without one the run begins anew.
///
/// # Errors
/// Files, settings that do not fit the model, a loss that is no number, or [`Error::Stopped`] when the listener asked.
#[expect(clippy::too_many_arguments, reason = "all that a run is made of")]
pub fn tune<K: Kernels + Clone>(
    kernels: &K,
    base: &BaseModel,
    rows: &Rows,
    validation: &Rows,
    initial: Option<&PeftAdapter>,
    settings: &Settings,
    places: &Places,
    progress: &mut dyn Progress,
) -> Result<Outcome> {
    tune_together(kernels, &Alone, base, rows, validation, initial, settings, places, progress)
}

/// [`tune`] by several processes, each of which calls it with the same rows and settings. Rank 0 writes, and is told how
/// it goes; what the others give back is the same but for `kept_update`. A checkpoint of a world of another size is gone
/// on from as well, with other roundings.
///
/// # Errors
/// As for [`tune`]; and a process that is gone, or has other rows, settings or another model.
#[expect(clippy::too_many_arguments, reason = "all that a run is made of")]
pub fn tune_together<K: Kernels + Clone>(
    kernels: &K,
    collective: &dyn Collective,
    base: &BaseModel,
    rows: &Rows,
    validation: &Rows,
    initial: Option<&PeftAdapter>,
    settings: &Settings,
    places: &Places,
    progress: &mut dyn Progress,
) -> Result<Outcome> {
    let mut run = Run::new(kernels, collective, base, rows, validation, initial, settings, places)?;
    run.resume(progress)?;
    run.train(progress)?;
    run.finish()
}

/// Trains a new model on plain text: full tuning without validation.
///
/// # Errors
/// As for [`tune`].
pub fn pretrain<K: Kernels + Clone>(
    kernels: &K,
    base: &BaseModel,
    rows: &Rows,
    settings: &Settings,
    places: &Places,
    progress: &mut dyn Progress,
) -> Result<Outcome> {
    tune(kernels, base, rows, &Rows::default(), None, settings, places, progress)
}

/// Mean cross-entropy over the supervised tokens of `rows`, in nats, with their number; and language by language.
///
/// # Errors
/// The model or adapter does not fit.
pub fn loss<K: Kernels + Clone>(
    kernels: &K,
    base: &BaseModel,
    adapter: Option<&PeftAdapter>,
    rows: &Rows,
    micro_batch_tokens: usize,
) -> Result<Loss> {
    let decoder = load(kernels, base, Weights::Frozen(FrozenWeights::Published.precision()))?;
    let adapter = adapter.map(|adapter| upload(kernels, base, adapter)).transpose()?;
    let longest = rows.rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0);
    let plan = WorkspacePlan { tokens: micro_batch_tokens.max(longest), training: false, recompute: false };
    let adapters: Vec<&Adapter<K>> = adapter.iter().collect();
    let mut workspace = Workspace::new(&decoder, &adapters, plan);
    let loss = measure(&Alone, &rows.rows, micro_batch_tokens, |batch| {
        Ok(batch.map_or_else(Vec::new, |batch| decoder.loss(adapter.as_ref(), batch, &mut workspace)))
    })?;
    if loss.supervised_tokens == 0 {
        return Err(Error::Settings("no row has a token that a loss could be taken over".into()));
    }
    if !loss.loss.is_finite() {
        return Err(Error::LossNotFinite { model: base.name(), loss: loss.loss });
    }
    Ok(loss)
}

/// A mean cross-entropy.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Loss {
    /// In nats, over all supervised tokens.
    pub loss: f64,
    /// How many there are.
    pub supervised_tokens: usize,
    /// The same for the rows of each language that has supervised tokens.
    pub by_language: BTreeMap<String, f64>,
}

impl Loss {
    /// The mean of the languages' losses: each counts the same, however many rows it has.
    pub fn mean_of_languages(&self) -> f64 {
        self.by_language.values().sum::<f64>() / self.by_language.len().max(1) as f64
    }
}

/// A run under way.
struct Run<'a, K: Kernels> {
    collective: &'a dyn Collective,
    base: &'a BaseModel,
    rows: &'a [TrainingRow],
    validation: &'a [TrainingRow],
    settings: &'a Settings,
    places: &'a Places,
    checkpoints: Checkpoints,
    config: Option<AdapterConfig>,
    shape: Shape,
    decoder: Decoder<K>,
    trained: Trained<K>,
    workspace: Workspace<K>,
    order: RowOrder,
    updates: u64,
    state: State,
    /// Rank 0's: nobody else tunes into the same place meanwhile.
    _lock: Option<Lock>,
}

impl<'a, K: Kernels + Clone> Run<'a, K> {
    #[expect(clippy::too_many_arguments, reason = "all that a run is made of")]
    fn new(
        kernels: &K,
        collective: &'a dyn Collective,
        base: &'a BaseModel,
        rows: &'a Rows,
        validation: &'a Rows,
        initial: Option<&PeftAdapter>,
        settings: &'a Settings,
        places: &'a Places,
    ) -> Result<Self> {
        check(rows, validation, settings)?;
        check_sharding(settings, collective)?;
        // All that can be wrong is looked at before the model is loaded, which takes a while.
        if let Some(path) = places.metrics.as_deref().filter(|_| collective.is_first()) {
            check_metrics(path)?;
        }
        let peft = first_adapter(base, initial, settings)?;
        let (lengths, held_out) = (RowLength::of(&rows.rows), RowLength::of(&validation.rows));
        let fingerprint = fingerprint(base, rows, validation, initial, settings)?;
        // Before any process has taken what all of them share.
        let room = Room::of(kernels, collective);
        agree::<K>(collective, &fingerprint, peft.as_ref(), settings)?;
        memory::check(kernels, base, &lengths, &held_out, settings, room)?;
        let lock = collective.is_first().then(|| check_out(places, settings.method)).transpose()?;
        let (decoder, trained) = load_trained(kernels, collective, base, peft.as_ref(), settings)?;
        let config = peft.map(|peft| AdapterConfig { dropout: f64::from(settings.dropout), ..peft.config });
        let mut shape = Shape::of(base, settings)?;
        // No more than may be used: a GPU's memory is held whether it is written to or not.
        let tokens = cost::most_tokens(&lengths, &held_out, settings, collective.world_size());
        let plan = WorkspacePlan { tokens, training: true, recompute: settings.recompute };
        // An adapter that it began with has its own modules.
        shape.modules = trained.as_adapter().map(module_shapes);
        let adapters: Vec<&Adapter<K>> = trained.as_adapter().into_iter().collect();
        let workspace = Workspace::new(&decoder, &adapters, plan);
        Ok(Self {
            collective,
            base,
            rows: &rows.rows,
            validation: &validation.rows,
            settings,
            places,
            checkpoints: Checkpoints::new(places.checkpoints.clone()),
            config,
            shape,
            decoder,
            trained,
            workspace,
            order: RowOrder {
                rows: rows.rows.len(),
                batch: settings.batch,
                order: settings.order,
                seed: settings.seed,
            },
            updates: settings.updates(rows.rows.len()),
            state: State::new(fingerprint),
            _lock: lock,
        })
    }

    /// Goes on from a checkpoint, if there is one; the metrics after it are cut off, since they will be written again.
    /// Rank 0 alone need see the file.
    fn resume(&mut self, progress: &mut dyn Progress) -> Result<()> {
        let collective = self.collective;
        let mut found = None;
        if collective.is_first() {
            found = self.checkpoints.read_state(&self.state.fingerprint)?;
        }
        let mut begun = [f64::from(u8::from(found.is_some()))];
        collective.sum(&mut begun)?;
        self.tell_of_long_rows(progress);
        if begun[0] > 0.0 {
            let (state, mut tensors) = found.unzip();
            self.state = State::handed_on(state, collective)?;
            // Tensor by tensor: no process need hold them all.
            let read = |entry: &Entry| {
                let own = tensors.as_mut().map(|tensors| tensors.read(&entry.name, entry.length));
                handed_on(own, collective)
            };
            self.trained.restore(&mut self.decoder, Kept::State, read)?;
            progress.note(&format!("going on from update {} of {}", self.state.update, self.updates));
        }
        if let Some(path) = self.places.metrics.as_ref().filter(|_| self.collective.is_first()) {
            cut_metrics(path, self.state.update)?;
        }
        Ok(())
    }

    /// What a position beyond those that the model was made for means to it is nobody's knowledge.
    fn tell_of_long_rows(&self, progress: &mut dyn Progress) {
        let most = self.base.config().max_positions;
        let longer = self.rows.iter().filter(|row| row.tokens.len() > most).count();
        if longer > 0 && self.collective.is_first() {
            let rows = self.rows.len();
            progress.note(&format!(
                "{longer} of {rows} rows are longer than the {most} tokens that the model was made for: --cutoff {most} cuts them"
            ));
        }
    }

    /// All updates that are left.
    fn train(&mut self, progress: &mut dyn Progress) -> Result<()> {
        let mut metrics = self.open_metrics()?;
        let folder = self.places.tensorboard.as_ref().filter(|_| self.collective.is_first());
        let mut events = folder.map(|folder| EventFile::begin(folder, self.state.update)).transpose()?;
        while self.state.update < self.updates && !self.state.exhausted {
            let line = self.update()?;
            write_line(&mut metrics, self.places, &line)?;
            if let Some(events) = &mut events {
                events.update(&line)?;
            }
            progress.update(&line);
            self.state.update += 1;
            let last = self.state.update == self.updates;
            if !self.validation.is_empty()
                && (last || self.state.update.is_multiple_of(self.settings.validate_every))
            {
                let line = self.validate()?;
                write_line(&mut metrics, self.places, &line)?;
                if let Some(events) = &mut events {
                    events.validation(&line)?;
                }
                progress.validation(&line);
            }
            // Whoever is asked to stop stops all.
            let mut asked = [f64::from(u8::from(progress.should_stop()))];
            self.collective.sum(&mut asked)?;
            let stop = asked[0] > 0.0 && !last;
            if stop || self.state.update.is_multiple_of(self.settings.checkpoint_every) {
                let Self { trained, decoder, checkpoints, state, collective, .. } = &*self;
                trained.keep(decoder, *collective, Kept::State, |entries, fetch| {
                    checkpoints.write_state(state, entries, fetch)
                })?;
            }
            if stop {
                return Err(Error::Stopped { update: self.state.update });
            }
        }
        Ok(())
    }

    /// One update.
    fn update(&mut self) -> Result<UpdateMetrics> {
        let begin = Instant::now();
        let update = self.state.update;
        let mut numbers = self.order.update(update);
        if self.settings.share_prefixes {
            prefixes::sort(self.rows, &mut numbers);
        }
        let supervised: usize = numbers.iter().map(|number| self.rows[*number].supervised()).sum();
        let tokens: usize = numbers.iter().map(|number| self.rows[*number].tokens.len()).sum();
        // Of the whole batch: so the loss does not depend on how the batch is cut.
        let scale = 1.0 / supervised.max(1) as f32;
        let lengths: Vec<usize> = numbers.iter().map(|number| self.rows[*number].tokens.len()).collect();
        let own = part(&lengths, self.collective.rank(), self.collective.world_size());
        let dropout = if self.settings.method == Method::Lora { self.settings.dropout } else { 0.0 };
        let batches = self.cut(self.rows, &numbers[own]);
        let mut sum = 0.0;
        for round in 0..self.rounds(&lengths) {
            let batch = batches.get(round);
            let Self { trained, decoder, workspace, .. } = self;
            let losses = trained.step(decoder, self.collective, batch, scale, dropout, workspace)?;
            sum += batch.map_or(0.0, |batch| batch.sum_of_losses(&losses));
        }
        self.trained.reduce(&self.decoder, self.collective)?;
        let mut sums = [sum, self.trained.squared_norm(&self.decoder.kernels)];
        self.collective.sum(&mut sums)?;
        let (loss, norm) = (sums[0] / supervised.max(1) as f64, sums[1].sqrt());
        if !loss.is_finite() || !norm.is_finite() {
            let ids: Vec<&str> = numbers.iter().map(|number| self.rows[*number].id.as_str()).collect();
            return Err(Error::NotFinite {
                update: update + 1,
                loss,
                gradient: self.trained.largest_gradient(&self.decoder, self.collective)?,
                records: ids.join(", "),
            });
        }
        let rate = learning_rate(self.settings, update, self.updates);
        // As torch.nn.utils.clip_grad_norm_ does it.
        let clip = self.settings.clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0));
        let adamw = AdamW {
            learning_rate: rate as f32,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: self.settings.weight_decay as f32,
            step: update + 1,
            gradient_scale: clip as f32,
        };
        self.trained.update(&mut self.decoder, &adamw);
        self.trained.share(&mut self.decoder, self.collective)?;
        let seconds = begin.elapsed().as_secs_f64();
        Ok(UpdateMetrics {
            update: update + 1,
            updates: self.updates,
            loss,
            learning_rate: rate,
            gradient_norm: norm,
            tokens,
            supervised_tokens: supervised,
            tokens_per_second: tokens as f64 / seconds,
            seconds,
            peak_bytes: peak_bytes(),
            device_peak_bytes: self.decoder.kernels.most_bytes(),
        })
    }

    /// Micro-batches of the rank that has the most of them, of an update's rows of these lengths.
    fn rounds(&self, lengths: &[usize]) -> usize {
        let (tokens, most) =
            (self.settings.micro_batch_tokens, self.settings.micro_batch.unwrap_or(usize::MAX));
        let world_size = self.collective.world_size();
        let of_rank = |rank| micro_batches(&lengths[part(lengths, rank, world_size)], tokens, most).len();
        (0..world_size).map(of_rank).max().unwrap_or(0)
    }

    /// The micro-batches of some rows.
    fn cut(&self, rows: &[TrainingRow], numbers: &[usize]) -> Vec<Batch> {
        let lengths: Vec<usize> = numbers.iter().map(|number| rows[*number].tokens.len()).collect();
        let most = self.settings.micro_batch.unwrap_or(usize::MAX);
        let cuts = micro_batches(&lengths, self.settings.micro_batch_tokens, most);
        let (seed, update, packing) = (self.settings.seed, self.state.update, self.settings.packing());
        cuts.into_iter().map(|cut| pack(rows, &numbers[cut], seed, update, packing)).collect()
    }

    /// Measures the validation loss, and keeps the values if it is the lowest.
    fn validate(&mut self) -> Result<ValidationMetrics> {
        let Self { trained, decoder, workspace, collective, .. } = self;
        let loss = measure(*collective, self.validation, self.settings.micro_batch_tokens, |batch| {
            trained.loss(decoder, *collective, batch, workspace)
        })?;
        let compared = match self.settings.best_over {
            BestOver::Rows => loss.loss,
            BestOver::Languages => loss.mean_of_languages(),
        };
        if !compared.is_finite() {
            return Err(Error::ValidationNotFinite { update: self.state.update, loss: compared });
        }
        let best = self.state.best().is_none_or(|best| compared < best.compared());
        let line = ValidationMetrics {
            update: self.state.update,
            validation_loss: loss.loss,
            validation_loss_mean_of_languages: (self.settings.best_over == BestOver::Languages)
                .then_some(compared),
            validation_loss_by_language: loss.by_language,
            best,
        };
        self.state.validations.push(line.clone());
        self.state.worse = if best { 0 } else { self.state.worse + 1 };
        self.state.exhausted = self.settings.patience.is_some_and(|patience| self.state.worse >= patience);
        if best && self.settings.keep == Keep::Best {
            let Self { trained, decoder, checkpoints, state, collective, .. } = &*self;
            trained.keep(decoder, *collective, Kept::Best, |entries, fetch| {
                checkpoints.write_best(state, entries, fetch)
            })?;
        }
        Ok(line)
    }

    /// Writes the system that is kept, and removes the checkpoints: rank 0's work, for which the others wait.
    fn finish(mut self) -> Result<Outcome> {
        let collective = self.collective;
        let kept_update = self.take_best()?;
        self.trained.dismiss_guests(&mut self.decoder);
        // No loss was taken after the last update.
        let looks = collective.is_first() || self.trained.is_divided();
        let mut not_finite = [f64::from(u8::from(looks && !self.trained.are_finite(&self.decoder)))];
        collective.sum(&mut not_finite)?;
        if not_finite[0] > 0.0 {
            return Err(Error::ValuesNotFinite { update: kept_update });
        }
        let work = cost::updates(&RowLength::of(self.rows), self.settings, self.state.update, 1);
        let flops = cost::flops(&self.shape, &work, self.settings);
        let Self { base, places, checkpoints, config, decoder, trained, workspace, state, .. } = self;
        // No step follows: what steps took makes room for the copies that are written.
        drop(workspace);
        let trained_parameters = match (trained, config) {
            (Trained::Adapter { adapter, .. }, Some(config)) => {
                if collective.is_first() {
                    let peft = PeftAdapter { config, modules: adapter.to_host(&decoder.kernels) };
                    peft.write(&places.out, base.family(), base.config())?;
                }
                adapter.parameters()
            }
            (trained, _) => {
                let holders = trained.holders(&decoder, collective);
                drop(trained);
                write_folder(&places.out, base, &decoder, collective, &holders)?;
                base.config().parameters()
            }
        };
        let outcome = Outcome {
            updates: state.update,
            kept_update,
            tokens: work.tokens,
            flops,
            trained_parameters,
            validations: state.validations,
        };
        // Nobody has ended well before the result is there; and whoever is gone meanwhile leaves the checkpoints.
        collective.sum(&mut [0.0])?;
        if collective.is_first() {
            checkpoints.remove()?;
        }
        Ok(outcome)
    }

    /// Puts the best values in the place of the last ones where these are to be kept: in rank 0, and where weights are
    /// divided in their owners. The update whose values there are now, as far as this rank knows.
    fn take_best(&mut self) -> Result<u64> {
        if self.settings.keep != Keep::Best {
            return Ok(self.state.update);
        }
        let (collective, divided) = (self.collective, self.trained.is_divided());
        let mut found = None;
        if collective.is_first() {
            found = self.checkpoints.read_best(&self.state.fingerprint)?;
        }
        let mut there = [f64::from(u8::from(found.is_some()))];
        if divided {
            collective.sum(&mut there)?;
        }
        let (best, mut tensors) = found.unzip();
        if there[0] > 0.0 {
            self.trained.restore(&mut self.decoder, Kept::Best, |entry| {
                let own = tensors.as_mut().map(|tensors| tensors.read(&entry.name, entry.length));
                if divided { handed_on(own, collective) } else { own.unwrap_or_else(|| Ok(Vec::new())) }
            })?;
        }
        Ok(best.map_or(self.state.update, |best| best.update))
    }

    fn open_metrics(&self) -> Result<Option<File>> {
        let open = |path: &PathBuf| {
            File::options().create(true).append(true).open(path).map_err(Error::io(path.clone()))
        };
        self.places.metrics.as_ref().filter(|_| self.collective.is_first()).map(open).transpose()
    }
}

/// Settings that no run can have.
fn check(rows: &Rows, validation: &Rows, settings: &Settings) -> Result<()> {
    let refuse = |message: String| Err(Error::Settings(message));
    if rows.rows.is_empty() {
        return refuse("there is no row to train on".into());
    }
    if let Some(problem) = settings.problems().first() {
        return refuse(problem.to_string());
    }
    if rows.rows.iter().all(|row| row.supervised() == 0) {
        return refuse("no row has a supervised token: is the cutoff shorter than the prompts?".into());
    }
    if !validation.rows.is_empty() && validation.rows.iter().all(|row| row.supervised() == 0) {
        return refuse(
            "no validation row has a supervised token: is the cutoff shorter than the prompts?".into(),
        );
    }
    Ok(())
}

/// That weights can be divided where that is wanted.
fn check_sharding(settings: &Settings, collective: &dyn Collective) -> Result<()> {
    let needed = match (settings.method, collective.world_size()) {
        _ if !settings.shard_weights => return Ok(()),
        (Method::Lora, _) => "full tuning, found LoRA",
        (Method::Full, 1) => "several processes, found one",
        (Method::Full, _) => return Ok(()),
    };
    Err(Error::Settings(format!("weights that are divided among processes: expected {needed}")))
}

/// The adapter that a run begins with; none where all weights are tuned.
fn first_adapter(
    base: &BaseModel,
    initial: Option<&PeftAdapter>,
    settings: &Settings,
) -> Result<Option<PeftAdapter>> {
    Ok(match (settings.method, initial) {
        (Method::Full, _) => None,
        (Method::Lora, Some(peft)) => Some(peft.clone()),
        (Method::Lora, None) => {
            let config = adapter_config(base, settings);
            Some(PeftAdapter::fresh(config, base.family(), base.config(), settings.seed)?)
        }
    })
}

/// The decoder and what is trained of it, in the engine.
fn load_trained<K: Kernels + Clone>(
    kernels: &K,
    collective: &dyn Collective,
    base: &BaseModel,
    peft: Option<&PeftAdapter>,
    settings: &Settings,
) -> Result<(Decoder<K>, Trained<K>)> {
    let weights = match settings.method {
        Method::Full => Weights::Trained,
        Method::Lora => Weights::Frozen(settings.weights.precision()),
    };
    let divided = settings.shard_weights;
    let owners = sharded::owners(base.config(), collective.world_size());
    let wanted = |slot| !divided || owners[&slot] == collective.rank();
    let decoder = load_some(kernels, base, weights, wanted)?;
    let trained = match peft {
        None => Trained::full(&decoder, collective, divided),
        Some(peft) => Trained::adapter(kernels, upload(kernels, base, peft)?, collective),
    };
    Ok((decoder, trained))
}

/// The base model's weights in the engine.
fn load<K: Kernels + Clone>(kernels: &K, base: &BaseModel, weights: Weights) -> Result<Decoder<K>> {
    load_some(kernels, base, weights, |_| true)
}

/// Those of the base model's weights that are wanted, in the engine.
fn load_some<K: Kernels + Clone>(
    kernels: &K,
    base: &BaseModel,
    weights: Weights,
    wanted: impl Fn(Slot) -> bool,
) -> Result<Decoder<K>> {
    let read = |slot| base.tensor(slot);
    let loaded = Decoder::load_some(kernels.clone(), base.config(), weights, wanted, read);
    base.forget_what_was_read();
    loaded.map_err(|error| match error {
        LoadError::Source(error) => Error::Model(error),
        other => Error::Decoder { model: base.name(), reason: other.to_string() },
    })
}

/// An adapter in the engine.
fn upload<K: Kernels>(kernels: &K, base: &BaseModel, peft: &PeftAdapter) -> Result<Adapter<K>> {
    Adapter::load(kernels, base.config(), &peft.modules)
        .map_err(|reason| Error::Decoder { model: base.name(), reason })
}

/// The shapes of an adapter's modules.
fn module_shapes<K: Kernels>(adapter: &Adapter<K>) -> Vec<ModuleShape> {
    let modules = adapter.blocks.iter().enumerate();
    let of_block = |(layer, block): (usize, &Vec<LoraModule<K>>)| -> Vec<ModuleShape> {
        let shape = |module: &LoraModule<K>| ModuleShape {
            layer,
            linear: module.linear,
            inputs: module.inputs,
            rows: module.rows,
            rank: module.rank,
        };
        block.iter().map(shape).collect()
    };
    modules.flat_map(of_block).collect()
}

/// The settings' adapter, with PEFT's names for the modules.
pub(crate) fn adapter_config(base: &BaseModel, settings: &Settings) -> AdapterConfig {
    let paper = AdapterConfig::paper(base.family());
    let targets = if settings.modules.is_empty() {
        paper.targets.clone()
    } else {
        Targets::Names(settings.modules.clone())
    };
    AdapterConfig {
        rank: settings.rank,
        alpha: settings.alpha,
        dropout: f64::from(settings.dropout),
        targets,
        rslora: settings.rslora,
        base_model: Some(base.name()),
        ..paper
    }
}

/// Writes the tuned model's folder, in rank 0: each tensor is fetched when it is written, from the rank that has it.
fn write_folder<K: Kernels>(
    out: &Path,
    base: &BaseModel,
    decoder: &Decoder<K>,
    collective: &dyn Collective,
    holders: &[usize],
) -> Result<()> {
    let (config, slots) = (base.config(), slots(base.config()));
    let lengths: Vec<usize> = slots.iter().map(|slot| slot.shape(config).iter().product()).collect();
    let own = |tensor: usize| decoder.tensor(slots[tensor]);
    hand_to_first(collective, holders, &lengths, &own, |fetch| {
        // Whoever writes the folder knows of no other process: what became of one is kept here.
        let failed = RefCell::new(None);
        let written = model::folder::write(out, base, Precision::F32, |slot| {
            let number = slots.iter().position(|other| *other == slot).unwrap_or_default();
            let values = fetch(number).map_err(|error| {
                let source = std::io::Error::other(error.to_string());
                *failed.borrow_mut() = Some(error);
                model::Error::Io { path: out.to_owned(), source }
            })?;
            Ok(HostTensor { shape: slot.shape(config), data: HostData::F32(values.into()) })
        });
        failed.into_inner().map_or_else(|| Ok(written?), Err)
    })
    .map(drop)
}

/// Mean loss over rows, whose losses `losses` gives; each rank takes some of the micro-batches, and all call `losses` as
/// often: with none when they have run out. The sums are in f64 and in the rows' order.
fn measure(
    collective: &dyn Collective,
    rows: &[TrainingRow],
    micro_batch_tokens: usize,
    mut losses: impl FnMut(Option<&Batch>) -> Result<Vec<f32>>,
) -> Result<Loss> {
    let lengths: Vec<usize> = rows.iter().map(|row| row.tokens.len()).collect();
    let mut sums: BTreeMap<&str, [f64; 2]> =
        rows.iter().map(|row| (row.language.as_str(), [0.0; 2])).collect();
    let cuts = micro_batches(&lengths, micro_batch_tokens, usize::MAX);
    for round in cuts.chunks(collective.world_size()) {
        let Some(cut) = round.get(collective.rank()).cloned() else {
            losses(None)?;
            continue;
        };
        let numbers: Vec<usize> = cut.clone().collect();
        let mut losses = losses(Some(&pack(rows, &numbers, 0, 0, Packing::Apart)))?.into_iter();
        for row in &rows[cut] {
            let [sum, count] = sums.entry(&row.language).or_default();
            *sum += losses.by_ref().take(row.supervised()).map(f64::from).sum::<f64>();
            *count += row.supervised() as f64;
        }
    }
    let mut all: Vec<f64> = sums.values().copied().flatten().collect();
    collective.sum(&mut all)?;
    let mean = |sum: f64, count: f64| sum / count.max(1.0);
    let (sum, count) = all.chunks_exact(2).fold((0.0, 0.0), |(sum, count), of| (sum + of[0], count + of[1]));
    let by_language = sums.into_keys().zip(all.chunks_exact(2)).filter(|(_, of)| of[1] > 0.0);
    Ok(Loss {
        loss: mean(sum, count),
        supervised_tokens: count as usize,
        by_language: by_language.map(|(language, of)| (language.to_owned(), of[0] / of[1])).collect(),
    })
}

/// What rank 0 read, in all ranks; the others have nothing of their own.
fn handed_on(own: Option<Result<Vec<f32>>>, collective: &dyn Collective) -> Result<Vec<f32>> {
    if collective.world_size() == 1 {
        return own.unwrap_or_else(|| Ok(Vec::new()));
    }
    let own = own.transpose();
    let values = own.as_ref().ok().and_then(Option::as_deref).unwrap_or_default();
    let mut bytes = bytemuck::cast_slice(values).to_vec();
    collective.broadcast(&mut bytes)?;
    if let Some(own) = own? {
        return Ok(own);
    }
    if bytes.is_empty() {
        return Err(Error::Collective("rank 0 could not read its checkpoint".into()));
    }
    Ok(bytemuck::pod_collect_to_vec(&bytes))
}

/// Refuses processes that would not tune the same, or not write their checkpoints at the same updates: other rows,
/// settings, another model, device or version of the program.
fn agree<K: Kernels>(
    collective: &dyn Collective,
    fingerprint: &Fingerprint,
    adapter: Option<&PeftAdapter>,
    settings: &Settings,
) -> Result<()> {
    if collective.world_size() == 1 {
        return Ok(());
    }
    let (device, version) = (std::any::type_name::<K>(), env!("CARGO_PKG_VERSION"));
    let config = adapter.map(|adapter| &adapter.config);
    let Settings { checkpoint_every: every, shard_weights: divided, .. } = settings;
    let own = format!("{version} {device} {fingerprint:?} {every} {divided} {config:?}").into_bytes();
    let mut first = own.clone();
    collective.broadcast(&mut first)?;
    let mut others = [f64::from(u8::from(first != own))];
    collective.sum(&mut others)?;
    if others[0] > 0.0 {
        return Err(Error::Settings(format!(
            "{} of {} processes have other rows, settings, another model or another device than rank 0; expected the same \
             command in all",
            others[0],
            collective.world_size()
        )));
    }
    Ok(())
}

/// All that determines a run's bytes but the device and the number of processes, with which roundings change.
fn fingerprint(
    base: &BaseModel,
    rows: &Rows,
    validation: &Rows,
    initial: Option<&PeftAdapter>,
    settings: &Settings,
) -> Result<Fingerprint> {
    // How often a checkpoint is written does not change the result.
    let settings = Settings { checkpoint_every: 1, ..settings.clone() };
    let settings = serde_json::to_value(&settings).map_err(|error| Error::Settings(error.to_string()))?;
    let adapter = initial.map(adapter_hash);
    Ok(Fingerprint {
        model: base.content_hash()?,
        rows: rows_hash(rows),
        validation_rows: rows_hash(validation),
        adapter,
        settings,
    })
}

fn rows_hash(rows: &Rows) -> String {
    let mut hasher = blake3::Hasher::new();
    for row in &rows.rows {
        hasher.update(&(row.tokens.len() as u64).to_le_bytes());
        hasher.update(&(row.supervised_from as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice(&row.tokens));
        hasher.update(row.language.as_bytes());
        hasher.update(&[0]);
    }
    hasher.finalize().to_hex().to_string()
}

fn adapter_hash(adapter: &PeftAdapter) -> String {
    let mut hasher = blake3::Hasher::new();
    for module in &adapter.modules {
        let place = format!(
            "{} {:?} {} {} {}",
            module.layer, module.linear, module.first_row, module.rank, module.scale
        );
        hasher.update(place.as_bytes());
        hasher.update(bytemuck::cast_slice(&module.a));
        hasher.update(bytemuck::cast_slice(&module.b));
    }
    hasher.finalize().to_hex().to_string()
}

/// One line of the metrics' file.
fn write_line(file: &mut Option<File>, places: &Places, line: &impl serde::Serialize) -> Result<()> {
    if let (Some(file), Some(path)) = (file, &places.metrics) {
        let mut text = serde_json::to_string(line).map_err(|error| Error::Settings(error.to_string()))?;
        text.push('\n');
        file.write_all(text.as_bytes()).map_err(Error::io(path))?;
    }
    Ok(())
}

/// That the result can be written where it is wanted, before any work is done: the folder takes files, and holds no result
/// of the other kind. Until the lock is dropped no other tuning goes there.
fn check_out(places: &Places, method: Method) -> Result<Lock> {
    match method {
        Method::Lora => model::folder::refuse_model(&places.out)?,
        Method::Full => model::folder::refuse_adapter(&places.out)?,
    }
    let folder = &places.checkpoints;
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    std::fs::create_dir_all(&places.out).map_err(Error::io(&places.out))?;
    let path = folder.join("lock");
    match Lock::hold(&path, Sharing::Alone).map_err(Error::io(&path))? {
        Taken::Ours(lock) => Ok(lock),
        Taken::Theirs(process) => Err(Error::Settings(format!(
            "{}: another tuning is writing here ({process}); expected it to end first, or another place",
            places.out.display()
        ))),
    }
}

/// That the metrics' file can be one: its folder is there, and it is none itself, nor another file whose lines a run would
/// take away.
fn check_metrics(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::read_dir(folder).map_err(Error::io(folder))?;
    }
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(path)(error)),
        Ok(found) if found.is_dir() => {
            return Err(Error::io(path)(std::io::ErrorKind::IsADirectory.into()));
        }
        // A pipe would be read to an end that never comes.
        Ok(found) if !found.is_file() => {
            return Err(Error::Settings(format!("{}: expected a file for the metrics", path.display())));
        }
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let text = String::from_utf8_lossy(&bytes);
    // The last line may have been cut off by a kill.
    let mut lines: Vec<&str> = text.split('\n').collect();
    let cut_off = lines.pop().unwrap_or_default();
    let begins_a_line = "{\"update\":".starts_with(cut_off) || cut_off.starts_with("{\"update\":");
    let foreign = lines.iter().position(|line| update_of(line).is_none());
    match foreign.or((!begins_a_line).then_some(lines.len())) {
        None => Ok(()),
        Some(line) => Err(Error::Settings(format!(
            "{}:{}: expected a tuning's metrics, lines with `update`; choose another file, since this one's lines would \
             be taken away",
            path.display(),
            line + 1
        ))),
    }
}

/// The update of a line of metrics.
fn update_of(line: &str) -> Option<u64> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line.get("update")?.as_u64()
}

/// Keeps the metrics' lines up to an update; they come again after it.
fn cut_metrics(path: &Path, update: u64) -> Result<()> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let kept: String = text
        .lines()
        .filter(|line| update_of(line).is_some_and(|of_line| of_line <= update))
        .flat_map(|line| [line, "\n"])
        .collect();
    instructions::files::atomic_write(path, |file| Ok(file.write_all(kept.as_bytes())?))
        .map_err(|error| Error::io(path)(system_error(error)))
}
