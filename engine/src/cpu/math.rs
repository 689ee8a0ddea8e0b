//! Scalar functions that the compiler can vectorise, and sums in a fixed order.
//!
//! `libm`'s functions are calls, which stop vectorisation; these are straight-line arithmetic, accurate to a few
//! units in the last place, and give the same bits on every processor with the same instruction set.

/// Lanes of the fixed-order sums below.
const LANES: usize = 16;

/// eˣ, to 2 units in the last place; 0 below -87.3 and e^88.37 above 88.37, where `f32` ends.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2, eʳ by its Taylor polynomial (Cephes' coefficients), 2ⁿ by its bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let clamped = x.clamp(-87.3, 88.37);
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let polynomial = 1.987_569_1e-4;
    let polynomial = polynomial * r + 1.398_199_9e-3;
    let polynomial = polynomial * r + 8.333_452e-3;
    let polynomial = polynomial * r + 4.166_579_6e-2;
    let polynomial = polynomial * r + 1.666_666_5e-1;
    let polynomial = polynomial * r + 5.000_000_3e-1;
    let mantissa = polynomial * r * r + r + 1.0;
    // From the low bits of the sum, not by a conversion: that saturates, and the compiler does it lane by lane.
    let scale = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.3 { 0.0 } else { mantissa * scale }
}

/// The error function, to a few units in the last place: a rational function of x² (Eigen's coefficients).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = -2.726_142_3e-10;
    let p = p * s + 2.770_681_4e-8;
    let p = p * s - 2.101_024e-6;
    let p = p * s - 5.692_506_4e-5;
    let p = p * s - 7.349_906_3e-4;
    let p = p * s - 2.954_6e-3;
    let p = p * s - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * s - 2.133_740_5e-4;
    let q = q * s - 1.682_827e-3;
    let q = q * s - 7.373_329e-3;
    let q = q * s - 1.426_474e-2;
    x * p / q
}

/// tanh by the exponential; absolute error about 1e-7, which is what GELU needs of it.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Σ f(i) over `0..length`, in 16 lanes that are folded at the end: the order depends on the length alone.
#[inline(always)]
fn lanes(length: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let whole = length - length % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
    }
    for (i, sum) in (whole..length).zip(&mut sums) {
        *sum += f(i);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Σ x
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    lanes(x.len(), |i| x[i])
}

/// Σ x y
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let y = &y[..x.len()];
    lanes(x.len(), |i| x[i] * y[i])
}

/// The largest element; −∞ of nothing. A NaN makes it NaN.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane || value.is_nan() { *value } else { *lane };
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |a, &b| if b > a || b.is_nan() { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(found: f32, expected: f64) -> f64 {
        (f64::from(found) - expected).abs() / (expected.abs() * f64::from(f32::EPSILON)).max(1e-38)
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -87_000..88_370 {
            let x = i as f32 / 1000.0;
            assert!(units(exp(x), f64::from(x).exp()) <= 2.0, "exp({x}) = {}", exp(x));
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_agrees_with_its_series() {
        // erf(x) = 2 / sqrt(pi) * sum (-1)^n x^(2n+1) / (n! (2n+1)), which converges fast enough below 4.
        for i in -390..=390 {
            let x = f64::from(i as f32 / 100.0);
            let (mut term, mut series) = (x, x);
            for n in 1..120 {
                term *= -x * x / f64::from(n);
                series += term / f64::from(2 * n + 1);
            }
            let expected = series * 2.0 / std::f64::consts::PI.sqrt();
            // A few units in the last place of 1, the function's bound.
            assert!((f64::from(erf(x as f32)) - expected).abs() < 4e-7, "erf({x})");
        }
    }

    #[test]
    fn max_sees_a_nan_anywhere() {
        for at in 0..40 {
            let mut values = vec![1.0f32; 40];
            values[at] = f32::NAN;
            assert!(max(&values).is_nan());
        }
        assert_eq!(max(&[3.0, 7.0, -1.0]), 7.0);
    }
}
