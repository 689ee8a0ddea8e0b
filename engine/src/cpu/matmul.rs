//! Products: a left-hand side packed once; its rows are dealt to the threads, or where they are few the panels of the
//! right-hand side.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::panels::Right;
use super::tile::{PANEL, Tile, TileKernel, best_kernel, pack_squares};

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

    /// Some of its rows.
    fn part(&self, rows: &Range<usize>) -> Self {
        Self { values: &self.values[rows.start * self.row_stride..], rows: rows.len(), ..*self }
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

    /// Where tiles of `rows` rows and `columns` columns are written. Panics where they would not lie inside the slice,
    /// or not apart from each other.
    fn target(self, rows: usize, columns: usize) -> Target {
        let Self { values, row_stride, panel_stride, accumulate } = self;
        let panels = columns.div_ceil(PANEL);
        let last_panel = columns - (panels - 1) * PANEL;
        let end = (rows - 1) * row_stride + (panels - 1) * panel_stride + last_panel;
        assert!(end <= values.len(), "the product's outputs end at {end} of {}", values.len());
        assert!(
            panel_stride >= rows * row_stride || row_stride >= (panels - 1) * panel_stride + last_panel,
            "outputs would overlap"
        );
        Target { start: values.as_mut_ptr(), row_stride, panel_stride, accumulate }
    }
}

/// An [`Out`] that has been checked, of which each task writes its own tiles.
#[derive(Clone, Copy)]
struct Target {
    start: *mut f32,
    row_stride: usize,
    panel_stride: usize,
    accumulate: bool,
}

// SAFETY: `Out::target` checks that no two tiles overlap, and each tile is given to one task.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    fn at_row(self, row: usize) -> Self {
        Self { start: self.start.wrapping_add(row * self.row_stride), ..self }
    }
}

/// The last tiles of a panel's block during which the next block is fetched: not all of them, for each asks for the same
/// lines, and not one alone, in whose time they might not come.
const FETCHING_TILES: usize = 4;

/// Multiplications below which a product is not worth a second thread: waking one costs some tens of microseconds,
/// in which a thread does about a million of them.
const PRODUCT_WORTH_A_THREAD: usize = 1024 * 1024;

/// Rows from which on each thread takes rows of its own, in the place of panels: a few tiles, so that what it does to
/// a panel once, unpacking it, is little beside them.
const ROWS_WORTH_A_THREAD: usize = 56;

/// The fewest rows of a product that are dealt to so many threads; with fewer the panels are.
pub fn undealt_rows(threads: usize) -> usize {
    threads * ROWS_WORTH_A_THREAD
}

/// Columns for each row from which on panels are dealt all the same: the right-hand side is so much the larger one that
/// each thread should not read it all.
const WIDE: usize = 8;

/// Elements below which packing is not worth a second thread.
const PACKING_WORTH_A_THREAD: usize = 128 * 1024;

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
    let target = out.target(left.rows, right.columns());
    let worth_threads = left.rows * left.depth * right.columns() > PRODUCT_WORTH_A_THREAD;
    let deal_rows = left.rows >= undealt_rows(threads) && left.rows >= right.columns() / WIDE;
    if threads > 1 && worth_threads && deal_rows {
        // Each thread packs rows of its own, which no other one reads: a line of the cache that one processor has
        // written and another one asks for costs ten times what one's own does.
        (0..threads).into_par_iter().with_max_len(1).for_each(|part| {
            let rows = part * left.rows / threads..(part + 1) * left.rows / threads;
            // SAFETY: the target is checked for all rows, and these are this task's alone.
            unsafe { pack_and_multiply(kernel, left.part(&rows), right, target.at_row(rows.start), 1) };
        });
    } else {
        let threads = if worth_threads { threads } else { 1 };
        // SAFETY: the target is checked.
        unsafe { pack_and_multiply(kernel, left, right, target, threads) };
    }
}

/// Packs the left-hand side, and multiplies.
///
/// # Safety
/// The target has been checked for the product's rows and columns, and no other task writes them.
unsafe fn pack_and_multiply(
    kernel: TileKernel,
    left: Left<'_>,
    right: &impl Right,
    target: Target,
    threads: usize,
) {
    let mut packed = PACKED.take();
    packed.reserve(left.rows * left.depth);
    let blocks = row_blocks(left.rows, kernel);
    pack(&left, &blocks, &mut packed, threads);
    // SAFETY: the caller's promise.
    unsafe { multiply_tiles(kernel, &packed, &blocks, left.depth, right, target, threads) };
    PACKED.replace(packed);
}

/// Rows cut into tiles as equal as possible: with tiles of at most 14, 16 rows are 8 + 8, not 14 + 2.
pub(crate) fn row_blocks(rows: usize, kernel: TileKernel) -> Vec<Range<usize>> {
    let count = rows.div_ceil(kernel.rows);
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
    if threads > 1 && left.rows * left.depth > PACKING_WORTH_A_THREAD {
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

/// `part[d][r] = source[r * stride + d]` of at most 16 rows: in squares that are turned in registers, and what is left one by one.
pub(crate) fn interleave(source: &[f32], stride: usize, rows: usize, depth: usize, part: &mut [f32]) {
    debug_assert!((1..=16).contains(&rows), "{rows} rows are turned at once");
    let lines: [&[f32]; 16] = std::array::from_fn(|row| &source[row.min(rows - 1) * stride..][..depth]);
    let packed = pack_squares(&lines, rows, part);
    for (step, out) in part.chunks_exact_mut(rows).enumerate().skip(packed) {
        for (line, out) in lines.iter().zip(out) {
            *out = line[step];
        }
    }
}

/// `out (+)= packed left · right` on this thread; the left-hand side as [`pack`] wrote it.
pub(crate) fn multiply_packed(
    kernel: TileKernel,
    packed: &[f32],
    blocks: &[Range<usize>],
    depth: usize,
    right: &impl Right,
    out: Out<'_>,
) {
    let target = out.target(blocks.last().map_or(0, |block| block.end), right.columns());
    // SAFETY: the target has just been checked.
    unsafe { multiply_tiles(kernel, packed, blocks, depth, right, target, 1) };
}

/// The tiles of a product: panels are dealt to the threads, which all read the whole left-hand side.
///
/// # Safety
/// The target has been checked for the product's rows and columns, and no other task writes them.
unsafe fn multiply_tiles(
    kernel: TileKernel,
    packed: &[f32],
    blocks: &[Range<usize>],
    depth: usize,
    right: &impl Right,
    target: Target,
    threads: usize,
) {
    let rows = blocks.last().map_or(0, |block| block.end);
    let panels = right.columns().div_ceil(PANEL);
    assert!(packed.len() >= rows * depth, "the packed left-hand side is too short");

    // Few panels and many rows (LoRA's narrow products): the rows are dealt out too.
    let row_parts = if panels >= 2 * threads { 1 } else { (4 * threads / panels).clamp(1, blocks.len()) };
    let tasks = panels * row_parts;
    let tiles = Tiles { kernel, packed, depth, right, target };
    let task = |index: usize| {
        let (panel, part) = (index / row_parts, index % row_parts);
        let part = part * blocks.len() / row_parts..(part + 1) * blocks.len() / row_parts;
        // SAFETY: each panel and part of the rows is one task's.
        SCRATCH.with_borrow_mut(|scratch| unsafe { tiles.multiply(panel, &blocks[part], scratch) });
    };
    if threads > 1 {
        (0..tasks).into_par_iter().with_max_len(tasks.div_ceil(4 * threads)).for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
}

/// What the tiles of a product share.
struct Tiles<'a, R> {
    kernel: TileKernel,
    packed: &'a [f32],
    depth: usize,
    right: &'a R,
    target: Target,
}

impl<R: Right> Tiles<'_, R> {
    /// The outputs of one panel in some blocks of rows, a stretch of the depth after the other.
    ///
    /// # Safety
    /// The target has been checked for the product's rows and columns, and no other task writes these.
    unsafe fn multiply(&self, panel: usize, blocks: &[Range<usize>], scratch: &mut Buffer) {
        scratch.reserve(DEPTH_BLOCK * PANEL);
        for start in (0..self.depth).step_by(DEPTH_BLOCK) {
            let stretch = start..self.depth.min(start + DEPTH_BLOCK);
            let length = stretch.len();
            let unpacked = scratch.as_ptr();
            let right = self.right.block(panel, stretch, scratch);
            assert!(right.len() >= length * PANEL, "a panel's block is too short");
            // Where the panel is read in place, what comes next lies behind it.
            let next = if right.as_ptr() == unpacked { 0 } else { length * PANEL };
            for (number, rows) in blocks.iter().enumerate() {
                let left = rows.start * self.depth + start * rows.len();
                let left = &self.packed[left..][..length * rows.len()];
                let out = self.target.at_row(rows.start).start;
                let tile = Tile {
                    left: left.as_ptr(),
                    right: right.as_ptr(),
                    out: out.wrapping_add(panel * self.target.panel_stride),
                    out_stride: self.target.row_stride,
                    rows: rows.len(),
                    columns: PANEL.min(self.right.columns() - panel * PANEL),
                    depth: length,
                    accumulate: self.target.accumulate || start > 0,
                    ahead: if blocks.len() - number <= FETCHING_TILES { next } else { 0 },
                };
                // SAFETY: `left` and `right` hold `length` steps (checked above); the outputs of all tiles lie inside the
                // target and do not overlap, as the caller has checked.
                unsafe { (self.kernel.tile)(&tile) };
            }
        }
    }
}

thread_local! {
    /// A thread's place for one unpacked block of a panel.
    static SCRATCH: RefCell<Buffer> = RefCell::new(Buffer::default());
    /// A thread's place for a packed left-hand side; taken while in use, so that a nested product gets its own.
    static PACKED: RefCell<Buffer> = RefCell::new(Buffer::default());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::panels::{Backward, Forward, Matrix, Rows, RowsTransposed, packed_length, unpack};
    use super::super::tile::all_kernels;
    use super::*;
    use crate::decoder::weights::{HostData, HostTensor, Precision};

    /// Values of a small linear congruential generator: no two alike, none large.
    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn matrix(rows: usize, columns: usize, values: &[f32]) -> Matrix {
        Matrix::pack(
            &HostTensor { shape: vec![rows, columns], data: HostData::F32(values.into()) },
            Precision::Published,
        )
    }

    /// `left[rows, depth] · right[depth, columns]` in f64.
    fn expected(
        left: &[f32],
        right: impl Fn(usize, usize) -> f32,
        [rows, depth, columns]: [usize; 3],
    ) -> Vec<f64> {
        let sum = |row: usize, column: usize| -> f64 {
            (0..depth).map(|d| f64::from(left[row * depth + d]) * f64::from(right(d, column))).sum()
        };
        (0..rows * columns).map(|i| sum(i / columns, i % columns)).collect()
    }

    fn close(found: &[f32], expected: &[f64], depth: usize) -> Result<(), TestCaseError> {
        for (found, expected) in found.iter().zip(expected) {
            // Rounding of `depth` sums of products below one.
            let bound = 1e-6 * (depth as f64).sqrt().max(1.0) * 4.0;
            prop_assert!((f64::from(*found) - expected).abs() < bound, "{} against {}", found, expected);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn every_kernel_and_every_layout_gives_the_product(
            rows in 1usize..250, depth in 1usize..600, columns in 1usize..100, seed: u32, threads in 1usize..4,
        ) {
            let left = values(rows * depth, seed);
            let weight = values(columns * depth, seed ^ 1);
            let product = expected(&left, |d, c| weight[c * depth + d], [rows, depth, columns]);
            let packed = matrix(columns, depth, &weight);
            let transposed: Vec<f32> =
                (0..depth * columns).map(|i| weight[(i % columns) * depth + i / columns]).collect();
            let backward = matrix(depth, columns, &transposed);
            for (_, kernel) in all_kernels() {
                let mut out = vec![f32::NAN; rows * columns];
                let view = Left::new(&left, rows, depth);
                multiply_with(kernel, view, &Forward::all(&packed), Out::rows(&mut out, columns, false), threads);
                close(&out, &product, depth)?;
                // Adding it twice doubles it.
                multiply_with(kernel, view, &Forward::all(&packed), Out::rows(&mut out, columns, true), threads);
                close(&out, &product.iter().map(|x| 2.0 * x).collect::<Vec<_>>(), 4 * depth)?;
                multiply_with(kernel, view, &Backward::all(&backward), Out::rows(&mut out, columns, false), threads);
                close(&out, &product, depth)?;
                let right = RowsTransposed { values: &weight, depth, columns };
                multiply_with(kernel, view, &right, Out::rows(&mut out, columns, false), threads);
                close(&out, &product, depth)?;
                let right = Rows { values: &transposed, stride: columns, depth, columns };
                let mut panels = vec![0.0; packed_length(columns, rows)];
                multiply_with(kernel, view, &right, Out::panels(&mut panels, rows, true), threads);
                let turned = unpack(&panels, columns, rows);
                let out: Vec<f32> = (0..rows * columns).map(|i| turned[(i % columns) * rows + i / columns]).collect();
                close(&out, &product, depth)?;
            }
        }

        #[test]
        fn a_row_does_not_depend_on_the_rows_beside_it(
            rows in 1usize..60, depth in 1usize..700, columns in 1usize..80, seed: u32,
        ) {
            let left = values(rows * depth, seed);
            let weight = values(columns * depth, seed ^ 1);
            let packed = matrix(columns, depth, &weight);
            for (_, kernel) in all_kernels() {
                let mut all = vec![0.0; rows * columns];
                let view = Left::new(&left, rows, depth);
                multiply_with(kernel, view, &Forward::all(&packed), Out::rows(&mut all, columns, false), 2);
                for row in 0..rows {
                    let mut alone = vec![0.0; columns];
                    let view = Left::new(&left[row * depth..][..depth], 1, depth);
                    multiply_with(kernel, view, &Forward::all(&packed), Out::rows(&mut alone, columns, false), 1);
                    prop_assert_eq!(&alone[..], &all[row * columns..][..columns]);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        /// Rows and panels are dealt to threads by the product's sizes: enough of each for both.
        #[test]
        fn any_number_of_threads_gives_the_same_bytes(
            rows in 60usize..300, depth in 200usize..600, columns in 40usize..200, turned: bool, seed: u32,
        ) {
            let values = values(rows * depth + columns * depth, seed);
            let (left, weight) = values.split_at(rows * depth);
            let left =
                if turned { Left::transposed(left, rows, depth, rows) } else { Left::new(left, rows, depth) };
            let right = matrix(columns, depth, weight);
            for (_, kernel) in all_kernels() {
                let product = |threads| {
                    let mut panels = vec![0.0; packed_length(columns, rows)];
                    multiply_with(kernel, left, &Forward::all(&right), Out::panels(&mut panels, rows, true), threads);
                    panels
                };
                let one = product(1);
                prop_assert_eq!(&one, &product(2));
                prop_assert_eq!(&one, &product(3));
            }
        }
    }

    #[test]
    fn half_types_are_widened_without_loss() {
        let weight = values(70 * 33, 5);
        let left = values(20 * 33, 6);
        let half: Vec<half::bf16> = weight.iter().map(|x| half::bf16::from_f32(*x)).collect();
        let float: Vec<half::f16> = weight.iter().map(|x| half::f16::from_f32(*x)).collect();
        let wide = |values: Vec<f32>| HostData::F32(values.into());
        let pairs = [
            (HostData::Bf16(half.clone().into()), wide(half.iter().map(|x| x.to_f32()).collect())),
            (HostData::F16(float.clone().into()), wide(float.iter().map(|x| x.to_f32()).collect())),
        ];
        for (narrow, wide) in pairs {
            let product = |data: HostData<'static>| {
                let matrix = Matrix::pack(&HostTensor { shape: vec![70, 33], data }, Precision::Published);
                let mut out = vec![0.0; 20 * 70];
                multiply(Left::new(&left, 20, 33), &Forward::all(&matrix), Out::rows(&mut out, 70, false));
                out
            };
            assert_eq!(product(narrow), product(wide));
        }
    }
}
