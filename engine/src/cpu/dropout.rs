//! Dropout (Srivastava et al. 2014) drawn from a place, not from a stream.

use super::rows::for_each_row;
use crate::dropout_key::DropoutKey;
use crate::kernels::DropoutPlace;

/// `out = x * mask / (1 - rate)`
pub(crate) fn dropout(place: &DropoutPlace<'_>, width: usize, x: &[f32], out: &mut [f32]) {
    for_each_row(&mut out[..place.keys.len() * width], width, |row, out| {
        out.copy_from_slice(&x[row * width..][..width]);
        mask_row(place.rate, place.keys[row].place(place.layer, place.module), out);
    });
}

/// `dx += dout * mask / (1 - rate)`; what `dout` held is lost.
pub(crate) fn dropout_backward(place: &DropoutPlace<'_>, width: usize, dout: &mut [f32], dx: &mut [f32]) {
    let dout = &mut dout[..place.keys.len() * width];
    for_each_row(dout, width, |row, dout| {
        mask_row(place.rate, place.keys[row].place(place.layer, place.module), dout);
    });
    super::add(dx, dout);
}

/// Multiplies a row by its mask over the share kept.
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn mask_row(rate: f32, key: DropoutKey, row: &mut [f32]) {
    let threshold = (f64::from(rate) * f64::from(u32::MAX)) as u32;
    let kept = 1.0 / (1.0 - rate);
    let (low, high) = (key.bits() as u32, (key.bits() >> 32) as u32);
    for (column, value) in row.iter_mut().enumerate() {
        // A 32-bit mixer (Wellons' lowbias32) of the column, keyed on both sides.
        let x = (column as u32).wrapping_mul(0x9e37_79b9) ^ low;
        let x = (x ^ (x >> 16)).wrapping_mul(0x21f0_aaad);
        let x = (x ^ (x >> 15)).wrapping_mul(0x735a_2d97) ^ high;
        let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
        let x = x ^ (x >> 16);
        *value *= if x >= threshold { kept } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_dropped_is_the_rate_and_rows_differ() {
        let tokens: Vec<u32> = (0..500).map(|place| place % 7).collect();
        for keys in [DropoutKey::new(1, 2, 3).of_positions(500), DropoutKey::of_beginnings(1, 2, &tokens)] {
            the_share_dropped_is_the_rate(&keys);
        }
    }

    fn the_share_dropped_is_the_rate(keys: &[DropoutKey]) {
        let ones = vec![1.0f32; 500 * 100];
        let mut out = vec![0.0; ones.len()];
        dropout(&DropoutPlace { rate: 0.05, keys, layer: 4, module: 5 }, 100, &ones, &mut out);
        let dropped = out.iter().filter(|x| **x == 0.0).count() as f64 / out.len() as f64;
        // Three standard deviations of a binomial share: 3 * sqrt(0.05 * 0.95 / 50_000) = 0.003.
        assert!((dropped - 0.05).abs() < 0.003, "{dropped}");
        assert_ne!(out[..100], out[100..200]);
        assert!(out.iter().all(|x| *x == 0.0 || (*x - 1.0 / 0.95).abs() < 1e-6));
    }

    #[test]
    fn what_begins_alike_draws_alike() {
        let keys = |tokens: &[u32]| DropoutKey::of_beginnings(1, 2, tokens);
        let (first, second) = (keys(&[5, 6, 7, 8]), keys(&[5, 6, 9, 8]));
        assert_eq!(first[..2], second[..2]);
        assert_ne!(first[2], second[2]);
        assert_ne!(first[3], second[3]);
        assert_ne!(first, DropoutKey::of_beginnings(1, 3, &[5, 6, 7, 8]));
    }
}
