//! Attention of single rows over cached keys and values: decoding.
//!
//! Keys and values lie in pages of a fixed number of positions, so that sequences that share a beginning share its
//! pages. A row's result depends on its own sequence alone.

use rayon::prelude::*;

use super::attention::softmax;
use super::math;
use crate::kernels::{AttentionShape, CachedRow};

/// Floats in a page: keys, then values; in each, head by head, `page_size` positions of `head_size`.
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
        for head in 0..shape.key_value_heads {
            let at = (head * page_size + row.position % page_size) * size;
            keys[at..at + size].copy_from_slice(&values[shape.key_column(head)..][..size]);
            page_values[at..at + size].copy_from_slice(&values[shape.value_column(head)..][..size]);
        }
    }
}

/// Overwrites `out` with each row's attention over positions `0..=position` of its sequence.
pub(crate) fn attention(
    shape: &AttentionShape,
    page_size: usize,
    rows: &[CachedRow],
    query_key_value: &[f32],
    cache: &[f32],
    out: &mut [f32],
) {
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
    let mut scores = vec![0.0f32; shape.group() * positions];
    let pages = || row.pages.iter().zip((0..positions).step_by(page_size));
    let head_start = head * page_size * size;
    for (&page, first) in pages() {
        let count = page_size.min(positions - first);
        let keys = &cache[page as usize * length + head_start..][..count * size];
        for (query, scores) in queries.chunks_exact(size).zip(scores.chunks_exact_mut(positions)) {
            dots(query, keys, &mut scores[first..first + count]);
        }
    }
    for (index, scores) in scores.chunks_exact_mut(positions).enumerate() {
        let slope = shape.slopes.get(head * shape.group() + index);
        for (key, score) in scores.iter_mut().enumerate() {
            let bias = slope.map_or(0.0, |slope| slope * (key as f32 - row.position as f32));
            *score = *score * shape.scale() + bias;
        }
        softmax(scores);
    }
    out.fill(0.0);
    for (&page, first) in pages() {
        let count = page_size.min(positions - first);
        let values = &cache[page as usize * length + length / 2 + head_start..][..count * size];
        for (out, scores) in out.chunks_exact_mut(size).zip(scores.chunks_exact(positions)) {
            weighted_sum(&scores[first..first + count], values, out);
        }
    }
}

/// `scores[i] = query · keys[i]`
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn dots(query: &[f32], keys: &[f32], scores: &mut [f32]) {
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(query.len())) {
        *score = math::dot(query, key);
    }
}

/// `out += Σ weights[i] values[i]`
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn weighted_sum(weights: &[f32], values: &[f32], out: &mut [f32]) {
    for (weight, value) in weights.iter().zip(values.chunks_exact(out.len())) {
        for (out, value) in out.iter_mut().zip(value) {
            *out += weight * value;
        }
    }
}
