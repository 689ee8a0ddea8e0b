//! Statistics of agreement. Every random draw comes from a seed that the caller gives.
//!
//! A figure that is not defined (a constant column, too few rows) is `None`, never 0 or NaN.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// The mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Pearson's correlation. `None` below two pairs, and where a column is constant.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.len() != y.len() || x.len() < 2 {
        return None;
    }
    let (mean_x, mean_y) = (mean(x)?, mean(y)?);
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (a, b) in x.iter().zip(y) {
        let (a, b) = (a - mean_x, b - mean_y);
        xx += a * a;
        yy += b * b;
        xy += a * b;
    }
    let scale = xx.sqrt() * yy.sqrt();
    (scale > 0.0).then(|| (xy / scale).clamp(-1.0, 1.0))
}

/// Two-sided p of a correlation over `pairs` pairs, by Student's t with n − 2 degrees of freedom.
pub fn correlation_p(correlation: f64, pairs: usize) -> Option<f64> {
    if pairs < 3 {
        return None;
    }
    let freedom = pairs as f64 - 2.0;
    let t = correlation.abs() * (freedom / ((1.0 - correlation) * (1.0 + correlation))).sqrt();
    if t.is_infinite() {
        return Some(0.0);
    }
    Some(2.0 * StudentsT::new(0.0, 1.0, freedom).ok()?.sf(t))
}

/// Ranks from 1; equal values share their mean rank.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    while first < order.len() {
        let same = order[first..].iter().take_while(|&&at| values[at] == values[order[first]]).count().max(1);
        for &at in &order[first..first + same] {
            ranks[at] = first as f64 + (same as f64 + 1.0) / 2.0;
        }
        first += same;
    }
    ranks
}

/// Spearman's rank correlation: Pearson's of the ranks.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    pearson(&ranks(x), &ranks(y))
}

/// Kendall's τ-b, by Knight's algorithm (1966) in n log n steps.
pub fn kendall(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.len() != y.len() || x.len() < 2 {
        return None;
    }
    let mut pairs: Vec<(f64, f64)> = x.iter().copied().zip(y.iter().copied()).collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let tied = |same: &dyn Fn(usize, usize) -> bool| -> f64 {
        let (mut sum, mut run) = (0.0, 1.0);
        for at in 1..=pairs.len() {
            if at < pairs.len() && same(at - 1, at) {
                run += 1.0;
            } else {
                sum += run * (run - 1.0) / 2.0;
                run = 1.0;
            }
        }
        sum
    };
    let tied_x = tied(&|a, b| pairs[a].0 == pairs[b].0);
    let tied_both = tied(&|a, b| pairs[a] == pairs[b]);
    let mut column: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
    let swaps = sort_counting(&mut column);
    let (mut tied_y, mut run) = (0.0, 1.0);
    for at in 1..=column.len() {
        if at < column.len() && column[at - 1] == column[at] {
            run += 1.0;
        } else {
            tied_y += run * (run - 1.0) / 2.0;
            run = 1.0;
        }
    }
    let count = x.len() as f64;
    let all = count * (count - 1.0) / 2.0;
    let difference = all - tied_x - tied_y + tied_both - 2.0 * swaps;
    let scale = (all - tied_x).sqrt() * (all - tied_y).sqrt();
    (scale > 0.0).then(|| (difference / scale).clamp(-1.0, 1.0))
}

/// Sorts, and counts how many pairs stood the wrong way round.
fn sort_counting(values: &mut [f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let (left, right) = values.split_at_mut(values.len() / 2);
    let mut swaps = sort_counting(left) + sort_counting(right);
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if r < right.len() && (l == left.len() || right[r] < left[l]) {
            swaps += (left.len() - l) as f64;
            merged.push(right[r]);
            r += 1;
        } else {
            merged.push(left[l]);
            l += 1;
        }
    }
    values.copy_from_slice(&merged);
    swaps
}

/// How far apart two marks are in Cohen's kappa.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Equal or not.
    Unweighted,
    /// The square of the difference between the marks. On a scale of even steps this is the square of the distance
    /// between their places on it, those of marks that nobody gave included.
    Quadratic,
}

/// Cohen's kappa between two raters. `None` where chance agreement is already complete.
pub fn cohen_kappa(first: &[f64], second: &[f64], weights: Weights) -> Option<f64> {
    if first.len() != second.len() || first.is_empty() {
        return None;
    }
    let labels = distinct(first.iter().chain(second));
    let place = |value: &f64| labels.partition_point(|label| label < value);
    let mut table = vec![vec![0.0; labels.len()]; labels.len()];
    for (a, b) in first.iter().zip(second) {
        table[place(a)][place(b)] += 1.0;
    }
    let rows: Vec<f64> = table.iter().map(|row| row.iter().sum()).collect();
    let columns: Vec<f64> = (0..labels.len()).map(|b| table.iter().map(|row| row[b]).sum()).collect();
    let (mut observed, mut expected) = (0.0, 0.0);
    for (a, row) in table.iter().enumerate() {
        for (b, count) in row.iter().enumerate() {
            let weight = match weights {
                Weights::Unweighted => f64::from(u8::from(a != b)),
                Weights::Quadratic => (labels[a] - labels[b]).powi(2),
            };
            observed += weight * count;
            expected += weight * rows[a] * columns[b] / first.len() as f64;
        }
    }
    (expected > 0.0).then(|| 1.0 - observed / expected)
}

fn distinct<'a>(values: impl Iterator<Item = &'a f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.copied().collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    values
}

/// What distances between marks mean in Krippendorff's alpha.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measurement {
    /// Equal or not.
    Nominal,
    /// The order alone.
    Ordinal,
    /// The difference.
    Interval,
}

/// Krippendorff's alpha (2011, "Computing Krippendorff's Alpha-Reliability"). A unit is one response's marks,
/// one a rater; units with fewer than two marks say nothing and are left out. `None` where no two marks differ.
pub fn krippendorff_alpha(units: &[Vec<f64>], measurement: Measurement) -> Option<f64> {
    let units: Vec<&Vec<f64>> = units.iter().filter(|marks| marks.len() >= 2).collect();
    let labels = distinct(units.iter().flat_map(|marks| marks.iter()));
    let place = |value: &f64| labels.partition_point(|label| label < value);
    let mut coincidences = vec![vec![0.0; labels.len()]; labels.len()];
    for marks in units {
        for (at, a) in marks.iter().enumerate() {
            for (_, b) in marks.iter().enumerate().filter(|(other, _)| *other != at) {
                coincidences[place(a)][place(b)] += 1.0 / (marks.len() as f64 - 1.0);
            }
        }
    }
    let totals: Vec<f64> = coincidences.iter().map(|row| row.iter().sum()).collect();
    let all: f64 = totals.iter().sum();
    let distance = |a: usize, b: usize| match measurement {
        Measurement::Nominal => f64::from(u8::from(a != b)),
        Measurement::Interval => (labels[a] - labels[b]).powi(2),
        Measurement::Ordinal => {
            let (low, high) = (a.min(b), a.max(b));
            (totals[low..=high].iter().sum::<f64>() - (totals[low] + totals[high]) / 2.0).powi(2)
        }
    };
    let (mut observed, mut expected) = (0.0, 0.0);
    for (a, row) in coincidences.iter().enumerate() {
        for (b, count) in row.iter().enumerate() {
            observed += count * distance(a, b);
            expected += totals[a] * totals[b] * distance(a, b);
        }
    }
    (expected > 0.0).then(|| 1.0 - (all - 1.0) * observed / expected)
}

/// A figure with its bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// The 95 % percentile interval of `figure` over `rows` rows drawn with replacement. Draws on which the
/// figure is not defined are left out; `None` where they are more than half, or nothing is drawn.
pub fn bootstrap_interval(
    rows: usize,
    draws: usize,
    seed: u64,
    figure: impl Fn(&[usize]) -> Option<f64>,
) -> Option<Interval> {
    if rows < 2 {
        return None;
    }
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = vec![0; rows];
    let mut figures: Vec<f64> = (0..draws)
        .filter_map(|_| {
            drawn.iter_mut().for_each(|row| *row = generator.random_range(0..rows));
            figure(&drawn)
        })
        .collect();
    if figures.is_empty() || figures.len() * 2 < draws {
        return None;
    }
    Some(percentile_interval(&mut figures))
}

/// From 2.5 to 97.5 %, interpolated linearly as numpy does.
fn percentile_interval(figures: &mut [f64]) -> Interval {
    figures.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share * (figures.len() as f64 - 1.0);
        let (low, high) = (figures[place.floor() as usize], figures[place.ceil() as usize]);
        low + (high - low) * place.fract()
    };
    Interval { low: at(0.025), high: at(0.975) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn krippendorffs_own_example() {
        // Krippendorff 2011, section C: four observers, twelve units, marks missing.
        let observers: [[u8; 12]; 4] = [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
            [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
        ];
        let units: Vec<Vec<f64>> = (0..12)
            .map(|unit| {
                observers.iter().map(|marks| f64::from(marks[unit])).filter(|&mark| mark > 0.0).collect()
            })
            .collect();
        // Published to three digits.
        for (measurement, published) in
            [(Measurement::Nominal, 0.743), (Measurement::Ordinal, 0.815), (Measurement::Interval, 0.849)]
        {
            let alpha = krippendorff_alpha(&units, measurement).unwrap();
            assert!((alpha - published).abs() < 5e-4, "{measurement:?}: {alpha}");
        }
    }

    #[test]
    fn what_is_not_defined_is_none() {
        assert_eq!(pearson(&[1.0], &[1.0]), None);
        assert_eq!(pearson(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(kendall(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(cohen_kappa(&[1.0, 1.0], &[1.0, 1.0], Weights::Unweighted), None);
        assert_eq!(krippendorff_alpha(&[vec![1.0], vec![2.0]], Measurement::Nominal), None);
        assert_eq!(bootstrap_interval(1, 100, 0, |_| Some(1.0)), None);
        assert_eq!(bootstrap_interval(2, 0, 0, |_| Some(1.0)), None);
    }

    /// scikit-learn 1.9.1: `cohen_kappa_score(first, second, labels=[1, 2, 3, 4, 5], weights="quadratic")`. Nobody gave
    /// 3 or 4: 2 and 5 are still three apart.
    #[test]
    fn kappa_knows_of_marks_that_nobody_gave() {
        let (first, second) =
            ([1.0, 2.0, 5.0, 5.0, 1.0, 2.0, 2.0, 5.0], [1.0, 2.0, 5.0, 2.0, 2.0, 1.0, 2.0, 5.0]);
        let kappa = cohen_kappa(&first, &second, Weights::Quadratic).unwrap();
        assert!((kappa - 0.738_095_238_095_238_1).abs() < 1e-12, "{kappa}");
        // A scale in halves has the same order and distances.
        let halves = |marks: &[f64]| marks.iter().map(|mark| mark / 2.0).collect::<Vec<f64>>();
        assert_eq!(cohen_kappa(&halves(&first), &halves(&second), Weights::Quadratic), Some(kappa));
    }

    proptest! {
        #[test]
        fn kendall_equals_its_definition(pairs in prop::collection::vec((0..5_u8, 0..5_u8), 2..30)) {
            let (x, y): (Vec<f64>, Vec<f64>) = pairs.iter().map(|&(a, b)| (f64::from(a), f64::from(b))).unzip();
            let sign = |value: f64| if value == 0.0 { 0.0 } else { value.signum() };
            let (mut sum, mut xs, mut ys) = (0.0, 0.0, 0.0);
            for a in 0..x.len() {
                for b in 0..a {
                    let (dx, dy) = (sign(x[a] - x[b]), sign(y[a] - y[b]));
                    sum += dx * dy;
                    xs += dx * dx;
                    ys += dy * dy;
                }
            }
            let expected = (xs * ys > 0.0).then(|| sum / f64::sqrt(xs * ys));
            match (kendall(&x, &y), expected) {
                (Some(found), Some(expected)) => prop_assert!((found - expected).abs() < 1e-12),
                (found, expected) => prop_assert_eq!(found, expected),
            }
        }
    }
}
