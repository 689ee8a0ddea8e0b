//! AdamW (Loshchilov and Hutter 2019), as `torch.optim.AdamW` computes it.

use rayon::prelude::*;

/// One update's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Step size.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled decay, multiplied by the learning rate.
    pub weight_decay: f32,
    /// Updates done, this one counted: 1 at the first.
    pub step: u64,
    /// What the gradient is multiplied by first (clipping).
    pub gradient_scale: f32,
}

/// Moves `values` against `gradient`, and the moments with it.
pub(crate) fn adamw(
    settings: &AdamW,
    values: &mut [f32],
    gradient: &[f32],
    first_moment: &mut [f32],
    second_moment: &mut [f32],
) {
    const CHUNK: usize = 16 * 1024;
    values
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(first_moment.par_chunks_mut(CHUNK))
        .zip(second_moment.par_chunks_mut(CHUNK))
        .for_each(|(((values, gradient), first), second)| chunk(settings, values, gradient, first, second));
}

#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn chunk(settings: &AdamW, values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
    // The corrections are powers of numbers near one: in f64, as PyTorch does.
    let correction1 = 1.0 - f64::from(settings.beta1).powi(settings.step as i32);
    let correction2 = 1.0 - f64::from(settings.beta2).powi(settings.step as i32);
    let step_size = (f64::from(settings.learning_rate) / correction1) as f32;
    let root = correction2.sqrt() as f32;
    let decay = 1.0 - settings.learning_rate * settings.weight_decay;
    for (((value, gradient), first), second) in values.iter_mut().zip(gradient).zip(first).zip(second) {
        let gradient = gradient * settings.gradient_scale;
        *first += (gradient - *first) * (1.0 - settings.beta1);
        *second = *second * settings.beta2 + gradient * gradient * (1.0 - settings.beta2);
        *value = *value * decay - step_size * *first / (second.sqrt() / root + settings.epsilon);
    }
}

/// Σ g², in f64 and in a fixed order.
pub(crate) fn squared_norm(gradient: &[f32]) -> f64 {
    let parts: Vec<f64> = gradient.par_chunks(16 * 1024).map(squares).collect();
    parts.iter().sum()
}

/// The sum of a part, in as many lanes as a vector register holds.
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn squares(part: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let mut add = |values: &[f32]| {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += f64::from(*value) * f64::from(*value);
        }
    };
    let (eights, rest) = part.as_chunks::<8>();
    eights.iter().for_each(|eight| add(eight));
    add(rest);
    sums.iter().sum()
}
