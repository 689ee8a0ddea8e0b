//! AdamW (Loshchilov and Hutter 2019), as `torch.optim.AdamW` computes it.

use rayon::prelude::*;

use crate::kernels::AdamW;

/// Moves `values` against `gradient`, and the moments with it; the gradient is zero after it.
pub(crate) fn adamw(
    settings: &AdamW,
    values: &mut [f32],
    gradient: &mut [f32],
    first_moment: &mut [f32],
    second_moment: &mut [f32],
) {
    const CHUNK: usize = 16 * 1024;
    values
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks_mut(CHUNK))
        .zip(first_moment.par_chunks_mut(CHUNK))
        .zip(second_moment.par_chunks_mut(CHUNK))
        .for_each(|(((values, gradient), first), second)| chunk(settings, values, gradient, first, second));
}

#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn chunk(settings: &AdamW, values: &mut [f32], gradient: &mut [f32], first: &mut [f32], second: &mut [f32]) {
    // The corrections are powers of numbers near one: in f64, as PyTorch does.
    let correction1 = 1.0 - f64::from(settings.beta1).powi(settings.step as i32);
    let correction2 = 1.0 - f64::from(settings.beta2).powi(settings.step as i32);
    let step_size = (f64::from(settings.learning_rate) / correction1) as f32;
    let root = correction2.sqrt() as f32;
    let decay = 1.0 - settings.learning_rate * settings.weight_decay;
    // Embeddings of tokens that no row had so far: they move as below, but nothing is written that stays as it is, so that
    // their moments take no memory.
    if [&*gradient, first, second].into_iter().all(is_zero) {
        if decay != 1.0 {
            values.iter_mut().for_each(|value| *value *= decay);
        }
        return;
    }
    for (((value, gradient), first), second) in values.iter_mut().zip(gradient).zip(first).zip(second) {
        let scaled = *gradient * settings.gradient_scale;
        *first += (scaled - *first) * (1.0 - settings.beta1);
        *second = *second * settings.beta2 + scaled * scaled * (1.0 - settings.beta2);
        *value = *value * decay - step_size * *first / (second.sqrt() / root + settings.epsilon);
        *gradient = 0.0;
    }
}

/// Whether all bits are zero: of most gradients the first line tells that they are not.
#[inline(always)]
fn is_zero(values: &[f32]) -> bool {
    const LINE: usize = 64;
    let zero = |line: &[f32]| line.iter().fold(0, |bits, value| bits | value.to_bits()) == 0;
    values.chunks(LINE).all(zero)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Stretches of 16 × 1024 values, of which some have never had a gradient and some have none now.
        #[test]
        fn what_has_no_gradient_moves_as_if_it_were_looked_at(
            kinds in prop::collection::vec(0usize..4, 1..5), decay in prop::sample::select(vec![0.0f32, 0.1]), step in 1u64..5,
        ) {
            const STRETCH: usize = 16 * 1024;
            let settings = AdamW {
                learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: decay, step, gradient_scale: 0.5,
            };
            let number = |place: usize, seed: usize| ((place * 31 + seed * 17) % 200) as f32 / 100.0 - 1.0;
            let of = |seed: usize, has: [bool; 4]| -> Vec<f32> {
                let values = |(stretch, kind): (usize, &usize)| {
                    let value = move |place: usize| if has[*kind] { number(stretch + place, seed) } else { 0.0 };
                    (0..STRETCH).map(value).collect::<Vec<_>>()
                };
                kinds.iter().enumerate().flat_map(values).collect()
            };
            let mut values = of(1, [true; 4]);
            // With both; never; not now; the last of a stretch alone.
            let mut gradient = of(2, [true, false, false, false]);
            let [mut first, mut second] = [of(3, [true, false, true, false]), of(4, [true, false, true, false])];
            second.iter_mut().for_each(|value| *value = value.abs());
            for (last, kind) in gradient.iter_mut().skip(STRETCH - 1).step_by(STRETCH).zip(&kinds) {
                if *kind == 3 {
                    *last = 1e-3;
                }
            }
            // A value more that has a gradient, and no stretch is passed over.
            let mut expected = [Vec::new(), Vec::new(), Vec::new()];
            for at in (0..values.len()).step_by(STRETCH).map(|start| start..start + STRETCH) {
                let with = |of: &[f32], one: f32| [&of[at.clone()], &[one]].concat();
                let mut gradient = with(&gradient, 1.0);
                let mut moved = [with(&values, 1.0), with(&first, 1.0), with(&second, 1.0)];
                let [values, first, second] = &mut moved;
                chunk(&settings, values, &mut gradient, first, second);
                for (expected, moved) in expected.iter_mut().zip(&moved) {
                    expected.extend_from_slice(&moved[..STRETCH]);
                }
            }
            adamw(&settings, &mut values, &mut gradient, &mut first, &mut second);
            prop_assert!([values, first, second] == expected);
            prop_assert!(gradient.iter().all(|gradient| gradient.to_bits() == 0));
        }
    }
}
