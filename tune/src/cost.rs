//! What a run will take, before it starts: tokens, floating-point operations and memory, from the lengths of its rows.
//!
//! The engine's [`engine::decoder::cost`] knows what a pass takes; here is which passes a run makes. The run itself
//! tells its cost by the same functions, over the updates that it did.
//!
//! Tokens and operations are those of rows that share nothing: what a budget holds does not depend on which rows begin
//! alike, nor on whether that is computed once ([`Settings::share_prefixes`]). The operations that are done are then fewer,
//! and memory is told as a bound, since the order of the rows depends on their tokens.

use engine::WorkspacePlan;
use engine::decoder::config::{DecoderConfig, Head};
use engine::decoder::cost::{self, Lengths, ModuleShape, TrainedShape};
use engine::decoder::weights::{HostData, LayerSlot, Precision, Slot, slots};
use model::BaseModel;

use crate::collective::part;
use crate::error::Result;
use crate::order::RowOrder;
use crate::rows::{TrainingRow, micro_batches};
use crate::run::adapter_config;
use crate::settings::{Keep, Method, Settings};

/// What of a row its cost depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowLength {
    /// Its tokens.
    pub tokens: usize,
    /// Those that the loss is taken over.
    pub supervised: usize,
}

impl RowLength {
    /// Of each row, in their order.
    pub fn of(rows: &[TrainingRow]) -> Vec<Self> {
        rows.iter().map(|row| Self { tokens: row.tokens.len(), supervised: row.supervised() }).collect()
    }

    fn lengths(self) -> Lengths {
        Lengths::of(self.tokens as u64, self.supervised as u64)
    }
}

/// What a run computes on, as far as its cost goes.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The decoder.
    pub config: DecoderConfig,
    /// The adapter's modules; none for full tuning.
    pub modules: Option<Vec<ModuleShape>>,
    /// In what a frozen decoder's matrices are kept, by slot: those of block 0 stand for all blocks. What is published as
    /// f32 is `Published`.
    precisions: Vec<(Slot, Precision)>,
}

impl Shape {
    /// Of a base model under a method's settings.
    ///
    /// # Errors
    /// Modules that the model does not have; a tensor that cannot be read.
    pub fn of(base: &BaseModel, settings: &Settings) -> Result<Self> {
        let config = base.config().clone();
        let modules = match settings.method {
            Method::Full => None,
            Method::Lora => {
                let adapter = adapter_config(base, settings);
                let modules = adapter.modules(base.family(), &config)?.into_iter().map(|module| {
                    let (rank, _) = adapter.rank_and_scale(&module)?;
                    let (layer, linear, inputs, rows) =
                        (module.layer, module.linear, module.inputs, module.rows);
                    Ok(ModuleShape { layer, linear, inputs, rows, rank })
                });
                Some(modules.collect::<Result<_>>()?)
            }
        };
        let block = [
            LayerSlot::QueryKeyValueWeight,
            LayerSlot::OutputWeight,
            LayerSlot::GateWeight,
            LayerSlot::UpWeight,
            LayerSlot::DownWeight,
        ];
        let wanted = [Slot::Embedding, Slot::Head].into_iter().chain(block.map(|slot| Slot::Layer(0, slot)));
        let present = slots(&config);
        let mut precisions = Vec::new();
        for slot in wanted.filter(|slot| present.contains(slot)) {
            let precision = match settings.weights.precision().of(slot) {
                // The rows of a normalised head are scaled, and then f32, as if they were so published.
                Precision::Published if slot == Slot::Head && config.head == Head::Normalised => {
                    Precision::Published
                }
                Precision::Published => match base.tensor(slot)?.data {
                    HostData::F32(_) => Precision::Published,
                    HostData::Bf16(_) => Precision::Bf16,
                    HostData::F16(_) => Precision::F16,
                },
                asked => asked,
            };
            precisions.push((slot, precision));
        }
        Ok(Self { config, modules, precisions })
    }

    fn trained(&self) -> TrainedShape<'_> {
        self.modules.as_deref().map_or(TrainedShape::Full, TrainedShape::Adapter)
    }

    /// Values that are trained.
    pub fn trained_parameters(&self) -> usize {
        match &self.modules {
            Some(modules) => modules.iter().map(ModuleShape::parameters).sum(),
            None => self.config.parameters(),
        }
    }

    /// Elements of the largest trained tensor.
    pub(crate) fn largest_tensor(&self) -> usize {
        let sides = |module: &ModuleShape| module.rank * module.inputs.max(module.rows);
        let largest = match &self.modules {
            Some(modules) => modules.iter().map(sides).max(),
            None => slots(&self.config).iter().map(|slot| slot.shape(&self.config).iter().product()).max(),
        };
        largest.unwrap_or(0)
    }

    /// Bytes of the weights as the CPU backend keeps them.
    pub fn weight_bytes(&self) -> usize {
        cost::weight_bytes(&self.config, self.modules.is_none(), |slot| self.precision(slot))
    }

    /// In what a matrix is kept.
    pub fn precision(&self, slot: Slot) -> Precision {
        let of_block = match slot {
            Slot::Layer(_, slot) => Slot::Layer(0, slot),
            other => other,
        };
        let found = self.precisions.iter().find(|(slot, _)| *slot == of_block);
        found.filter(|_| self.modules.is_some()).map_or(Precision::F32, |(_, precision)| *precision)
    }
}

/// What a run takes.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Cost {
    /// Updates of the optimizer.
    pub updates: u64,
    /// Real tokens, each as often as it is met.
    pub tokens: u64,
    /// Of them, those that the loss is taken over.
    pub supervised_tokens: u64,
    /// Floating-point operations of the updates' matrix products, as if no two rows began alike.
    pub flops: f64,
    /// Those of all measurements of the validation loss.
    pub validation_flops: f64,
    /// Values that are trained.
    pub trained_parameters: u64,
    /// The process at its largest.
    pub memory: Memory,
    /// What the result takes on the disk.
    pub result_bytes: u64,
    /// What the checkpoints take on the disk while the run goes.
    pub checkpoint_bytes: u64,
}

/// The parts of a process at its largest, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Memory {
    /// The weights as they are computed with.
    pub weights: u64,
    /// Activations, at the largest micro-batch that occurs.
    pub workspace: u64,
    /// Trained values of an adapter, gradients and moments.
    pub optimizer: u64,
    /// A tensor on its way into a checkpoint.
    pub checkpoint: u64,
    /// What the kernels keep for each thread.
    pub scratch: u64,
}

impl Memory {
    /// All of them; the program itself comes on top.
    pub fn total(&self) -> u64 {
        self.weights + self.workspace + self.optimizer + self.checkpoint + self.scratch
    }
}

/// What a run over `rows` takes, on `threads` threads.
pub fn cost(
    shape: &Shape,
    rows: &[RowLength],
    validation: &[RowLength],
    settings: &Settings,
    threads: usize,
) -> Cost {
    let work = updates(rows, settings, settings.updates(rows.len()), 1);
    let measured = measurements(work.updates, validation, settings);
    let of_validation = cost::loss(&shape.config, shape.modules.as_deref().unwrap_or(&[]), all(validation));
    let trained = shape.trained_parameters() as u64;
    let values_and_moments = 3 * 4 * trained;
    let keeps_best = measured > 0 && settings.keep == Keep::Best;
    let best = if keeps_best { 4 * trained } else { 0 };
    let most = largest_of_all(&work, validation, settings);
    Cost {
        updates: work.updates,
        tokens: work.tokens,
        supervised_tokens: work.supervised,
        flops: flops(shape, &work, settings),
        validation_flops: 2.0 * (of_validation * u128::from(measured)) as f64,
        trained_parameters: trained,
        memory: memory(shape, most, settings, threads),
        result_bytes: 4 * trained,
        checkpoint_bytes: best
            + if work.updates >= settings.checkpoint_every { values_and_moments } else { 0 },
    }
}

/// The updates of a run, as far as they are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) updates: u64,
    pub(crate) tokens: u64,
    pub(crate) supervised: u64,
    /// Of the micro-batches that have a supervised token; the others are not computed.
    computed: Lengths,
    /// Of the largest micro-batch; where prefixes are shared, at most.
    most_tokens: usize,
}

/// The first `count` updates over rows of these lengths, by so many processes together.
pub(crate) fn updates(rows: &[RowLength], settings: &Settings, count: u64, world_size: usize) -> Work {
    let order =
        RowOrder { rows: rows.len(), batch: settings.batch, order: settings.order, seed: settings.seed };
    let mut work = Work { updates: count, ..Work::default() };
    let most = settings.micro_batch.unwrap_or(usize::MAX);
    order.for_each_update(count, |numbers| {
        let lengths: Vec<usize> = numbers.iter().map(|number| rows[*number].tokens).collect();
        let parts = (0..world_size).map(|rank| part(&lengths, rank, world_size));
        let cuts = parts.flat_map(|part| {
            let cuts = micro_batches(&lengths[part.clone()], settings.micro_batch_tokens, most);
            cuts.into_iter().map(move |cut| part.start + cut.start..part.start + cut.end)
        });
        for cut in cuts {
            let mut of_cut = Lengths::default();
            numbers[cut].iter().for_each(|number| of_cut += rows[*number].lengths());
            work.tokens += of_cut.tokens;
            work.supervised += of_cut.supervised;
            if !settings.share_prefixes {
                work.most_tokens = work.most_tokens.max(of_cut.tokens as usize);
            }
            if of_cut.supervised > 0 {
                work.computed += of_cut;
            }
        }
        if settings.share_prefixes {
            work.most_tokens = work.most_tokens.max(most_in_any_order(&lengths, settings));
        }
    });
    work
}

/// Tokens of the largest micro-batch of rows of these lengths, in whatever order they are cut.
fn most_in_any_order(lengths: &[usize], settings: &Settings) -> usize {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let by_sequences = settings.micro_batch.map_or(usize::MAX, |most| longest.saturating_mul(most));
    settings.micro_batch_tokens.max(longest).min(by_sequences).min(lengths.iter().sum())
}

/// Floating-point operations of updates.
pub(crate) fn flops(shape: &Shape, work: &Work, settings: &Settings) -> f64 {
    2.0 * cost::step(&shape.config, shape.trained(), work.computed, settings.recompute) as f64
}

/// Floating-point operations of an update on one sequence of which every token is supervised.
pub fn sequence_flops(shape: &Shape, tokens: usize) -> f64 {
    let lengths = Lengths::of(tokens as u64, tokens.saturating_sub(1) as u64);
    2.0 * cost::step(&shape.config, shape.trained(), lengths, false) as f64
}

/// How often the validation loss is measured.
fn measurements(updates: u64, validation: &[RowLength], settings: &Settings) -> u64 {
    if validation.is_empty() || updates == 0 { 0 } else { updates.div_ceil(settings.validate_every.max(1)) }
}

fn all(rows: &[RowLength]) -> Lengths {
    let mut sum = Lengths::default();
    rows.iter().for_each(|row| sum += row.lengths());
    sum
}

/// Tokens of the largest micro-batch that any process of a run meets, in its updates or its measurements.
pub(crate) fn most_tokens(
    rows: &[RowLength],
    validation: &[RowLength],
    settings: &Settings,
    world_size: usize,
) -> usize {
    largest_of_all(&updates(rows, settings, settings.updates(rows.len()), world_size), validation, settings)
}

fn largest_of_all(work: &Work, validation: &[RowLength], settings: &Settings) -> usize {
    work.most_tokens.max(largest(validation, settings, usize::MAX))
}

/// Tokens of the largest micro-batch of rows in their own order.
fn largest(rows: &[RowLength], settings: &Settings, most: usize) -> usize {
    let lengths: Vec<usize> = rows.iter().map(|row| row.tokens).collect();
    let cuts = micro_batches(&lengths, settings.micro_batch_tokens, most);
    cuts.into_iter().map(|cut| lengths[cut].iter().sum()).max().unwrap_or(0)
}

/// The process at its largest, on `threads` threads, where a micro-batch has so many tokens at most.
pub(crate) fn memory(shape: &Shape, most_tokens: usize, settings: &Settings, threads: usize) -> Memory {
    let config = &shape.config;
    // What rows add to the gradients of a shared prefix stands apart for a moment: it takes less than what the shared rows
    // leave empty of the workspace.
    let ranks = shape.modules.iter().flatten().map(|module| module.rank).sum();
    let plan = WorkspacePlan { tokens: most_tokens, training: true, recompute: settings.recompute };
    let trained = match &shape.modules {
        Some(_) => shape.trained_parameters(),
        // Gradients and moments lie in the weights' own layout.
        None => shape.weight_bytes() / 4,
    };
    // Gradient and two moments; an adapter's values beside them.
    let kept = if shape.modules.is_some() { 4 } else { 3 };
    // Of 512 rows a thread has the hidden state, the logits of 256 rows of the vocabulary, and those once more as the
    // product reads them.
    let tile = 512 * (512 + config.hidden);
    // The logits of so many rows exist at once where the head is trained.
    let logits = if shape.modules.is_none() {
        engine::cpu::full_rows(config.vocabulary, most_tokens) * config.vocabulary
    } else {
        0
    };
    // A product's left-hand side lies packed beside it: the widest rows that are multiplied, or those logits.
    let widest = config.hidden.max(config.intermediate).max(config.query_key_value_rows());
    let packed = (most_tokens * widest).max(logits);
    // Few rows lie packed as a whole, on one thread; more are dealt to all of them, which keep theirs.
    let few = if threads > 1 { most_tokens.min(engine::cpu::undealt_rows(threads)) * widest } else { 0 };
    Memory {
        weights: shape.weight_bytes() as u64,
        workspace: 4 * plan.floats(config, ranks) as u64,
        optimizer: (4 * kept * trained) as u64,
        // Tensors are written one at a time.
        checkpoint: 4 * shape.largest_tensor() as u64,
        scratch: (4 * (threads * tile + logits + packed + few)) as u64,
    }
}
