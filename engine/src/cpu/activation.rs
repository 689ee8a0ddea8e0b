//! The feed-forward layer's non-linearities.

use super::math;
use super::rows::{for_each_row, for_each_row_pair};
use crate::decoder::config::Activation;

/// √(2 / π), of GELU's tanh form
const ROOT: f32 = 0.797_884_6;

/// GELU's tanh form's cubic coefficient
const CUBIC: f32 = 0.044_715;

/// Elements handed to a thread at once.
const CHUNK: usize = 1024;

/// `out = activation(up)`, or `activation(gate) * up` for a gated one.
pub(crate) fn activate(kind: Activation, gate: Option<&[f32]>, up: &[f32], out: &mut [f32]) {
    for_each_chunk(out, |at, out| {
        let up = &up[at..][..out.len()];
        match (kind, gate) {
            (Activation::GeluErf, _) => gelu_erf(up, out),
            (Activation::GeluTanh, _) => gelu_tanh(up, out),
            (Activation::SwiGlu, Some(gate)) => swiglu(&gate[at..], up, out),
            (Activation::GeGluTanh, Some(gate)) => geglu(&gate[at..], up, out),
            (Activation::SwiGlu | Activation::GeGluTanh, None) => {
                unreachable!("a gated activation has a gate")
            }
        }
    });
}

/// The gradient of [`activate`]'s inputs in place of that of its output: `dup` holds `dout` and takes the up
/// product's, `dgate` takes the gate's.
pub(crate) fn activate_backward(
    kind: Activation,
    gate: Option<&[f32]>,
    up: &[f32],
    dup: &mut [f32],
    dgate: Option<&mut [f32]>,
) {
    match (gate, dgate) {
        (Some(gate), Some(dgate)) => {
            let whole = up.len() - up.len() % CHUNK;
            let (dup, dup_rest) = dup.split_at_mut(whole);
            let (dgate, dgate_rest) = dgate.split_at_mut(whole);
            let gated = |at: usize, dup: &mut [f32], dgate: &mut [f32]| match kind {
                Activation::GeGluTanh => geglu_backward(&gate[at..], &up[at..], dup, dgate),
                _ => swiglu_backward(&gate[at..], &up[at..], dup, dgate),
            };
            for_each_row_pair(dup, CHUNK, dgate, CHUNK, |chunk, dup, dgate| gated(chunk * CHUNK, dup, dgate));
            gated(whole, dup_rest, &mut dgate_rest[..up.len() - whole]);
        }
        _ => for_each_chunk(dup, |at, dup| match kind {
            Activation::GeluTanh => gelu_tanh_backward(&up[at..], dup),
            _ => gelu_erf_backward(&up[at..], dup),
        }),
    }
}

/// Calls `f(start, part)` for parts of `values` on all threads.
fn for_each_chunk(values: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let whole = values.len() - values.len() % CHUNK;
    let (chunks, rest) = values.split_at_mut(whole);
    for_each_row(chunks, CHUNK, |chunk, part| f(chunk * CHUNK, part));
    if !rest.is_empty() {
        f(whole, rest);
    }
}

/// x Φ(x)
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn gelu_erf(up: &[f32], out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(up) {
        *out = 0.5 * x * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// Φ(x) + x φ(x)
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn gelu_erf_backward(up: &[f32], dup: &mut [f32]) {
    const DENSITY: f32 = 0.398_942_3; // 1 / sqrt(2 pi)
    for (dup, &x) in dup.iter_mut().zip(up) {
        let cumulative = 0.5 * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
        *dup *= cumulative + x * DENSITY * math::exp(-0.5 * x * x);
    }
}

/// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn gelu_tanh(up: &[f32], out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(up) {
        *out = 0.5 * x * (1.0 + math::tanh(ROOT * (x + CUBIC * x * x * x)));
    }
}

/// The derivative of GELU's tanh form.
#[inline(always)]
fn gelu_tanh_slope(x: f32) -> f32 {
    let tanh = math::tanh(ROOT * (x + CUBIC * x * x * x));
    0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * ROOT * (1.0 + 3.0 * CUBIC * x * x)
}

/// Backward of [`gelu_tanh`].
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn gelu_tanh_backward(up: &[f32], dup: &mut [f32]) {
    for (dup, &x) in dup.iter_mut().zip(up) {
        *dup *= gelu_tanh_slope(x);
    }
}

/// silu(gate) up
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate * math::sigmoid(gate) * up;
    }
}

/// Backward of [`swiglu`]: silu'(g) = σ(g) (1 + g (1 - σ(g))).
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn swiglu_backward(gate: &[f32], up: &[f32], dup: &mut [f32], dgate: &mut [f32]) {
    for (((dup, dgate), &gate), &up) in dup.iter_mut().zip(dgate).zip(gate).zip(up) {
        let sigmoid = math::sigmoid(gate);
        let dout = *dup;
        *dup = dout * gate * sigmoid;
        *dgate = dout * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
    }
}

/// gelu_tanh(gate) up
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn geglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = 0.5 * gate * (1.0 + math::tanh(ROOT * (gate + CUBIC * gate * gate * gate))) * up;
    }
}

/// Backward of [`geglu`].
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn geglu_backward(gate: &[f32], up: &[f32], dup: &mut [f32], dgate: &mut [f32]) {
    for (((dup, dgate), &gate), &up) in dup.iter_mut().zip(dgate).zip(gate).zip(up) {
        let dout = *dup;
        *dup = dout * 0.5 * gate * (1.0 + math::tanh(ROOT * (gate + CUBIC * gate * gate * gate)));
        *dgate = dout * up * gelu_tanh_slope(gate);
    }
}
