//! The backward pass: the steps of `forward.rs` in the opposite order.
//!
//! No gradient of a frozen weight is computed, and nothing below the lowest block with a trained module. `dx` is the
//! gradient of the residual stream, changed in place from a block's output to its input.

use super::Decoder;
use super::Gradients;
use super::config::{Head, Residual};
use super::forward::{Attend, Pass, whole_batch};
use super::lora::{Adapter, AdapterGradients, Linear, LoraModule};
use super::weights::{LayerSlot, Slot};
use crate::arena::{BlockActivations, Workspace};
use crate::batch::Batch;
use crate::kernels::Kernels;

/// What is trained, and where its gradients go.
pub enum Trained<'a, K: Kernels> {
    /// An adapter; the decoder is frozen.
    Adapter(&'a Adapter<K>, &'a mut AdapterGradients<K>),
    /// The decoder's own weights.
    Full(&'a mut Gradients<K>),
}

/// The gradients a step adds to, without the adapter beside them.
pub(super) struct Sink<'a, K: Kernels> {
    pub(super) adapter: Option<(&'a Adapter<K>, &'a mut AdapterGradients<K>)>,
    pub(super) full: Option<&'a mut Gradients<K>>,
}

impl<K: Kernels> Decoder<K> {
    /// One micro-batch of a training step: the loss of each supervised row, and the gradient of `scale` times their
    /// sum ([`Batch::sum_of_losses`]) added to what is trained. With `scale` one over the supervised tokens of the *whole* batch, the sum over
    /// micro-batches is the batch's mean, however it is cut.
    ///
    /// `dropout` is the rate on the adapter's inputs.
    pub fn step(
        &self,
        trained: Trained<'_, K>,
        batch: &Batch,
        scale: f32,
        dropout: f32,
        workspace: &mut Workspace<K>,
    ) -> Vec<f32> {
        if batch.targets.is_empty() {
            return Vec::new();
        }
        let mut sink = match trained {
            Trained::Adapter(adapter, gradients) => Sink { adapter: Some((adapter, gradients)), full: None },
            Trained::Full(gradients) => Sink { adapter: None, full: Some(gradients) },
        };
        let adapters = whole_batch(sink.adapter.as_ref().map(|(adapter, _)| *adapter), batch);
        let mut pass = Pass::evaluation(batch, &adapters);
        pass.dropout = Some((dropout, batch));

        self.run_blocks(&pass, &batch.sequences, workspace);
        let losses = self.head_step(batch, scale, &mut sink, workspace);
        let lowest = match &sink.adapter {
            Some((adapter, _)) => adapter.lowest().unwrap_or(self.config.layers),
            None => 0,
        };
        for layer in (lowest..self.config.layers).rev() {
            let lowest = layer == lowest && sink.full.is_none();
            self.block_step(layer, lowest, &pass, batch, &mut sink, workspace);
        }
        self.embed_backward(batch, &mut sink, workspace);
        losses
    }

    /// A block's backward; where its activations were not kept, they are computed again first.
    pub(super) fn block_step(
        &self,
        layer: usize,
        lowest: bool,
        pass: &Pass<'_, K>,
        batch: &Batch,
        sink: &mut Sink<'_, K>,
        workspace: &mut Workspace<K>,
    ) {
        if workspace.plan.recompute {
            // The block's output is in place already: computing it again writes the same bytes.
            self.block_forward(layer, pass, &mut Attend::Packed(&batch.sequences), workspace);
        }
        self.block_backward(layer, lowest, pass, batch, sink, workspace);
    }

    /// The losses, and the gradient of the residual stream at the supervised rows.
    pub(super) fn head_step(
        &self,
        batch: &Batch,
        scale: f32,
        sink: &mut Sink<'_, K>,
        w: &mut Workspace<K>,
    ) -> Vec<f32> {
        self.select(&batch.supervised, w);
        let (k, config, rows) = (&self.kernels, &self.config, batch.targets.len());
        let scales = batch.scales(scale);
        let losses = match sink.full.as_deref_mut().and_then(|gradients| gradients.get(self.head_slot())) {
            Some(dhead) => {
                let (x, dx) = (&w.selected_normed, &mut w.dselected);
                if config.head == Head::Normalised {
                    let mut dnormalised = k.like_matrix(self.head());
                    let losses =
                        k.cross_entropy_full(x, self.head(), &batch.targets, &scales, dx, &mut dnormalised);
                    self.normalised_head_backward(&dnormalised, dhead);
                    losses
                } else {
                    k.cross_entropy_full(x, self.head(), &batch.targets, &scales, dx, dhead)
                }
            }
            None => k.cross_entropy(
                &w.selected_normed,
                self.head(),
                &batch.targets,
                Some((&scales, &mut w.dselected)),
            ),
        };
        if let Some(gradients) = sink.full.as_deref_mut() {
            let (weight, bias) = (Slot::FinalNormWeight, Slot::FinalNormBias);
            self.norm_gradient(gradients, weight, bias, rows, &w.selected, &w.selected_stats, &w.dselected);
        }
        k.clear(rows * config.hidden, &mut w.dnormed);
        let (x, stats, dout, dx) = (&w.selected, &w.selected_stats, &w.dselected, &mut w.dnormed);
        k.norm_backward(config.norm, rows, x, self.final_norm(), stats, dout, dx);
        k.clear(batch.rows() * config.hidden, &mut w.dx);
        k.scatter_add(config.hidden, &batch.supervised, &w.dnormed, &mut w.dx);
        losses
    }

    /// `w.dx` from the gradient of a block's output to that of its input. At the `lowest` block with anything
    /// trained, the input's gradient is not needed and not computed.
    fn block_backward(
        &self,
        layer: usize,
        lowest: bool,
        pass: &Pass<'_, K>,
        batch: &Batch,
        sink: &mut Sink<'_, K>,
        w: &mut Workspace<K>,
    ) {
        let parallel = self.config.residual == Residual::Parallel;
        let linear = LinearBackward { decoder: self, layer, pass };
        // The output product of a parallel block reads the same gradient as the feed-forward layer: before it is
        // added to.
        if parallel {
            self.output_backward(&linear, sink, w);
        }
        // In a lowest block that is parallel nothing takes a gradient from the feed-forward layer but its own modules.
        if !(lowest && parallel) || linear.has_feed_forward_module(sink) {
            self.feed_forward_backward(&linear, sink, w);
        }
        if !parallel {
            self.output_backward(&linear, sink, w);
        }
        if !lowest || linear.has_module(Linear::QueryKeyValue, sink) {
            self.attention_backward(&linear, lowest, batch, sink, w);
        }
    }

    /// The product behind attention: `w.dmixed` from `w.dx`.
    fn output_backward(&self, linear: &LinearBackward<'_, K>, sink: &mut Sink<'_, K>, w: &mut Workspace<K>) {
        let (layer, rows) = (linear.layer, linear.pass.rows);
        let block = &w.blocks[w.block_index(layer)];
        let (slot, stats) = (LayerSlot::AttentionOutputNormWeight, &block.attention_output_stats);
        let (output, dpart) = (&block.attention_output, &mut w.dpart);
        let dout = self.output_norm_backward(layer, slot, rows, output, stats, &w.dx, dpart, sink);
        let dmixed = Some((&mut w.dmixed, false));
        linear.run(Linear::Output, &block.mixed, dout, dmixed, sink, &block.lora, &mut w.dropped);
    }

    /// Attention's part of [`Decoder::block_backward`], from `w.dmixed`: adds to `w.dx`.
    fn attention_backward(
        &self,
        linear: &LinearBackward<'_, K>,
        lowest: bool,
        batch: &Batch,
        sink: &mut Sink<'_, K>,
        w: &mut Workspace<K>,
    ) {
        let (k, config, layer, rows) = (&self.kernels, &self.config, linear.layer, linear.pass.rows);
        let index = w.block_index(layer);
        let block = &mut w.blocks[index];
        let input = &w.inputs[layer];
        let (x, out, log_sums) = (&block.query_key_value, &block.mixed, &block.log_sums);
        let dx = &mut w.dquery_key_value;
        k.attention_backward(self.shape(layer), &batch.sequences, x, out, log_sums, &w.dmixed, dx);
        if let Some(frequencies) = self.frequencies(layer) {
            k.rotate(&self.shape, linear.pass.positions, frequencies, -1.0, dx);
        }
        self.normalise_heads_backward(layer, rows, block, sink, dx);
        let weight = self.vector(layer, LayerSlot::AttentionNormWeight);
        if linear.reads_input(Linear::QueryKeyValue, sink) {
            let bias = self.bias(layer, LayerSlot::AttentionNormBias);
            k.norm(config.norm, rows, input, weight, bias, &mut w.normed, &mut block.attention_stats);
        }
        let dnormed = (!lowest).then_some((&mut w.dnormed, false));
        let (x, dout) = (&w.normed, &w.dquery_key_value);
        linear.run(Linear::QueryKeyValue, x, dout, dnormed, sink, &block.lora, &mut w.dropped);
        if lowest {
            return;
        }
        if let Some(gradients) = sink.full.as_deref_mut() {
            let slot = |slot| Slot::Layer(layer, slot);
            let (weight, bias) = (slot(LayerSlot::AttentionNormWeight), slot(LayerSlot::AttentionNormBias));
            self.norm_gradient(gradients, weight, bias, rows, input, &block.attention_stats, &w.dnormed);
        }
        k.norm_backward(config.norm, rows, input, weight, &block.attention_stats, &w.dnormed, &mut w.dx);
    }

    /// The feed-forward layer's part of [`Decoder::block_backward`]: adds to `w.dx`.
    fn feed_forward_backward(
        &self,
        linear: &LinearBackward<'_, K>,
        sink: &mut Sink<'_, K>,
        w: &mut Workspace<K>,
    ) {
        let (k, config, layer, rows) = (&self.kernels, &self.config, linear.layer, linear.pass.rows);
        let index = w.block_index(layer);
        let block = &mut w.blocks[index];
        let gated = config.activation.gated();
        let length = rows * config.intermediate;
        let stream = if config.residual == Residual::Parallel { &w.inputs[layer] } else { &block.middle };
        if linear.reads_input(Linear::Down, sink) {
            let gate = gated.then_some(&block.gate);
            k.activate(config.activation, length, gate, &block.up, &mut w.activated);
        }
        let (slot, stats) = (LayerSlot::FeedForwardOutputNormWeight, &block.feed_forward_output_stats);
        let (output, dpart) = (&block.feed_forward_output, &mut w.dpart);
        let dout = self.output_norm_backward(layer, slot, rows, output, stats, &w.dx, dpart, sink);
        linear.run(
            Linear::Down,
            &w.activated,
            dout,
            Some((&mut w.dup, false)),
            sink,
            &block.lora,
            &mut w.dropped,
        );
        let (gate, dgate) = (gated.then_some(&block.gate), gated.then_some(&mut w.dgate));
        k.activate_backward(config.activation, length, gate, &block.up, &mut w.dup, dgate);
        let weight = self.vector(layer, LayerSlot::FeedForwardNormWeight);
        if linear.reads_input(Linear::Up, sink) || linear.reads_input(Linear::Gate, sink) {
            let bias = self.bias(layer, LayerSlot::FeedForwardNormBias);
            // The same statistics come out again.
            let stats = &mut block.feed_forward_stats;
            k.norm(config.norm, rows, stream, weight, bias, &mut w.normed, stats);
        }
        linear.run(
            Linear::Up,
            &w.normed,
            &w.dup,
            Some((&mut w.dnormed, false)),
            sink,
            &block.lora,
            &mut w.dropped,
        );
        if gated {
            let dx = Some((&mut w.dnormed, true));
            linear.run(Linear::Gate, &w.normed, &w.dgate, dx, sink, &block.lora, &mut w.dropped);
        }
        if let Some(gradients) = sink.full.as_deref_mut() {
            let slot = |slot| Slot::Layer(layer, slot);
            let (weight, bias) =
                (slot(LayerSlot::FeedForwardNormWeight), slot(LayerSlot::FeedForwardNormBias));
            self.norm_gradient(gradients, weight, bias, rows, stream, &block.feed_forward_stats, &w.dnormed);
        }
        k.norm_backward(config.norm, rows, stream, weight, &block.feed_forward_stats, &w.dnormed, &mut w.dx);
    }

    /// The gradient of what a half of a block adds to the stream, before Gemma 3's norm of it: that of the stream where
    /// there is no such norm.
    #[expect(clippy::too_many_arguments, reason = "a norm's buffers")]
    fn output_norm_backward<'w>(
        &self,
        layer: usize,
        slot: LayerSlot,
        rows: usize,
        output: &K::Buffer,
        stats: &K::Buffer,
        dx: &'w K::Buffer,
        dpart: &'w mut K::Buffer,
        sink: &mut Sink<'_, K>,
    ) -> &'w K::Buffer {
        if !self.config.output_norms {
            return dx;
        }
        let k = &self.kernels;
        if let Some(dweight) = sink.full.as_deref_mut().and_then(|gradients| gradients.layer(layer, slot)) {
            k.norm_backward_weight(rows, output, stats, dx, dweight, None);
        }
        k.clear(rows * self.config.hidden, dpart);
        k.norm_backward(self.config.norm, rows, output, self.vector(layer, slot), stats, dx, dpart);
        dpart
    }

    /// Qwen3's and Gemma 3's norms of query and key heads: `dx` in place.
    fn normalise_heads_backward(
        &self,
        layer: usize,
        rows: usize,
        block: &BlockActivations<K>,
        sink: &mut Sink<'_, K>,
        dx: &mut K::Buffer,
    ) {
        if !self.config.query_key_norm {
            return;
        }
        let (queries, keys) =
            (0..self.config.heads, self.config.heads..self.config.heads + self.config.key_value_heads);
        let parts = [
            (queries, LayerSlot::QueryNormWeight, &block.query_stats),
            (keys, LayerSlot::KeyNormWeight, &block.key_stats),
        ];
        for (heads, slot, stats) in parts {
            let dweight = sink.full.as_deref_mut().and_then(|gradients| gradients.layer(layer, slot));
            let (x, weight) = (&block.raw_query_key_value, self.vector(layer, slot));
            self.kernels.head_norm_backward(&self.shape, rows, heads, x, weight, stats, dx, dweight);
        }
    }

    /// The embedding table's gradient, and its norm's, where they are trained.
    pub(super) fn embed_backward(&self, batch: &Batch, sink: &mut Sink<'_, K>, w: &mut Workspace<K>) {
        let Some(gradients) = sink.full.as_deref_mut() else { return };
        let (k, config, rows) = (&self.kernels, &self.config, batch.rows());
        if let Some(weight) = self.outer_vector(Slot::EmbeddingNormWeight) {
            // The norm's input and statistics were scratch: once more.
            k.embed(&batch.tokens, self.embedding(), config.embedding_scale, &mut w.normed);
            let bias = self.outer_vector(Slot::EmbeddingNormBias);
            let (x, out, stats) = (&w.normed, &mut w.selected, &mut w.selected_stats);
            k.norm(config.norm, rows, x, weight, bias, out, stats);
            let (dweight, dbias) = (Slot::EmbeddingNormWeight, Slot::EmbeddingNormBias);
            self.norm_gradient(gradients, dweight, dbias, rows, &w.normed, &w.selected_stats, &w.dx);
            k.clear(rows * config.hidden, &mut w.dpart);
            k.norm_backward(config.norm, rows, &w.normed, weight, &w.selected_stats, &w.dx, &mut w.dpart);
            std::mem::swap(&mut w.dx, &mut w.dpart);
        }
        if let Some(dtable) = gradients.get(Slot::Embedding) {
            k.embed_backward(&batch.tokens, self.embedding(), config.embedding_scale, &w.dx, dtable);
        }
    }

    /// Adds a norm's weight and bias gradients.
    #[expect(clippy::too_many_arguments, reason = "two slots and what the kernel reads")]
    fn norm_gradient(
        &self,
        gradients: &mut Gradients<K>,
        weight: Slot,
        bias: Slot,
        rows: usize,
        x: &K::Buffer,
        stats: &K::Buffer,
        dout: &K::Buffer,
    ) {
        if let Some((mut dweight, mut dbias)) = gradients.take(weight, bias) {
            self.kernels.norm_backward_weight(rows, x, stats, dout, &mut dweight, dbias.as_mut());
            gradients.put(weight, bias, (dweight, dbias));
        }
    }
}

/// The backward of a block's products, with what adapters add to them.
struct LinearBackward<'a, K: Kernels> {
    decoder: &'a Decoder<K>,
    layer: usize,
    pass: &'a Pass<'a, K>,
}

impl<K: Kernels> LinearBackward<'_, K> {
    /// Adds the gradients of what is trained in a product; where `dx` is given, overwrites it with the input's
    /// gradient, or adds to it.
    #[expect(clippy::too_many_arguments, reason = "one place for all of a block's products")]
    fn run(
        &self,
        linear: Linear,
        x: &K::Buffer,
        dout: &K::Buffer,
        mut dx: Option<(&mut K::Buffer, bool)>,
        sink: &mut Sink<'_, K>,
        hidden: &[K::Buffer],
        dropped: &mut K::Buffer,
    ) {
        let (k, rows) = (&self.decoder.kernels, self.pass.rows);
        let weight = self.decoder.matrix(self.layer, linear.weight_slot());
        if let Some((dx, accumulate)) = &mut dx {
            k.product_backward(rows, dout, weight, dx, *accumulate);
        }
        if let Some(gradients) = sink.full.as_deref_mut() {
            let slots =
                (Slot::Layer(self.layer, linear.weight_slot()), Slot::Layer(self.layer, linear.bias_slot()));
            if let Some((mut dweight, mut dbias)) = gradients.take(slots.0, slots.1) {
                k.product_backward_weight(rows, weight, x, dout, &mut dweight, dbias.as_mut());
                gradients.put(slots.0, slots.1, (dweight, dbias));
            }
        }
        if let Some((adapter, gradients)) = &mut sink.adapter {
            let modules = adapter.blocks[self.layer].iter().zip(&mut gradients.blocks[self.layer]);
            for (place, (module, gradients)) in modules.enumerate() {
                if module.linear == linear {
                    let dx = dx.as_mut().map(|(dx, _)| &mut **dx);
                    self.module(place, module, x, dout, dx, gradients, &hidden[place], dropped);
                }
            }
        }
    }

    /// Adds the gradients of a module's A and B, and to `dx` that of its input.
    #[expect(clippy::too_many_arguments, reason = "what a module's kernels read and write")]
    fn module(
        &self,
        place: usize,
        module: &LoraModule<K>,
        x: &K::Buffer,
        dout: &K::Buffer,
        dx: Option<&mut K::Buffer>,
        [da, db]: &mut [K::Buffer; 2],
        hidden: &K::Buffer,
        dropped: &mut K::Buffer,
    ) {
        let (k, rows, view) = (&self.decoder.kernels, self.pass.rows, module.view());
        let (inputs, out_width) = module.linear.shape(&self.decoder.config);
        let Some(dropout) = self.pass.dropout_place(self.layer, place) else {
            k.lora_backward(rows, x, &view, hidden, dout, out_width, da, db);
            if let Some(dx) = dx {
                k.lora_backward_input(rows, &view, dout, out_width, dx, true);
            }
            return;
        };
        k.dropout(&dropout, inputs, x, dropped);
        k.lora_backward(rows, dropped, &view, hidden, dout, out_width, da, db);
        if let Some(dx) = dx {
            k.lora_backward_input(rows, &view, dout, out_width, dropped, false);
            k.dropout_backward(&dropout, inputs, dropped, dx);
        }
    }

    /// Whether a gradient of this product reads its input.
    fn reads_input(&self, linear: Linear, sink: &Sink<'_, K>) -> bool {
        sink.full.is_some() || self.has_module(linear, sink)
    }

    /// Whether the adapter has a module on a product of the feed-forward layer.
    fn has_feed_forward_module(&self, sink: &Sink<'_, K>) -> bool {
        [Linear::Up, Linear::Gate, Linear::Down].into_iter().any(|linear| self.has_module(linear, sink))
    }

    /// Whether the adapter has a module on this product.
    fn has_module(&self, linear: Linear, sink: &Sink<'_, K>) -> bool {
        let modules = sink.adapter.as_ref().map(|(adapter, _)| &adapter.blocks[self.layer]);
        modules.is_some_and(|modules| modules.iter().any(|module| module.linear == linear))
    }
}
