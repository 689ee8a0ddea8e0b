//! What a pass takes, from its shapes alone: multiply-adds and bytes, before anything is allocated.
//!
//! This is the one place where the arithmetic of a pass is written down. It follows `forward.rs` and `backward.rs`
//! product by product, and a test holds it against [`crate::counting::Counting`], which counts what the decoder asks
//! a backend for. Counted are matrix products, attention's among them; norms, activations and the optimizer are not
//! (a hundredth of the whole). Of attention only the pairs on and below the diagonal count: what a backend computes
//! above it, because its blocks are square, is its own affair. A multiply-add is two floating-point operations.

use super::config::{DecoderConfig, Head, Residual};
use super::lora::Linear;
use super::weights::{Precision, Slot, slots};

/// The shape of one module of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleShape {
    /// The block.
    pub layer: usize,
    /// The product.
    pub linear: Linear,
    /// Width of the input.
    pub inputs: usize,
    /// Output rows covered.
    pub rows: usize,
    /// Inner width.
    pub rank: usize,
}

impl ModuleShape {
    /// Trained values.
    pub fn parameters(&self) -> usize {
        self.rank * (self.inputs + self.rows)
    }
}

/// What is trained in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainedShape<'a> {
    /// An adapter of these modules; the decoder is frozen.
    Adapter(&'a [ModuleShape]),
    /// The decoder's own weights.
    Full,
}

/// The lengths that a pass's arithmetic depends on, summed over its sequences, none of which goes on from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens.
    pub tokens: u64,
    /// Pairs of a token and one that it attends to: `n (n + 1) / 2` of a sequence of `n`.
    pub pairs: u64,
    /// Supervised tokens: rows of the head.
    pub supervised: u64,
}

impl Lengths {
    /// Of one sequence.
    pub fn of(tokens: u64, supervised: u64) -> Self {
        Self { tokens, pairs: tokens * (tokens + 1) / 2, supervised }
    }
}

impl std::ops::AddAssign for Lengths {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.pairs += other.pairs;
        self.supervised += other.supervised;
    }
}

/// Multiply-adds of [`super::Decoder::step`] over micro-batches of these lengths in all. How they are cut does not
/// matter, as long as each has a supervised token: one without is not computed at all.
pub fn step(config: &DecoderConfig, trained: TrainedShape<'_>, lengths: Lengths, recompute: bool) -> u128 {
    let modules = match trained {
        TrainedShape::Adapter(modules) => modules,
        TrainedShape::Full => &[],
    };
    let full = trained == TrainedShape::Full;
    let lowest = match trained {
        TrainedShape::Adapter(modules) => {
            modules.iter().map(|module| module.layer).min().unwrap_or(config.layers)
        }
        TrainedShape::Full => 0,
    };
    // The head's product, the gradient of its input, and its own.
    let head = u128::from(lengths.supervised) * head(config) * if full { 3 } else { 2 };
    let mut sum = blocks(config, modules, lengths) + head;
    for layer in lowest..config.layers {
        let own = || modules.iter().filter(move |module| module.layer == layer);
        if recompute {
            sum += block(config, own(), lengths);
        }
        sum += block_backward(config, own(), lengths, layer == lowest && !full, full);
    }
    sum
}

/// Multiply-adds of [`super::Decoder::loss`].
pub fn loss(config: &DecoderConfig, modules: &[ModuleShape], lengths: Lengths) -> u128 {
    blocks(config, modules, lengths) + u128::from(lengths.supervised) * head(config)
}

/// Multiply-adds of all blocks' forward.
pub fn blocks(config: &DecoderConfig, modules: &[ModuleShape], lengths: Lengths) -> u128 {
    let own = |layer| modules.iter().filter(move |module| module.layer == layer);
    (0..config.layers).map(|layer| block(config, own(layer), lengths)).sum()
}

/// Multiply-adds of one row of the head.
pub fn head(config: &DecoderConfig) -> u128 {
    (config.vocabulary * config.hidden) as u128
}

/// One block's forward.
fn block<'a>(
    config: &DecoderConfig,
    modules: impl Iterator<Item = &'a ModuleShape>,
    lengths: Lengths,
) -> u128 {
    let products: u128 = linears(config).map(|linear| weight(config, linear)).sum();
    let adapter: u128 = modules.map(|module| module.parameters() as u128).sum();
    // Scores and values.
    u128::from(lengths.tokens) * (products + adapter) + 2 * pair(config) * u128::from(lengths.pairs)
}

/// One block's backward: at the `lowest` block the gradient of its input is not computed, nor what in a parallel block
/// would lead to that alone.
fn block_backward<'a>(
    config: &DecoderConfig,
    modules: impl Iterator<Item = &'a ModuleShape>,
    lengths: Lengths,
    lowest: bool,
    full: bool,
) -> u128 {
    let modules: Vec<_> = modules.collect();
    let feed_forward = |linear: Linear| matches!(linear, Linear::Up | Linear::Gate | Linear::Down);
    let of_feed_forward = !(lowest && config.residual == Residual::Parallel)
        || modules.iter().any(|module| feed_forward(module.linear));
    let of_input = |linear: Linear| {
        if feed_forward(linear) { of_feed_forward } else { !(lowest && linear == Linear::QueryKeyValue) }
    };
    let mut per_token = 0;
    for linear in linears(config) {
        per_token += weight(config, linear) * (u128::from(of_input(linear)) + u128::from(full));
    }
    for module in &modules {
        let (inputs, rows, rank) = (module.inputs as u128, module.rows as u128, module.rank as u128);
        // The gradient of the inner values, then of B and of A.
        per_token += rank * (2 * rows + inputs);
        if of_input(module.linear) {
            // The gradient of the inner values once more, then of the input.
            per_token += rank * (rows + inputs);
        }
    }
    let attention = !lowest || modules.iter().any(|module| module.linear == Linear::QueryKeyValue);
    // The scores again, and the gradients of the weights, of queries, keys and values.
    let per_pair = if attention { 5 * pair(config) } else { 0 };
    u128::from(lengths.tokens) * per_token + u128::from(lengths.pairs) * per_pair
}

/// One of attention's products, for one pair of tokens, over all heads.
fn pair(config: &DecoderConfig) -> u128 {
    config.attention_width() as u128
}

fn linears(config: &DecoderConfig) -> impl Iterator<Item = Linear> {
    let gate = config.activation.gated().then_some(Linear::Gate);
    [Linear::QueryKeyValue, Linear::Output, Linear::Up, Linear::Down].into_iter().chain(gate)
}

fn weight(config: &DecoderConfig, linear: Linear) -> u128 {
    let (inputs, outputs) = linear.shape(config);
    (inputs * outputs) as u128
}

/// Bytes of a decoder's weights on the CPU backend, where a matrix is kept in `precision`.
pub fn weight_bytes(config: &DecoderConfig, trained: bool, precision: impl Fn(Slot) -> Precision) -> usize {
    slots(config).into_iter().map(|slot| slot_bytes(config, slot, trained, precision(slot))).sum()
}

/// Bytes of the weight at `slot` there. Vectors are f32, a matrix's rows fill whole panels, and a normalised head that is
/// trained is there twice.
pub fn slot_bytes(config: &DecoderConfig, slot: Slot, trained: bool, precision: Precision) -> usize {
    let shape = slot.shape(config);
    match shape[..] {
        [rows, columns] => {
            let copies = if trained && slot == Slot::Head && config.head == Head::Normalised { 2 } else { 1 };
            copies * precision.bytes(crate::cpu::packed_length(rows, columns))
        }
        _ => 4 * shape.iter().product::<usize>(),
    }
}
