//! The memory plan: every buffer of a step, allocated before the first one and used by all.

use crate::decoder::config::{DecoderConfig, Residual};
use crate::decoder::{Adapter, Decoder};
use crate::kernels::Kernels;

/// How large a step may be, and what is kept between its forward and backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkspacePlan {
    /// Most tokens of a micro-batch.
    pub tokens: usize,
    /// Keep only each block's input, and compute the rest again in the backward pass.
    pub recompute: bool,
    /// Whether there is a backward pass at all.
    pub training: bool,
}

impl WorkspacePlan {
    /// Floats that a workspace takes for a decoder of this configuration; adapters add `rank` a module and token.
    pub fn floats(&self, config: &DecoderConfig, adapter_ranks: usize) -> usize {
        let (blocks, inputs) = self.kept(config);
        let widest = config.hidden.max(config.intermediate).max(config.attention_width());
        let gate = usize::from(config.activation.gated());
        let forward = config.hidden + config.intermediate + widest;
        let backward = 4 * config.hidden
            + config.query_key_value_rows()
            + config.attention_width()
            + (1 + gate) * config.intermediate;
        let head = 2 * config.hidden + 2;
        self.tokens
            * (blocks * block_width(config)
                + inputs * config.hidden
                + forward
                + head
                + (adapter_ranks * blocks).div_ceil(config.layers.max(1))
                + usize::from(self.training) * backward)
    }

    /// Blocks whose activations are kept, and block inputs.
    fn kept(&self, config: &DecoderConfig) -> (usize, usize) {
        match (self.training, self.recompute) {
            (true, false) => (config.layers, config.layers + 1),
            (true, true) => (1, config.layers + 1),
            (false, _) => (1, 2),
        }
    }
}

/// Floats per token that a block keeps for its backward.
fn block_width(config: &DecoderConfig) -> usize {
    let gate = usize::from(config.activation.gated());
    let middle = usize::from(config.residual == Residual::Sequential);
    let head_norm = usize::from(config.query_key_norm);
    let output_norms = usize::from(config.output_norms);
    4 + output_norms * 2 * (config.hidden + 2)
        + config.query_key_value_rows() * (1 + head_norm)
        + head_norm * (config.heads + config.key_value_heads)
        + config.attention_width()
        + config.heads
        + middle * config.hidden
        + (1 + gate) * config.intermediate
}

/// What a block's backward needs of its forward, one row per token.
pub struct BlockActivations<K: Kernels> {
    /// Mean and reciprocal deviation of the attention norm: `[2]`
    pub(crate) attention_stats: K::Buffer,
    /// Queries and keys before their norms (Qwen3), else nothing.
    pub(crate) raw_query_key_value: K::Buffer,
    /// Reciprocal deviations of the query norms, then of the key norms (Qwen3).
    pub(crate) query_stats: K::Buffer,
    /// See above.
    pub(crate) key_stats: K::Buffer,
    /// Queries and keys as rotated, and values.
    pub(crate) query_key_value: K::Buffer,
    /// Attention's output before its product: `[heads * head_size]`
    pub(crate) mixed: K::Buffer,
    /// Logarithms of the sums of exponentials: `[heads]`
    pub(crate) log_sums: K::Buffer,
    /// The residual stream between attention and feed-forward (sequential blocks), else nothing.
    pub(crate) middle: K::Buffer,
    /// What attention comes to before it is normalised and added to the stream (Gemma 3), else nothing: `[hidden]`
    pub(crate) attention_output: K::Buffer,
    /// Mean and reciprocal deviation of that norm (Gemma 3): `[2]`
    pub(crate) attention_output_stats: K::Buffer,
    /// Mean and reciprocal deviation of the feed-forward norm: `[2]`
    pub(crate) feed_forward_stats: K::Buffer,
    /// The gate product, of gated activations: `[intermediate]`
    pub(crate) gate: K::Buffer,
    /// The up product: `[intermediate]`
    pub(crate) up: K::Buffer,
    /// What the feed-forward layer comes to before it is normalised and added to the stream (Gemma 3), else nothing:
    /// `[hidden]`
    pub(crate) feed_forward_output: K::Buffer,
    /// Mean and reciprocal deviation of that norm (Gemma 3): `[2]`
    pub(crate) feed_forward_output_stats: K::Buffer,
    /// `scale A x` of each module of the adapter in this block: `[rank]`
    pub(crate) lora: Vec<K::Buffer>,
}

/// All buffers of a step.
pub struct Workspace<K: Kernels> {
    /// What it was made for.
    pub plan: WorkspacePlan,
    /// A block's activations: one a block, or one for all.
    pub(crate) blocks: Vec<BlockActivations<K>>,
    /// The residual stream before each block, and after the last.
    pub(crate) inputs: Vec<K::Buffer>,
    /// The output of a norm: `[hidden]`
    pub(crate) normed: K::Buffer,
    /// The activation's output: `[intermediate]`
    pub(crate) activated: K::Buffer,
    /// A module's dropped-out input, and the gradient of it: the widest input.
    pub(crate) dropped: K::Buffer,
    /// The rows that are supervised or asked for: `[hidden]`
    pub(crate) selected: K::Buffer,
    /// Their final norm: `[hidden]`
    pub(crate) selected_normed: K::Buffer,
    /// Its statistics: `[2]`
    pub(crate) selected_stats: K::Buffer,
    /// The gradient of the final norm's output: `[hidden]`
    pub(crate) dselected: K::Buffer,
    /// The gradient of the residual stream: `[hidden]`
    pub(crate) dx: K::Buffer,
    /// The gradient of a norm's output: `[hidden]`
    pub(crate) dnormed: K::Buffer,
    /// The gradient of attention's, the feed-forward's or the embedding's part of the stream: `[hidden]`
    pub(crate) dpart: K::Buffer,
    /// Of queries, keys and values.
    pub(crate) dquery_key_value: K::Buffer,
    /// Of attention's output: `[heads * head_size]`
    pub(crate) dmixed: K::Buffer,
    /// Of the up product: `[intermediate]`
    pub(crate) dup: K::Buffer,
    /// Of the gate product: `[intermediate]`
    pub(crate) dgate: K::Buffer,
}

impl<K: Kernels> Workspace<K> {
    /// Allocates what `plan` says.
    pub fn new(decoder: &Decoder<K>, adapters: &[&Adapter<K>], plan: WorkspacePlan) -> Self {
        let (config, kernels) = (&decoder.config, &decoder.kernels);
        let (blocks, inputs) = plan.kept(config);
        let rows = |width: usize| kernels.buffer(plan.tokens * width);
        let when =
            |present: bool, width: usize| kernels.buffer(if present { plan.tokens * width } else { 0 });
        let gated = config.activation.gated();
        let block = |index: usize| BlockActivations {
            attention_stats: rows(2),
            raw_query_key_value: when(config.query_key_norm, config.query_key_value_rows()),
            query_stats: when(config.query_key_norm, config.heads),
            key_stats: when(config.query_key_norm, config.key_value_heads),
            query_key_value: rows(config.query_key_value_rows()),
            mixed: rows(config.attention_width()),
            log_sums: rows(config.heads),
            middle: when(config.residual == Residual::Sequential, config.hidden),
            attention_output: when(config.output_norms, config.hidden),
            attention_output_stats: when(config.output_norms, 2),
            feed_forward_stats: rows(2),
            gate: when(gated, config.intermediate),
            up: rows(config.intermediate),
            feed_forward_output: when(config.output_norms, config.hidden),
            feed_forward_output_stats: when(config.output_norms, 2),
            lora: ranks(adapters, (blocks > 1).then_some(index)).into_iter().map(rows).collect(),
        };
        let widest = config.hidden.max(config.intermediate).max(config.attention_width());
        Self {
            plan,
            blocks: (0..blocks).map(block).collect(),
            inputs: (0..inputs).map(|_| rows(config.hidden)).collect(),
            normed: rows(config.hidden),
            activated: rows(config.intermediate),
            dropped: when(!adapters.is_empty(), widest),
            selected: rows(config.hidden),
            selected_normed: rows(config.hidden),
            selected_stats: rows(2),
            dselected: when(plan.training, config.hidden),
            dx: when(plan.training, config.hidden),
            dnormed: when(plan.training, config.hidden),
            dpart: when(plan.training, config.hidden),
            dquery_key_value: when(plan.training, config.query_key_value_rows()),
            dmixed: when(plan.training, config.attention_width()),
            dup: when(plan.training, config.intermediate),
            dgate: when(plan.training && gated, config.intermediate),
        }
    }

    /// Where a block's activations lie.
    pub(crate) fn block_index(&self, layer: usize) -> usize {
        if self.blocks.len() == 1 { 0 } else { layer }
    }

    /// Where the residual stream after the last block lies.
    pub(crate) fn last_input(&self, layers: usize) -> usize {
        if self.inputs.len() == 2 { layers % 2 } else { layers }
    }
}

/// The widest rank of each module, by its place in its block: of one block, or of all.
fn ranks<K: Kernels>(adapters: &[&Adapter<K>], layer: Option<usize>) -> Vec<usize> {
    let mut ranks = Vec::new();
    let blocks = adapters.iter().flat_map(|adapter| adapter.blocks.iter().enumerate());
    for (_, modules) in blocks.filter(|(index, _)| layer.is_none_or(|layer| layer == *index)) {
        for (place, module) in modules.iter().enumerate() {
            if place == ranks.len() {
                ranks.push(0);
            }
            ranks[place] = module.rank.max(ranks[place]);
        }
    }
    ranks
}
