//! LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019).

use super::math;
use super::rows::{for_each_row, for_each_row_pair, sum_over_rows};
use crate::decoder::config::NormKind;

/// `out = norm(x) * weight + bias`, row by row; `stats` takes each row's mean and reciprocal deviation.
pub(crate) fn norm(
    kind: NormKind,
    epsilon: f32,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
    stats: &mut [f32],
) {
    let width = weight.len();
    for_each_row_pair(out, width, stats, 2, |row, out, stats| {
        let x = &x[row * width..][..width];
        let (mean, reciprocal_deviation) = statistics(kind, epsilon, x);
        (stats[0], stats[1]) = (mean, reciprocal_deviation);
        scale_row(x, mean, reciprocal_deviation, weight, bias, out);
    });
}

/// Adds to `dx` the gradient of [`norm`]'s input, given that of its output.
///
/// With x̂ = (x - mean) / deviation and g = dout · weight:
/// `dx += (g - mean(g) - x̂ mean(g x̂)) / deviation`; RMSNorm has no mean to subtract.
pub(crate) fn norm_backward(
    kind: NormKind,
    x: &[f32],
    weight: &[f32],
    stats: &[f32],
    dout: &[f32],
    dx: &mut [f32],
) {
    let width = weight.len();
    for_each_row(dx, width, |row, dx| {
        let at = row * width..(row + 1) * width;
        backward_row(kind, &x[at.clone()], weight, [stats[2 * row], stats[2 * row + 1]], &dout[at], dx);
    });
}

/// Adds to `dweight` and `dbias` their gradients, summed over the rows.
pub(crate) fn norm_backward_weight(
    x: &[f32],
    stats: &[f32],
    dout: &[f32],
    dweight: &mut [f32],
    dbias: Option<&mut [f32]>,
) {
    let width = dweight.len();
    let rows = stats.len() / 2;
    sum_over_rows(dweight, rows, |row, columns, sums| {
        let (mean, reciprocal_deviation) = (stats[2 * row], stats[2 * row + 1]);
        let (x, dout) = (&x[row * width..][columns.clone()], &dout[row * width..][columns]);
        for ((sum, x), dout) in sums.iter_mut().zip(x).zip(dout) {
            *sum += dout * (x - mean) * reciprocal_deviation;
        }
    });
    if let Some(dbias) = dbias {
        sum_over_rows(dbias, rows, |row, columns, sums| {
            for (sum, dout) in sums.iter_mut().zip(&dout[row * width..][columns]) {
                *sum += dout;
            }
        });
    }
}

/// Mean (0 for RMSNorm) and reciprocal deviation of a row.
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn statistics(kind: NormKind, epsilon: f32, x: &[f32]) -> (f32, f32) {
    let width = x.len() as f32;
    let mean = match kind {
        NormKind::Layer => math::sum(x) / width,
        NormKind::Rms => 0.0,
    };
    let mut squares = [0.0f32; 16];
    for chunk in x.chunks(16) {
        for (square, x) in squares.iter_mut().zip(chunk) {
            *square += (x - mean) * (x - mean);
        }
    }
    (mean, 1.0 / (math::sum(&squares) / width + epsilon).sqrt())
}

/// `out = (x - mean) * reciprocal_deviation * weight + bias`
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn scale_row(
    x: &[f32],
    mean: f32,
    reciprocal_deviation: f32,
    weight: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = (x - mean) * reciprocal_deviation * weight;
    }
    if let Some(bias) = bias {
        for (out, bias) in out.iter_mut().zip(bias) {
            *out += bias;
        }
    }
}

/// One row of [`norm_backward`].
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn backward_row(kind: NormKind, x: &[f32], weight: &[f32], stats: [f32; 2], dout: &[f32], dx: &mut [f32]) {
    let [mean, reciprocal_deviation] = stats;
    let width = x.len() as f32;
    let (mut of_g, mut of_gx) = ([0.0f32; 16], [0.0f32; 16]);
    for ((x, weight), dout) in x.chunks(16).zip(weight.chunks(16)).zip(dout.chunks(16)) {
        for lane in 0..x.len() {
            let g = dout[lane] * weight[lane];
            of_g[lane] += g;
            of_gx[lane] += g * (x[lane] - mean) * reciprocal_deviation;
        }
    }
    let mean_g = if kind == NormKind::Layer { math::sum(&of_g) / width } else { 0.0 };
    let mean_gx = math::sum(&of_gx) / width;
    for (((dx, x), weight), dout) in dx.iter_mut().zip(x).zip(weight).zip(dout) {
        let normalised = (x - mean) * reciprocal_deviation;
        *dx += reciprocal_deviation * (dout * weight - mean_g - normalised * mean_gx);
    }
}

/// Qwen3's norm of each query or key head, in place of part of a wider row.
///
/// `x` has rows of `stride`; `heads` heads of `weight.len()` begin at column `first`. `stats` takes a reciprocal
/// deviation per row and head.
pub(crate) fn head_norm(
    epsilon: f32,
    x: &mut [f32],
    stride: usize,
    first: usize,
    heads: usize,
    weight: &[f32],
    stats: &mut [f32],
) {
    let size = weight.len();
    for_each_row_pair(x, stride, stats, heads, |_, x, stats| {
        for (head, reciprocal_deviation) in x[first..].chunks_exact_mut(size).zip(stats) {
            *reciprocal_deviation = statistics(NormKind::Rms, epsilon, head).1;
            for (x, weight) in head.iter_mut().zip(weight) {
                *x *= *reciprocal_deviation * weight;
            }
        }
    });
}

/// The gradient of [`head_norm`]'s input, in place of that of its output; `x` is the input.
pub(crate) fn head_norm_backward(
    x: &[f32],
    stride: usize,
    first: usize,
    heads: usize,
    weight: &[f32],
    stats: &[f32],
    dx: &mut [f32],
) {
    let size = weight.len();
    for_each_row(dx, stride, |row, dx| {
        let x = &x[row * stride + first..];
        let mut dout = vec![0.0; size];
        for head in 0..heads {
            let dx = &mut dx[first + head * size..][..size];
            dout.copy_from_slice(dx);
            dx.fill(0.0);
            let reciprocal_deviation = stats[row * heads + head];
            backward_row(
                NormKind::Rms,
                &x[head * size..][..size],
                weight,
                [0.0, reciprocal_deviation],
                &dout,
                dx,
            );
        }
    });
}

/// Adds to `dweight` the gradient of [`head_norm`]'s weight; `dout` is the gradient of its output.
pub(crate) fn head_norm_backward_weight(
    x: &[f32],
    stride: usize,
    first: usize,
    heads: usize,
    stats: &[f32],
    dout: &[f32],
    dweight: &mut [f32],
) {
    let size = dweight.len();
    for row in 0..stats.len() / heads {
        for head in 0..heads {
            let at = row * stride + first + head * size..row * stride + first + (head + 1) * size;
            let reciprocal_deviation = stats[row * heads + head];
            for ((sum, x), dout) in dweight.iter_mut().zip(&x[at.clone()]).zip(&dout[at]) {
                *sum += dout * x * reciprocal_deviation;
            }
        }
    }
}
