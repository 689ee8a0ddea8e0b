//! The CPU backend: `f32` on all cores of the current `rayon` pool.
//!
//! Read `tile` first (the innermost product), then `panels` and `matmul`; the other files are one kernel each,
//! forward above backward.

pub(crate) mod activation;
pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod attention_cached;
mod buffer;
pub(crate) mod cross_entropy;
pub(crate) mod dropout;
mod math;
mod matmul;
pub(crate) mod norm;
mod panels;
pub(crate) mod quantised;
pub(crate) mod rotary;
mod rows;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

pub use self::buffer::Buffer;
pub use self::cross_entropy::full_rows;
pub use self::matmul::undealt_rows;
use self::matmul::{Left, Out, multiply};
pub use self::panels::Matrix;
pub(crate) use self::panels::packed_length;
use self::panels::{Backward, Forward, Rows, RowsTransposed};
use crate::decoder::config::{Activation, Norm};
use crate::decoder::weights::{HostTensor, Precision};
use crate::kernels::{AdamW, AttentionShape, CachedRow, DropoutPlace, Kernels, LoraView, Sequence};

/// The CPU backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

/// `out += x`
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub(crate) fn add(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += x;
    }
}

/// Adds `doutᵀ x` to a gradient in panel order: `dout` is `[rows, outputs]`, `x` is `[rows, inputs]`.
pub(crate) fn product_weight_gradient(
    rows: usize,
    dout: &[f32],
    outputs: usize,
    x: &[f32],
    inputs: usize,
    dweight: &mut [f32],
) {
    let right = Rows { values: dout, stride: outputs, depth: rows, columns: outputs };
    multiply(Left::transposed(x, inputs, rows, inputs), &right, Out::panels(dweight, inputs, true));
}

/// Adds the column sums of `dout` (`[rows, dbias.len()]`) to `dbias`.
fn bias_gradient(rows: usize, dout: &[f32], dbias: &mut [f32]) {
    let width = dbias.len();
    rows::sum_over_rows(dbias, rows, |row, columns, sums| add(sums, &dout[row * width..][columns]));
}

impl Kernels for Cpu {
    type Buffer = Buffer;
    type Matrix = Matrix;

    fn buffer(&self, length: usize) -> Buffer {
        Buffer::zeros(length)
    }

    fn upload(&self, values: &[f32]) -> Buffer {
        Buffer::from_slice(values)
    }

    fn write(&self, values: &[f32], buffer: &mut Buffer) {
        buffer[..values.len()].copy_from_slice(values);
    }

    fn download(&self, buffer: &Buffer, length: usize) -> Vec<f32> {
        buffer[..length].to_vec()
    }

    fn length(&self, buffer: &Buffer) -> usize {
        buffer.len()
    }

    fn matrix(&self, tensor: &HostTensor<'_>, precision: Precision) -> Matrix {
        Matrix::pack(tensor, precision)
    }

    fn matrix_values(&self, matrix: &Matrix) -> Vec<f32> {
        matrix.unpack()
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        matrix.bytes()
    }

    fn like_matrix(&self, matrix: &Matrix) -> Buffer {
        Buffer::zeros(packed_length(matrix.rows(), matrix.columns()))
    }

    fn packed_values(&self, tensor: &HostTensor<'_>) -> Buffer {
        Matrix::pack(tensor, Precision::F32).values_mut().map(std::mem::take).unwrap_or_default()
    }

    fn unpack_like(&self, matrix: &Matrix, buffer: &Buffer) -> Vec<f32> {
        panels::unpack(buffer, matrix.rows(), matrix.columns())
    }

    fn clear(&self, length: usize, x: &mut Buffer) {
        const CHUNK: usize = 1024 * 1024;
        x[..length].par_chunks_mut(CHUNK).for_each(|part| part.fill(0.0));
    }

    fn copy(&self, length: usize, x: &Buffer, out: &mut Buffer) {
        out[..length].copy_from_slice(&x[..length]);
    }

    fn add(&self, length: usize, x: &Buffer, out: &mut Buffer) {
        const CHUNK: usize = 64 * 1024;
        out[..length]
            .par_chunks_mut(CHUNK)
            .zip(x[..length].par_chunks(CHUNK))
            .for_each(|(out, x)| add(out, x));
    }

    fn modify(&self, buffer: &mut Buffer, modify: &mut dyn FnMut(&mut [f32])) {
        modify(buffer);
    }

    fn read(&self, buffer: &Buffer, read: &mut dyn FnMut(&[f32])) {
        read(buffer);
    }

    fn modify_matrix(&self, matrix: &mut Matrix, modify: &mut dyn FnMut(&mut [f32])) {
        let Some(values) = matrix.values_mut() else { unreachable!("a trained matrix is kept in f32") };
        modify(values);
    }

    fn read_matrix(&self, matrix: &Matrix, read: &mut dyn FnMut(&[f32])) {
        let Some(values) = matrix.values() else { unreachable!("a trained matrix is kept in f32") };
        read(values);
    }

    fn visit(&self, length: usize, buffer: &mut Buffer, visit: &mut dyn FnMut(&mut [f32])) {
        visit(&mut buffer[..length]);
    }

    fn gather(&self, width: usize, rows: &[usize], x: &Buffer, out: &mut Buffer) {
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
            out.copy_from_slice(&x[row * width..][..width]);
        }
    }

    fn scatter_add(&self, width: usize, rows: &[usize], x: &Buffer, out: &mut Buffer) {
        for (row, x) in rows.iter().zip(x.chunks_exact(width)) {
            add(&mut out[row * width..][..width], x);
        }
    }

    fn embed(&self, tokens: &[u32], table: &Matrix, scale: f32, out: &mut Buffer) {
        let width = table.columns();
        rows::for_each_row(&mut out[..tokens.len() * width], width, |row, out| {
            table.read_row(tokens[row] as usize, out);
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        });
    }

    fn embed_backward(&self, tokens: &[u32], table: &Matrix, scale: f32, dout: &Buffer, dtable: &mut Buffer) {
        let width = table.columns();
        for (token, dout) in tokens.iter().zip(dout.chunks_exact(width)) {
            panels::add_to_row(dtable, width, *token as usize, scale, dout);
        }
    }

    fn norm(
        &self,
        norm: Norm,
        rows: usize,
        x: &Buffer,
        weight: &Buffer,
        bias: Option<&Buffer>,
        out: &mut Buffer,
        stats: &mut Buffer,
    ) {
        let (out, stats) = (&mut out[..rows * weight.len()], &mut stats[..2 * rows]);
        norm::norm(norm.kind, norm.epsilon, x, weight, bias.map(|bias| &bias[..]), out, stats);
    }

    fn norm_backward(
        &self,
        norm: Norm,
        rows: usize,
        x: &Buffer,
        weight: &Buffer,
        stats: &Buffer,
        dout: &Buffer,
        dx: &mut Buffer,
    ) {
        norm::norm_backward(norm.kind, x, weight, stats, dout, &mut dx[..rows * weight.len()]);
    }

    fn norm_backward_weight(
        &self,
        rows: usize,
        x: &Buffer,
        stats: &Buffer,
        dout: &Buffer,
        dweight: &mut Buffer,
        dbias: Option<&mut Buffer>,
    ) {
        norm::norm_backward_weight(x, &stats[..2 * rows], dout, dweight, dbias.map(|dbias| &mut dbias[..]));
    }

    fn product(
        &self,
        rows: usize,
        x: &Buffer,
        weight: &Matrix,
        bias: Option<&Buffer>,
        out: &mut Buffer,
        accumulate: bool,
    ) {
        let (inputs, outputs) = (weight.columns(), weight.rows());
        let out = &mut out[..rows * outputs];
        if let Some(bias) = bias {
            rows::for_each_row(out, outputs, |_, out| {
                if accumulate {
                    add(out, bias);
                } else {
                    out.copy_from_slice(bias);
                }
            });
        }
        let out = Out::rows(out, outputs, accumulate || bias.is_some());
        multiply(Left::new(x, rows, inputs), &Forward::all(weight), out);
    }

    fn product_backward(
        &self,
        rows: usize,
        dout: &Buffer,
        weight: &Matrix,
        dx: &mut Buffer,
        accumulate: bool,
    ) {
        let (inputs, outputs) = (weight.columns(), weight.rows());
        let out = Out::rows(&mut dx[..rows * inputs], inputs, accumulate);
        multiply(Left::new(dout, rows, outputs), &Backward::all(weight), out);
    }

    fn product_backward_weight(
        &self,
        rows: usize,
        weight: &Matrix,
        x: &Buffer,
        dout: &Buffer,
        dweight: &mut Buffer,
        dbias: Option<&mut Buffer>,
    ) {
        product_weight_gradient(rows, dout, weight.rows(), x, weight.columns(), dweight);
        if let Some(dbias) = dbias {
            bias_gradient(rows, dout, dbias);
        }
    }

    fn lora(
        &self,
        range: Range<usize>,
        x: &Buffer,
        module: &LoraView<'_, Buffer>,
        hidden: &mut Buffer,
        out: &mut Buffer,
        out_width: usize,
    ) {
        let (rows, rank) = (range.len(), module.rank);
        let hidden = &mut hidden[range.start * rank..range.end * rank];
        let x = &x[range.start * module.inputs..range.end * module.inputs];
        let a = RowsTransposed { values: module.a, depth: module.inputs, columns: rank };
        multiply(Left::new(x, rows, module.inputs), &a, Out::rows(hidden, rank, false));
        hidden.iter_mut().for_each(|x| *x *= module.scale);
        let b = RowsTransposed { values: module.b, depth: rank, columns: module.outputs };
        let out = &mut out[range.start * out_width + module.first..range.end * out_width];
        multiply(Left::new(hidden, rows, rank), &b, Out::rows(out, out_width, true));
    }

    fn lora_backward(
        &self,
        rows: usize,
        x: &Buffer,
        module: &LoraView<'_, Buffer>,
        hidden: &Buffer,
        dout: &Buffer,
        out_width: usize,
        da: &mut Buffer,
        db: &mut Buffer,
    ) {
        let (rank, inputs) = (module.rank, module.inputs);
        let dhidden = lora_dhidden(rows, module, dout, out_width);
        // db = doutᵀ hidden
        let dout = &dout[module.first..rows * out_width];
        let right = Rows { values: hidden, stride: rank, depth: rows, columns: rank };
        let left = Left::transposed(dout, module.outputs, rows, out_width);
        multiply(left, &right, Out::rows(db, rank, true));
        // da = dhiddenᵀ x
        let right = Rows { values: x, stride: inputs, depth: rows, columns: inputs };
        multiply(Left::transposed(&dhidden, rank, rows, rank), &right, Out::rows(da, inputs, true));
    }

    fn lora_backward_input(
        &self,
        rows: usize,
        module: &LoraView<'_, Buffer>,
        dout: &Buffer,
        out_width: usize,
        dx: &mut Buffer,
        accumulate: bool,
    ) {
        let (rank, inputs) = (module.rank, module.inputs);
        let dhidden = lora_dhidden(rows, module, dout, out_width);
        let right = Rows { values: module.a, stride: inputs, depth: rank, columns: inputs };
        multiply(Left::new(&dhidden, rows, rank), &right, Out::rows(dx, inputs, accumulate));
    }

    fn dropout(&self, place: &DropoutPlace<'_>, width: usize, x: &Buffer, out: &mut Buffer) {
        dropout::dropout(place, width, x, out);
    }

    fn dropout_backward(&self, place: &DropoutPlace<'_>, width: usize, dout: &mut Buffer, dx: &mut Buffer) {
        dropout::dropout_backward(place, width, dout, dx);
    }

    fn rotate(
        &self,
        shape: &AttentionShape,
        positions: &[u32],
        frequencies: &[f32],
        direction: f32,
        query_key_value: &mut Buffer,
    ) {
        let stride = shape.query_key_value_width();
        let x = &mut query_key_value[..positions.len() * stride];
        let heads = shape.heads + shape.key_value_heads;
        rotary::rotate(x, stride, heads, shape.head_size, positions, frequencies, direction);
    }

    fn head_norm(
        &self,
        shape: &AttentionShape,
        rows: usize,
        heads: Range<usize>,
        epsilon: f32,
        weight: &Buffer,
        query_key_value: &mut Buffer,
        stats: &mut Buffer,
    ) {
        let (stride, first, heads) =
            (shape.query_key_value_width(), heads.start * shape.head_size, heads.len());
        let (x, stats) = (&mut query_key_value[..rows * stride], &mut stats[..rows * heads]);
        norm::head_norm(epsilon, x, stride, first, heads, weight, stats);
    }

    fn head_norm_backward(
        &self,
        shape: &AttentionShape,
        rows: usize,
        heads: Range<usize>,
        x: &Buffer,
        weight: &Buffer,
        stats: &Buffer,
        dquery_key_value: &mut Buffer,
        dweight: Option<&mut Buffer>,
    ) {
        let (stride, first, heads) =
            (shape.query_key_value_width(), heads.start * shape.head_size, heads.len());
        let (dx, stats) = (&mut dquery_key_value[..rows * stride], &stats[..rows * heads]);
        if let Some(dweight) = dweight {
            norm::head_norm_backward_weight(x, stride, first, heads, stats, dx, dweight);
        }
        norm::head_norm_backward(x, stride, first, heads, weight, stats, dx);
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        sequences: &[Sequence],
        query_key_value: &Buffer,
        out: &mut Buffer,
        log_sums: &mut Buffer,
    ) {
        attention::attention(shape, sequences, query_key_value, out, log_sums);
    }

    fn attention_backward(
        &self,
        shape: &AttentionShape,
        sequences: &[Sequence],
        query_key_value: &Buffer,
        out: &Buffer,
        log_sums: &Buffer,
        dout: &Buffer,
        dquery_key_value: &mut Buffer,
    ) {
        attention::attention_backward(
            shape,
            sequences,
            query_key_value,
            out,
            log_sums,
            dout,
            dquery_key_value,
        );
    }

    fn store_key_values(
        &self,
        shape: &AttentionShape,
        page_size: usize,
        rows: &[CachedRow],
        query_key_value: &Buffer,
        cache: &mut Buffer,
    ) {
        attention_cached::store(shape, page_size, rows, query_key_value, cache);
    }

    fn copy_page(&self, length: usize, from: u32, to: u32, cache: &mut Buffer) {
        let from = from as usize * length;
        cache.copy_within(from..from + length, to as usize * length);
    }

    fn attention_cached(
        &self,
        shape: &AttentionShape,
        page_size: usize,
        rows: &[CachedRow],
        query_key_value: &Buffer,
        cache: &Buffer,
        out: &mut Buffer,
    ) {
        let out = &mut out[..rows.len() * shape.width()];
        attention_cached::attention(shape, page_size, rows, query_key_value, cache, out);
    }

    fn activate(
        &self,
        kind: Activation,
        length: usize,
        gate: Option<&Buffer>,
        up: &Buffer,
        out: &mut Buffer,
    ) {
        activation::activate(kind, gate.map(|gate| &gate[..length]), &up[..length], &mut out[..length]);
    }

    fn activate_backward(
        &self,
        kind: Activation,
        length: usize,
        gate: Option<&Buffer>,
        up: &Buffer,
        dup: &mut Buffer,
        dgate: Option<&mut Buffer>,
    ) {
        let (gate, dgate) = (gate.map(|gate| &gate[..length]), dgate.map(|dgate| &mut dgate[..length]));
        activation::activate_backward(kind, gate, &up[..length], &mut dup[..length], dgate);
    }

    fn cross_entropy(
        &self,
        x: &Buffer,
        head: &Matrix,
        targets: &[u32],
        gradient: Option<(&[f32], &mut Buffer)>,
    ) -> Vec<f32> {
        let mut losses = vec![0.0; targets.len()];
        let length = targets.len() * head.columns();
        let gradient = gradient.map(|(scales, dx)| (scales, &mut dx[..length]));
        cross_entropy::cross_entropy(&x[..length], head, targets, &mut losses, gradient);
        losses
    }

    fn cross_entropy_full(
        &self,
        x: &Buffer,
        head: &Matrix,
        targets: &[u32],
        scales: &[f32],
        dx: &mut Buffer,
        dhead: &mut Buffer,
    ) -> Vec<f32> {
        let mut losses = vec![0.0; targets.len()];
        cross_entropy::cross_entropy_full(x, head, targets, scales, &mut losses, dx, dhead);
        losses
    }

    fn adamw(&self, settings: &AdamW, values: &mut Buffer, gradient: &mut Buffer, moments: &mut [Buffer; 2]) {
        let [first, second] = moments;
        adamw::adamw(settings, values, gradient, first, second);
    }

    fn adamw_matrix(
        &self,
        settings: &AdamW,
        values: &mut Matrix,
        gradient: &mut Buffer,
        moments: &mut [Buffer; 2],
    ) {
        let [first, second] = moments;
        let Some(values) = values.values_mut() else { unreachable!("a trained matrix is kept in f32") };
        adamw::adamw(settings, values, gradient, first, second);
    }

    fn squared_norm(&self, gradient: &Buffer) -> f64 {
        adamw::squared_norm(gradient)
    }
}

/// `scale dout B`: `[rows, rank]`
fn lora_dhidden(rows: usize, module: &LoraView<'_, Buffer>, dout: &[f32], out_width: usize) -> Buffer {
    let (rank, outputs) = (module.rank, module.outputs);
    let mut dhidden = Buffer::zeros(rows * rank);
    let dout = &dout[module.first..rows * out_width];
    let right = Rows { values: module.b, stride: rank, depth: outputs, columns: rank };
    multiply(Left::strided(dout, rows, outputs, out_width), &right, Out::rows(&mut dhidden, rank, false));
    dhidden.iter_mut().for_each(|x| *x *= module.scale);
    dhidden
}
