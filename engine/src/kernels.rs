//! The contract between the decoder and a backend: every kernel, what it reads, and whether it adds or overwrites.
//!
//! Activations are row-major `f32` matrices with one row per token of a micro-batch, in the backend's own memory.
//! Sizes are in elements. A kernel called `..._backward` stands beside its forward; `dx` is the gradient of `x`.
//! Every kernel gives the same bytes for the same input, with any number of threads. On the CPU no row's result depends
//! on how many rows stand beside it either.

use std::ops::Range;

pub use crate::attention_shape::{AttentionShape, NO_WINDOW};
pub use crate::batch::Sequence;
use crate::decoder::config::{Activation, DecoderConfig, Norm};
use crate::decoder::weights::{HostTensor, Precision, Slot};
pub use crate::dropout_key::DropoutKey;

/// One update's settings of AdamW (Loshchilov and Hutter 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Step size.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled decay, multiplied by the learning rate.
    pub weight_decay: f32,
    /// Updates done, this one counted: 1 at the first.
    pub step: u64,
    /// What the gradient is multiplied by first (clipping).
    pub gradient_scale: f32,
}

/// The input of a row's modules is dropped where this says: see [`Kernels::dropout`].
#[derive(Clone, Copy, Debug)]
pub struct DropoutPlace<'a> {
    /// Share of elements set to zero, in `0.0..1.0`.
    pub rate: f32,
    /// The key of each row.
    pub keys: &'a [DropoutKey],
    /// The block.
    pub layer: usize,
    /// The module's number in the adapter.
    pub module: usize,
}

/// A query, key and value row's place among cached keys and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedRow {
    /// The pages that hold the sequence's keys and values, in order; `position` lies in the last that it needs.
    pub pages: std::sync::Arc<[u32]>,
    /// The row's position in its sequence: it attends to positions `0..=position`.
    pub position: usize,
}

/// A backend: about forty kernels on typed buffers.
pub trait Kernels: Send + Sync {
    /// Activations, vectors, gradients, optimizer states: a fixed number of `f32`, zeroed at first.
    type Buffer: Send + Sync;
    /// A weight matrix `[rows, columns]`, laid out for products.
    type Matrix: Send + Sync;

    /// Bytes of the backend's own memory that are free; none where it works in the machine's.
    fn available_bytes(&self) -> Option<u64> {
        None
    }

    /// The most bytes of the backend's own memory that it has held at once; none where it works in the machine's.
    fn most_bytes(&self) -> Option<u64> {
        None
    }

    /// Bytes of a backend's own memory that its kernels hold beside weights, activations and what is trained, while a
    /// decoder is tuned on `tokens` tokens at once: by an adapter of at most `rank`, or (none) in full. `precision` is in
    /// what its matrices are kept; none of those that are not kept here. None where it works in the machine's memory.
    fn scratch_bytes(
        &self,
        config: &DecoderConfig,
        precision: &dyn Fn(Slot) -> Option<Precision>,
        tokens: usize,
        rank: Option<usize>,
    ) -> Option<u64> {
        let _ = (config, precision, tokens, rank);
        None
    }

    /// The widest head that attention takes; none where any will do.
    fn widest_head(&self) -> Option<usize> {
        None
    }

    /// A buffer of zeros.
    fn buffer(&self, length: usize) -> Self::Buffer;
    /// A copy of `values`.
    fn upload(&self, values: &[f32]) -> Self::Buffer;
    /// Overwrites the buffer's beginning with `values`.
    fn write(&self, values: &[f32], buffer: &mut Self::Buffer);
    /// The buffer's first `length` values.
    fn download(&self, buffer: &Self::Buffer, length: usize) -> Vec<f32>;
    /// Elements of a buffer.
    fn length(&self, buffer: &Self::Buffer) -> usize;
    /// Hands `visit` the buffer's first `length` values, to read and to overwrite; the buffer's values are undefined
    /// after it.
    fn visit(&self, length: usize, buffer: &mut Self::Buffer, visit: &mut dyn FnMut(&mut [f32])) {
        visit(&mut self.download(buffer, length));
    }
    /// Hands `modify` the buffer's values, to read and to overwrite.
    fn modify(&self, buffer: &mut Self::Buffer, modify: &mut dyn FnMut(&mut [f32])) {
        let mut values = self.download(buffer, self.length(buffer));
        modify(&mut values);
        self.write(&values, buffer);
    }
    /// Hands `read` the buffer's values.
    fn read(&self, buffer: &Self::Buffer, read: &mut dyn FnMut(&[f32])) {
        read(&self.download(buffer, self.length(buffer)));
    }
    /// Hands `modify` a trained matrix's values as the backend has them laid out, to read and to overwrite.
    fn modify_matrix(&self, matrix: &mut Self::Matrix, modify: &mut dyn FnMut(&mut [f32]));
    /// Hands `read` a trained matrix's values as the backend has them laid out.
    fn read_matrix(&self, matrix: &Self::Matrix, read: &mut dyn FnMut(&[f32]));
    /// Lays a two-dimensional tensor out for products and keeps it in `precision`; what is trained is kept in `f32`.
    fn matrix(&self, tensor: &HostTensor<'_>, precision: Precision) -> Self::Matrix;
    /// The matrix's elements, row-major.
    fn matrix_values(&self, matrix: &Self::Matrix) -> Vec<f32>;
    /// Bytes that a matrix takes.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;
    /// A buffer of zeros in the layout of a trained matrix: its gradient, or a moment.
    fn like_matrix(&self, matrix: &Self::Matrix) -> Self::Buffer;
    /// A row-major tensor's elements as a buffer in the layout of a trained matrix.
    fn packed_values(&self, tensor: &HostTensor<'_>) -> Self::Buffer;
    /// Elements of a buffer in the layout of a matrix, row-major.
    fn unpack_like(&self, matrix: &Self::Matrix, buffer: &Self::Buffer) -> Vec<f32>;

    /// Overwrites the first `length` elements with zeros.
    fn clear(&self, length: usize, x: &mut Self::Buffer);
    /// Overwrites `out[..length]` with `x[..length]`.
    fn copy(&self, length: usize, x: &Self::Buffer, out: &mut Self::Buffer);
    /// Adds `x[..length]` to `out[..length]`.
    fn add(&self, length: usize, x: &Self::Buffer, out: &mut Self::Buffer);
    /// Overwrites `out` with the rows of `x` that `rows` names, each `width` wide.
    fn gather(&self, width: usize, rows: &[usize], x: &Self::Buffer, out: &mut Self::Buffer);
    /// Adds row `i` of `x` to row `rows[i]` of `out`, in this order where a row is named more than once.
    fn scatter_add(&self, width: usize, rows: &[usize], x: &Self::Buffer, out: &mut Self::Buffer);

    /// Overwrites `out` with `scale` times the table's row of each token.
    fn embed(&self, tokens: &[u32], table: &Self::Matrix, scale: f32, out: &mut Self::Buffer);
    /// Adds `scale * dout` to the rows of `dtable` (in the layout of the table) that `tokens` name.
    fn embed_backward(
        &self,
        tokens: &[u32],
        table: &Self::Matrix,
        scale: f32,
        dout: &Self::Buffer,
        dtable: &mut Self::Buffer,
    );

    /// Overwrites `out` with the norm of `x`'s rows times `weight` plus `bias`, and `stats` (2 a row) with each
    /// row's mean and reciprocal deviation.
    #[expect(clippy::too_many_arguments, reason = "a kernel names what it reads and writes")]
    fn norm(
        &self,
        norm: Norm,
        rows: usize,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        bias: Option<&Self::Buffer>,
        out: &mut Self::Buffer,
        stats: &mut Self::Buffer,
    );
    /// Adds to `dx` the gradient of the norm's input. Reads the input and the saved `stats`.
    #[expect(clippy::too_many_arguments, reason = "a kernel names what it reads and writes")]
    fn norm_backward(
        &self,
        norm: Norm,
        rows: usize,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        stats: &Self::Buffer,
        dout: &Self::Buffer,
        dx: &mut Self::Buffer,
    );
    /// Adds to `dweight` and `dbias` the gradients of the norm's weight and bias.
    fn norm_backward_weight(
        &self,
        rows: usize,
        x: &Self::Buffer,
        stats: &Self::Buffer,
        dout: &Self::Buffer,
        dweight: &mut Self::Buffer,
        dbias: Option<&mut Self::Buffer>,
    );

    /// `out (+)= x Wᵀ + bias`, `x` being `[rows, W's columns]`.
    fn product(
        &self,
        rows: usize,
        x: &Self::Buffer,
        weight: &Self::Matrix,
        bias: Option<&Self::Buffer>,
        out: &mut Self::Buffer,
        accumulate: bool,
    );
    /// `dx (+)= dout W`
    fn product_backward(
        &self,
        rows: usize,
        dout: &Self::Buffer,
        weight: &Self::Matrix,
        dx: &mut Self::Buffer,
        accumulate: bool,
    );
    /// Adds `doutᵀ x` to `dweight` (in the layout of the matrix) and the column sums of `dout` to `dbias`.
    fn product_backward_weight(
        &self,
        rows: usize,
        weight: &Self::Matrix,
        x: &Self::Buffer,
        dout: &Self::Buffer,
        dweight: &mut Self::Buffer,
        dbias: Option<&mut Self::Buffer>,
    );

    /// LoRA's forward on the rows in `range`: overwrites those rows of `hidden` with `scale x Aᵀ` (`[rank]` each)
    /// and adds `hidden Bᵀ` to columns `first .. first + B's rows` of `out`, whose rows are `out_width` wide.
    fn lora(
        &self,
        range: Range<usize>,
        x: &Self::Buffer,
        module: &LoraView<'_, Self::Buffer>,
        hidden: &mut Self::Buffer,
        out: &mut Self::Buffer,
        out_width: usize,
    );
    /// LoRA's weight gradients on all `rows`. Reads the input `x` (dropped out, if it was) and the saved `hidden`;
    /// adds to `da` and `db`.
    #[expect(clippy::too_many_arguments, reason = "a kernel names what it reads and writes")]
    fn lora_backward(
        &self,
        rows: usize,
        x: &Self::Buffer,
        module: &LoraView<'_, Self::Buffer>,
        hidden: &Self::Buffer,
        dout: &Self::Buffer,
        out_width: usize,
        da: &mut Self::Buffer,
        db: &mut Self::Buffer,
    );
    /// The gradient of LoRA's (dropped-out) input: `dx (+)= scale dout B A`.
    fn lora_backward_input(
        &self,
        rows: usize,
        module: &LoraView<'_, Self::Buffer>,
        dout: &Self::Buffer,
        out_width: usize,
        dx: &mut Self::Buffer,
        accumulate: bool,
    );
    /// Overwrites `out` with `x`, of which a share is set to zero and the rest scaled to keep the mean.
    /// The mask is drawn from the place, so the backward draws the same.
    fn dropout(&self, place: &DropoutPlace<'_>, width: usize, x: &Self::Buffer, out: &mut Self::Buffer);
    /// Adds the masked `dout` to `dx`; what `dout` held is lost.
    fn dropout_backward(
        &self,
        place: &DropoutPlace<'_>,
        width: usize,
        dout: &mut Self::Buffer,
        dx: &mut Self::Buffer,
    );

    /// Rotates queries and keys in place by their positions; `direction` -1 is the gradient.
    fn rotate(
        &self,
        shape: &AttentionShape,
        positions: &[u32],
        frequencies: &[f32],
        direction: f32,
        query_key_value: &mut Self::Buffer,
    );
    /// Normalises the `heads`, queries' or keys', in place; `stats` takes one value a row and head.
    #[expect(clippy::too_many_arguments, reason = "a kernel names what it reads and writes")]
    fn head_norm(
        &self,
        shape: &AttentionShape,
        rows: usize,
        heads: Range<usize>,
        epsilon: f32,
        weight: &Self::Buffer,
        query_key_value: &mut Self::Buffer,
        stats: &mut Self::Buffer,
    );
    /// The gradient of [`Kernels::head_norm`] in place; `x` is its input. Where given, `dweight` is added to.
    #[expect(clippy::too_many_arguments, reason = "a kernel names what it reads and writes")]
    fn head_norm_backward(
        &self,
        shape: &AttentionShape,
        rows: usize,
        heads: Range<usize>,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        stats: &Self::Buffer,
        dquery_key_value: &mut Self::Buffer,
        dweight: Option<&mut Self::Buffer>,
    );
    /// Overwrites `out` (`[rows, heads * head_size]`) with causal attention within each sequence and over all of its
    /// prefix, and `log_sums` (`[rows, heads]`) with the logarithm of each sum of exponentials.
    fn attention(
        &self,
        shape: &AttentionShape,
        sequences: &[Sequence],
        query_key_value: &Self::Buffer,
        out: &mut Self::Buffer,
        log_sums: &mut Self::Buffer,
    );
    /// Overwrites `dquery_key_value`. Reads the forward's inputs and outputs.
    #[expect(clippy::too_many_arguments, reason = "a kernel names what it reads and writes")]
    fn attention_backward(
        &self,
        shape: &AttentionShape,
        sequences: &[Sequence],
        query_key_value: &Self::Buffer,
        out: &Self::Buffer,
        log_sums: &Self::Buffer,
        dout: &Self::Buffer,
        dquery_key_value: &mut Self::Buffer,
    );
    /// Writes each row's key and value into its page of `cache`, whose layout is the backend's own. A page holds
    /// `2 * key_value_heads * page_size * head_size` elements.
    fn store_key_values(
        &self,
        shape: &AttentionShape,
        page_size: usize,
        rows: &[CachedRow],
        query_key_value: &Self::Buffer,
        cache: &mut Self::Buffer,
    );
    /// Overwrites page `to` with page `from`, `length` elements each.
    fn copy_page(&self, length: usize, from: u32, to: u32, cache: &mut Self::Buffer);
    /// Overwrites `out` with the attention of each row's query over its sequence's cached keys and values.
    fn attention_cached(
        &self,
        shape: &AttentionShape,
        page_size: usize,
        rows: &[CachedRow],
        query_key_value: &Self::Buffer,
        cache: &Self::Buffer,
        out: &mut Self::Buffer,
    );

    /// Overwrites `out[..length]` with `activation(up)`, or `activation(gate) * up`.
    fn activate(
        &self,
        kind: Activation,
        length: usize,
        gate: Option<&Self::Buffer>,
        up: &Self::Buffer,
        out: &mut Self::Buffer,
    );
    /// `dup` holds the gradient of the output and takes that of `up`; `dgate` is overwritten.
    fn activate_backward(
        &self,
        kind: Activation,
        length: usize,
        gate: Option<&Self::Buffer>,
        up: &Self::Buffer,
        dup: &mut Self::Buffer,
        dgate: Option<&mut Self::Buffer>,
    );

    /// The loss of each row of `x` (`[targets.len(), hidden]`) against its target. Where `gradient` is given, a scale
    /// of each row and `dx`, the latter is overwritten with the gradient of the sum of losses, each times its scale.
    fn cross_entropy(
        &self,
        x: &Self::Buffer,
        head: &Self::Matrix,
        targets: &[u32],
        gradient: Option<(&[f32], &mut Self::Buffer)>,
    ) -> Vec<f32>;
    /// The same with a head that is trained: adds its gradient to `dhead`.
    fn cross_entropy_full(
        &self,
        x: &Self::Buffer,
        head: &Self::Matrix,
        targets: &[u32],
        scales: &[f32],
        dx: &mut Self::Buffer,
        dhead: &mut Self::Buffer,
    ) -> Vec<f32>;

    /// Moves a vector or an adapter's matrix against its gradient, and sets the gradient to zero.
    fn adamw(
        &self,
        settings: &AdamW,
        values: &mut Self::Buffer,
        gradient: &mut Self::Buffer,
        moments: &mut [Self::Buffer; 2],
    );
    /// The same of a trained matrix.
    fn adamw_matrix(
        &self,
        settings: &AdamW,
        values: &mut Self::Matrix,
        gradient: &mut Self::Buffer,
        moments: &mut [Self::Buffer; 2],
    );
    /// Σ g² over the whole buffer.
    fn squared_norm(&self, gradient: &Self::Buffer) -> f64;
}

/// One adapted module, as a kernel sees it.
#[derive(Clone, Copy, Debug)]
pub struct LoraView<'a, B> {
    /// `[rank, inputs]`
    pub a: &'a B,
    /// `[outputs, rank]`
    pub b: &'a B,
    /// Inner width.
    pub rank: usize,
    /// Width of the input.
    pub inputs: usize,
    /// Rows of B.
    pub outputs: usize,
    /// First column of the product's output that it adds to.
    pub first: usize,
    /// What `B A x` is multiplied by.
    pub scale: f32,
}
