//! Causal attention over packed sequences, with grouped heads and ALiBi.
//!
//! A sequence's rows never see another's but those of its prefix: each task is one sequence and one key-value head.
//! Queries go in blocks, so that the part above the diagonal is not computed and the scores of a long sequence never exist
//! at once. Keys and values lie in one or two stretches of rows, the prefix's and the sequence's own, and each product with
//! them is made stretch by stretch.

use std::cell::RefCell;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::math;
use super::matmul::interleave;
use crate::attention_shape::AttentionShape;
use crate::batch::Sequence;

/// Queries in a block.
const BLOCK: usize = 64;

/// `out[rows, heads * head_size] = softmax(q kᵀ scale + bias) v` within each sequence and its prefix; `log_sums` takes the
/// logarithm of each row's and head's sum of exponentials: `[rows, heads]`.
pub(crate) fn attention(
    shape: &AttentionShape,
    sequences: &[Sequence],
    query_key_value: &[f32],
    out: &mut [f32],
    log_sums: &mut [f32],
) {
    let rows = check(sequences);
    assert!(query_key_value.len() >= rows * shape.query_key_value_width());
    assert!(out.len() >= rows * shape.width() && log_sums.len() >= rows * shape.heads);
    let (out, log_sums) = (Shared(out.as_mut_ptr()), Shared(log_sums.as_mut_ptr()));
    each_head(shape, sequences, |number, group| {
        let (out, log_sums) = (&out, &log_sums);
        let views = Views::new(shape, query_key_value, &sequences[number], group);
        with_scratch(|Scratch { scores, turned_keys, .. }| {
            let turned_keys = views.turn(views.key_column, turned_keys);
            for (head, block) in views.heads_and_blocks() {
                views.scores(head, &block, turned_keys, scores);
                block.each_seen(shape, scores, |row, scores| {
                    let log_sum = softmax(scores);
                    // SAFETY: each (row, head) is written by one task.
                    unsafe { *log_sums.0.add(row * shape.heads + head) = log_sum };
                });
                let outputs = View {
                    start: out.0.wrapping_add(block.row * shape.width() + head * shape.head_size),
                    row: shape.width(),
                    column: 1,
                };
                // SAFETY: the head's columns of the block's rows of `out`, written by this task alone.
                unsafe { views.weigh_values(&block, scores, outputs) };
            }
        });
    });
}

/// The gradient of [`attention`]'s queries, keys and values, given that of its output. `dquery_key_value` is
/// overwritten. The weights are computed again from `log_sums`.
///
/// What a sequence adds to the keys and values of its prefix is kept apart, and added when all are done, sequence by
/// sequence: so each sum has one order.
pub(crate) fn attention_backward(
    shape: &AttentionShape,
    sequences: &[Sequence],
    query_key_value: &[f32],
    out: &[f32],
    log_sums: &[f32],
    dout: &[f32],
    dquery_key_value: &mut [f32],
) {
    let rows = check(sequences);
    let (width, full) = (shape.width(), shape.query_key_value_width());
    assert!(query_key_value.len() >= rows * full && dquery_key_value.len() >= rows * full);
    assert!(out.len() >= rows * width && dout.len() >= rows * width && log_sums.len() >= rows * shape.heads);
    dquery_key_value[..rows * full].fill(0.0);
    let mut of_prefixes = PrefixGradients::new(shape, sequences);
    let (target, of_prefix) =
        (Shared(dquery_key_value.as_mut_ptr()), Shared(of_prefixes.values.as_mut_ptr()));
    each_head(shape, sequences, |number, group| {
        let (target, of_prefix) = (&target, &of_prefix);
        let views = Views::new(shape, query_key_value, &sequences[number], group);
        let gradients = Gradients {
            own: View {
                start: target.0.wrapping_add(views.sequence.rows.start * full),
                row: full,
                column: 1,
            },
            of_prefix: View {
                start: of_prefix.0.wrapping_add(of_prefixes.starts[number]),
                row: PrefixGradients::width(shape),
                column: 1,
            },
            first_of_prefix: shape.key_column(0),
        };
        with_scratch(|Scratch { scores: weights, dscores: dweights, turned_keys, turned_values }| {
            let turned_keys = views.turn(views.key_column, turned_keys);
            let turned_values = views.turn(views.value_column, turned_values);
            for (head, block) in views.heads_and_blocks() {
                let of_head = |row: usize| row * width + head * shape.head_size;
                views.scores(head, &block, turned_keys, weights);
                block.each_seen(shape, weights, |row, scores| {
                    exp_minus(scores, log_sums[row * shape.heads + head]);
                });
                let douts = View::of(&dout[of_head(block.row)..], width);
                views.dweights(&block, douts, turned_values, dweights);
                // SAFETY: the gradients' columns of this sequence, or of what it adds to its prefix, and of this group's
                // heads are written by this task alone.
                unsafe { views.dvalues(&block, weights, douts, &gradients) };
                for ((row, _, dweights), weights) in
                    block.lines(dweights).zip(weights.chunks_exact(block.keys))
                {
                    let at = of_head(row)..of_head(row) + shape.head_size;
                    let mean = math::dot(&dout[at.clone()], &out[at]);
                    let (weights, dweights) = (&weights[block.from..], &mut dweights[block.from..]);
                    softmax_backward(weights, mean, shape.scale, dweights);
                }
                // SAFETY: as above.
                unsafe { views.dqueries_and_dkeys(head, &block, dweights, &gradients) };
            }
        });
    });
    of_prefixes.add_to(shape, sequences, dquery_key_value);
}

/// The end of the last row, where the sequences lie one after the other and go on from whole earlier ones.
fn check(sequences: &[Sequence]) -> usize {
    let mut end = 0;
    for Sequence { rows, prefix } in sequences {
        assert!(rows.start >= end && rows.end >= rows.start, "sequences lie one after the other");
        assert!(prefix.start <= prefix.end && prefix.end <= rows.start, "a prefix lies before its sequence");
        end = rows.end;
    }
    end
}

/// Calls `f(sequence's number, key-value head)` for all of them, on all threads.
fn each_head(shape: &AttentionShape, sequences: &[Sequence], f: impl Fn(usize, usize) + Sync + Send) {
    let groups = shape.key_value_heads;
    (0..sequences.len() * groups)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| f(task / groups, task % groups));
}

/// What each sequence adds to the gradients of its prefix's keys and values.
struct PrefixGradients {
    /// Where each sequence's begin.
    starts: Vec<usize>,
    /// Of each sequence, a row for each row of its prefix: the columns of keys and values.
    values: Buffer,
}

impl PrefixGradients {
    fn new(shape: &AttentionShape, sequences: &[Sequence]) -> Self {
        let mut end = 0;
        let start = |sequence: &Sequence| {
            let start = end;
            end += sequence.prefix.len() * Self::width(shape);
            start
        };
        let starts = sequences.iter().map(start).collect();
        Self { starts, values: Buffer::zeros(end) }
    }

    /// Of a row.
    fn width(shape: &AttentionShape) -> usize {
        2 * shape.key_value_heads * shape.head_size
    }

    /// Adds each sequence's to the rows of its prefix.
    fn add_to(&self, shape: &AttentionShape, sequences: &[Sequence], dquery_key_value: &mut [f32]) {
        let (width, full) = (Self::width(shape), shape.query_key_value_width());
        for (sequence, start) in sequences.iter().zip(&self.starts) {
            let values = self.values[*start..].chunks_exact(width);
            for (row, values) in sequence.prefix.clone().zip(values) {
                super::add(&mut dquery_key_value[row * full + shape.key_column(0)..][..width], values);
            }
        }
    }
}

/// A strided matrix in memory.
#[derive(Clone, Copy)]
struct View {
    start: *mut f32,
    row: usize,
    column: usize,
}

impl View {
    /// A row-major slice with rows of `width`, to be read.
    fn of(values: &[f32], width: usize) -> Self {
        Self { start: values.as_ptr().cast_mut(), row: width, column: 1 }
    }

    /// The same, to be written.
    fn of_mut(values: &mut [f32], width: usize) -> Self {
        Self { start: values.as_mut_ptr(), row: width, column: 1 }
    }

    fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    fn at_row(self, row: usize) -> Self {
        Self { start: self.start.wrapping_add(row * self.row), ..self }
    }

    fn at_column(self, column: usize) -> Self {
        Self { start: self.start.wrapping_add(column * self.column), ..self }
    }
}

/// Some queries of a sequence, and the keys that one of them attends to.
struct Block {
    /// The first query's place among the sequence's own rows.
    first: usize,
    /// Its row in the batch.
    row: usize,
    /// Queries.
    count: usize,
    /// The first position that any of the queries sees.
    from: usize,
    /// Keys up to the last query's own, from where the sequence's prefix begins.
    keys: usize,
}

impl Block {
    /// Each query's row in the batch, its position in the sequence, and its line of `[count, keys]` values.
    fn lines<'a>(
        &self,
        values: &'a mut [f32],
    ) -> impl Iterator<Item = (usize, usize, &'a mut [f32])> + use<'a> {
        let (row, position) = (self.row, self.keys - self.count);
        let lines = values.chunks_exact_mut(self.keys).take(self.count).enumerate();
        lines.map(move |(query, line)| (row + query, position + query, line))
    }

    /// Hands `f` each query's row in the batch and its values of the keys that it sees; those of the others become zero.
    fn each_seen(&self, shape: &AttentionShape, values: &mut [f32], f: impl Fn(usize, &mut [f32])) {
        for (row, position, line) in self.lines(values) {
            let seen = shape.first_key(position)..position + 1;
            f(row, &mut line[seen.clone()]);
            line[self.from..seen.start].fill(0.0);
            line[seen.end..].fill(0.0);
        }
    }
}

/// Keys and values that lie in one stretch.
struct Stretch {
    /// Whether they are the prefix's.
    prefix: bool,
    /// Whether no stretch of the block comes before it.
    first: bool,
    /// The first one's place among the rows of the prefix, or among the sequence's own.
    row: usize,
    /// The first one's position in the sequence.
    position: usize,
    count: usize,
    keys: View,
    values: View,
}

/// Where the gradients of one sequence's queries, keys and values go.
struct Gradients {
    /// From the sequence's first row on, all columns.
    own: View,
    /// What the sequence adds to its prefix: the columns of keys and values.
    of_prefix: View,
    /// Which column of queries, keys and values the first of these is.
    first_of_prefix: usize,
}

impl Gradients {
    /// Those of a stretch's keys or values, whose columns begin at `column`.
    fn of(&self, keys: &Stretch, column: usize) -> View {
        let columns = if keys.prefix {
            self.of_prefix.at_column(column - self.first_of_prefix)
        } else {
            self.own.at_column(column)
        };
        columns.at_row(keys.row)
    }
}

/// The queries, keys and values of one sequence and one key-value head: what a task works on.
struct Views<'a> {
    shape: &'a AttentionShape,
    sequence: &'a Sequence,
    /// The key-value head.
    group: usize,
    /// The batch's, up to the sequence's end.
    query_key_value: &'a [f32],
    stride: usize,
    key_column: usize,
    value_column: usize,
}

impl<'a> Views<'a> {
    fn new(
        shape: &'a AttentionShape,
        query_key_value: &'a [f32],
        sequence: &'a Sequence,
        group: usize,
    ) -> Self {
        let stride = shape.query_key_value_width();
        Self {
            shape,
            sequence,
            group,
            query_key_value: &query_key_value[..sequence.rows.end * stride],
            stride,
            key_column: shape.key_column(group),
            value_column: shape.value_column(group),
        }
    }

    /// A column of the batch, from a row on.
    fn at(&self, row: usize, column: usize) -> View {
        let start = self.query_key_value.as_ptr().wrapping_add(row * self.stride + column).cast_mut();
        View { start, row: self.stride, column: 1 }
    }

    /// A block's queries of a head.
    fn queries(&self, head: usize, block: &Block) -> View {
        self.at(block.row, head * self.shape.head_size)
    }

    /// Each query head of the group, with all blocks of the sequence.
    fn heads_and_blocks(&self) -> impl Iterator<Item = (usize, Block)> {
        let heads = self.group * self.shape.group()..(self.group + 1) * self.shape.group();
        heads.flat_map(|head| self.blocks().map(move |block| (head, block)))
    }

    fn blocks(&self) -> impl Iterator<Item = Block> {
        let Sequence { rows, prefix } = self.sequence;
        (0..rows.len()).step_by(BLOCK).map(|first| {
            let end = rows.len().min(first + BLOCK);
            let from = self.shape.first_key(prefix.len() + first);
            Block { first, row: rows.start + first, count: end - first, from, keys: prefix.len() + end }
        })
    }

    /// The keys that a block sees: the prefix's, if there are some, and the sequence's own.
    fn stretches(&self, block: &Block) -> impl Iterator<Item = Stretch> {
        let Sequence { rows, prefix } = self.sequence;
        let sees_prefix = block.from < prefix.len();
        let of = |of_prefix: bool, start: usize, position: usize, end: usize| {
            let row = if of_prefix { position } else { position - prefix.len() };
            Stretch {
                prefix: of_prefix,
                first: of_prefix || !sees_prefix,
                row,
                position,
                count: end - position,
                keys: self.at(start + row, self.key_column),
                values: self.at(start + row, self.value_column),
            }
        };
        let own = of(false, rows.start, block.from.max(prefix.len()), block.keys);
        let of_prefix = sees_prefix.then(|| of(true, prefix.start, block.from, prefix.len()));
        of_prefix.into_iter().chain([own])
    }

    /// The head's keys or values, turned: `[head_size, positions]`, the prefix's and the sequence's own in one. All blocks
    /// of all heads that share them read them so, and each would turn them again.
    fn turn(&self, column: usize, turned: &mut Buffer) -> View {
        const LINES: usize = 16;
        let Sequence { rows, prefix } = self.sequence;
        let (length, size) = (self.sequence.length(), self.shape.head_size);
        turned.reserve(length * size + LINES * size);
        let (turned, lines) = turned.split_at_mut(length * size);
        let of_prefix = prefix.clone().step_by(LINES).map(|row| (row, row - prefix.start, prefix.end));
        let own = rows.clone().step_by(LINES).map(|row| (row, row - rows.start + prefix.len(), rows.end));
        for (row, position, end) in of_prefix.chain(own) {
            let count = LINES.min(end - row);
            let lines = &mut lines[..count * size];
            interleave(&self.query_key_value[row * self.stride + column..], self.stride, count, size, lines);
            for (out, line) in turned.chunks_exact_mut(length).zip(lines.chunks_exact(count)) {
                out[position..][..count].copy_from_slice(line);
            }
        }
        View::of(turned, length)
    }

    /// `scores[count, keys] = q kᵀ scale + slope (j - i)`; those above the diagonal are rubbish.
    fn scores(&self, head: usize, block: &Block, turned_keys: View, scores: &mut Buffer) {
        scores.reserve(block.count * block.keys);
        let size = [block.count, block.keys - block.from, self.shape.head_size];
        let out = View::of_mut(scores, block.keys).at_column(block.from);
        let keys = turned_keys.at_column(block.from);
        // SAFETY: `scores` holds the block's lines, and is the task's own; queries lie in the batch's rows, and the turned
        // keys have a column for each position of the sequence.
        unsafe { product(size, out, false, self.queries(head, block), keys) };
        let (scale, slope) = (self.shape.scale, self.shape.slopes.get(head).copied());
        for (_, position, scores) in block.lines(scores) {
            match slope {
                None => scores[block.from..].iter_mut().for_each(|score| *score *= scale),
                Some(slope) => {
                    for (key, score) in scores.iter_mut().enumerate().skip(block.from) {
                        *score = *score * scale + slope * (key as f32 - position as f32);
                    }
                }
            }
        }
    }

    /// `outputs = weights v`.
    ///
    /// # Safety
    /// `outputs` must be the block's rows of a head, and this task's alone.
    unsafe fn weigh_values(&self, block: &Block, weights: &[f32], outputs: View) {
        for keys in self.stretches(block) {
            let weights = View::of(weights, block.keys).at_column(keys.position);
            let size = [block.count, self.shape.head_size, keys.count];
            // SAFETY: the caller's promise; weights and values are read only.
            unsafe { product(size, outputs, !keys.first, weights, keys.values) };
        }
    }

    /// `dweights[count, keys] = dout vᵀ`.
    fn dweights(&self, block: &Block, douts: View, turned_values: View, dweights: &mut Buffer) {
        dweights.reserve(block.count * block.keys);
        let size = [block.count, block.keys - block.from, self.shape.head_size];
        let out = View::of_mut(dweights, block.keys).at_column(block.from);
        // SAFETY: `dweights` holds the block's lines, and is this task's own; the turned values have a column for each
        // position of the sequence.
        unsafe { product(size, out, false, douts, turned_values.at_column(block.from)) };
    }

    /// `dv += weightsᵀ dout`.
    ///
    /// # Safety
    /// The sequence's gradients of this group's values must be this task's alone.
    unsafe fn dvalues(&self, block: &Block, weights: &[f32], douts: View, gradients: &Gradients) {
        for keys in self.stretches(block) {
            let weights = View::of(weights, block.keys).at_column(keys.position).transposed();
            let size = [keys.count, self.shape.head_size, block.count];
            // SAFETY: the caller's promise; all else is read only.
            unsafe { product(size, gradients.of(&keys, self.value_column), true, weights, douts) };
        }
    }

    /// `dq = dscores k` and `dk += dscoresᵀ q`.
    ///
    /// # Safety
    /// The sequence's gradients of this head's queries and of this group's keys must be this task's alone.
    unsafe fn dqueries_and_dkeys(&self, head: usize, block: &Block, dscores: &[f32], gradients: &Gradients) {
        let size = self.shape.head_size;
        let queries = self.queries(head, block);
        let dqueries = gradients.own.at_column(head * size).at_row(block.first);
        for keys in self.stretches(block) {
            let dscores = View::of(dscores, block.keys).at_column(keys.position);
            let dkeys = gradients.of(&keys, self.key_column);
            // SAFETY: the caller's promise; all else is read only.
            unsafe {
                product([block.count, size, keys.count], dqueries, !keys.first, dscores, keys.keys);
                product([keys.count, size, block.count], dkeys, true, dscores.transposed(), queries);
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
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn softmax_backward(weights: &[f32], mean: f32, scale: f32, dweights: &mut [f32]) {
    for (dweight, weight) in dweights.iter_mut().zip(weights) {
        *dweight = weight * (*dweight - mean) * scale;
    }
}

/// Outputs that tasks write disjoint parts of.
struct Shared(*mut f32);

// SAFETY: every use writes only the rows and columns of its own (sequence, head): of a prefix that several sequences go on
// from, each has rows of its own in `PrefixGradients`.
unsafe impl Sync for Shared {}

/// What a thread has of one sequence and one key-value head.
#[derive(Default)]
struct Scratch {
    /// A block's scores, and weights.
    scores: Buffer,
    /// Their gradients.
    dscores: Buffer,
    turned_keys: Buffer,
    turned_values: Buffer,
}

fn with_scratch(f: impl FnOnce(&mut Scratch)) {
    SCRATCH.with_borrow_mut(f);
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attention_shape::NO_WINDOW;

    /// Numbers between -1 and 1.
    fn numbers(seed: u32, length: usize) -> Vec<f32> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..length).map(next).collect()
    }

    fn shape(
        heads: usize,
        key_value_heads: usize,
        head_size: usize,
        alibi: bool,
        window: usize,
    ) -> AttentionShape {
        let slopes = if alibi { AttentionShape::alibi_slopes(heads) } else { Vec::new() };
        let scale = 1.0 / (head_size as f32).sqrt();
        AttentionShape { heads, key_value_heads, head_size, scale, window, slopes }
    }

    /// Outputs, logarithms of sums, and the gradient of queries, keys and values.
    fn run(shape: &AttentionShape, sequences: &[Sequence], x: &[f32], dout: &[f32]) -> [Vec<f32>; 3] {
        let rows = check(sequences);
        let (mut out, mut sums) = (vec![0.0; rows * shape.width()], vec![0.0; rows * shape.heads]);
        attention(shape, sequences, x, &mut out, &mut sums);
        let mut dx = vec![7.0; x.len()];
        attention_backward(shape, sequences, x, &out, &sums, dout, &mut dx);
        [out, sums, dx]
    }

    /// A prefix and how it goes on: the sequences that share it, and for each row of them written out the row of the
    /// shared batch that it is; then the sequences written out.
    fn group(prefix: usize, own: &[usize]) -> (Vec<Sequence>, Vec<usize>, Vec<Sequence>) {
        let mut shared = Vec::from_iter((prefix > 0).then(|| Sequence::alone(0..prefix)));
        let (mut rows, mut alone) = (Vec::new(), Vec::new());
        let mut end = prefix;
        for own in own {
            shared.push(Sequence { rows: end..end + own, prefix: 0..prefix });
            alone.push(Sequence::alone(rows.len()..rows.len() + prefix + own));
            rows.extend((0..prefix).chain(end..end + own));
            end += own;
        }
        (shared, rows, alone)
    }

    fn gather(rows: &[usize], values: &[f32], width: usize) -> Vec<f32> {
        rows.iter().flat_map(|row| values[row * width..][..width].iter().copied()).collect()
    }

    fn assert_near(what: &str, found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
            // Sums of up to 200 terms of about 1 in another order.
            assert!((found - expected).abs() <= 1e-4, "{what}, {place}: {found} against {expected}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_shared_prefix_gives_what_it_gives_in_each_sequence(
            prefix in 0usize..90,
            own in prop::collection::vec(1usize..90, 1..5),
            heads in prop::sample::select(vec![(1, 1, 5), (4, 2, 8), (3, 1, 16)]),
            alibi: bool,
            window in prop::sample::select(vec![1, 7, 64, 100, NO_WINDOW]),
        ) {
            let shape = shape(heads.0, heads.1, heads.2, alibi, window);
            let (shared, rows, alone) = group(prefix, &own);
            let (full, width) = (shape.query_key_value_width(), shape.width());
            let x = numbers(1, check(&shared) * full);
            let dout = numbers(2, rows.len() * width);
            // A shared row has the sum of the gradients of its outputs.
            let mut dout_shared = vec![0.0; check(&shared) * width];
            for (row, dout) in rows.iter().zip(dout.chunks_exact(width)) {
                crate::cpu::add(&mut dout_shared[row * width..][..width], dout);
            }
            let [out, sums, dx] = run(&shape, &shared, &x, &dout_shared);
            let [expected_out, expected_sums, dx_alone] = run(&shape, &alone, &gather(&rows, &x, full), &dout);
            let mut expected_dx = vec![0.0; dx.len()];
            for (row, dx) in rows.iter().zip(dx_alone.chunks_exact(full)) {
                crate::cpu::add(&mut expected_dx[row * full..][..full], dx);
            }
            assert_near("out", &gather(&rows, &out, width), &expected_out);
            assert_near("sums", &gather(&rows, &sums, shape.heads), &expected_sums);
            assert_near("dx", &dx, &expected_dx);
        }
    }

    #[test]
    fn a_shared_prefix_has_the_same_bytes_with_any_number_of_threads() {
        let shape = shape(6, 3, 16, false, NO_WINDOW);
        let (shared, ..) = group(27, &[70, 1, 40, 33, 12]);
        let x = numbers(1, check(&shared) * shape.query_key_value_width());
        let dout = numbers(2, check(&shared) * shape.width());
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let Ok(pool) = pool else { panic!("no threads") };
            pool.install(|| run(&shape, &shared, &x, &dout))
        };
        let bits =
            |outputs: [Vec<f32>; 3]| outputs.map(|x| x.into_iter().map(f32::to_bits).collect::<Vec<_>>());
        let one = bits(with(1));
        assert_eq!(one, bits(with(2)));
        assert_eq!(one, bits(with(3)));
    }
}
