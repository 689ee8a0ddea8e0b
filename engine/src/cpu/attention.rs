//! Causal attention over packed sequences, with grouped heads and ALiBi.
//!
//! A sequence's rows never see another's: each task is one sequence and one key-value head. Queries go in blocks,
//! so that the part above the diagonal is not computed and the scores of a long sequence never exist at once.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::math;

/// Queries in a block.
const BLOCK: usize = 64;

/// What attention needs to know of the heads.
#[derive(Clone, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub key_value_heads: usize,
    /// Width of a head.
    pub head_size: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// ALiBi's slope of each query head; empty without ALiBi.
    pub slopes: Vec<f32>,
}

impl AttentionShape {
    /// Width of a row of queries, keys and values.
    pub fn query_key_value_width(&self) -> usize {
        (self.heads + 2 * self.key_value_heads) * self.head_size
    }

    /// Width of a row of outputs.
    pub fn width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Query heads that share a key-value head.
    pub fn group(&self) -> usize {
        self.heads / self.key_value_heads
    }

    /// First column of a key head's keys in a row of queries, keys and values.
    pub fn key_column(&self, head: usize) -> usize {
        (self.heads + head) * self.head_size
    }

    /// First column of a value head's values in a row of queries, keys and values.
    pub fn value_column(&self, head: usize) -> usize {
        (self.heads + self.key_value_heads + head) * self.head_size
    }

    /// ALiBi's slopes (Press et al. 2022), as transformers' BLOOM builds them for any number of heads.
    pub fn alibi_slopes(heads: usize) -> Vec<f32> {
        let power = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
        let base = |count: usize| 2f64.powf(-(2f64.powf(-((count as f64).log2() - 3.0))));
        let mut slopes: Vec<f32> = (1..=power).map(|i| base(power).powi(i as i32) as f32).collect();
        let extra = base(2 * power);
        slopes.extend((0..heads - power).map(|i| extra.powi(2 * i as i32 + 1) as f32));
        slopes
    }
}

/// `out[rows, heads * head_size] = softmax(q kᵀ scale + bias) v` within each sequence; `log_sums` takes the
/// logarithm of each row's and head's sum of exponentials: `[rows, heads]`.
pub(crate) fn attention(
    shape: &AttentionShape,
    sequences: &[Range<usize>],
    query_key_value: &[f32],
    out: &mut [f32],
    log_sums: &mut [f32],
) {
    let rows = sequences.last().map_or(0, |last| last.end);
    assert!(query_key_value.len() >= rows * shape.query_key_value_width());
    assert!(out.len() >= rows * shape.width() && log_sums.len() >= rows * shape.heads);
    let (out, log_sums) = (Shared(out.as_mut_ptr()), Shared(log_sums.as_mut_ptr()));
    each_head(shape, sequences, |sequence, group| {
        let (out, log_sums) = (&out, &log_sums);
        let views = Views::new(shape, query_key_value, &sequence, group);
        for head in group * shape.group()..(group + 1) * shape.group() {
            for first in (0..sequence.len()).step_by(BLOCK) {
                let queries = first..sequence.len().min(first + BLOCK);
                with_scratch(|scores, _| {
                    views.scores(shape, head, queries.clone(), scores);
                    for (row, scores) in queries.clone().zip(scores.chunks_exact_mut(queries.end)) {
                        let log_sum = softmax(&mut scores[..=row]);
                        scores[row + 1..].fill(0.0);
                        // SAFETY: each (row, head) is written by one task.
                        unsafe { *log_sums.0.add((sequence.start + row) * shape.heads + head) = log_sum };
                    }
                    let target = View {
                        start: out
                            .0
                            .wrapping_add((sequence.start + first) * shape.width() + head * shape.head_size),
                        row: shape.width(),
                        column: 1,
                    };
                    let weights = View::of(scores, queries.end);
                    let size = [queries.len(), shape.head_size, queries.end];
                    // SAFETY: the head's columns of the block's rows of `out`, written by this task alone.
                    unsafe { product(size, target, false, weights, views.values) };
                });
            }
        }
    });
}

/// The gradient of [`attention`]'s queries, keys and values, given that of its output. `dquery_key_value` is
/// overwritten. The weights are computed again from `log_sums`.
pub(crate) fn attention_backward(
    shape: &AttentionShape,
    sequences: &[Range<usize>],
    query_key_value: &[f32],
    out: &[f32],
    log_sums: &[f32],
    dout: &[f32],
    dquery_key_value: &mut [f32],
) {
    let rows = sequences.last().map_or(0, |last| last.end);
    let (width, full) = (shape.width(), shape.query_key_value_width());
    assert!(query_key_value.len() >= rows * full && dquery_key_value.len() >= rows * full);
    assert!(out.len() >= rows * width && dout.len() >= rows * width && log_sums.len() >= rows * shape.heads);
    dquery_key_value[..rows * full].fill(0.0);
    let target = Shared(dquery_key_value.as_mut_ptr());
    each_head(shape, sequences, |sequence, group| {
        let target = &target;
        let column = |column: usize| View {
            start: target.0.wrapping_add(sequence.start * full + column),
            row: full,
            column: 1,
        };
        let views = Views::new(shape, query_key_value, &sequence, group);
        let (dkeys, dvalues) = (column(shape.key_column(group)), column(shape.value_column(group)));
        for head in group * shape.group()..(group + 1) * shape.group() {
            let dqueries = column(head * shape.head_size);
            for first in (0..sequence.len()).step_by(BLOCK) {
                let queries = first..sequence.len().min(first + BLOCK);
                let (count, keys) = (queries.len(), queries.end);
                let at = (sequence.start + first) * width + head * shape.head_size;
                let douts = View { start: dout[at..].as_ptr().cast_mut(), row: width, column: 1 };
                with_scratch(|weights, dweights| {
                    views.scores(shape, head, queries.clone(), weights);
                    for (row, weights) in queries.clone().zip(weights.chunks_exact_mut(keys)) {
                        let log_sum = log_sums[(sequence.start + row) * shape.heads + head];
                        exp_minus(&mut weights[..=row], log_sum);
                        weights[row + 1..].fill(0.0);
                    }
                    dweights.reserve(count * keys);
                    let weights_view = View::of(weights, keys);
                    let dweights_view = View::of(dweights, keys);
                    // SAFETY: `dweights` holds `count * keys`; the gradients' columns of this sequence and of this
                    // group's heads are written by this task alone; all else is read only.
                    unsafe {
                        product(
                            [keys, shape.head_size, count],
                            dvalues,
                            true,
                            weights_view.transposed(),
                            douts,
                        );
                        product(
                            [count, keys, shape.head_size],
                            dweights_view,
                            false,
                            douts,
                            views.values.transposed(),
                        );
                    }
                    for (row, (weights, dweights)) in
                        queries.clone().zip(weights.chunks_exact(keys).zip(dweights.chunks_exact_mut(keys)))
                    {
                        let at = (sequence.start + row) * width + head * shape.head_size;
                        let at = at..at + shape.head_size;
                        softmax_backward(
                            weights,
                            math::dot(&dout[at.clone()], &out[at]),
                            shape.scale,
                            dweights,
                        );
                    }
                    let dqueries = dqueries.at_row(first);
                    // SAFETY: as above.
                    unsafe {
                        product([count, shape.head_size, keys], dqueries, false, dweights_view, views.keys);
                        let queries = views.queries(shape, head).at_row(first);
                        product(
                            [keys, shape.head_size, count],
                            dkeys,
                            true,
                            dweights_view.transposed(),
                            queries,
                        );
                    }
                });
            }
        }
    });
}

/// Calls `f(sequence, key-value head)` for all of them, on all threads.
fn each_head(
    shape: &AttentionShape,
    sequences: &[Range<usize>],
    f: impl Fn(Range<usize>, usize) + Sync + Send,
) {
    let groups = shape.key_value_heads;
    (0..sequences.len() * groups)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| f(sequences[task / groups].clone(), task % groups));
}

/// A strided matrix in memory.
#[derive(Clone, Copy)]
struct View {
    start: *mut f32,
    row: usize,
    column: usize,
}

impl View {
    /// A row-major slice with rows of `width`; only ever written through where the slice is the caller's own.
    fn of(values: &[f32], width: usize) -> Self {
        Self { start: values.as_ptr().cast_mut(), row: width, column: 1 }
    }

    fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    fn at_row(self, row: usize) -> Self {
        Self { start: self.start.wrapping_add(row * self.row), ..self }
    }
}

/// The queries, keys and values of one sequence and one key-value head.
struct Views {
    start: *const f32,
    stride: usize,
    keys: View,
    values: View,
}

impl Views {
    fn new(shape: &AttentionShape, query_key_value: &[f32], sequence: &Range<usize>, group: usize) -> Self {
        let stride = shape.query_key_value_width();
        let rows = &query_key_value[sequence.start * stride..sequence.end * stride];
        let at = |column: usize| View { start: rows[column..].as_ptr().cast_mut(), row: stride, column: 1 };
        Self {
            start: rows.as_ptr(),
            stride,
            keys: at(shape.key_column(group)),
            values: at(shape.value_column(group)),
        }
    }

    fn queries(&self, shape: &AttentionShape, head: usize) -> View {
        View {
            start: self.start.wrapping_add(head * shape.head_size).cast_mut(),
            row: self.stride,
            column: 1,
        }
    }

    /// `scores[queries.len(), queries.end] = q kᵀ scale + slope (j - i)`; those above the diagonal are rubbish.
    fn scores(&self, shape: &AttentionShape, head: usize, queries: Range<usize>, scores: &mut Buffer) {
        let (count, keys) = (queries.len(), queries.end);
        scores.reserve(count * keys);
        let rows = self.queries(shape, head).at_row(queries.start);
        // SAFETY: `scores` holds `count * keys`, and is the task's own; queries and keys lie in the sequence's rows.
        unsafe {
            let size = [count, keys, shape.head_size];
            product(size, View::of(scores, keys), false, rows, self.keys.transposed());
        }
        let slope = shape.slopes.get(head).copied();
        for (row, scores) in queries.zip(scores.chunks_exact_mut(keys)) {
            let scale = shape.scale;
            match slope {
                None => scores.iter_mut().for_each(|score| *score *= scale),
                Some(slope) => {
                    for (key, score) in scores.iter_mut().enumerate() {
                        *score = *score * scale + slope * (key as f32 - row as f32);
                    }
                }
            }
        }
    }
}

/// `out (+)= left · right`, of sizes `[rows, columns, depth]`, on this thread: the `gemm` crate.
///
/// # Safety
/// The views must lie in memory for these sizes, and `out` must be this thread's alone.
unsafe fn product([rows, columns, depth]: [usize; 3], out: View, accumulate: bool, left: View, right: View) {
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            out.start,
            out.column as isize,
            out.row as isize,
            accumulate,
            left.start.cast_const(),
            left.column as isize,
            left.row as isize,
            right.start.cast_const(),
            right.column as isize,
            right.row as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Softmax in place; returns the logarithm of the sum of exponentials.
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
pub(crate) fn softmax(scores: &mut [f32]) -> f32 {
    let max = math::max(scores);
    for score in scores.iter_mut() {
        *score = math::exp(*score - max);
    }
    let sum = math::sum(scores);
    let scale = 1.0 / sum;
    for score in scores.iter_mut() {
        *score *= scale;
    }
    max + sum.ln()
}

/// `exp(x - y)` in place: the weights again, from the saved logarithm of their sum.
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn exp_minus(scores: &mut [f32], log_sum: f32) {
    for score in scores.iter_mut() {
        *score = math::exp(*score - log_sum);
    }
}

/// `dscore = weight (dweight - mean) scale`, in place; `mean` is `dout · out`.
fn softmax_backward(weights: &[f32], mean: f32, scale: f32, dweights: &mut [f32]) {
    for (dweight, weight) in dweights.iter_mut().zip(weights) {
        *dweight = weight * (*dweight - mean) * scale;
    }
}

/// Outputs that tasks write disjoint parts of.
struct Shared(*mut f32);

// SAFETY: every use writes only the rows and columns of its own (sequence, head).
unsafe impl Sync for Shared {}

fn with_scratch(f: impl FnOnce(&mut Buffer, &mut Buffer)) {
    SCRATCH.with_borrow_mut(|(scores, dweights)| f(scores, dweights));
}

thread_local! {
    /// A thread's block of scores and of their gradients.
    static SCRATCH: RefCell<(Buffer, Buffer)> = RefCell::default();
}
