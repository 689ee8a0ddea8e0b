//! Products: a left-hand side packed once, panels of the right-hand side dealt to the threads.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::panels::Right;
use super::tile::{PANEL, ROWS, Tile, TileKernel, best_kernel};

/// Longest stretch of the depth that a tile sums at once: a panel's block of it (64 KiB) stays in the second-level
/// cache while all rows pass over it.
pub(crate) const DEPTH_BLOCK: usize = 512;

/// A left-hand side `[rows, depth]`, by strides.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    /// The elements.
    pub values: &'a [f32],
    /// Rows of the product.
    pub rows: usize,
    /// Length of the sums.
    pub depth: usize,
    /// Floats from one row to the next.
    pub row_stride: usize,
    /// Floats from one step of the depth to the next.
    pub depth_stride: usize,
}

impl<'a> Left<'a> {
    /// A row-major `[rows, depth]` slice.
    pub(crate) fn new(values: &'a [f32], rows: usize, depth: usize) -> Self {
        Self { values, rows, depth, row_stride: depth, depth_stride: 1 }
    }

    /// Columns of a row-major slice whose rows lie `stride` apart.
    pub(crate) fn strided(values: &'a [f32], rows: usize, depth: usize, stride: usize) -> Self {
        Self { values, rows, depth, row_stride: stride, depth_stride: 1 }
    }

    /// The transpose of a row-major slice with `depth` rows that lie `stride` apart.
    pub(crate) fn transposed(values: &'a [f32], rows: usize, depth: usize, stride: usize) -> Self {
        Self { values, rows, depth, row_stride: 1, depth_stride: stride }
    }

    /// Panics where the strides reach beyond the slice.
    fn check(&self) {
        if self.rows > 0 && self.depth > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.depth - 1) * self.depth_stride;
            assert!(last < self.values.len(), "left-hand side: element {last} of {}", self.values.len());
        }
    }
}

/// Where a product goes: element `(row, panel * PANEL + lane)` lies at
/// `row * row_stride + panel * panel_stride + lane`.
pub(crate) struct Out<'a> {
    /// The outputs.
    pub values: &'a mut [f32],
    /// Floats from one row to the next.
    pub row_stride: usize,
    /// Floats from one panel to the next.
    pub panel_stride: usize,
    /// Add to what is there, or overwrite it.
    pub accumulate: bool,
}

impl<'a> Out<'a> {
    /// A row-major slice whose rows lie `stride` apart.
    pub(crate) fn rows(values: &'a mut [f32], stride: usize, accumulate: bool) -> Self {
        Self { values, row_stride: stride, panel_stride: PANEL, accumulate }
    }

    /// The panels of a packed matrix with `columns` columns, whose rows are the product's columns.
    pub(crate) fn panels(values: &'a mut [f32], columns: usize, accumulate: bool) -> Self {
        Self { values, row_stride: PANEL, panel_stride: columns * PANEL, accumulate }
    }
}

/// `out (+)= left · right`, on all threads of the current pool.
pub(crate) fn multiply(left: Left<'_>, right: &impl Right, out: Out<'_>) {
    multiply_with(best_kernel(), left, right, out, rayon::current_num_threads());
}

/// The same with a given kernel, cut for `threads` threads (1: on this one).
pub(crate) fn multiply_with(
    kernel: TileKernel,
    left: Left<'_>,
    right: &impl Right,
    out: Out<'_>,
    threads: usize,
) {
    if left.rows == 0 || right.columns() == 0 {
        return;
    }
    left.check();
    assert_eq!(left.depth, right.depth(), "the depths of a product differ");
    let mut packed = PACKED.take();
    packed.reserve(left.rows * left.depth);
    let blocks = row_blocks(left.rows);
    pack(&left, &blocks, &mut packed, threads);
    multiply_packed(kernel, &packed, &blocks, left.depth, right, out, threads);
    PACKED.replace(packed);
}

/// Rows cut into tiles as equal as possible: 16 rows are 8 + 8, not 14 + 2.
pub(crate) fn row_blocks(rows: usize) -> Vec<Range<usize>> {
    let count = rows.div_ceil(ROWS);
    (0..count).map(|i| i * rows / count..(i + 1) * rows / count).collect()
}

/// Packs each block of rows as `[depth][rows of the block]`, the order in which a tile reads it.
pub(crate) fn pack(left: &Left<'_>, blocks: &[Range<usize>], packed: &mut [f32], threads: usize) {
    let mut rest = &mut packed[..left.rows * left.depth];
    let mut parts = Vec::with_capacity(blocks.len());
    for block in blocks {
        let (part, after) = rest.split_at_mut(block.len() * left.depth);
        parts.push((block.clone(), part));
        rest = after;
    }
    let pack_one = |(block, part): (Range<usize>, &mut [f32])| pack_block(left, block, part);
    if threads > 1 && left.rows * left.depth > 16 * 1024 {
        parts.into_par_iter().for_each(pack_one);
    } else {
        parts.into_iter().for_each(pack_one);
    }
}

/// One block of [`pack`].
fn pack_block(left: &Left<'_>, block: Range<usize>, part: &mut [f32]) {
    let rows = block.len();
    if left.row_stride == 1 {
        for (depth, out) in part.chunks_exact_mut(rows).enumerate() {
            out.copy_from_slice(&left.values[depth * left.depth_stride + block.start..][..rows]);
        }
    } else if left.depth_stride == 1 {
        let source = &left.values[block.start * left.row_stride..];
        interleave(source, left.row_stride, rows, left.depth, part);
    } else {
        for (depth, out) in part.chunks_exact_mut(rows).enumerate() {
            for (row, out) in block.clone().zip(out) {
                *out = left.values[row * left.row_stride + depth * left.depth_stride];
            }
        }
    }
}

/// `part[d][r] = source[r * stride + d]`, a few steps of the depth at a time so that each cache line of the
/// source is read once.
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn interleave(source: &[f32], stride: usize, rows: usize, depth: usize, part: &mut [f32]) {
    const STEP: usize = 16;
    for start in (0..depth).step_by(STEP) {
        let length = STEP.min(depth - start);
        let out = &mut part[start * rows..(start + length) * rows];
        for row in 0..rows {
            let line = &source[row * stride + start..][..length];
            for (step, value) in line.iter().enumerate() {
                out[step * rows + row] = *value;
            }
        }
    }
}

/// `out (+)= packed left · right`; the left-hand side as [`pack`] wrote it.
pub(crate) fn multiply_packed(
    kernel: TileKernel,
    packed: &[f32],
    blocks: &[Range<usize>],
    depth: usize,
    right: &impl Right,
    out: Out<'_>,
    threads: usize,
) {
    let rows = blocks.last().map_or(0, |block| block.end);
    let columns = right.columns();
    let panels = columns.div_ceil(PANEL);
    assert!(packed.len() >= rows * depth, "the packed left-hand side is too short");
    let last_panel = columns - (panels - 1) * PANEL;
    let end = (rows - 1) * out.row_stride + (panels - 1) * out.panel_stride + last_panel;
    assert!(end <= out.values.len(), "the product's outputs end at {end} of {}", out.values.len());
    assert!(
        out.panel_stride >= rows * out.row_stride || out.row_stride >= (panels - 1) * out.panel_stride + last_panel,
        "outputs would overlap"
    );

    // Few panels and many rows (LoRA's narrow products): the rows are dealt out too.
    let row_parts = if panels >= 2 * threads { 1 } else { (4 * threads / panels).clamp(1, blocks.len()) };
    let tasks = panels * row_parts;
    let target = SharedOut(out.values.as_mut_ptr());
    let accumulate = out.accumulate;
    let task = |index: usize| {
        let target = &target;
        let (panel, part) = (index / row_parts, index % row_parts);
        let part = part * blocks.len() / row_parts..(part + 1) * blocks.len() / row_parts;
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.reserve(DEPTH_BLOCK * PANEL);
            for start in (0..depth).step_by(DEPTH_BLOCK) {
                let stretch = start..depth.min(start + DEPTH_BLOCK);
                let length = stretch.len();
                let block = right.block(panel, stretch, scratch);
                assert!(block.len() >= length * PANEL, "a panel's block is too short");
                for rows in &blocks[part.clone()] {
                    let left = &packed[rows.start * depth + start * rows.len()..][..length * rows.len()];
                    let tile = Tile {
                        left: left.as_ptr(),
                        right: block.as_ptr(),
                        out: target.0.wrapping_add(rows.start * out.row_stride + panel * out.panel_stride),
                        out_stride: out.row_stride,
                        rows: rows.len(),
                        columns: PANEL.min(columns - panel * PANEL),
                        depth: length,
                        accumulate: accumulate || start > 0,
                    };
                    // SAFETY: `left` and `block` hold `length` steps (checked above); the outputs of all tiles lie
                    // inside `out.values` and do not overlap (checked above), and each tile belongs to one task.
                    unsafe { kernel(&tile) };
                }
            }
        });
    };
    if threads > 1 && rows * depth * columns > 64 * 1024 {
        (0..tasks).into_par_iter().with_max_len(tasks.div_ceil(4 * threads)).for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
}

/// The outputs, of which each task writes its own tiles.
struct SharedOut(*mut f32);

// SAFETY: `multiply_packed` checks that no two tiles overlap, and gives each tile to one task.
unsafe impl Sync for SharedOut {}

thread_local! {
    /// A thread's place for one unpacked block of a panel.
    static SCRATCH: RefCell<Buffer> = RefCell::new(Buffer::default());
    /// A thread's place for a packed left-hand side; taken while in use, so that a nested product gets its own.
    static PACKED: RefCell<Buffer> = RefCell::new(Buffer::default());
}
