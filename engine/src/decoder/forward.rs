//! The forward pass of a block, and of the whole decoder. `backward.rs` has the same steps in the opposite order.

use std::ops::Range;

use super::Decoder;
use super::cache::CachedBatch;
use super::config::Residual;
use super::lora::{Adapter, Linear};
use super::weights::{LayerSlot, Slot};
use crate::arena::{BlockActivations, Workspace};
use crate::batch::{Batch, Sequence};
use crate::kernels::{CachedRow, DropoutPlace, Kernels};

/// Logits that exist at once while decoding: 32 MiB of them.
const LOGITS: usize = 8 << 20;

/// Rows that are taken at once however large the vocabulary is: fewer would read the head more often than they use it.
const LEAST_ROWS: usize = 32;

/// Which rows an adapter is on: several adapters can share one pass over one base model.
#[derive(Clone)]
pub struct AdapterRows<'a, K: Kernels> {
    /// The adapter.
    pub adapter: &'a Adapter<K>,
    /// The rows it is applied to.
    pub rows: Range<usize>,
}

/// Whose keys and values attention reads.
pub(super) enum Attend<'a, K: Kernels> {
    /// Those of the batch's own sequences.
    Packed(&'a [Sequence]),
    /// Those in a cache, to which the batch's own are added first.
    Cached { rows: &'a [CachedRow], page_size: usize, layers: &'a mut [K::Buffer] },
}

/// What a pass over the blocks reads beside the weights.
pub(super) struct Pass<'a, K: Kernels> {
    pub(super) rows: usize,
    pub(super) tokens: &'a [u32],
    pub(super) positions: &'a [u32],
    pub(super) adapters: &'a [AdapterRows<'a, K>],
    /// Dropout's rate and the batch it is drawn for; none outside training.
    pub(super) dropout: Option<(f32, &'a Batch)>,
}

impl<K: Kernels> Decoder<K> {
    /// The loss of each supervised row of a batch, without gradients.
    pub fn loss(
        &self,
        adapter: Option<&Adapter<K>>,
        batch: &Batch,
        workspace: &mut Workspace<K>,
    ) -> Vec<f32> {
        let adapters = whole_batch(adapter, batch);
        self.run_blocks(&Pass::evaluation(batch, &adapters), &batch.sequences, workspace);
        self.head_forward(batch, workspace)
    }

    /// The logits of the given rows of a batch: `[rows.len(), vocabulary]`.
    pub fn logits(
        &self,
        adapters: &[AdapterRows<'_, K>],
        batch: &Batch,
        rows: &[usize],
        workspace: &mut Workspace<K>,
    ) -> Vec<f32> {
        self.run_blocks(&Pass::evaluation(batch, adapters), &batch.sequences, workspace);
        self.head_logits(rows, workspace)
    }

    /// The logits of the given rows of a batch whose sequences go on from `cache`, to which their keys and values
    /// are added. `visit` gets them in pieces, each with the places in `rows` that it is of: `[places.len(),
    /// vocabulary]`, which it may overwrite.
    pub fn cached_logits(
        &self,
        adapters: &[AdapterRows<'_, K>],
        batch: &CachedBatch,
        cache: &mut super::cache::KeyValueCache<K>,
        rows: &[usize],
        workspace: &mut Workspace<K>,
        visit: &mut dyn FnMut(Range<usize>, &mut [f32]),
    ) {
        let positions: Vec<u32> = batch.rows.iter().map(|row| row.position as u32).collect();
        let (page_size, layers) = cache.parts();
        let pass = Pass {
            rows: batch.tokens.len(),
            tokens: &batch.tokens,
            positions: &positions,
            adapters,
            dropout: None,
        };
        self.embed(&pass, workspace);
        let mut attend = Attend::Cached { rows: &batch.rows, page_size, layers };
        for layer in 0..self.config.layers {
            self.block_forward(layer, &pass, &mut attend, workspace);
        }
        self.visit_logits(rows, workspace, visit);
    }

    /// All blocks over a packed batch.
    pub(super) fn run_blocks(
        &self,
        pass: &Pass<'_, K>,
        sequences: &[Sequence],
        workspace: &mut Workspace<K>,
    ) {
        self.embed(pass, workspace);
        for layer in 0..self.config.layers {
            self.block_forward(layer, pass, &mut Attend::Packed(sequences), workspace);
        }
    }

    /// Token embeddings, with BLOOM's norm.
    pub(super) fn embed(&self, pass: &Pass<'_, K>, workspace: &mut Workspace<K>) {
        let (k, scale) = (&self.kernels, self.config.embedding_scale);
        assert!(pass.rows <= workspace.plan.tokens, "{} rows in a smaller workspace", pass.rows);
        match self.outer_vector(Slot::EmbeddingNormWeight) {
            None => k.embed(pass.tokens, self.embedding(), scale, &mut workspace.inputs[0]),
            Some(weight) => {
                k.embed(pass.tokens, self.embedding(), scale, &mut workspace.normed);
                let bias = self.outer_vector(Slot::EmbeddingNormBias);
                let (x, out) = (&workspace.normed, &mut workspace.inputs[0]);
                k.norm(self.config.norm, pass.rows, x, weight, bias, out, &mut workspace.selected_stats);
            }
        }
    }

    /// `x += attention(norm(x)); x += feed_forward(norm(x))`, or both from the same `x`.
    pub(super) fn block_forward(
        &self,
        layer: usize,
        pass: &Pass<'_, K>,
        attend: &mut Attend<'_, K>,
        workspace: &mut Workspace<K>,
    ) {
        let mut buffers = workspace.of_block(layer);
        self.attention(layer, pass, attend, &mut buffers);
        self.feed_forward(layer, pass, &mut buffers);
    }

    /// `out = x + attention(norm(x))`.
    fn attention(
        &self,
        layer: usize,
        pass: &Pass<'_, K>,
        attend: &mut Attend<'_, K>,
        buffers: &mut BlockBuffers<'_, K>,
    ) {
        let (k, config, rows) = (&self.kernels, &self.config, pass.rows);
        let BlockBuffers { block, x, out, normed, dropped, .. } = buffers;
        let weight = self.vector(layer, LayerSlot::AttentionNormWeight);
        let bias = self.bias(layer, LayerSlot::AttentionNormBias);
        k.norm(config.norm, rows, x, weight, bias, normed, &mut block.attention_stats);
        let target = &mut block.query_key_value;
        self.linear(layer, Linear::QueryKeyValue, pass, normed, target, false, &mut block.lora, dropped);
        self.normalise_heads(layer, rows, block);
        if let Some(frequencies) = self.frequencies(layer) {
            k.rotate(&self.shape, pass.positions, frequencies, 1.0, &mut block.query_key_value);
        }
        match attend {
            Attend::Packed(sequences) => {
                let (mixed, log_sums) = (&mut block.mixed, &mut block.log_sums);
                k.attention(self.shape(layer), sequences, &block.query_key_value, mixed, log_sums);
            }
            Attend::Cached { rows, page_size, layers } => {
                let cache = &mut layers[layer];
                k.store_key_values(&self.shape, *page_size, rows, &block.query_key_value, cache);
                let mixed = &mut block.mixed;
                k.attention_cached(self.shape(layer), *page_size, rows, &block.query_key_value, cache, mixed);
            }
        }
        k.copy(rows * config.hidden, x, out);
        if config.output_norms {
            let (mixed, output) = (&block.mixed, &mut block.attention_output);
            self.linear(layer, Linear::Output, pass, mixed, output, false, &mut block.lora, dropped);
            let (slot, stats) = (LayerSlot::AttentionOutputNormWeight, &mut block.attention_output_stats);
            self.add_normalised(layer, slot, rows, &block.attention_output, stats, normed, out);
        } else {
            self.linear(layer, Linear::Output, pass, &block.mixed, out, true, &mut block.lora, dropped);
        }
    }

    /// `out += feed_forward(norm(stream))`, where the stream is what attention left, or in a parallel block `x`.
    fn feed_forward(&self, layer: usize, pass: &Pass<'_, K>, buffers: &mut BlockBuffers<'_, K>) {
        let (k, config, rows) = (&self.kernels, &self.config, pass.rows);
        let BlockBuffers { block, x, out, normed, activated, dropped } = buffers;
        let stream = match config.residual {
            Residual::Parallel => *x,
            Residual::Sequential => {
                k.copy(rows * config.hidden, out, &mut block.middle);
                &block.middle
            }
        };
        let weight = self.vector(layer, LayerSlot::FeedForwardNormWeight);
        let bias = self.bias(layer, LayerSlot::FeedForwardNormBias);
        k.norm(config.norm, rows, stream, weight, bias, normed, &mut block.feed_forward_stats);
        let gated = config.activation.gated();
        if gated {
            self.linear(layer, Linear::Gate, pass, normed, &mut block.gate, false, &mut block.lora, dropped);
        }
        self.linear(layer, Linear::Up, pass, normed, &mut block.up, false, &mut block.lora, dropped);
        let gate = gated.then_some(&block.gate);
        k.activate(config.activation, rows * config.intermediate, gate, &block.up, activated);
        if config.output_norms {
            let output = &mut block.feed_forward_output;
            self.linear(layer, Linear::Down, pass, activated, output, false, &mut block.lora, dropped);
            let (slot, stats) =
                (LayerSlot::FeedForwardOutputNormWeight, &mut block.feed_forward_output_stats);
            self.add_normalised(layer, slot, rows, &block.feed_forward_output, stats, normed, out);
        } else {
            self.linear(layer, Linear::Down, pass, activated, out, true, &mut block.lora, dropped);
        }
    }

    /// Gemma 3's norm of what a half of a block adds to the stream.
    #[expect(clippy::too_many_arguments, reason = "a norm's buffers")]
    fn add_normalised(
        &self,
        layer: usize,
        slot: LayerSlot,
        rows: usize,
        output: &K::Buffer,
        stats: &mut K::Buffer,
        normed: &mut K::Buffer,
        out: &mut K::Buffer,
    ) {
        let (k, config) = (&self.kernels, &self.config);
        k.norm(config.norm, rows, output, self.vector(layer, slot), None, normed, stats);
        k.add(rows * config.hidden, normed, out);
    }

    /// `out (+)= W x + bias`, and what the adapters add.
    #[expect(clippy::too_many_arguments, reason = "one place for all of a block's products")]
    fn linear(
        &self,
        layer: usize,
        linear: Linear,
        pass: &Pass<'_, K>,
        x: &K::Buffer,
        out: &mut K::Buffer,
        accumulate: bool,
        hidden: &mut [K::Buffer],
        dropped: &mut K::Buffer,
    ) {
        let k = &self.kernels;
        let bias = self.bias(layer, linear.bias_slot());
        k.product(pass.rows, x, self.matrix(layer, linear.weight_slot()), bias, out, accumulate);
        let (inputs, out_width) = linear.shape(&self.config);
        for AdapterRows { adapter, rows } in pass.adapters {
            for (place, module) in adapter.blocks[layer].iter().enumerate() {
                if module.linear == linear {
                    let x = match pass.dropout_place(layer, place) {
                        Some(dropout) => {
                            k.dropout(&dropout, inputs, x, dropped);
                            &*dropped
                        }
                        None => x,
                    };
                    k.lora(rows.clone(), x, &module.view(), &mut hidden[place], out, out_width);
                }
            }
        }
    }

    /// Qwen3's and Gemma 3's norms of query and key heads, in place; their input is kept.
    fn normalise_heads(&self, layer: usize, rows: usize, block: &mut BlockActivations<K>) {
        if !self.config.query_key_norm {
            return;
        }
        let (k, config) = (&self.kernels, &self.config);
        let (queries, keys) = (0..config.heads, config.heads..config.heads + config.key_value_heads);
        let epsilon = config.norm.epsilon;
        k.copy(rows * config.query_key_value_rows(), &block.query_key_value, &mut block.raw_query_key_value);
        let weight = self.vector(layer, LayerSlot::QueryNormWeight);
        let x = &mut block.query_key_value;
        k.head_norm(&self.shape, rows, queries, epsilon, weight, x, &mut block.query_stats);
        let weight = self.vector(layer, LayerSlot::KeyNormWeight);
        k.head_norm(&self.shape, rows, keys, epsilon, weight, x, &mut block.key_stats);
    }

    /// The loss of each supervised row behind the last block.
    pub(super) fn head_forward(&self, batch: &Batch, workspace: &mut Workspace<K>) -> Vec<f32> {
        self.select(&batch.supervised, workspace);
        self.kernels.cross_entropy(&workspace.selected_normed, self.head(), &batch.targets, None)
    }

    /// The final norm of the rows asked for.
    pub(super) fn select(&self, rows: &[usize], workspace: &mut Workspace<K>) {
        let k = &self.kernels;
        let last = workspace.last_input(self.config.layers);
        k.gather(self.config.hidden, rows, &workspace.inputs[last], &mut workspace.selected);
        let bias = self.outer_vector(Slot::FinalNormBias);
        let (x, out) = (&workspace.selected, &mut workspace.selected_normed);
        k.norm(self.config.norm, rows.len(), x, self.final_norm(), bias, out, &mut workspace.selected_stats);
    }

    /// The logits of the rows asked for, some rows at a time: those of a large vocabulary and many rows never exist
    /// at once.
    fn visit_logits(
        &self,
        rows: &[usize],
        workspace: &mut Workspace<K>,
        visit: &mut dyn FnMut(Range<usize>, &mut [f32]),
    ) {
        let (k, vocabulary) = (&self.kernels, self.config.vocabulary);
        let piece = (LOGITS / vocabulary.max(1)).max(LEAST_ROWS).min(rows.len());
        let mut logits = k.buffer(piece * vocabulary);
        for start in (0..rows.len()).step_by(piece.max(1)) {
            let places = start..rows.len().min(start + piece);
            self.select(&rows[places.clone()], workspace);
            k.product(places.len(), &workspace.selected_normed, self.head(), None, &mut logits, false);
            k.visit(places.len() * vocabulary, &mut logits, &mut |logits| visit(places.clone(), logits));
        }
    }

    /// The logits of the rows asked for.
    fn head_logits(&self, rows: &[usize], workspace: &mut Workspace<K>) -> Vec<f32> {
        self.select(rows, workspace);
        let length = rows.len() * self.config.vocabulary;
        let mut logits = self.kernels.buffer(length);
        self.kernels.product(rows.len(), &workspace.selected_normed, self.head(), None, &mut logits, false);
        self.kernels.download(&logits, length)
    }
}

impl<'a, K: Kernels> Pass<'a, K> {
    /// A pass over a packed batch without dropout.
    pub(super) fn evaluation(batch: &'a Batch, adapters: &'a [AdapterRows<'a, K>]) -> Self {
        Self {
            rows: batch.rows(),
            tokens: &batch.tokens,
            positions: &batch.positions,
            adapters,
            dropout: None,
        }
    }

    /// Where a module's dropout is drawn, if there is any.
    pub(super) fn dropout_place(&self, layer: usize, module: usize) -> Option<DropoutPlace<'a>> {
        let (rate, batch) = self.dropout.filter(|(rate, _)| *rate > 0.0)?;
        Some(DropoutPlace { rate, keys: &batch.dropout_keys, layer, module })
    }
}

/// The buffers that a block's forward uses.
struct BlockBuffers<'a, K: Kernels> {
    block: &'a mut BlockActivations<K>,
    /// The block's input.
    x: &'a K::Buffer,
    /// The block's output.
    out: &'a mut K::Buffer,
    /// Scratch: a norm's output.
    normed: &'a mut K::Buffer,
    /// Scratch: the activation's output.
    activated: &'a mut K::Buffer,
    /// Scratch: a module's dropped-out input.
    dropped: &'a mut K::Buffer,
}

impl<K: Kernels> Workspace<K> {
    fn of_block(&mut self, layer: usize) -> BlockBuffers<'_, K> {
        let block = self.block_index(layer);
        let (x, out) = if self.inputs.len() == 2 {
            let [first, second] = &mut self.inputs[..] else { unreachable!("two inputs") };
            if layer.is_multiple_of(2) { (&*first, second) } else { (&*second, first) }
        } else {
            let (before, after) = self.inputs.split_at_mut(layer + 1);
            (&before[layer], &mut after[0])
        };
        BlockBuffers {
            block: &mut self.blocks[block],
            x,
            out,
            normed: &mut self.normed,
            activated: &mut self.activated,
            dropped: &mut self.dropped,
        }
    }
}

/// One adapter, if any, on all rows of a batch.
pub(super) fn whole_batch<'a, K: Kernels>(
    adapter: Option<&'a Adapter<K>>,
    batch: &Batch,
) -> Vec<AdapterRows<'a, K>> {
    adapter.into_iter().map(|adapter| AdapterRows { adapter, rows: 0..batch.rows() }).collect()
}
