//! Every number of a report, counted again from the raw records the plain way: lists of drawn prompts instead of
//! weights, one cell at a time, and nothing of the library but the records' shapes.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use report::records::*;

/// A row a seed, a column a prompt; none where there is no rating.
pub(crate) type Rows = Vec<Vec<Option<f64>>>;

/// A value and its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// A row of results, by what it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) base_model: String,
    pub(crate) method: Option<String>,
    pub(crate) recipe: String,
}

/// A pair of recipes, and the difference of their totals.
pub(crate) type Pair = (String, String, Difference);

/// A difference, and the standard deviation of its resamples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Difference {
    pub(crate) estimate: Estimate,
    pub(crate) error: f64,
}

impl Difference {
    /// Two-sided p of no difference, were it normal.
    pub(crate) fn p(&self) -> Option<f64> {
        match (self.estimate.value, self.error) {
            (0.0, _) => Some(1.0),
            (_, 0.0) => None,
            (value, error) => Some(libm::erfc((value / error).abs() / 2f64.sqrt())),
        }
    }

    /// What is found four times in five.
    pub(crate) fn detectable(&self) -> Option<f64> {
        (self.error > 0.0).then_some(2.801_585 * self.error)
    }
}

/// Holm's correction: the smallest of n is taken n times, the next n - 1 times, and none is below a smaller one's. What
/// has no p is not among the n.
pub(crate) fn holm(p_values: &[Option<f64>]) -> Vec<Option<f64>> {
    let mut sorted: Vec<f64> = p_values.iter().copied().flatten().collect();
    sorted.sort_by(f64::total_cmp);
    let times = |place: usize| (sorted[place] * (sorted.len() - place) as f64).min(1.0);
    let mut highest = Vec::new();
    for place in 0..sorted.len() {
        highest.push(times(place).max(highest.last().copied().unwrap_or(0.0)));
    }
    let last_of = |p: f64| sorted.partition_point(|other| *other <= p) - 1;
    p_values.iter().map(|p| p.map(|p| highest[last_of(p)])).collect()
}

/// How recipes compare in one language.
pub(crate) struct Case {
    pub(crate) base_model: String,
    pub(crate) method: String,
    pub(crate) language: Language,
    pub(crate) leader: String,
    pub(crate) tied: Vec<String>,
    pub(crate) level: Vec<String>,
    pub(crate) twins: usize,
    pub(crate) pairs: Vec<Pair>,
}

/// Two recipes in one language, over all base models.
pub(crate) struct Pooled {
    pub(crate) method: String,
    pub(crate) language: Language,
    pub(crate) left: String,
    pub(crate) right: String,
    pub(crate) base_models: usize,
    pub(crate) difference: Estimate,
}

/// The raw records.
pub(crate) struct Plain {
    pub(crate) experiment: Experiment,
    pub(crate) systems: Vec<System>,
    pub(crate) scores: Vec<Score>,
    by_run: HashMap<(String, String), Vec<usize>>,
    resamples: usize,
    seed: u64,
}

impl Plain {
    pub(crate) fn read(folder: &Path, options: &report::Options) -> Self {
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        let scores: Vec<Score> =
            text(SCORES_FILE).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut by_run: HashMap<(String, String), Vec<usize>> = HashMap::new();
        for (place, score) in scores.iter().enumerate() {
            by_run.entry((score.system.clone(), score.language.clone())).or_default().push(place);
        }
        Self {
            experiment: serde_json::from_str(&text(EXPERIMENT_FILE)).unwrap(),
            systems: text(SYSTEMS_FILE).lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
            scores,
            by_run,
            resamples: options.resamples,
            seed: options.seed,
        }
    }

    /// Every line that the experiment has, in order.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for base in &self.experiment.base_models {
            let base_model = base.name.clone();
            lines.push(Line { base_model, method: None, recipe: "untuned".to_owned() });
            for method in &self.experiment.methods {
                for recipe in &self.experiment.recipes {
                    lines.push(Line {
                        base_model: base.name.clone(),
                        method: Some(method.clone()),
                        recipe: recipe.name.clone(),
                    });
                }
            }
        }
        lines
    }

    pub(crate) fn line(&self, base_model: &str, method: &str, recipe: &str) -> Line {
        let method = (recipe != "untuned").then(|| method.to_owned());
        Line { base_model: base_model.to_owned(), method, recipe: recipe.to_owned() }
    }

    /// The systems of a line, whatever their language.
    pub(crate) fn systems_of(&self, line: &Line) -> Vec<&System> {
        let english = ["en".to_owned()];
        self.systems
            .iter()
            .filter(|system| system.base_model.as_deref() == Some(&line.base_model))
            .filter(|system| system.method == line.method)
            .filter(|system| match line.recipe.as_str() {
                "untuned" => system.kind == SystemKind::Base,
                "english" => system.languages == english,
                recipe => system.recipe.as_deref() == Some(recipe),
            })
            .collect()
    }

    /// The systems that answer for a line in a language.
    pub(crate) fn runs_of(&self, line: &Line, language: &str) -> Vec<&System> {
        let mut systems = self.systems_of(line);
        if line.recipe == "monolingual" {
            systems.retain(|system| system.languages == [language]);
        }
        systems
    }

    pub(crate) fn scores_of(&self, system: &str, language: &str) -> Vec<&Score> {
        let places = self.by_run.get(&(system.to_owned(), language.to_owned()));
        places.into_iter().flatten().map(|&place| &self.scores[place]).collect()
    }

    /// A run's scores by prompt, `number` of them.
    pub(crate) fn row(&self, system: &str, language: &str, number: fn(&Score) -> f64) -> Vec<Option<f64>> {
        let mut row = vec![None; self.experiment.prompts[language]];
        for score in self.scores_of(system, language) {
            if score.status == ScoreStatus::Rated {
                row[score.prompt_id.parse::<usize>().unwrap() - 1] = Some(number(score));
            }
        }
        row
    }

    /// Rows of the runs that have a rating.
    pub(crate) fn rows(&self, line: &Line, language: &str, number: fn(&Score) -> f64) -> Rows {
        let runs = self.runs_of(line, language);
        let rows = runs.iter().map(|system| self.row(&system.id, language, number));
        rows.filter(|row| row.iter().any(Option::is_some)).collect()
    }

    fn draws(&self, size: usize, stream: usize) -> Vec<Vec<usize>> {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(stream as u64);
        let mut draw = || (0..size).map(|_| generator.random_range(0..size)).collect();
        (0..self.resamples).map(|_| draw()).collect()
    }

    /// The total of each resample, first that of the scores as they are.
    fn totals(&self, rows: &Rows) -> Vec<f64> {
        let (seeds, prompts) = (rows.len(), rows[0].len());
        let drawn_seeds = self.draws(seeds, 2 * seeds + 1);
        let drawn_prompts = self.draws(prompts, 2 * prompts);
        let mut totals = vec![total(rows, &all(seeds), &all(prompts))];
        totals.extend(
            drawn_seeds.iter().zip(&drawn_prompts).map(|(seeds, prompts)| total(rows, seeds, prompts)),
        );
        totals
    }

    pub(crate) fn estimate(&self, rows: &Rows) -> Option<Estimate> {
        if rows.is_empty() { None } else { interval(self.totals(rows)) }
    }

    /// The mean over the seen languages.
    pub(crate) fn seen_mean(&self, line: &Line, number: fn(&Score) -> f64) -> Option<Estimate> {
        let mut sums = vec![0.0; self.resamples + 1];
        let seen: Vec<&Language> =
            self.experiment.languages.iter().filter(|language| language.seen).collect();
        for language in &seen {
            let rows = self.rows(line, &language.code, number);
            if rows.is_empty() {
                return None;
            }
            for (sum, total) in sums.iter_mut().zip(self.totals(&rows)) {
                *sum += total / seen.len() as f64;
            }
        }
        interval(sums)
    }

    /// The scores of one line minus those of another.
    fn differences(&self, left: &Line, right: &Line, language: &str) -> Rows {
        let seeds = |line: &Line| -> Vec<Option<u64>> {
            let there = |system: &&&System| self.row(&system.id, language, gated).iter().any(Option::is_some);
            self.runs_of(line, language).iter().filter(there).map(|system| system.seed).collect()
        };
        let (left_rows, right_rows) = (self.rows(left, language, gated), self.rows(right, language, gated));
        let paired = seeds(left) == seeds(right) && !seeds(left).contains(&None);
        if paired {
            left_rows.iter().zip(&right_rows).map(|(left, right)| minus(left, right)).collect()
        } else {
            vec![minus(&column_means(&left_rows), &column_means(&right_rows))]
        }
    }

    /// Every two recipes that are two tunings, where a base model has a total of both.
    pub(crate) fn pooled(&self) -> Vec<Pooled> {
        let mut pooled = Vec::new();
        for method in &self.experiment.methods {
            for language in &self.experiment.languages {
                for (place, left) in self.experiment.recipes.iter().enumerate() {
                    for right in &self.experiment.recipes[place + 1..] {
                        pooled.extend(self.pooled_pair(method, language, &left.name, &right.name));
                    }
                }
            }
        }
        pooled
    }

    fn pooled_pair(&self, method: &str, language: &Language, left: &str, right: &str) -> Option<Pooled> {
        let code = &language.code;
        let mut all: Vec<Vec<f64>> = Vec::new();
        for base in &self.experiment.base_models {
            let [one, other] = [left, right].map(|recipe| self.line(&base.name, method, recipe));
            let rated = |line: &Line| !self.rows(line, code, gated).is_empty();
            if rated(&one) && rated(&other) && self.runs_of(&one, code) != self.runs_of(&other, code) {
                all.push(self.totals(&self.differences(&one, &other, code)));
            }
        }
        if all.is_empty() {
            return None;
        }
        let means = (0..=self.resamples)
            .map(|place| all.iter().map(|totals| totals[place]).sum::<f64>() / all.len() as f64);
        Some(Pooled {
            method: method.to_owned(),
            language: language.clone(),
            left: left.to_owned(),
            right: right.to_owned(),
            base_models: all.len(),
            difference: interval(means.collect())?,
        })
    }

    fn difference(&self, left: &Line, right: &Line, language: &str) -> Difference {
        let rows = self.differences(left, right, language);
        let totals = self.totals(&rows);
        let drawn: Vec<f64> = totals[1..].iter().copied().filter(|total| !total.is_nan()).collect();
        let middle = mean(&drawn).unwrap();
        let squares: Vec<f64> = drawn.iter().map(|total| (total - middle) * (total - middle)).collect();
        Difference { error: mean(&squares).unwrap().sqrt(), estimate: interval(totals).unwrap() }
    }

    pub(crate) fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for base in &self.experiment.base_models {
            for method in &self.experiment.methods {
                for language in &self.experiment.languages {
                    cases.extend(self.case(&base.name, method, language));
                }
            }
        }
        cases
    }

    fn case(&self, base: &str, method: &str, language: &Language) -> Option<Case> {
        let value = |line: &Line| Some(self.estimate(&self.rows(line, &language.code, gated))?.value);
        let mut lines: Vec<(Line, f64)> = Vec::new();
        let mut twins = 0;
        for recipe in &self.experiment.recipes {
            let line = self.line(base, method, &recipe.name);
            let Some(value) = value(&line) else { continue };
            let runs = self.runs_of(&line, &language.code);
            if lines.iter().any(|(other, _)| self.runs_of(other, &language.code) == runs) {
                twins += 1;
            } else {
                lines.push((line, value));
            }
        }
        let mut leader = lines.first()?.clone();
        for line in &lines {
            // Of equal ones the last.
            if line.1 >= leader.1 {
                leader = line.clone();
            }
        }
        let untuned = self.line(base, method, "untuned");
        let mut pairs = Vec::new();
        for (place, (left, _)) in lines.iter().enumerate() {
            let rest = lines[place + 1..].iter().map(|(line, _)| line);
            for right in rest.chain(value(&untuned).map(|_| &untuned)) {
                let difference = self.difference(left, right, &language.code);
                pairs.push((left.recipe.clone(), right.recipe.clone(), difference));
            }
        }
        let is_tied = |value: f64| (value - leader.1).abs() < 1e-9;
        let tied = lines.iter().filter(|(line, value)| line.recipe != leader.0.recipe && is_tied(*value));
        let tied = tied.map(|(line, _)| line.recipe.clone()).collect();
        let others = lines.iter().filter(|(line, _)| line.recipe != leader.0.recipe);
        let level = others
            .filter(|(line, _)| !told_apart(&self.difference(&leader.0, line, &language.code).estimate))
            .map(|(line, _)| line.recipe.clone())
            .collect();
        Some(Case {
            base_model: base.to_owned(),
            method: method.to_owned(),
            language: language.clone(),
            leader: leader.0.recipe,
            tied,
            level,
            twins,
            pairs,
        })
    }

    /// What a line's tunings of one seed took together, the mean over seeds; none if nothing is known of any seed.
    pub(crate) fn cost(&self, line: &Line, number: fn(&Cost) -> f64) -> Option<f64> {
        let mut sums: BTreeMap<Option<u64>, Option<f64>> = BTreeMap::new();
        for system in self.systems_of(line) {
            let sum = sums.entry(system.seed).or_insert(Some(0.0));
            *sum = sum.zip(system.cost.as_ref().map(number)).map(|(sum, cost)| sum + cost);
        }
        mean(&sums.into_values().flatten().collect::<Vec<f64>>())
    }
}

/// Rating × gate.
pub(crate) fn gated(score: &Score) -> f64 {
    score.rating.unwrap() * f64::from(score.gate.unwrap())
}

/// The rating.
pub(crate) fn raw(score: &Score) -> f64 {
    score.rating.unwrap()
}

/// What the gate took.
pub(crate) fn dropped(score: &Score) -> f64 {
    raw(score) - gated(score)
}

pub(crate) fn told_apart(difference: &Estimate) -> bool {
    difference.low > 0.0 || difference.high < 0.0
}

pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn all(size: usize) -> Vec<usize> {
    (0..size).collect()
}

/// The mean over seeds of the number of prompts × the mean of the rated ones.
fn total(rows: &Rows, seeds: &[usize], prompts: &[usize]) -> f64 {
    let of_seed = |&seed: &usize| {
        let rated: Vec<f64> = prompts.iter().filter_map(|&prompt| rows[seed][prompt]).collect();
        Some(mean(&rated)? * prompts.len() as f64)
    };
    mean(&seeds.iter().filter_map(of_seed).collect::<Vec<f64>>()).unwrap_or(f64::NAN)
}

/// The first number, and percentiles 2.5 and 97.5 of the others.
fn interval(totals: Vec<f64>) -> Option<Estimate> {
    let mut drawn: Vec<f64> = totals[1..].iter().copied().filter(|total| !total.is_nan()).collect();
    drawn.sort_by(f64::total_cmp);
    let percentile = |share: f64| {
        let place = share * (drawn.len() - 1) as f64;
        let (below, above) = (drawn[place as usize], drawn[(place as usize + 1).min(drawn.len() - 1)]);
        below + (above - below) * place.fract()
    };
    Some(Estimate { value: totals[0], low: percentile(0.025), high: percentile(0.975) })
}

fn minus(left: &[Option<f64>], right: &[Option<f64>]) -> Vec<Option<f64>> {
    left.iter().zip(right).map(|(left, right)| Some((*left)? - (*right)?)).collect()
}

fn column_means(rows: &Rows) -> Vec<Option<f64>> {
    let column = |place: usize| rows.iter().filter_map(|row| row[place]).collect::<Vec<f64>>();
    (0..rows[0].len()).map(|place| mean(&column(place))).collect()
}
