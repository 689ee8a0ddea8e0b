//! Row-wise loops over the threads.

use rayon::prelude::*;

/// Elements below which a loop is not worth a second thread.
const WORTH_A_THREAD: usize = 32 * 1024;

/// Calls `f(row, values)` for each row of `width` values. Each row is computed alike wherever it runs.
pub(crate) fn for_each_row(values: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    if values.len() <= WORTH_A_THREAD {
        values.chunks_exact_mut(width).enumerate().for_each(|(row, values)| f(row, values));
    } else {
        let least = WORTH_A_THREAD.div_ceil(width.max(1));
        values
            .par_chunks_exact_mut(width)
            .with_min_len(least)
            .enumerate()
            .for_each(|(row, values)| f(row, values));
    }
}

/// The same over two slices at once, with a width each.
pub(crate) fn for_each_row_pair(
    first: &mut [f32],
    first_width: usize,
    second: &mut [f32],
    second_width: usize,
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync + Send,
) {
    let least = WORTH_A_THREAD.div_ceil(first_width.max(1));
    if first.len() <= WORTH_A_THREAD {
        let rows = first.chunks_exact_mut(first_width).zip(second.chunks_exact_mut(second_width));
        rows.enumerate().for_each(|(row, (first, second))| f(row, first, second));
    } else {
        first
            .par_chunks_exact_mut(first_width)
            .zip(second.par_chunks_exact_mut(second_width))
            .with_min_len(least)
            .enumerate()
            .for_each(|(row, (first, second))| f(row, first, second));
    }
}

/// Adds up over the rows, column by column: `f(row, columns, sums)` adds row `row`'s part for the given columns.
/// Threads share the columns, not the rows, so that the order of each sum is the rows' own.
pub(crate) fn sum_over_rows(
    sums: &mut [f32],
    rows: usize,
    f: impl Fn(usize, std::ops::Range<usize>, &mut [f32]) + Sync + Send,
) {
    const COLUMNS: usize = 128;
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sums)| {
        let columns = chunk * COLUMNS..chunk * COLUMNS + sums.len();
        for row in 0..rows {
            f(row, columns.clone(), sums);
        }
    });
}
