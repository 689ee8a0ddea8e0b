//! The innermost product: a tile of a few rows × [`PANEL`] outputs, kept in registers over a stretch of the depth.
//!
//! This is the only file of the engine with instruction-set intrinsics. Each output is the sum over
//! the depth in order, one fused multiply-add a step, whatever the number of rows beside it: a row's result does
//! not depend on the other rows.

/// Columns of a panel: two AVX-512 registers, four AVX ones.
pub(crate) const PANEL: usize = 32;

/// One tile's work. All pointers are into slices that the caller has checked.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Packed left block: `[depth][rows]`.
    pub left: *const f32,
    /// Panel: `[depth][PANEL]`.
    pub right: *const f32,
    /// First output; row `r` begins at `out + r * out_stride`.
    pub out: *mut f32,
    /// Floats from one output row to the next.
    pub out_stride: usize,
    /// Output rows, at most the kernel's [`TileKernel::rows`].
    pub rows: usize,
    /// Output columns, `1..=PANEL`.
    pub columns: usize,
    /// Length of the sums.
    pub depth: usize,
    /// Add to what `out` holds, or overwrite it.
    pub accumulate: bool,
    /// Floats from `right` to what is read after it, which is fetched into the cache meanwhile; 0: nothing is.
    pub ahead: usize,
}

/// An instruction set's way to compute a tile.
#[derive(Clone, Copy)]
pub(crate) struct TileKernel {
    /// Most rows of a tile.
    pub rows: usize,
    /// Computes a tile.
    ///
    /// # Safety
    /// The processor must have the instruction set, `left` must hold `depth * rows` floats, `right` `depth * PANEL`,
    /// and `out` must be writable for `columns` floats at each of `rows` rows, with no other thread touching them.
    pub tile: unsafe fn(&Tile),
}

/// 14 × 2 accumulators, two registers for the panel and one spare fill AVX-512's 32.
#[cfg(target_arch = "x86_64")]
const AVX512: TileKernel = TileKernel { rows: 14, tile: avx512::tile };

/// Two pieces of 6 rows: 6 × 2 accumulators, two registers for the panel and one for the row fill AVX's 16 but one.
#[cfg(target_arch = "x86_64")]
const AVX2: TileKernel = TileKernel { rows: 12, tile: avx2::tile };

/// Runs on any processor.
const PORTABLE: TileKernel = TileKernel { rows: 14, tile: portable_tile };

/// The best kernel that this processor runs; asked once a product.
pub(crate) fn best_kernel() -> TileKernel {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return AVX512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return AVX2;
        }
    }
    PORTABLE
}

/// Packs steps of the depth of a left block: `out[d * rows + r] = lines[r][d]`, as many steps as can be written in
/// squares of 8, whose last lines may reach beyond a step into the next one, which is written after it. Returns how
/// many steps were packed; the caller packs the rest.
///
/// `lines` are the block's rows, the last one repeated up to 16, all of the same length.
pub(crate) fn pack_squares(lines: &[&[f32]; 16], rows: usize, out: &mut [f32]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") {
        let depth = lines.iter().map(|line| line.len()).min().unwrap_or(0);
        // SAFETY: the processor has AVX, `depth` is the shortest line, and `out` is as long as it says.
        return unsafe { avx::pack_squares(lines, depth, rows, out) };
    }
    let _ = (lines, rows, out);
    0
}

/// `out[j][i] = source[i][j]` of a square of [`PANEL`] × [`PANEL`], while the one at `next` is fetched into the cache.
pub(crate) fn transpose_square(source: &[f32], next: *const f32, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") {
        // SAFETY: the processor has AVX; `next` is never read.
        return unsafe { avx::transpose_square(source, next, out) };
    }
    let _ = next;
    for [i, j] in squares() {
        for k in 0..8 {
            for l in 0..8 {
                out[(j + k) * PANEL + i + l] = source[(i + l) * PANEL + j + k];
            }
        }
    }
}

/// Where the squares of 8 begin, of which a square of [`PANEL`] is made: both sides of one stay in few lines of the
/// cache.
fn squares() -> impl Iterator<Item = [usize; 2]> {
    (0..PANEL).step_by(8).flat_map(|i| (0..PANEL).step_by(8).map(move |j| [i, j]))
}

#[cfg(target_arch = "x86_64")]
mod avx {
    use std::arch::x86_64::*;

    use super::PANEL;

    /// Floats in a line of the cache.
    const LINE: usize = 16;

    /// Floats by which lines are fetched ahead of their packing.
    const AHEAD: usize = 4 * LINE;

    /// See [`super::pack_squares`]; every line holds `depth` floats.
    #[target_feature(enable = "avx")]
    pub(super) unsafe fn pack_squares(
        lines: &[&[f32]; 16],
        depth: usize,
        rows: usize,
        out: &mut [f32],
    ) -> usize {
        let mut start = 0;
        // The last float of the last step's second half must lie inside `out`.
        while start + 8 <= depth && (start + 7) * rows + 16 <= out.len() {
            // SAFETY: `start + 8 <= depth`, and the condition above for what is written; a hint is allowed of any address.
            unsafe {
                if start.is_multiple_of(LINE) {
                    for line in &lines[..rows.min(16)] {
                        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(start + AHEAD).cast());
                    }
                }
                let first = turned(&lines[..8], start);
                let second = turned(&lines[8..], start);
                for (step, (first, second)) in first.into_iter().zip(second).enumerate() {
                    let out = out.as_mut_ptr().add((start + step) * rows);
                    _mm256_storeu_ps(out, first);
                    _mm256_storeu_ps(out.add(8), second);
                }
            }
            start += 8;
        }
        start
    }

    /// See [`super::transpose_square`].
    #[target_feature(enable = "avx")]
    pub(super) unsafe fn transpose_square(source: &[f32], next: *const f32, out: &mut [f32]) {
        const LINES: usize = PANEL * PANEL / LINE;
        assert!(source.len() == PANEL * PANEL && out.len() == PANEL * PANEL);
        let lines: [&[f32]; PANEL] = std::array::from_fn(|line| &source[line * PANEL..][..PANEL]);
        for (square, [i, j]) in super::squares().enumerate() {
            // SAFETY: the lines hold PANEL floats, and so do those of `out`, of which there are as many; a hint is
            // allowed of any address.
            unsafe {
                for line in (square..LINES).step_by(super::squares().count()) {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line * LINE).cast());
                }
                for (k, column) in turned(&lines[i..i + 8], j).into_iter().enumerate() {
                    _mm256_storeu_ps(out.as_mut_ptr().add((j + k) * PANEL + i), column);
                }
            }
        }
    }

    /// Eight floats of each of eight lines, turned: the result's vector `i` holds float `start + i` of every line.
    #[target_feature(enable = "avx")]
    unsafe fn turned(lines: &[&[f32]], start: usize) -> [__m256; 8] {
        // SAFETY: the caller's lines hold `start + 8` floats.
        let line = |row: usize| unsafe { _mm256_loadu_ps(lines[row].as_ptr().add(start)) };
        let pair = |low: usize| {
            let (a, b) = (line(low), line(low + 1));
            [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)]
        };
        let four = |low: usize| {
            let ([a, b], [c, d]) = (pair(low), pair(low + 2));
            [
                _mm256_shuffle_ps::<0x44>(a, c),
                _mm256_shuffle_ps::<0xee>(a, c),
                _mm256_shuffle_ps::<0x44>(b, d),
                _mm256_shuffle_ps::<0xee>(b, d),
            ]
        };
        let ([a, b, c, d], [e, f, g, h]) = (four(0), four(4));
        [
            _mm256_permute2f128_ps::<0x20>(a, e),
            _mm256_permute2f128_ps::<0x20>(b, f),
            _mm256_permute2f128_ps::<0x20>(c, g),
            _mm256_permute2f128_ps::<0x20>(d, h),
            _mm256_permute2f128_ps::<0x31>(a, e),
            _mm256_permute2f128_ps::<0x31>(b, f),
            _mm256_permute2f128_ps::<0x31>(c, g),
            _mm256_permute2f128_ps::<0x31>(d, h),
        ]
    }
}

/// All kernels that this processor runs, with their names.
#[cfg(test)]
pub(crate) fn all_kernels() -> Vec<(&'static str, TileKernel)> {
    let mut kernels: Vec<(&'static str, TileKernel)> = vec![("portable", PORTABLE)];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            kernels.push(("avx2", AVX2));
        }
        if is_x86_feature_detected!("avx512f") {
            kernels.push(("avx512", AVX512));
        }
    }
    kernels
}

/// Any processor's tile; the compiler vectorises the inner loop as far as it can.
unsafe fn portable_tile(tile: &Tile) {
    for row in 0..tile.rows {
        let mut sums = [0.0f32; PANEL];
        for depth in 0..tile.depth {
            // SAFETY: `depth < tile.depth` and `row < tile.rows`: inside the blocks that the caller vouches for.
            let (left, right) = unsafe {
                (
                    *tile.left.add(depth * tile.rows + row),
                    &*tile.right.add(depth * PANEL).cast::<[f32; PANEL]>(),
                )
            };
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = left.mul_add(*right, *sum);
            }
        }
        for (column, sum) in sums.iter().enumerate().take(tile.columns) {
            // SAFETY: `column < tile.columns`, `row < tile.rows`.
            unsafe {
                let out = tile.out.add(row * tile.out_stride + column);
                *out = if tile.accumulate { *out + sum } else { *sum };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{PANEL, Tile};

    /// 14 × 32 outputs in 28 registers.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn tile(tile: &Tile) {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            if tile.columns <= PANEL / 2 {
                dispatch::<1>(tile);
            } else {
                dispatch::<2>(tile);
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn dispatch<const VECTORS: usize>(tile: &Tile) {
        // SAFETY: the caller's promise is passed on; ROWS is what the tile says.
        unsafe {
            match tile.rows {
                1 => rows::<1, VECTORS>(tile),
                2 => rows::<2, VECTORS>(tile),
                3 => rows::<3, VECTORS>(tile),
                4 => rows::<4, VECTORS>(tile),
                5 => rows::<5, VECTORS>(tile),
                6 => rows::<6, VECTORS>(tile),
                7 => rows::<7, VECTORS>(tile),
                8 => rows::<8, VECTORS>(tile),
                9 => rows::<9, VECTORS>(tile),
                10 => rows::<10, VECTORS>(tile),
                11 => rows::<11, VECTORS>(tile),
                12 => rows::<12, VECTORS>(tile),
                13 => rows::<13, VECTORS>(tile),
                14 => rows::<14, VECTORS>(tile),
                other => unreachable!("a tile of {other} rows"),
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn rows<const ROWS: usize, const VECTORS: usize>(tile: &Tile) {
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        let (mut left, mut right) = (tile.left, tile.right);
        for _ in 0..tile.depth {
            // SAFETY: `left` moves by ROWS and `right` by PANEL a step, `depth` steps: inside the caller's blocks.
            unsafe {
                let mut panel = [_mm512_setzero_ps(); VECTORS];
                for (vector, value) in panel.iter_mut().enumerate() {
                    *value = _mm512_loadu_ps(right.add(16 * vector));
                    // A hint, which is allowed of any address.
                    _mm_prefetch::<_MM_HINT_T1>(right.wrapping_add(16 * vector + tile.ahead).cast());
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*left.add(row));
                    for (sum, panel) in sums.iter_mut().zip(panel) {
                        *sum = _mm512_fmadd_ps(value, panel, *sum);
                    }
                }
                left = left.add(ROWS);
                right = right.add(PANEL);
            }
        }
        // Loops of constant length alone, so that they are unrolled and the sums never leave the registers: an index
        // known only at run time would keep a copy of all of them on the stack, written at every step above.
        for (row, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                let columns = tile.columns.saturating_sub(16 * vector);
                let mask: __mmask16 = if columns >= 16 { !0 } else { (1 << columns) - 1 };
                // SAFETY: the mask keeps to `tile.columns`; `row < tile.rows`.
                unsafe {
                    let out = tile.out.add(row * tile.out_stride + 16 * vector);
                    let mut sum = *sum;
                    if tile.accumulate {
                        sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum);
                    }
                    _mm512_mask_storeu_ps(out, mask, sum);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{PANEL, Tile};

    /// Rows and columns of the tile that 16 AVX registers hold: 6 × 2 accumulators.
    const SUB_ROWS: usize = 6;
    const SUB_COLUMNS: usize = 16;

    /// The 12 × 32 tile in pieces of at most 6 × 16, cut as evenly as can be: 8 rows are 4 + 4, for with fewer than 8
    /// accumulators a multiply-add waits for the one before it.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn tile(tile: &Tile) {
        let pieces = tile.rows.div_ceil(SUB_ROWS);
        for column in (0..tile.columns).step_by(SUB_COLUMNS) {
            let columns = SUB_COLUMNS.min(tile.columns - column);
            for piece in 0..pieces {
                let (row, end) = (piece * tile.rows / pieces, (piece + 1) * tile.rows / pieces);
                // SAFETY: the caller's promise is passed on for a part of the tile.
                unsafe {
                    match end - row {
                        1 => rows::<1>(tile, row, column, columns),
                        2 => rows::<2>(tile, row, column, columns),
                        3 => rows::<3>(tile, row, column, columns),
                        4 => rows::<4>(tile, row, column, columns),
                        5 => rows::<5>(tile, row, column, columns),
                        _ => rows::<SUB_ROWS>(tile, row, column, columns),
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn rows<const ROWS: usize>(tile: &Tile, first_row: usize, column: usize, columns: usize) {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        // The pieces of a column pass over the same lines: one of them is enough.
        let ahead = if first_row == 0 { tile.ahead } else { 0 };
        // SAFETY: offsets inside the blocks that the caller vouches for.
        let (mut left, mut right) = unsafe { (tile.left.add(first_row), tile.right.add(column)) };
        for _ in 0..tile.depth {
            // SAFETY: `left` moves by the tile's rows and `right` by PANEL a step, `depth` steps.
            unsafe {
                let panel = [_mm256_loadu_ps(right), _mm256_loadu_ps(right.add(8))];
                // A hint, which is allowed of any address.
                _mm_prefetch::<_MM_HINT_T1>(right.wrapping_add(ahead).cast());
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_broadcast_ss(&*left.add(row));
                    sums[0] = _mm256_fmadd_ps(value, panel[0], sums[0]);
                    sums[1] = _mm256_fmadd_ps(value, panel[1], sums[1]);
                }
                left = left.wrapping_add(tile.rows);
                right = right.wrapping_add(PANEL);
            }
        }
        let mut lanes = [0.0f32; SUB_COLUMNS];
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: `lanes` holds two registers; the output columns are inside the tile.
            unsafe {
                if columns == SUB_COLUMNS {
                    let out = tile.out.add((first_row + row) * tile.out_stride + column);
                    for (half, sum) in sums.iter().enumerate() {
                        let out = out.add(8 * half);
                        let sum =
                            if tile.accumulate { _mm256_add_ps(_mm256_loadu_ps(out), *sum) } else { *sum };
                        _mm256_storeu_ps(out, sum);
                    }
                    continue;
                }
                _mm256_storeu_ps(lanes.as_mut_ptr(), sums[0]);
                _mm256_storeu_ps(lanes.as_mut_ptr().add(8), sums[1]);
                let out = tile.out.add((first_row + row) * tile.out_stride + column);
                for (lane, sum) in lanes.iter().enumerate().take(columns) {
                    let out = out.add(lane);
                    *out = if tile.accumulate { *out + sum } else { *sum };
                }
            }
        }
    }
}
