//! A backend around another one that counts the multiply-adds of the matrix products it is asked for.
//!
//! [`crate::decoder::cost`] predicts the same number from shapes alone; tests hold one against the other.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::decoder::config::{Activation, Norm};
use crate::decoder::weights::{HostTensor, Precision};
use crate::kernels::{AdamW, AttentionShape, CachedRow, DropoutPlace, Kernels, LoraView, Sequence};

/// A backend that counts.
#[derive(Debug, Default)]
pub struct Counting<K> {
    inner: K,
    multiply_adds: AtomicU64,
}

/// A matrix of the backend within, with its shape.
#[derive(Debug)]
pub struct Shaped<M> {
    inner: M,
    rows: usize,
    columns: usize,
}

impl<K> Counting<K> {
    /// Counts from 0.
    pub fn new(inner: K) -> Self {
        Self { inner, multiply_adds: AtomicU64::new(0) }
    }

    /// Multiply-adds of all products so far.
    pub fn multiply_adds(&self) -> u64 {
        self.multiply_adds.load(Ordering::Relaxed)
    }

    fn count(&self, factors: &[usize]) {
        let product = factors.iter().map(|factor| *factor as u64).product();
        self.multiply_adds.fetch_add(product, Ordering::Relaxed);
    }

    /// Each of attention's products has a multiply-add for each pair on or below the diagonal and each column.
    fn count_attention(&self, products: usize, shape: &AttentionShape, sequences: &[Sequence]) {
        for sequence in sequences {
            self.count(&[products, shape.heads, shape.head_size, sequence.pairs()]);
        }
    }
}

/// Kernels that are passed on as they are.
macro_rules! pass_on {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)* $(,)?) $(-> $result:ty)?;)*) => {
        $(fn $name(&self $(, $argument: $type)*) $(-> $result)? {
            self.inner.$name($($argument),*)
        })*
    };
}

impl<K: Kernels> Kernels for Counting<K> {
    type Buffer = K::Buffer;
    type Matrix = Shaped<K::Matrix>;

    pass_on! {
        fn buffer(&self, length: usize) -> K::Buffer;
        fn upload(&self, values: &[f32]) -> K::Buffer;
        fn write(&self, values: &[f32], buffer: &mut K::Buffer);
        fn download(&self, buffer: &K::Buffer, length: usize) -> Vec<f32>;
        fn length(&self, buffer: &K::Buffer) -> usize;
        fn packed_values(&self, tensor: &HostTensor<'_>) -> K::Buffer;
        fn clear(&self, length: usize, x: &mut K::Buffer);
        fn copy(&self, length: usize, x: &K::Buffer, out: &mut K::Buffer);
        fn add(&self, length: usize, x: &K::Buffer, out: &mut K::Buffer);
        fn gather(&self, width: usize, rows: &[usize], x: &K::Buffer, out: &mut K::Buffer);
        fn scatter_add(&self, width: usize, rows: &[usize], x: &K::Buffer, out: &mut K::Buffer);
        fn norm(&self, norm: Norm, rows: usize, x: &K::Buffer, weight: &K::Buffer, bias: Option<&K::Buffer>,
            out: &mut K::Buffer, stats: &mut K::Buffer);
        fn norm_backward(&self, norm: Norm, rows: usize, x: &K::Buffer, weight: &K::Buffer, stats: &K::Buffer,
            dout: &K::Buffer, dx: &mut K::Buffer);
        fn norm_backward_weight(&self, rows: usize, x: &K::Buffer, stats: &K::Buffer, dout: &K::Buffer,
            dweight: &mut K::Buffer, dbias: Option<&mut K::Buffer>);
        fn dropout(&self, place: &DropoutPlace<'_>, width: usize, x: &K::Buffer, out: &mut K::Buffer);
        fn dropout_backward(&self, place: &DropoutPlace<'_>, width: usize, dout: &mut K::Buffer, dx: &mut K::Buffer);
        fn rotate(&self, shape: &AttentionShape, positions: &[u32], frequencies: &[f32], direction: f32,
            query_key_value: &mut K::Buffer);
        fn head_norm(&self, shape: &AttentionShape, rows: usize, heads: Range<usize>, epsilon: f32,
            weight: &K::Buffer, query_key_value: &mut K::Buffer, stats: &mut K::Buffer);
        fn head_norm_backward(&self, shape: &AttentionShape, rows: usize, heads: Range<usize>, x: &K::Buffer,
            weight: &K::Buffer, stats: &K::Buffer, dquery_key_value: &mut K::Buffer, dweight: Option<&mut K::Buffer>);
        fn store_key_values(&self, shape: &AttentionShape, page_size: usize, rows: &[CachedRow],
            query_key_value: &K::Buffer, cache: &mut K::Buffer);
        fn copy_page(&self, length: usize, from: u32, to: u32, cache: &mut K::Buffer);
        fn activate(&self, kind: Activation, length: usize, gate: Option<&K::Buffer>, up: &K::Buffer,
            out: &mut K::Buffer);
        fn activate_backward(&self, kind: Activation, length: usize, gate: Option<&K::Buffer>, up: &K::Buffer,
            dup: &mut K::Buffer, dgate: Option<&mut K::Buffer>);
        fn adamw(&self, settings: &AdamW, values: &mut K::Buffer, gradient: &mut K::Buffer, moments: &mut [K::Buffer; 2]);
        fn squared_norm(&self, gradient: &K::Buffer) -> f64;
    }

    fn widest_head(&self) -> Option<usize> {
        self.inner.widest_head()
    }

    fn most_bytes(&self) -> Option<u64> {
        self.inner.most_bytes()
    }

    fn available_bytes(&self) -> Option<u64> {
        self.inner.available_bytes()
    }

    fn matrix(&self, tensor: &HostTensor<'_>, precision: Precision) -> Self::Matrix {
        let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
        Shaped { inner: self.inner.matrix(tensor, precision), rows, columns }
    }

    fn modify(&self, buffer: &mut K::Buffer, modify: &mut dyn FnMut(&mut [f32])) {
        self.inner.modify(buffer, modify);
    }

    fn read(&self, buffer: &K::Buffer, read: &mut dyn FnMut(&[f32])) {
        self.inner.read(buffer, read);
    }

    fn modify_matrix(&self, matrix: &mut Self::Matrix, modify: &mut dyn FnMut(&mut [f32])) {
        self.inner.modify_matrix(&mut matrix.inner, modify);
    }

    fn read_matrix(&self, matrix: &Self::Matrix, read: &mut dyn FnMut(&[f32])) {
        self.inner.read_matrix(&matrix.inner, read);
    }

    fn matrix_values(&self, matrix: &Self::Matrix) -> Vec<f32> {
        self.inner.matrix_values(&matrix.inner)
    }

    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize {
        self.inner.matrix_bytes(&matrix.inner)
    }

    fn like_matrix(&self, matrix: &Self::Matrix) -> K::Buffer {
        self.inner.like_matrix(&matrix.inner)
    }

    fn unpack_like(&self, matrix: &Self::Matrix, buffer: &K::Buffer) -> Vec<f32> {
        self.inner.unpack_like(&matrix.inner, buffer)
    }

    fn embed(&self, tokens: &[u32], table: &Self::Matrix, scale: f32, out: &mut K::Buffer) {
        self.inner.embed(tokens, &table.inner, scale, out);
    }

    fn embed_backward(
        &self,
        tokens: &[u32],
        table: &Self::Matrix,
        scale: f32,
        dout: &K::Buffer,
        dtable: &mut K::Buffer,
    ) {
        self.inner.embed_backward(tokens, &table.inner, scale, dout, dtable);
    }

    fn product(
        &self,
        rows: usize,
        x: &K::Buffer,
        weight: &Self::Matrix,
        bias: Option<&K::Buffer>,
        out: &mut K::Buffer,
        accumulate: bool,
    ) {
        self.count(&[rows, weight.rows, weight.columns]);
        self.inner.product(rows, x, &weight.inner, bias, out, accumulate);
    }

    fn product_backward(
        &self,
        rows: usize,
        dout: &K::Buffer,
        weight: &Self::Matrix,
        dx: &mut K::Buffer,
        accumulate: bool,
    ) {
        self.count(&[rows, weight.rows, weight.columns]);
        self.inner.product_backward(rows, dout, &weight.inner, dx, accumulate);
    }

    fn product_backward_weight(
        &self,
        rows: usize,
        weight: &Self::Matrix,
        x: &K::Buffer,
        dout: &K::Buffer,
        dweight: &mut K::Buffer,
        dbias: Option<&mut K::Buffer>,
    ) {
        self.count(&[rows, weight.rows, weight.columns]);
        self.inner.product_backward_weight(rows, &weight.inner, x, dout, dweight, dbias);
    }

    fn lora(
        &self,
        range: Range<usize>,
        x: &K::Buffer,
        module: &LoraView<'_, K::Buffer>,
        hidden: &mut K::Buffer,
        out: &mut K::Buffer,
        out_width: usize,
    ) {
        self.count(&[range.len(), module.rank, module.inputs + module.outputs]);
        self.inner.lora(range, x, module, hidden, out, out_width);
    }

    fn lora_backward(
        &self,
        rows: usize,
        x: &K::Buffer,
        module: &LoraView<'_, K::Buffer>,
        hidden: &K::Buffer,
        dout: &K::Buffer,
        out_width: usize,
        da: &mut K::Buffer,
        db: &mut K::Buffer,
    ) {
        // The gradient of the inner values, then of B and of A.
        self.count(&[rows, module.rank, 2 * module.outputs + module.inputs]);
        self.inner.lora_backward(rows, x, module, hidden, dout, out_width, da, db);
    }

    fn lora_backward_input(
        &self,
        rows: usize,
        module: &LoraView<'_, K::Buffer>,
        dout: &K::Buffer,
        out_width: usize,
        dx: &mut K::Buffer,
        accumulate: bool,
    ) {
        self.count(&[rows, module.rank, module.outputs + module.inputs]);
        self.inner.lora_backward_input(rows, module, dout, out_width, dx, accumulate);
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        sequences: &[Sequence],
        query_key_value: &K::Buffer,
        out: &mut K::Buffer,
        log_sums: &mut K::Buffer,
    ) {
        self.count_attention(2, shape, sequences);
        self.inner.attention(shape, sequences, query_key_value, out, log_sums);
    }

    fn attention_backward(
        &self,
        shape: &AttentionShape,
        sequences: &[Sequence],
        query_key_value: &K::Buffer,
        out: &K::Buffer,
        log_sums: &K::Buffer,
        dout: &K::Buffer,
        dquery_key_value: &mut K::Buffer,
    ) {
        self.count_attention(5, shape, sequences);
        self.inner.attention_backward(
            shape,
            sequences,
            query_key_value,
            out,
            log_sums,
            dout,
            dquery_key_value,
        );
    }

    fn attention_cached(
        &self,
        shape: &AttentionShape,
        page_size: usize,
        rows: &[CachedRow],
        query_key_value: &K::Buffer,
        cache: &K::Buffer,
        out: &mut K::Buffer,
    ) {
        for row in rows {
            self.count(&[2, shape.heads, shape.head_size, row.position + 1]);
        }
        self.inner.attention_cached(shape, page_size, rows, query_key_value, cache, out);
    }

    fn cross_entropy(
        &self,
        x: &K::Buffer,
        head: &Self::Matrix,
        targets: &[u32],
        gradient: Option<(&[f32], &mut K::Buffer)>,
    ) -> Vec<f32> {
        self.count(&[targets.len(), head.rows, head.columns, 1 + usize::from(gradient.is_some())]);
        self.inner.cross_entropy(x, &head.inner, targets, gradient)
    }

    fn cross_entropy_full(
        &self,
        x: &K::Buffer,
        head: &Self::Matrix,
        targets: &[u32],
        scales: &[f32],
        dx: &mut K::Buffer,
        dhead: &mut K::Buffer,
    ) -> Vec<f32> {
        self.count(&[targets.len(), head.rows, head.columns, 3]);
        self.inner.cross_entropy_full(x, &head.inner, targets, scales, dx, dhead)
    }

    fn adamw_matrix(
        &self,
        settings: &AdamW,
        values: &mut Self::Matrix,
        gradient: &mut K::Buffer,
        moments: &mut [K::Buffer; 2],
    ) {
        self.inner.adamw_matrix(settings, &mut values.inner, gradient, moments);
    }
}
