//! Attention of single rows over cached keys and values: decoding.
//!
//! Keys and values lie in pages of a fixed number of positions, so that sequences that share a beginning share its
//! pages. In a page the keys of a head lie turned, all positions of one dimension side by side, so that the scores of
//! [`LANES`] positions are summed in the lanes of a register. A row's result depends on its own sequence alone.

use std::cell::RefCell;

use rayon::prelude::*;

use super::attention::softmax;
use crate::kernels::{AttentionShape, CachedRow};

/// Positions whose scores are summed side by side; divides a page's.
const LANES: usize = 16;

/// Sums that a score is cut into, dimension by dimension in turn: one alone would wait for itself at every step.
const SUMS: usize = 4;

/// Floats in a page: keys, then values, head by head: `head_size` times `page_size` positions of keys, `page_size`
/// times `head_size` of values.
pub(crate) fn page_length(shape: &AttentionShape, page_size: usize) -> usize {
    2 * shape.key_value_heads * page_size * shape.head_size
}

/// Writes each row's keys and values at its position.
pub(crate) fn store(
    shape: &AttentionShape,
    page_size: usize,
    rows: &[CachedRow],
    query_key_value: &[f32],
    cache: &mut [f32],
) {
    let (size, length) = (shape.head_size, page_length(shape, page_size));
    for (row, values) in rows.iter().zip(query_key_value.chunks_exact(shape.query_key_value_width())) {
        let page = &mut cache[row.pages[row.position / page_size] as usize * length..][..length];
        let (keys, page_values) = page.split_at_mut(length / 2);
        let place = row.position % page_size;
        for head in 0..shape.key_value_heads {
            let (start, key) = (head * page_size * size, &values[shape.key_column(head)..][..size]);
            let column = keys[start..start + page_size * size].iter_mut().skip(place).step_by(page_size);
            column.zip(key).for_each(|(out, key)| *out = *key);
            let at = start + place * size;
            page_values[at..at + size].copy_from_slice(&values[shape.value_column(head)..][..size]);
        }
    }
}

/// Overwrites `out` with each row's attention over the positions of its sequence up to its own that it sees.
pub(crate) fn attention(
    shape: &AttentionShape,
    page_size: usize,
    rows: &[CachedRow],
    query_key_value: &[f32],
    cache: &[f32],
    out: &mut [f32],
) {
    assert!(
        page_size.is_multiple_of(LANES),
        "a page of {page_size} positions; expected a multiple of {LANES}"
    );
    let width = shape.query_key_value_width();
    let group = shape.group() * shape.head_size;
    let task = |(task, out): (usize, &mut [f32])| {
        let (row, head) = (task / shape.key_value_heads, task % shape.key_value_heads);
        let queries = &query_key_value[row * width + head * group..][..group];
        one_head(shape, page_size, &rows[row], head, queries, cache, out);
    };
    out.par_chunks_exact_mut(group).enumerate().with_min_len(4).for_each(task);
}

/// One row and one key-value head: all the query heads that share it.
fn one_head(
    shape: &AttentionShape,
    page_size: usize,
    row: &CachedRow,
    head: usize,
    queries: &[f32],
    cache: &[f32],
    out: &mut [f32],
) {
    let (size, length) = (shape.head_size, page_length(shape, page_size));
    let positions = row.position + 1;
    let first_key = shape.first_key(row.position);
    // Scores of the places beyond the last position are computed and left alone.
    let padded = positions.next_multiple_of(page_size);
    SCORES.with_borrow_mut(|scores| {
        scores.resize(shape.group() * padded, 0.0);
        let all_pages = || row.pages.iter().zip((0..positions).step_by(page_size));
        let pages = || all_pages().skip(first_key / page_size);
        let head_start = head * page_size * size;
        for (&page, first) in pages() {
            let keys = &cache[page as usize * length + head_start..][..page_size * size];
            for (query, scores) in queries.chunks_exact(size).zip(scores.chunks_exact_mut(padded)) {
                dots(query, keys, &mut scores[first..first + page_size]);
            }
        }
        for (index, scores) in scores.chunks_exact_mut(padded).enumerate() {
            let slope = shape.slopes.get(head * shape.group() + index);
            for (key, score) in scores[..positions].iter_mut().enumerate().skip(first_key) {
                let bias = slope.map_or(0.0, |slope| slope * (key as f32 - row.position as f32));
                *score = *score * shape.scale + bias;
            }
            scores[..first_key].fill(0.0);
            softmax(&mut scores[first_key..positions]);
        }
        out.fill(0.0);
        for (&page, first) in pages() {
            let count = page_size.min(positions - first);
            let values = &cache[page as usize * length + length / 2 + head_start..][..count * size];
            for (out, scores) in out.chunks_exact_mut(size).zip(scores.chunks_exact(padded)) {
                weighted_sum(&scores[first..first + count], values, out);
            }
        }
    });
}

thread_local! {
    /// A thread's scores of one row and the query heads that share a key-value head.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `scores[i] = query · key i`, of a page's keys: `[query.len()][scores.len()]`.
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn dots(query: &[f32], keys: &[f32], scores: &mut [f32]) {
    let page_size = scores.len();
    let (scores, _) = scores.as_chunks_mut::<LANES>();
    for (chunk, scores) in scores.iter_mut().enumerate() {
        let mut sums = [[0.0f32; LANES]; SUMS];
        let mut add = |sum: usize, query: f32, line: &[f32]| {
            for (sum, key) in sums[sum].iter_mut().zip(&line[chunk * LANES..][..LANES]) {
                *sum += query * key;
            }
        };
        let (whole, rest) = query.as_chunks::<SUMS>();
        let lines = keys.chunks_exact(SUMS * page_size);
        let last = lines.remainder().chunks_exact(page_size);
        for (query, lines) in whole.iter().zip(lines) {
            for sum in 0..SUMS {
                add(sum, query[sum], &lines[sum * page_size..][..page_size]);
            }
        }
        for (sum, (query, line)) in rest.iter().zip(last).enumerate() {
            add(sum, *query, line);
        }
        for (lane, score) in scores.iter_mut().enumerate() {
            *score = (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]);
        }
    }
}

/// `out += Σ weights[i] values[i]`
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn weighted_sum(weights: &[f32], values: &[f32], out: &mut [f32]) {
    let size = out.len();
    let (chunks, rest) = out.as_chunks_mut::<LANES>();
    let whole = chunks.len() * LANES;
    for (chunk, out) in chunks.iter_mut().enumerate() {
        let mut sums = *out;
        for (weight, value) in weights.iter().zip(values.chunks_exact(size)) {
            for (sum, value) in sums.iter_mut().zip(&value[chunk * LANES..][..LANES]) {
                *sum += weight * value;
            }
        }
        *out = sums;
    }
    for (weight, value) in weights.iter().zip(values.chunks_exact(size)) {
        for (out, value) in rest.iter_mut().zip(&value[whole..]) {
            *out += weight * value;
        }
    }
}
