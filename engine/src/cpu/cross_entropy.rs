//! The head and the cross-entropy in one pass over the vocabulary.
//!
//! Logits are made a tile of the vocabulary at a time, with a running maximum and sum of exponentials per row
//! (online softmax, Milakov and Gimelshein 2018); the gradient of the hidden state is accumulated in the same pass
//! and rescaled when the maximum moves, as flash attention does. So the logits of a large vocabulary never exist at
//! once, and nothing is computed twice.

use std::cell::RefCell;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::math;
use super::matmul::{Left, Out, multiply, multiply_packed, pack, row_blocks};
use super::panels::{Backward, Forward, Matrix};
use super::tile::{PANEL, best_kernel};

/// Vocabulary rows whose logits exist at once: their weights (`TILE * hidden`) stay in the second-level cache.
const TILE: usize = 8 * PANEL;

/// Most rows of a task: their logits of a tile stay in the second-level cache too.
const ROWS: usize = 512;

/// Loss of each row against its target, and (into `dx`, overwritten) the gradient of `Σ scale * loss`; `gradient` is each
/// row's scale and `dx`.
///
/// `x` is `[rows, hidden]`, the head `[vocabulary, hidden]`. The head's own gradient is not taken: it is frozen.
pub(crate) fn cross_entropy(
    x: &[f32],
    head: &Matrix,
    targets: &[u32],
    losses: &mut [f32],
    gradient: Option<(&[f32], &mut [f32])>,
) {
    let hidden = head.columns();
    let rows = targets.len();
    if rows == 0 {
        return;
    }
    let tasks = rows.div_ceil(ROWS).next_multiple_of(rayon::current_num_threads());
    let part = rows.div_ceil(tasks);
    let parts = targets.par_chunks(part).zip(losses.par_chunks_mut(part)).zip(x.par_chunks(part * hidden));
    match gradient {
        None => {
            parts.with_max_len(1).for_each(|((targets, losses), x)| stream(x, head, targets, losses, None));
        }
        Some((scales, dx)) => parts
            .zip(scales.par_chunks(part).zip(dx.par_chunks_mut(part * hidden)))
            .with_max_len(1)
            .for_each(|(((targets, losses), x), gradient)| stream(x, head, targets, losses, Some(gradient))),
    }
}

/// What a task keeps between the tiles.
#[derive(Default)]
struct Scratch {
    packed_x: Buffer,
    packed_weights: Buffer,
    logits: Buffer,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// One task of [`cross_entropy`], on one thread.
fn stream(
    x: &[f32],
    head: &Matrix,
    targets: &[u32],
    losses: &mut [f32],
    gradient: Option<(&[f32], &mut [f32])>,
) {
    let (rows, hidden) = (targets.len(), head.columns());
    let kernel = best_kernel();
    let blocks = row_blocks(rows, kernel);
    let mut scratch = SCRATCH.take();
    scratch.packed_x.reserve(rows * hidden);
    scratch.packed_weights.reserve(rows * TILE);
    scratch.logits.reserve(rows * TILE);
    pack(&Left::new(x, rows, hidden), &blocks, &mut scratch.packed_x, 1);
    let mut running = vec![Running::default(); rows];
    let (scales, mut dx) = gradient.map_or((&[][..], None), |(scales, dx)| (scales, Some(dx)));

    for first in (0..head.rows()).step_by(TILE) {
        let count = TILE.min(head.rows() - first);
        let logits = &mut scratch.logits[..rows * count];
        let forward = Forward { matrix: head, first, count };
        let out = Out::rows(logits, count, false);
        multiply_packed(kernel, &scratch.packed_x, &blocks, hidden, &forward, out);
        for (row, (logits, running)) in logits.chunks_exact_mut(count).zip(&mut running).enumerate() {
            let target = (targets[row] as usize).checked_sub(first).and_then(|target| logits.get(target));
            if let Some(logit) = target {
                running.target = *logit;
            }
            let rescale = running.add_tile(logits);
            if let Some(dx) = dx.as_deref_mut()
                && rescale != 1.0
                && first > 0
            {
                dx[row * hidden..][..hidden].iter_mut().for_each(|dx| *dx *= rescale);
            }
        }
        if let Some(dx) = dx.as_deref_mut() {
            let backward = Backward { matrix: head, first, count };
            pack(&Left::new(&scratch.logits, rows, count), &blocks, &mut scratch.packed_weights, 1);
            let out = Out::rows(dx, hidden, first > 0);
            multiply_packed(kernel, &scratch.packed_weights, &blocks, count, &backward, out);
        }
    }

    let mut target_row = vec![0.0; hidden];
    for (row, (running, loss)) in running.iter().zip(losses).enumerate() {
        *loss = running.max + running.sum.ln() - running.target;
        if let Some(dx) = dx.as_deref_mut() {
            head.read_row(targets[row] as usize, &mut target_row);
            for (dx, weight) in dx[row * hidden..][..hidden].iter_mut().zip(&target_row) {
                *dx = scales[row] * (*dx / running.sum - weight);
            }
        }
    }
    SCRATCH.replace(scratch);
}

/// A row's softmax so far.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
    target: f32,
}

impl Default for Running {
    fn default() -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0, target: 0.0 }
    }
}

impl Running {
    /// Turns a tile's logits into exponentials relative to the maximum so far, and returns what earlier ones are to
    /// be multiplied by.
    fn add_tile(&mut self, logits: &mut [f32]) -> f32 {
        let max = self.max.max(tile_max(logits));
        let rescale = if max == self.max { 1.0 } else { math::exp(self.max - max) };
        self.max = max;
        self.sum = self.sum * rescale + exponentials(logits, max);
        rescale
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn tile_max(logits: &[f32]) -> f32 {
    math::max(logits)
}

/// `exp(x - max)` in place; returns the sum.
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn exponentials(logits: &mut [f32], max: f32) -> f32 {
    for logit in logits.iter_mut() {
        *logit = math::exp(*logit - max);
    }
    math::sum(logits)
}

/// The same for a head that is trained: its gradient is added to `dhead`, in panel order.
///
/// The head's gradient needs each row's finished softmax, so here the logits of [`full_rows`] rows exist at once.
pub(crate) fn cross_entropy_full(
    x: &[f32],
    head: &Matrix,
    targets: &[u32],
    scales: &[f32],
    losses: &mut [f32],
    dx: &mut [f32],
    dhead: &mut [f32],
) {
    let (hidden, vocabulary) = (head.columns(), head.rows());
    if targets.is_empty() {
        return;
    }
    let most = full_rows(vocabulary, targets.len());
    let mut scratch = SCRATCH.take();
    scratch.logits.reserve(most * vocabulary);
    for first in (0..targets.len()).step_by(most) {
        let part = first..targets.len().min(first + most);
        let rows = part.len();
        let (x, dx) =
            (&x[part.start * hidden..][..rows * hidden], &mut dx[part.start * hidden..][..rows * hidden]);
        let logits = &mut scratch.logits[..rows * vocabulary];
        multiply(Left::new(x, rows, hidden), &Forward::all(head), Out::rows(logits, vocabulary, false));
        let (targets, scales, losses) = (&targets[part.clone()], &scales[part.clone()], &mut losses[part]);
        super::rows::for_each_row_pair(logits, vocabulary, losses, 1, |row, logits, loss| {
            let target = targets[row] as usize;
            let logit = logits[target];
            loss[0] = super::attention::softmax(logits) - logit;
            logits[target] -= 1.0;
            logits.iter_mut().for_each(|dlogit| *dlogit *= scales[row]);
        });
        multiply(Left::new(logits, rows, vocabulary), &Backward::all(head), Out::rows(dx, hidden, false));
        super::product_weight_gradient(rows, logits, vocabulary, x, hidden, dhead);
    }
    SCRATCH.replace(scratch);
}

/// Rows whose logits exist at once where the head is trained: each pass over them reads the head twice and its gradient
/// once, so few passes are better. 128 MiB of logits are taken, or 128 rows, if that is more.
pub fn full_rows(vocabulary: usize, rows: usize) -> usize {
    let passes = rows.div_ceil((FULL_LOGITS / vocabulary.max(1)).max(LEAST_FULL_ROWS));
    rows.div_ceil(passes.max(1))
}

/// Logits that may exist at once: 128 MiB of them.
const FULL_LOGITS: usize = 32 << 20;

/// Rows that are taken at once however large the vocabulary is.
const LEAST_FULL_ROWS: usize = 128;
