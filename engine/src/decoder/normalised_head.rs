//! Baichuan-2's head, each row of which is scaled to length one: `ŵ = w / |w|` (its `NormHead`).

use super::Decoder;
use super::weights::{HostData, HostTensor, Slot};
use crate::kernels::Kernels;

/// As torch.nn.functional.normalize: lengths below it count as it.
const LEAST: f32 = 1e-12;

/// The length of a row.
fn length(row: &[f32]) -> f32 {
    row.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// Each row of a `[rows, columns]` tensor, divided by its length.
pub(super) fn normalise(tensor: &HostTensor<'_>) -> HostTensor<'static> {
    let mut values = tensor.to_f32();
    for row in values.chunks_exact_mut(tensor.shape[1].max(1)) {
        let length = length(row).max(LEAST);
        row.iter_mut().for_each(|x| *x /= length);
    }
    HostTensor { shape: tensor.shape.clone(), data: HostData::F32(values.into()) }
}

/// The gradient of [`normalise`]: `dw = (dŵ - ŵ (ŵ · dŵ)) / |w|`, row by row; `gradient` is `dŵ` before and `dw` after.
fn normalise_backward(weights: &[f32], columns: usize, gradient: &mut [f32]) {
    for (row, gradient) in weights.chunks_exact(columns).zip(gradient.chunks_exact_mut(columns)) {
        let length = length(row);
        if length < LEAST {
            gradient.iter_mut().for_each(|dw| *dw /= LEAST);
            continue;
        }
        let along: f32 = row.iter().zip(&*gradient).map(|(w, dw)| w / length * dw).sum();
        for (w, dw) in row.iter().zip(gradient) {
            *dw = (*dw - w / length * along) / length;
        }
    }
}

impl<K: Kernels> Decoder<K> {
    /// Adds to `dhead` the gradient of the head's weights, from that of the normalised head; both in the layout of the
    /// trained matrix.
    pub(super) fn normalised_head_backward(&self, dnormalised: &K::Buffer, dhead: &mut K::Buffer) {
        let (weights, shape) = (self.tensor(Slot::Head), Slot::Head.shape(&self.config));
        let mut gradient = self.gradient_values(Slot::Head, dnormalised);
        normalise_backward(&weights, shape[1], &mut gradient);
        let packed = self.load_like(Slot::Head, gradient);
        self.kernels.add(self.kernels.length(&packed), &packed, dhead);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let weights = [0.5f32, -1.0, 2.0, 0.1, 0.2, -0.3];
        let dnormalised = [0.3f32, 0.7, -0.2, 1.0, -0.5, 0.25];
        let value = |weights: &[f32]| -> f64 {
            let tensor = HostTensor { shape: vec![2, 3], data: HostData::F32(weights.to_vec().into()) };
            let HostData::F32(normalised) = normalise(&tensor).data else { unreachable!() };
            normalised.iter().zip(dnormalised).map(|(x, d)| f64::from(*x) * f64::from(d)).sum()
        };
        let mut gradient = dnormalised;
        normalise_backward(&weights, 3, &mut gradient);
        for (index, found) in gradient.iter().enumerate() {
            let step = 1e-2f32;
            let mut moved = [weights, weights];
            moved[0][index] += step;
            moved[1][index] -= step;
            let expected =
                (value(&moved[0]) - value(&moved[1])) / f64::from(moved[0][index] - moved[1][index]);
            // A sixth of the third derivative (some 20, of a row of length 0.37) times the step's square, and f32's rounding
            // over the step.
            assert!((f64::from(*found) - expected).abs() < 2e-3, "{index}: {found} against {expected}");
        }
    }
}
