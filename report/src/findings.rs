//! The answer in words: only what the numbers carry.

use serde::Serialize;

use crate::read::Records;
use crate::records::{Language, Recipe, SystemStatus};
use crate::results::{Case, Cell, Line, Pair, Pooled, Results, Source, Standing, UNTUNED};

/// A finding: what is found, and how it was counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// The finding.
    pub text: String,
    /// What it rests on.
    pub detail: String,
    /// The numbers behind it, to be opened one by one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<Behind>,
}

/// A number behind a finding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Behind {
    /// What is found there.
    pub text: String,
    /// Where its records are.
    pub source: Source,
}

impl Finding {
    fn new(text: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { text: text.into(), detail: detail.into(), behind: Vec::new() }
    }

    fn behind(mut self, behind: Vec<Behind>) -> Self {
        self.behind = behind;
        self
    }
}

/// How many base models × methods get a sentence each; with more, cases are counted.
const FEW: usize = 4;

/// A corrected p below this is taken to be no chance.
const SIGNIFICANT: f64 = 0.05;

/// The findings, the most asked for first.
pub fn findings(records: &Records, results: &Results) -> Vec<Finding> {
    let finder = Finder { records, results };
    let mut findings = finder.leaders();
    findings.extend(finder.power());
    findings.extend(finder.cheapest());
    findings.extend(finder.unseen());
    findings.extend(finder.untuned());
    findings.extend(finder.gate());
    findings.extend(finder.incomplete());
    findings
}

struct Finder<'a> {
    records: &'a Records,
    results: &'a Results,
}

/// The score that a recipe should reach in every seen language: the experiment's, or half of the greatest.
pub fn minimum_score(records: &Records) -> f64 {
    let experiment = &records.experiment;
    let seen = experiment.languages.iter().filter(|language| language.seen);
    let prompts = seen.filter_map(|language| experiment.prompts.get(&language.code)).min().copied();
    experiment.minimum_score.unwrap_or(prompts.unwrap_or(0) as f64 * experiment.rating_range[1] / 2.0)
}

/// A number as it stands in a sentence or a table.
pub fn one_digit(value: f64) -> String {
    // Never "-0.0".
    let value = if value.abs() < 0.05 { 0.0 } else { value };
    format!("{value:.1}")
}

/// Names joined as in a sentence.
pub fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [start @ .., last] => format!("{} and {last}", start.join(", ")),
    }
}

/// A number of things.
pub fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

impl Finder<'_> {
    fn name(&self, code: &str) -> String {
        let known = self.records.experiment.languages.iter().find(|language| language.code == code);
        known.map_or_else(|| code.to_owned(), |language| language.name.clone())
    }

    fn groups(&self) -> Vec<(&str, &str)> {
        let mut groups = Vec::new();
        for case in &self.results.cases {
            let group = (case.base_model.as_str(), case.method.as_str());
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        groups
    }

    fn rows(&self) -> String {
        format!("With C = {}", self.records.experiment.budget.cost())
    }

    fn leaders(&self) -> Vec<Finding> {
        let cases: Vec<&Case> = self.results.cases.iter().filter(|case| case.seen).collect();
        if cases.is_empty() {
            return vec![Finding::new(
                "No recipe has a score in a seen language yet.".to_owned(),
                "No tuned system has a rated response in a language that it was tuned on.".to_owned(),
            )];
        }
        let groups = self.groups();
        if groups.len() <= FEW {
            return groups.iter().map(|&(base, method)| self.leaders_of(base, method, &cases)).collect();
        }
        let methods = self.records.experiment.methods.iter();
        let mut findings: Vec<Finding> = methods.filter_map(|method| self.best_two(method, &cases)).collect();
        let all = self.count_leaders(&self.rows(), &cases, "language × base model × method");
        findings.push(all.behind(self.behind(&cases)));
        if self.records.experiment.methods.len() > 1 {
            for method in &self.records.experiment.methods {
                let of_method: Vec<&Case> =
                    cases.iter().copied().filter(|case| &case.method == method).collect();
                if !of_method.is_empty() {
                    findings.push(self.count_leaders(
                        &format!("By {method}"),
                        &of_method,
                        "language × base model",
                    ));
                }
            }
        }
        findings
    }

    /// The two recipes with the most highest totals by a method, language by language over all base models.
    fn best_two(&self, method: &str, cases: &[&Case]) -> Option<Finding> {
        let cases: Vec<&Case> = cases.iter().copied().filter(|case| case.method == method).collect();
        let leads = |pooled: &Pooled| {
            let count = |recipe: &str| cases.iter().filter(|case| case.is_highest(recipe)).count();
            count(&pooled.left) + count(&pooled.right)
        };
        let seen = || self.results.pooled.iter().filter(|pooled| pooled.seen && pooled.method == method);
        // Of equal ones the first.
        let best = seen().rev().max_by_key(|pooled| leads(pooled))?;
        let pair: Vec<&Pooled> =
            seen().filter(|pooled| pooled.left == best.left && pooled.right == best.right).collect();
        // The one with the higher totals is named first.
        let sum: f64 = pair.iter().map(|pooled| pooled.difference.value).sum();
        let (first, second, sign) =
            if sum < 0.0 { (&best.right, &best.left, -1.0) } else { (&best.left, &best.right, 1.0) };
        let where_is = |wanted: &dyn Fn(&Pooled) -> bool| -> Vec<String> {
            pair.iter().filter(|pooled| wanted(pooled)).map(|pooled| self.name(&pooled.language)).collect()
        };
        let wins =
            where_is(&|pooled| pooled.difference.excludes_zero() && sign * pooled.difference.value > 0.0);
        let losses =
            where_is(&|pooled| pooled.difference.excludes_zero() && sign * pooled.difference.value < 0.0);
        let level = where_is(&|pooled| !pooled.difference.excludes_zero());
        let beats = |winner: &str, loser: &str, languages: &[String]| {
            (!languages.is_empty()).then(|| format!("{winner} beats {loser} in {}", listed(languages)))
        };
        let level = (!level.is_empty())
            .then(|| format!("in {}, {first} and {second} cannot be told apart", listed(&level)));
        let clauses: Vec<String> = [beats(first, second, &wins), beats(second, first, &losses), level]
            .into_iter()
            .flatten()
            .collect();
        let base_models = pair.iter().map(|pooled| pooled.base_models).max()?;
        let numbers: Vec<String> =
            pair.iter().map(|pooled| self.pooled_in_words(pooled, sign, base_models)).collect();
        let text = format!(
            "{}, by {method}, over {}: {}.",
            self.rows(),
            counted(base_models, "base model", "base models"),
            clauses.join("; ")
        );
        let detail = format!(
            "{first} minus {second}, the mean over the base models, with the paired bootstrap's 95 % interval: {}.",
            numbers.join("; ")
        );
        Some(Finding::new(text, detail).behind(self.behind(&cases)))
    }

    /// `Finnish +2.1 [0.4, 3.9]`, and how many base models it is over where that is fewer than elsewhere.
    fn pooled_in_words(&self, pooled: &Pooled, sign: f64, base_models: usize) -> String {
        let found = pooled.difference;
        let (low, high) = (sign * found.low, sign * found.high);
        let fewer = if pooled.base_models < base_models {
            format!(" ({})", counted(pooled.base_models, "base model", "base models"))
        } else {
            String::new()
        };
        format!(
            "{} {} [{}, {}]{fewer}",
            self.name(&pooled.language),
            one_digit(sign * found.value),
            one_digit(low.min(high)),
            one_digit(low.max(high))
        )
    }

    /// One base model and method: who leads where.
    fn leaders_of(&self, base: &str, method: &str, cases: &[&Case]) -> Finding {
        let cases: Vec<&Case> =
            cases.iter().copied().filter(|case| case.base_model == base && case.method == method).collect();
        // Languages in which the same recipe leads, or the same ones are level, share a clause.
        let mut clauses: Vec<(Standing, String, Vec<String>)> = Vec::new();
        for case in &cases {
            let (standing, names) = (case.standing(), self.leading_names(case));
            let language = self.name(&case.language);
            match clauses.iter_mut().find(|(stood, was, _)| *stood == standing && *was == names) {
                Some((_, _, languages)) => languages.push(language),
                None => clauses.push((standing, names, vec![language])),
            }
        }
        clauses.sort_by_key(|(standing, ..)| *standing);
        let clauses: Vec<String> = clauses
            .into_iter()
            .map(|(standing, names, languages)| stands(standing, &names, &listed(&languages)))
            .collect();
        let scores: Vec<String> = cases
            .iter()
            .filter_map(|case| {
                let line = self.line(base, Some(method), &case.leader)?;
                let gated = line.cell(&case.language)?.gated?;
                let interval = gated.interval().map_or_else(String::new, |(low, high)| {
                    format!(" [{}, {}]", one_digit(low), one_digit(high))
                });
                let (language, value) = (self.name(&case.language), one_digit(gated.value));
                Some(format!("{language}: {} {value}{interval}", case.leader))
            })
            .collect();
        Finding::new(format!("{}, {base} by {method}: {}.", self.rows(), clauses.join("; ")),
 format!(
                "A recipe leads where the paired bootstrap's 95 % interval of its difference to every other leaves zero \
                 out. Highest gated totals, with intervals: {}.",
                scores.join("; ")
            ),
        )
        .behind(self.behind(&cases))
    }

    /// The cases behind a finding, each with the leader's records.
    fn behind(&self, cases: &[&Case]) -> Vec<Behind> {
        let behind = |case: &&Case| {
            let line = self.line(&case.base_model, Some(&case.method), &case.leader)?;
            let verb = match case.standing() {
                Standing::Leads => "leads",
                Standing::Level => "cannot be told apart",
                Standing::Only => "is the only recipe",
            };
            let place = format!("{} by {}, {}", case.base_model, case.method, self.name(&case.language));
            let text = format!("{place}: {} {verb}", self.leading_names(case));
            Some(Behind { text, source: line.source(&case.method, &case.language) })
        };
        cases.iter().filter_map(behind).collect()
    }

    /// The leader and those level with it, and which of them are one tuning.
    fn leading_names(&self, case: &Case) -> String {
        let names: Vec<String> = std::iter::once(&case.leader)
            .chain(&case.level)
            .map(|name| {
                let twins: Vec<&str> = case
                    .same
                    .iter()
                    .filter(|(_, twin)| twin == name)
                    .map(|(recipe, _)| recipe.as_str())
                    .collect();
                if twins.is_empty() { name.clone() } else { format!("{name} (= {})", twins.join(" = ")) }
            })
            .collect();
        listed(&names)
    }

    fn count_leaders(&self, start: &str, cases: &[&Case], unit: &str) -> Finding {
        let mut alone: Vec<(String, usize, usize)> = self
            .records
            .experiment
            .recipes
            .iter()
            // monolingual is no rival in a language that was not tuned on.
            .filter(|recipe| {
                let is_named = |pair: &Pair| pair.left == recipe.name || pair.right == recipe.name;
                cases.iter().any(|case| case.is_highest(&recipe.name) || case.pairs.iter().any(is_named))
            })
            .map(|recipe| {
                let leads = |case: &&&Case| case.leader == recipe.name && case.standing() == Standing::Leads;
                let highest = cases.iter().filter(|case| case.is_highest(&recipe.name)).count();
                (recipe.name.clone(), cases.iter().filter(leads).count(), highest)
            })
            .collect();
        alone.sort_by_key(|(_, sole, leads)| std::cmp::Reverse((*sole, *leads)));
        let standing = |wanted| cases.iter().filter(|case| case.standing() == wanted).count();
        let (level, only) = (standing(Standing::Level), standing(Standing::Only));
        let only = if only > 0 { format!(" In {only} there is one recipe alone.") } else { String::new() };
        let leading: Vec<String> = alone.iter().map(|(name, sole, _)| format!("{name} in {sole}")).collect();
        let highest: Vec<String> = alone.iter().map(|(name, _, leads)| format!("{name} {leads}")).collect();
        let is_tied = cases.iter().any(|case| !case.tied.is_empty());
        let tied = if is_tied { ", equal ones counted for each" } else { "" };
        let twins = cases.iter().filter(|case| !case.same.is_empty()).count();
        let twins = if twins > 0 {
            format!(
                " In {} english and monolingual are one tuning, counted once.",
                counted(twins, "case", "cases")
            )
        } else {
            String::new()
        };
        Finding::new(
            format!(
                "{start}, of {} {unit} cases, these recipes lead alone: {}. In {level} the best cannot be told apart.{only}",
                cases.len(),
                listed(&leading)
            ),
            format!(
                "Alone: the paired bootstrap's 95 % interval of the difference to every other recipe leaves zero out. By \
                 the highest total alone, chance included{tied}: {}.{twins}",
                listed(&highest)
            ),
        )
    }

    fn line(&self, base: &str, method: Option<&str>, recipe: &str) -> Option<&Line> {
        self.results.lines.iter().find(|line| {
            line.base_model.as_deref() == Some(base)
                && line.method.as_deref() == method
                && line.recipe == recipe
        })
    }

    /// Whether so many prompts can tell the recipes apart at all.
    fn power(&self) -> Option<Finding> {
        let recipes = |pair: &&Pair| pair.left != UNTUNED && pair.right != UNTUNED;
        let pairs: Vec<&Pair> =
            self.results.cases.iter().flat_map(|case| case.pairs.iter().filter(recipes)).collect();
        let prompts = self.results.prompts.values().map(Vec::len).min()?;
        let prompts = counted(prompts, "prompt", "prompts");
        // Without a spread there is nothing to say of what would be found.
        let mut bounded: Vec<(f64, &Pair)> =
            pairs.iter().filter_map(|pair| Some((pair.detectable?, *pair))).collect();
        bounded.sort_by(|(left, _), (right, _)| left.total_cmp(right));
        let alike = pairs.len() - bounded.len();
        let (Some(&(least, _)), Some(&(most, _))) = (bounded.first(), bounded.last()) else {
            let alike = counted(Some(alike).filter(|alike| *alike > 0)?, "difference", "differences");
            return Some(Finding::new(
                format!(
                    "From how many points on {prompts} a language find a difference between recipes cannot be told."
                ),
                format!(
                    "Of {alike}, every one is the same on all prompts, so that there is no standard error."
                ),
            ));
        };
        let (middle, _) = bounded[bounded.len() / 2];
        let is_held = |p: Option<f64>| p.is_some_and(|p| p < SIGNIFICANT);
        let hold = bounded.iter().filter(|(_, pair)| is_held(pair.p_corrected)).count();
        let too_small = bounded.iter().filter(|(bound, pair)| pair.difference.value.abs() < *bound).count();
        let seeds =
            self.results.lines.iter().flat_map(|line| &line.cells).map(|cell| cell.runs.len()).max()?;
        let one_seed =
            if seeds < 2 { " There is one seed: how much seeds differ is not in this." } else { "" };
        Some(Finding::new(
            format!(
                "{} a language find a difference between recipes four times in five from about {} points on. Of {}, {} \
                 below what it would take, and {} once corrected for all comparisons together.{one_seed}",
                prompts,
                one_digit(middle),
                counted(bounded.len(), "difference", "differences"),
                counted(too_small, "lies", "lie"),
                counted(hold, "holds", "hold"),
            ),
            format!(
                "The bound is 2.8 standard errors of the paired difference, {} to {} points over all comparisons. A \
                 smaller difference may be real: so few prompts cannot tell. Correction: Holm's, p below {SIGNIFICANT}, \
                 from the bootstrap's standard error.{}",
                one_digit(least),
                one_digit(most),
                if alike > 0 {
                    format!(
                        " {} the same on all prompts: without a standard error, not counted here.",
                        counted(alike, "further difference is", "further differences are")
                    )
                } else {
                    String::new()
                }
            ),
        ))
    }

    fn cheapest(&self) -> Option<Finding> {
        let minimum = minimum_score(self.records);
        let tuned: Vec<&Line> = self.results.lines.iter().filter(|line| line.method.is_some()).collect();
        if tuned.is_empty() {
            return None;
        }
        let mut reaching: Vec<(&Line, &Cell)> = tuned
            .iter()
            .filter_map(|line| Some((*line, line.lowest_seen()?)))
            .filter(|(line, lowest)| line.cost.is_some() && lowest.value() >= Some(minimum))
            .collect();
        let counted_in_flops =
            reaching.iter().all(|(line, _)| line.cost.as_ref().is_some_and(|cost| cost.flops > 0.0));
        let price = |line: &Line| {
            line.cost.as_ref().map_or(f64::NAN, |cost| if counted_in_flops { cost.flops } else { cost.in_c })
        };
        reaching.sort_by(|(left, _), (right, _)| price(left).total_cmp(&price(right)));
        let Some((line, lowest)) = reaching.first() else {
            return Some(Finding::new(
                format!("No recipe reaches {} in every seen language.", one_digit(minimum)),
                format!(
                    "Of {}, none has a gated total that high in all of them: {}.",
                    counted(
                        tuned.len(),
                        "way to tune (base model × method × recipe)",
                        "ways to tune (base model × method × recipe)"
                    ),
                    if self.records.experiment.minimum_score.is_some() {
                        "the experiment asks for it"
                    } else {
                        "it is half of the greatest, since the experiment names none"
                    }
                ),
            ));
        };
        let finding = Finding::new(
            format!(
                "The cheapest way to at least {} in every seen language is {}: {}.",
                one_digit(minimum),
                way(line),
                price_in_words(line)
            ),
            format!(
                "Its lowest gated total over the seen languages is {}. {} of {} ways to tune (base model × method × recipe) \
                 reach the minimum; the cheapest of each recipe: {}. The intervals are not taken into account here.",
                one_digit(lowest.value().unwrap_or(f64::NAN)),
                reaching.len(),
                tuned.len(),
                self.cheapest_of_each_recipe(&reaching)
            ),
        );
        let text = format!("{}, {}", way(line), self.name(&lowest.language));
        let source = line.source(line.method.as_deref().unwrap_or_default(), &lowest.language);
        Some(finding.behind(vec![Behind { text, source }]))
    }

    /// `reaching` is sorted by price.
    fn cheapest_of_each_recipe(&self, reaching: &[(&Line, &Cell)]) -> String {
        let of_recipe = |recipe: &Recipe| match reaching.iter().find(|(line, _)| line.recipe == recipe.name) {
            Some((line, _)) => format!("{}, {}", way(line), price_in_words(line)),
            None => format!("{} on none", recipe.name),
        };
        self.records.experiment.recipes.iter().map(of_recipe).collect::<Vec<_>>().join("; ")
    }

    fn unseen(&self) -> Option<Finding> {
        let cases: Vec<&Case> = self.results.cases.iter().filter(|case| !case.seen).collect();
        if cases.is_empty() {
            return None;
        }
        let languages: Vec<&Language> =
            self.records.experiment.languages.iter().filter(|language| !language.seen).collect();
        let names: Vec<String> = languages.iter().map(|language| language.name.clone()).collect();
        if self.groups().len() > FEW {
            let start = format!("In the unseen languages, {}", listed(&names));
            let counted = self.count_leaders(&start, &cases, "language × base model × method");
            return Some(counted.behind(self.behind(&cases)));
        }
        let clauses: Vec<String> = cases
            .iter()
            .map(|case| {
                let place = if self.groups().len() > 1 {
                    format!("{} ({} by {})", self.name(&case.language), case.base_model, case.method)
                } else {
                    self.name(&case.language)
                };
                stands(case.standing(), &self.leading_names(case), &place)
            })
            .collect();
        Some(Finding::new(format!("In languages that were not tuned on: {}.", clauses.join("; ")),
 "The monolingual recipe has no system for a language without instruction data: it is absent there."
                .to_owned()).behind(self.behind(&cases)))
    }

    fn untuned(&self) -> Option<Finding> {
        let (mut above, mut pairs) = (0, 0);
        for case in self.results.cases.iter().filter(|case| case.seen) {
            for pair in &case.pairs {
                if pair.right == UNTUNED && pair.left == case.leader {
                    pairs += 1;
                    above += usize::from(pair.difference.low > 0.0);
                }
            }
        }
        let means: Vec<f64> = self
            .results
            .lines
            .iter()
            .filter(|line| line.recipe == UNTUNED)
            .filter_map(|line| line.seen_mean.map(|mean| mean.value))
            .collect();
        // Without a tuning that is compared there is nothing that could beat it.
        if pairs == 0 {
            return None;
        }
        let lowest = means.iter().copied().reduce(f64::min)?;
        let highest = means.iter().copied().reduce(f64::max)?;
        let range = if means.len() == 1 {
            format!("{} on average over the seen languages", one_digit(lowest))
        } else {
            format!("{} to {} on average over the seen languages", one_digit(lowest), one_digit(highest))
        };
        Some(Finding::new(
            format!(
                "Tuning beats the untuned base model in {above} of {} with the best recipe.",
                counted(pairs, "case", "cases")
            ),
            format!("Untuned base models score {range}."),
        ))
    }

    fn gate(&self) -> Option<Finding> {
        let mut taken: Vec<Taken> = Vec::new();
        for recipe in &self.records.experiment.recipes {
            let of_recipe: Vec<(f64, f64)> = self
                .results
                .lines
                .iter()
                .filter(|line| line.method.is_some() && line.recipe == recipe.name)
                .filter_map(|line| Some((line.seen_dropped?.value, line.seen_mean?.value)))
                .collect();
            if !of_recipe.is_empty() {
                let count = of_recipe.len() as f64;
                let dropped = of_recipe.iter().map(|(dropped, _)| dropped).sum::<f64>() / count;
                let gated = of_recipe.iter().map(|(_, gated)| gated).sum::<f64>() / count;
                taken.push(Taken { recipe: recipe.name.clone(), dropped, raw: dropped + gated });
            }
        }
        let by_dropped = |left: &&Taken, right: &&Taken| left.dropped.total_cmp(&right.dropped);
        let (most, least) = (taken.iter().max_by(by_dropped)?, taken.iter().min_by(by_dropped)?);
        // What is told as the same number is told as level.
        let level = |end: &Taken| -> Vec<&Taken> {
            taken.iter().filter(|one| one_digit(one.dropped) == one_digit(end.dropped)).collect()
        };
        let text = if let [only] = &taken[..] {
            format!("The language gate takes {} of a raw {}.", one_digit(only.dropped), one_digit(only.raw))
        } else if level(most).len() == taken.len() {
            format!("The language gate takes as much from every recipe: {}.", one_digit(most.dropped))
        } else {
            format!(
                "The language gate takes most from {}, and least from {}.",
                taken_in_words(&level(most), true),
                taken_in_words(&level(least), false)
            )
        };
        let all: Vec<String> = taken
            .iter()
            .map(|one| format!("{} {} of {}", one.recipe, one_digit(one.dropped), one_digit(one.raw)))
            .collect();
        Some(Finding::new(
            text,
            format!(
                "Means over the seen languages, and over base models and methods whose cells all have a number: {}.",
                listed(&all)
            ),
        ))
    }

    fn incomplete(&self) -> Option<Finding> {
        let count = |status: SystemStatus| {
            self.records.systems.iter().filter(|system| system.status == status).count()
        };
        let (failed, missing) = (count(SystemStatus::Failed), count(SystemStatus::Missing));
        let mut runs: Vec<(&str, &str, usize, usize)> = self
            .results
            .lines
            .iter()
            .flat_map(|line| &line.cells)
            .flat_map(|cell| cell.runs.iter().map(move |run| (cell, run)))
            .filter(|(_, run)| run.status == SystemStatus::Done)
            .map(|(cell, run)| {
                (run.system.as_str(), cell.language.as_str(), run.unrated, run.failed + run.missing)
            })
            .collect();
        // A run that stands in two lines is one run.
        runs.sort_unstable();
        runs.dedup();
        let unrated: usize = runs.iter().map(|run| run.2).sum();
        let unanswered: usize = runs.iter().map(|run| run.3).sum();
        let parts: Vec<String> = [
            (failed, counted(failed, "run failed", "runs failed")),
            (missing, counted(missing, "run is missing", "runs are missing")),
            (unrated, counted(unrated, "response is unrated", "responses are unrated")),
            (
                unanswered,
                counted(unanswered, "prompt has no gated response", "prompts have no gated response"),
            ),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(_, text)| text)
        .collect();
        if parts.is_empty() {
            return None;
        }
        Some(Finding::new(format!("Incomplete: {}.", listed(&parts)),
 "None of these counts as a zero. A total is over the rated prompts, scaled to all of them, and is \
                     marked wherever something is left out."
                .to_owned()))
    }
}

/// What the gate takes from a recipe.
struct Taken {
    recipe: String,
    dropped: f64,
    raw: f64,
}

/// `english, 12.3 of its raw 45.6`, of recipes from which as much is taken.
fn taken_in_words(level: &[&Taken], says_raw: bool) -> String {
    let names: Vec<String> = level.iter().map(|one| one.recipe.clone()).collect();
    let raw: Vec<String> = level.iter().map(|one| one_digit(one.raw)).collect();
    let dropped = level.first().map_or_else(String::new, |one| one_digit(one.dropped));
    let (alike, whose) = if level.len() > 1 { (" alike", "their") } else { ("", "its") };
    let whose = if says_raw { format!("{whose} raw ") } else { String::new() };
    format!("{}{alike}, {dropped} of {whose}{}", listed(&names), listed(&raw))
}

/// Who stands how in a place, in words.
fn stands(standing: Standing, names: &str, place: &str) -> String {
    match standing {
        Standing::Leads => format!("{names} leads in {place}"),
        Standing::Level => format!("in {place}, {names} cannot be told apart"),
        Standing::Only => format!("in {place}, {names} is the only recipe"),
    }
}

/// A recipe, its base model and its method.
fn way(line: &Line) -> String {
    let base = line.base_model.as_deref().unwrap_or("an endpoint");
    format!("{} on {base} by {}", line.recipe, line.method.as_deref().unwrap_or("no tuning"))
}

fn price_in_words(line: &Line) -> String {
    let cost = line.cost.clone().unwrap_or_default();
    format!("{} C, {}", one_digit(cost.in_c), spent(cost.flops, cost.seconds))
}

/// Operations and time, those that are known.
fn spent(flops: f64, seconds: f64) -> String {
    let mut parts = Vec::new();
    if flops > 0.0 {
        parts.push(format!("{flops:.2e} floating-point operations"));
    }
    if seconds > 0.0 {
        parts.push(duration(seconds));
    }
    if parts.is_empty() { "its cost in time was not recorded".to_owned() } else { parts.join(" in ") }
}

/// Seconds as a person says them.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.1} s"),
        s if s < 5400.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
