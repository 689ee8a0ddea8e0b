//! The bootstrap: how far a total would move with other prompts and other seeds.
//!
//! Scores of one cell form a table of seeds by prompts. A resample draws prompts with replacement, and seeds with
//! replacement, and takes the total again; every cell of an experiment is drawn with the same resamples, so that a
//! difference of two cells is a paired one. Intervals are the percentiles 2.5 and 97.5 (Efron and Tibshirani 1993,
//! chapter 13).

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Scores of one cell: a row a seed, a column a prompt; NaN where there is no rating.
pub type Table = Vec<Vec<f64>>;

/// A number with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The number itself, over the prompts and seeds as they are.
    pub value: f64,
    /// Percentile 2.5 of the resamples.
    pub low: f64,
    /// Percentile 97.5 of the resamples.
    pub high: f64,
}

impl Estimate {
    /// Whether the interval leaves zero out.
    pub fn excludes_zero(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

/// A total with its 95 % interval, if it has one: over fewer than two rated prompts every resample that counts is the
/// same, and says nothing of other prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Total {
    /// The total itself, over the prompts and seeds as they are.
    pub value: f64,
    /// Percentile 2.5 of the resamples.
    pub low: Option<f64>,
    /// Percentile 97.5 of the resamples.
    pub high: Option<f64>,
}

impl Total {
    /// The ends of the interval.
    pub fn interval(&self) -> Option<(f64, f64)> {
        self.low.zip(self.high)
    }

    /// The total, if it has an interval.
    pub fn estimate(&self) -> Option<Estimate> {
        self.interval().map(|(low, high)| Estimate { value: self.value, low, high })
    }
}

/// The difference of two totals, with how sure it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// The difference, with its interval.
    pub estimate: Estimate,
    /// Its standard error: the standard deviation of the resamples. 0 where every resample is the same, as for a
    /// difference that is the same on every prompt.
    pub error: f64,
}

/// The quantiles of the normal distribution at 97.5 % and at 80 %: a two-sided test at 5 % that finds a difference four
/// times in five needs one of their sum in standard errors.
const FOUND: f64 = 1.959_964 + 0.841_621;

impl Difference {
    /// Two-sided p of no difference. From the standard error and the normal distribution, as counted resamples could
    /// show no p below one in their number, and many comparisons at once need smaller ones. None where there is a
    /// difference and no standard error to hold it against.
    pub fn p(&self) -> Option<f64> {
        if self.estimate.value == 0.0 {
            return Some(1.0);
        }
        let deviations = (self.error > 0.0).then(|| (self.estimate.value / self.error).abs())?;
        Some(libm::erfc(deviations / std::f64::consts::SQRT_2))
    }

    /// The smallest difference that so many prompts and seeds would find four times in five; none without a standard
    /// error.
    pub fn detectable(&self) -> Option<f64> {
        (self.error > 0.0).then_some(FOUND * self.error)
    }
}

/// p values corrected for being several (Holm 1979), in their order.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut corrected = vec![0.0; p_values.len()];
    let mut largest: f64 = 0.0;
    for (place, &at) in order.iter().enumerate() {
        largest = largest.max((p_values[at] * (p_values.len() - place) as f64).min(1.0));
        corrected[at] = largest;
    }
    corrected
}

/// Numbers that differ by less than this share of themselves differ by what sums in another order round.
const ROUNDING: f64 = 1e-12;

/// Whether two numbers differ by no more than rounding.
pub fn is_same(left: f64, right: f64) -> bool {
    (left - right).abs() <= ROUNDING * left.abs()
}

/// How often each prompt and each seed was drawn, for every resample.
#[derive(Debug, Clone)]
pub struct Resamples {
    prompts: Vec<Vec<f64>>,
    seeds: Vec<Vec<f64>>,
}

impl Resamples {
    /// Draws `count` resamples of `prompts` prompts and `seeds` seeds, the same for the same numbers and `seed`.
    pub fn draw(count: usize, prompts: usize, seeds: usize, seed: u64) -> Self {
        let draw = |size: usize, stream: u64| {
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            generator.set_stream(stream);
            (0..count)
                .map(|_| {
                    let mut drawn = vec![0.0; size];
                    for _ in 0..size {
                        drawn[generator.random_range(0..size)] += 1.0;
                    }
                    drawn
                })
                .collect()
        };
        Self { prompts: draw(prompts, 2 * prompts as u64), seeds: draw(seeds, 2 * seeds as u64 + 1) }
    }

    /// The total of a cell over `prompts` prompts; none if nothing was rated.
    pub fn total(&self, table: &Table, prompts: usize) -> Option<Total> {
        Self::mean_of_totals(&[(self, table, prompts)])
    }

    /// The total of a table of differences over `prompts` prompts, with how sure it is; none unless two prompts have
    /// a difference, as one says nothing of how others would differ.
    pub fn difference(&self, differences: &Table, prompts: usize) -> Option<Difference> {
        let statistic =
            |prompt_weights, seed_weights| total(differences, prompts, prompt_weights, seed_weights);
        let drawn = self.prompts.iter().zip(&self.seeds);
        let resampled = drawn.map(|(prompts, seeds)| statistic(Some(prompts), Some(seeds)));
        if has_spread(differences) { spread(statistic(None, None), resampled) } else { None }
    }

    /// The mean of several cells' totals: the same place in the order of resamples draws all of them. Each part is a
    /// cell's resamples, scores and number of prompts. None unless every part has a total, without an interval unless
    /// every part has two rated prompts.
    pub fn mean_of_totals(parts: &[(&Self, &Table, usize)]) -> Option<Total> {
        let mean = |place: Option<usize>| {
            let totals = parts.iter().map(|(resamples, table, prompts)| {
                total(
                    table,
                    *prompts,
                    place.map(|place| resamples.prompts[place].as_slice()),
                    place.map(|place| resamples.seeds[place].as_slice()),
                )
            });
            totals.sum::<f64>() / parts.len() as f64
        };
        let count = parts.iter().map(|(resamples, ..)| resamples.prompts.len()).min()?;
        let value = Some(mean(None)).filter(|value| !value.is_nan())?;
        let found = if parts.iter().all(|(_, table, _)| has_spread(table)) {
            spread(value, (0..count).map(|place| mean(Some(place))))
        } else {
            None
        };
        let estimate = found.map(|found| found.estimate);
        Some(Total { value, low: estimate.map(|found| found.low), high: estimate.map(|found| found.high) })
    }
}

/// Whether two prompts at least have a number, so that resamples can differ.
pub fn has_spread(table: &Table) -> bool {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let rated =
        |column: &usize| table.iter().any(|row| row.get(*column).is_some_and(|score| !score.is_nan()));
    (0..columns).filter(rated).nth(1).is_some()
}

/// A value with the percentiles and the standard deviation of its resamples; none if no resample counts.
fn spread(value: f64, resampled: impl Iterator<Item = f64>) -> Option<Difference> {
    // A resample may draw none of the few rated prompts: it says nothing, and is left out.
    let mut values: Vec<f64> = resampled.filter(|value| !value.is_nan()).collect();
    values.sort_by(f64::total_cmp);
    if values.is_empty() {
        return None;
    }
    let estimate = Estimate { value, low: percentile(&values, 0.025), high: percentile(&values, 0.975) };
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let error = (squares / values.len() as f64).sqrt();
    Some(Difference { estimate, error: if error > ROUNDING * mean.abs() { error } else { 0.0 } })
}

/// The mean over seeds of `prompts` × the mean score of the rated prompts; NaN if nothing was rated. With every
/// prompt rated this is the sum of the scores; with some unrated, the rated ones stand for them, so that an unrated
/// response never counts as a zero.
pub fn total(
    table: &Table,
    prompts: usize,
    prompt_weights: Option<&[f64]>,
    seed_weights: Option<&[f64]>,
) -> f64 {
    let (mut sum, mut weight) = (0.0, 0.0);
    for (seed, row) in table.iter().enumerate() {
        let seed_weight = seed_weights.map_or(1.0, |weights| weights.get(seed).copied().unwrap_or(0.0));
        if seed_weight == 0.0 {
            continue;
        }
        let (mut row_sum, mut row_weight) = (0.0, 0.0);
        for (prompt, &score) in row.iter().enumerate() {
            if !score.is_nan() {
                let weight = prompt_weights.map_or(1.0, |weights| weights[prompt]);
                row_sum += weight * score;
                row_weight += weight;
            }
        }
        if row_weight > 0.0 {
            sum += seed_weight * prompts as f64 * row_sum / row_weight;
            weight += seed_weight;
        }
    }
    sum / weight
}

/// The scores of `left` minus those of `right`, NaN where either has no rating: such prompts are left out on both sides.
/// `paired` says that rows of both are the same seeds; where they are not, the means over the seeds are one row, so that
/// only prompts are drawn.
pub fn subtract(left: &Table, right: &Table, paired: bool) -> Table {
    let minus = |left: &[f64], right: &[f64]| {
        let difference = |(left, right): (&f64, &f64)| {
            // The mean of equal marks may be rounded.
            if is_same(*left, *right) { 0.0 } else { left - right }
        };
        left.iter().zip(right).map(difference).collect()
    };
    if paired && left.len() == right.len() {
        left.iter().zip(right).map(|(left, right)| minus(left, right)).collect()
    } else {
        vec![minus(&mean_of_rows(left), &mean_of_rows(right))]
    }
}

/// The mean of each column over its rated rows; NaN where no row is rated.
fn mean_of_rows(table: &Table) -> Vec<f64> {
    let columns = table.first().map_or(0, Vec::len);
    (0..columns)
        .map(|column| {
            let rated: Vec<f64> =
                table.iter().map(|row| row[column]).filter(|score| !score.is_nan()).collect();
            rated.iter().sum::<f64>() / rated.len() as f64
        })
        .collect()
}

/// A percentile of sorted values, linear between neighbours (NumPy's default).
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_of_rated_prompts_is_their_sum() {
        let table = vec![vec![3.0, 0.0, 1.0, 2.0]];
        assert_eq!(total(&table, 4, None, None), 6.0);
    }

    #[test]
    fn an_unrated_prompt_is_not_a_zero() {
        let table = vec![vec![3.0, f64::NAN, 1.0, 2.0]];
        assert_eq!(total(&table, 4, None, None), 8.0);
        assert!(total(&vec![vec![f64::NAN; 4]], 4, None, None).is_nan());
    }

    #[test]
    fn a_seed_with_nothing_rated_does_not_count() {
        let table = vec![vec![3.0, 3.0], vec![f64::NAN, f64::NAN]];
        assert_eq!(total(&table, 2, None, None), 6.0);
    }

    /// `numpy.percentile([1, 2, 3, 10], [2.5, 97.5])` (NumPy 2.2) is `[1.075, 9.475]`.
    #[test]
    fn percentiles_are_numpys() {
        let values = [1.0, 2.0, 3.0, 10.0];
        // Exact but for the last bits of a sum of two products.
        assert!((percentile(&values, 0.025) - 1.075).abs() < 1e-12);
        assert!((percentile(&values, 0.975) - 9.475).abs() < 1e-12);
    }

    #[test]
    fn equal_cells_cannot_be_told_apart_and_a_constant_gap_can() {
        let resamples = Resamples::draw(500, 20, 2, 7);
        let left: Table =
            (0..2).map(|seed| (0..20).map(|prompt| f64::from((seed + prompt) % 4)).collect()).collect();
        let equal = resamples.difference(&subtract(&left, &left, true), 20).unwrap();
        assert_eq!((equal.p(), equal.detectable()), (Some(1.0), None));
        let equal = equal.estimate;
        assert_eq!((equal.value, equal.low, equal.high), (0.0, 0.0, 0.0));
        assert!(!equal.excludes_zero());
        let right: Table = left.iter().map(|row| row.iter().map(|score| score - 1.0).collect()).collect();
        let gap = resamples.difference(&subtract(&left, &right, true), 20).unwrap();
        // The same gap on every prompt: the interval has no width, and there is nothing to make a test of.
        assert_eq!((gap.p(), gap.detectable()), (None, None));
        let gap = gap.estimate;
        assert_eq!(gap.value, 20.0);
        assert!(gap.excludes_zero());
    }

    /// Sums of tenths round differently in each resample: that is no spread. Nor is the mean of three equal marks another
    /// mark.
    #[test]
    fn what_is_rounded_is_neither_a_spread_nor_a_difference() {
        let resamples = Resamples::draw(500, 7, 1, 7);
        let tenth = resamples.difference(&vec![vec![0.1; 7]], 7).unwrap();
        assert_eq!((tenth.error, tenth.p(), tenth.detectable()), (0.0, None, None));
        let (three, two) = (vec![vec![2.1; 7]; 3], vec![vec![2.1; 7]; 2]);
        let equal = resamples.difference(&subtract(&three, &two, false), 7).unwrap();
        assert_eq!((equal.estimate.value, equal.p()), (0.0, Some(1.0)));
    }

    /// With one prompt every resample that draws it is the same, as if there were no doubt.
    #[test]
    fn one_rated_prompt_has_a_total_and_tells_nothing_apart() {
        let resamples = Resamples::draw(500, 3, 2, 7);
        let one = vec![vec![f64::NAN, 2.0, f64::NAN], vec![f64::NAN, 2.0, f64::NAN]];
        assert_eq!(resamples.difference(&one, 3), None);
        let value_alone = Some(Total { value: 6.0, low: None, high: None });
        assert_eq!(resamples.total(&one, 3), value_alone);
        let two = vec![vec![f64::NAN, 2.0, f64::NAN], vec![1.0, f64::NAN, f64::NAN]];
        let parts = [(&resamples, &two, 3), (&resamples, &one, 3)];
        let mean = Resamples::mean_of_totals(&parts).unwrap();
        assert_eq!((mean.value, mean.interval()), (5.25, None));
        assert_eq!(resamples.total(&vec![vec![f64::NAN; 3]], 3), None);
        // Two prompts may be rated for two seeds.
        let found = resamples.difference(&two, 3).unwrap();
        assert_eq!((found.estimate.low, found.estimate.high), (3.0, 6.0));
        assert!(found.error > 0.0 && found.p().unwrap() > 0.0);
        assert_eq!(resamples.total(&two, 3).unwrap().interval(), Some((3.0, 6.0)));
    }

    #[test]
    fn holm_as_in_the_textbook() {
        let corrected = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, expected) in corrected.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((found - expected).abs() < 1e-12, "{corrected:?}");
        }
    }

    /// Of 400 paired differences of 1 and -1 with mean 0.1, the total's standard error is sqrt(0.99 x 400) = 19.9, and
    /// z is 40 / 19.9 = 2.01: p is 0.044. Tolerance: a standard deviation of 2,000 resamples is right to 3.2 %, twice
    /// that moves z by 0.13 and p by 0.014.
    #[test]
    fn p_and_what_can_be_found_are_as_theory_says() {
        let resamples = Resamples::draw(2000, 400, 1, 3);
        let left =
            vec![(0..400).map(|prompt| if prompt % 20 < 11 { 1.0 } else { -1.0 }).collect::<Vec<f64>>()];
        let found = resamples.difference(&left, 400).unwrap();
        assert_eq!(found.estimate.value, 40.0);
        let (p, detectable) = (found.p().unwrap(), found.detectable().unwrap());
        assert!((p - 0.044).abs() < 0.014, "{p}");
        assert!((detectable - 2.8016 * 19.9).abs() < 0.065 * 2.8016 * 19.9, "{detectable}");
    }

    /// The bootstrap's interval of a mean of independent draws comes near the normal one: for 400 values of 0 and 3
    /// in equal parts, the total's standard error is 1.5 × sqrt(400) = 30. Tolerance: the percentile of 2,000
    /// resamples has a standard error near 0.06 of a standard deviation.
    #[test]
    fn an_interval_is_as_wide_as_theory_says() {
        let resamples = Resamples::draw(2000, 400, 1, 3);
        let table = vec![(0..400).map(|prompt| if prompt % 2 == 0 { 3.0 } else { 0.0 }).collect::<Vec<_>>()];
        let estimate = resamples.total(&table, 400).and_then(|total| total.estimate()).unwrap();
        assert_eq!(estimate.value, 600.0);
        assert!((estimate.low - (600.0 - 1.96 * 30.0)).abs() < 6.0, "{estimate:?}");
        assert!((estimate.high - (600.0 + 1.96 * 30.0)).abs() < 6.0, "{estimate:?}");
    }
}
