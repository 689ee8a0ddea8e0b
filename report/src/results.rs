//! Every total of an experiment, from its records: lines (a base model, a method, a recipe) of cells (a language).

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;
use serde::Serialize;

use crate::Options;
use crate::read::Records;
use crate::records::{Score, ScoreStatus, SystemKind, SystemStatus};
use crate::statistics::{
    Difference, Estimate, Resamples, Table, Total, has_spread, holm, is_same, subtract, total,
};

/// The name under which an untuned base model stands among the recipes.
pub const UNTUNED: &str = "untuned";

/// Everything counted from the records.
#[derive(Debug, Clone, Serialize)]
pub struct Results {
    /// Every base model × method × recipe, untuned base models, adapters and endpoints, in the experiment's order.
    pub lines: Vec<Line>,
    /// Every base model × method × language whose recipes were compared.
    pub cases: Vec<Case>,
    /// Every two recipes in every language, over all base models of a method.
    pub pooled: Vec<Pooled>,
    /// The prompts of each language in the order of the cells' scores, by language code.
    #[serde(skip)]
    pub prompts: BTreeMap<String, Vec<String>>,
}

/// One row of results.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// The base model's name; none for an endpoint.
    pub base_model: Option<String>,
    /// Its family.
    pub family: Option<String>,
    /// Its parameters.
    pub parameters: Option<u64>,
    /// `lora` or `full`; none unless tuned.
    pub method: Option<String>,
    /// The recipe's name, [`UNTUNED`], or the id of an adapter or endpoint.
    pub recipe: String,
    /// What the systems are.
    pub kind: SystemKind,
    /// A cell a language, in the experiment's order.
    pub cells: Vec<Cell>,
    /// The mean gated total over the seen languages; none unless all of them have one.
    pub seen_mean: Option<Total>,
    /// The mean of what the gate took over the seen languages; none unless all of them have totals.
    pub seen_dropped: Option<Total>,
    /// What its tunings took, all languages' together, the mean over seeds.
    pub cost: Option<LineCost>,
}

/// What a line's tunings took: the sum over its systems of one seed, the mean over seeds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LineCost {
    /// Systems of one seed.
    pub systems: usize,
    /// Rows of the mixes.
    pub rows: f64,
    /// Tokens trained on.
    pub tokens: f64,
    /// Updates.
    pub updates: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// Seconds.
    pub seconds: f64,
    /// The same in C.
    pub in_c: f64,
}

/// Where a cell stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CellState {
    /// Never planned: `monolingual` for an unseen language.
    Absent,
    /// Planned, and there is no number: its runs failed or are missing, or nothing was rated.
    Empty,
    /// A number, from which something planned is left out.
    Partial,
    /// A number from every seed and every prompt.
    Complete,
}

/// A line's result in one language.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// The language's code.
    pub language: String,
    /// Whether the language was tuned on in this experiment.
    pub seen: bool,
    /// Where it stands.
    pub state: CellState,
    /// Its prompts.
    pub prompts: usize,
    /// Gated total: the mean over seeds, with its interval.
    pub gated: Option<Total>,
    /// Total without the gate: the mean over seeds.
    pub raw: Option<f64>,
    /// Raw minus gated.
    pub dropped: Option<f64>,
    /// A run a seed.
    pub runs: Vec<Run>,
    /// Gated scores, a row for each run that has a rated response.
    #[serde(skip)]
    pub table: Table,
    /// The same of what the gate took.
    #[serde(skip)]
    pub dropped_table: Table,
}

/// One system's result in one language.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// The system's id.
    pub system: String,
    /// Its seed.
    pub seed: Option<u64>,
    /// Whether the system is there.
    pub status: SystemStatus,
    /// Why it is not.
    pub message: Option<String>,
    /// Gated total.
    pub gated: Option<f64>,
    /// Total without the gate.
    pub raw: Option<f64>,
    /// Rated responses.
    pub rated: usize,
    /// Responses without a rating.
    pub unrated: usize,
    /// Prompts without a response, or responses without a gate.
    pub failed: usize,
    /// Prompts not answered yet.
    pub missing: usize,
    /// Rated responses in the prompt's language.
    pub passed: usize,
}

/// How the recipes of one base model and method compare in one language.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// The base model.
    pub base_model: String,
    /// The method.
    pub method: String,
    /// The language.
    pub language: String,
    /// Whether the language was tuned on.
    pub seen: bool,
    /// The recipe with the highest gated total; of equal ones the last.
    pub leader: String,
    /// Other recipes with the same gated total.
    pub tied: Vec<String>,
    /// Recipes that cannot be told apart from the leader: the interval of the difference holds zero.
    pub level: Vec<String>,
    /// Recipes that are the same tuning as another named here: `english` is `monolingual` in English.
    pub same: Vec<(String, String)>,
    /// Every pair of recipes, and each recipe with the untuned base model.
    pub pairs: Vec<Pair>,
}

/// How a case's leader stands among the recipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Its difference to every other recipe leaves zero out.
    Leads,
    /// Others cannot be told apart from it.
    Level,
    /// There is no other recipe: the highest total of one says nothing.
    Only,
}

impl Case {
    /// Whether no recipe has a higher gated total.
    pub fn is_highest(&self, recipe: &str) -> bool {
        self.leader == recipe || self.tied.iter().any(|tied| tied == recipe)
    }

    /// How the leader stands.
    pub fn standing(&self) -> Standing {
        if !self.level.is_empty() {
            Standing::Level
        } else if self.pairs.iter().any(|pair| pair.right != UNTUNED) {
            Standing::Leads
        } else {
            Standing::Only
        }
    }
}

/// The paired bootstrap of two recipes.
#[derive(Debug, Clone, Serialize)]
pub struct Pair {
    /// One recipe.
    pub left: String,
    /// The other.
    pub right: String,
    /// Gated total of the left minus that of the right.
    pub difference: Estimate,
    /// Whether the interval leaves zero out.
    pub told_apart: bool,
    /// Two-sided p of no difference; none where the difference is the same in every resample, as there is nothing to
    /// test then.
    pub p: Option<f64>,
    /// The same, corrected for all comparisons of the report that have a p (Holm).
    pub p_corrected: Option<f64>,
    /// The smallest difference that so many prompts and seeds would find four times in five; none where every resample
    /// is the same.
    pub detectable: Option<f64>,
}

/// Two recipes in one language, over all base models of a method.
#[derive(Debug, Clone, Serialize)]
pub struct Pooled {
    /// The method.
    pub method: String,
    /// The language.
    pub language: String,
    /// Whether the language was tuned on.
    pub seen: bool,
    /// One recipe.
    pub left: String,
    /// The other.
    pub right: String,
    /// How many base models have two prompts at least that are rated for both.
    pub base_models: usize,
    /// Gated total of the left minus that of the right, the mean over those base models. A resample draws the same
    /// prompts, and seeds of the same place, for all of them.
    pub difference: Estimate,
}

/// The place in the table of totals from which a number's records can be opened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Source {
    /// The block's base model; empty for adapters and endpoints.
    pub base_model: String,
    /// The block's method; empty for adapters and endpoints.
    pub method: String,
    /// The row's recipe.
    pub recipe: String,
    /// The column's language; empty where a number is of all seen ones.
    pub language: String,
}

impl Line {
    /// The cell of the lowest gated total over the seen languages; none unless all of them have one.
    pub fn lowest_seen(&self) -> Option<&Cell> {
        let seen: Vec<(&Cell, f64)> = self
            .cells
            .iter()
            .filter(|cell| cell.seen)
            .map(|cell| Some((cell, cell.value()?)))
            .collect::<Option<_>>()?;
        seen.into_iter().min_by(|left, right| left.1.total_cmp(&right.1)).map(|(cell, _)| cell)
    }

    /// Where the line's numbers stand beside those of a method.
    pub fn source(&self, method: &str, language: &str) -> Source {
        let other = matches!(self.kind, SystemKind::Adapter | SystemKind::Endpoint);
        let of = |text: &str| if other { String::new() } else { text.to_owned() };
        Source {
            base_model: of(self.base_model.as_deref().unwrap_or_default()),
            method: of(method),
            recipe: self.recipe.clone(),
            language: language.to_owned(),
        }
    }

    /// The line's cell in a language.
    pub fn cell(&self, language: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.language == language)
    }
}

impl Cell {
    /// The value of the gated total.
    pub fn value(&self) -> Option<f64> {
        self.gated.map(|gated| gated.value)
    }

    /// Responses without a rating, over all runs.
    pub fn unrated(&self) -> usize {
        self.runs.iter().map(|run| run.unrated).sum()
    }

    /// Runs that failed or are missing as a whole.
    pub fn lost_runs(&self) -> usize {
        self.runs.iter().filter(|run| run.status != SystemStatus::Done).count()
    }

    /// Prompts without a gated response in runs that are there.
    pub fn lost_responses(&self) -> usize {
        self.runs
            .iter()
            .filter(|run| run.status == SystemStatus::Done)
            .map(|run| run.failed + run.missing)
            .sum()
    }
}

/// Counts everything.
pub fn results(records: &Records, options: &Options) -> Results {
    let prompts = prompts(records);
    let keys = line_keys(records);
    let resamples: Drawn = resample_sizes(&keys, &prompts)
        .into_iter()
        .map(|(prompts, seeds)| {
            ((prompts, seeds), Resamples::draw(options.resamples, prompts, seeds, options.seed))
        })
        .collect();
    let scores = Scores::new(records, &prompts);
    let lines: Vec<Line> =
        keys.par_iter().map(|key| line(records, &scores, &resamples, &prompts, key)).collect();
    let mut cases = cases(records, &lines, &resamples);
    correct(&mut cases);
    let pooled = pooled(records, &lines, &resamples);
    Results { lines, cases, pooled, prompts }
}

/// The prompts of each language, numbers in their own order, then names.
fn prompts(records: &Records) -> BTreeMap<String, Vec<String>> {
    let mut prompts: BTreeMap<String, BTreeMap<(u64, &str), ()>> = BTreeMap::new();
    for score in &records.scores {
        let number = score.prompt_id.parse().unwrap_or(u64::MAX);
        prompts.entry(score.language.clone()).or_default().insert((number, &score.prompt_id), ());
    }
    prompts
        .into_iter()
        .map(|(language, ids)| (language, ids.into_keys().map(|(_, id)| id.to_owned()).collect()))
        .collect()
}

/// Resamples by the prompts and the seeds that they draw.
type Drawn = BTreeMap<(usize, usize), Resamples>;

/// Every size of table that a cell can have: no line has more runs in a cell than systems.
fn resample_sizes(keys: &[LineKey], prompts: &BTreeMap<String, Vec<String>>) -> Vec<(usize, usize)> {
    let seeds = keys.iter().map(|key| key.systems.len()).max().unwrap_or(1);
    let mut sizes: Vec<(usize, usize)> = prompts
        .values()
        .flat_map(|prompts| (1..=seeds).map(|seeds| (prompts.len(), seeds)))
        .filter(|&(prompts, _)| prompts > 0)
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// The scores of each system and language, by prompt.
struct Scores<'a> {
    by_system: HashMap<(&'a str, &'a str), Vec<Option<&'a Score>>>,
}

impl<'a> Scores<'a> {
    fn new(records: &'a Records, prompts: &BTreeMap<String, Vec<String>>) -> Self {
        let places: HashMap<(&str, &str), usize> = prompts
            .iter()
            .flat_map(|(language, ids)| {
                ids.iter().enumerate().map(move |(place, id)| ((language.as_str(), id.as_str()), place))
            })
            .collect();
        let mut by_system: HashMap<(&str, &str), Vec<Option<&Score>>> = HashMap::new();
        for score in &records.scores {
            let place = places.get(&(score.language.as_str(), score.prompt_id.as_str()));
            let row = by_system
                .entry((&score.system, &score.language))
                .or_insert_with(|| vec![None; prompts.get(&score.language).map_or(0, Vec::len)]);
            if let Some(&place) = place {
                row[place] = Some(score);
            }
        }
        Self { by_system }
    }

    fn of<'s>(&'s self, system: &'s str, language: &'s str) -> Option<&'s Vec<Option<&'a Score>>> {
        self.by_system.get(&(system, language))
    }
}

/// What makes a line.
struct LineKey {
    base: Option<usize>,
    base_name: Option<String>,
    method: Option<String>,
    recipe: String,
    kind: SystemKind,
    /// Systems of the line; for a recipe with a system a language, all of them.
    systems: Vec<usize>,
}

fn line_keys(records: &Records) -> Vec<LineKey> {
    let experiment = &records.experiment;
    let mut keys = Vec::new();
    for (base, model) in experiment.base_models.iter().enumerate() {
        let of_base = |kind: SystemKind| {
            records.systems.iter().enumerate().filter(move |(_, system)| {
                system.kind == kind && system.base_model.as_deref() == Some(model.name.as_str())
            })
        };
        let untuned: Vec<usize> = of_base(SystemKind::Base).map(|(index, _)| index).collect();
        if !untuned.is_empty() {
            keys.push(LineKey {
                base: Some(base),
                base_name: Some(model.name.clone()),
                method: None,
                recipe: UNTUNED.to_owned(),
                kind: SystemKind::Base,
                systems: untuned,
            });
        }
        for method in &experiment.methods {
            for recipe in &experiment.recipes {
                let systems: Vec<usize> = of_base(SystemKind::Tuned)
                    .filter(|(_, system)| {
                        system.method.as_ref() == Some(method)
                            && (system.recipe.as_ref() == Some(&recipe.name)
                                || (is_english_alone(system)
                                    && (recipe.name == "english" || recipe.name == "monolingual")))
                    })
                    .map(|(index, _)| index)
                    .collect();
                if !systems.is_empty() {
                    keys.push(LineKey {
                        base: Some(base),
                        base_name: Some(model.name.clone()),
                        method: Some(method.clone()),
                        recipe: recipe.name.clone(),
                        kind: SystemKind::Tuned,
                        systems,
                    });
                }
            }
        }
    }
    for (index, system) in records.systems.iter().enumerate() {
        if matches!(system.kind, SystemKind::Adapter | SystemKind::Endpoint) {
            let base = experiment
                .base_models
                .iter()
                .position(|base| Some(base.name.as_str()) == system.base_model.as_deref());
            keys.push(LineKey {
                base,
                base_name: system.base_model.clone(),
                method: None,
                recipe: system.id.clone(),
                kind: system.kind,
                systems: vec![index],
            });
        }
    }
    keys
}

/// Whether a system is the one tuning that `english` and `monolingual` share.
fn is_english_alone(system: &crate::records::System) -> bool {
    matches!(system.recipe.as_deref(), Some("english" | "monolingual")) && system.languages == ["en"]
}

fn line(
    records: &Records,
    scores: &Scores<'_>,
    resamples: &Drawn,
    prompts: &BTreeMap<String, Vec<String>>,
    key: &LineKey,
) -> Line {
    let experiment = &records.experiment;
    let per_language =
        experiment.recipes.iter().any(|recipe| recipe.name == key.recipe && recipe.per_language);
    let cells: Vec<Cell> = experiment
        .languages
        .iter()
        .map(|language| {
            let systems: Vec<usize> = key
                .systems
                .iter()
                .copied()
                .filter(|&system| {
                    !per_language || records.systems[system].languages.first() == Some(&language.code)
                })
                .collect();
            let expected = experiment.prompts.get(&language.code).copied().unwrap_or(0);
            let ids = prompts.get(&language.code).map_or(0, Vec::len);
            cell(records, scores, resamples, &systems, language, expected.max(ids))
        })
        .collect();
    let gated = seen_mean(&cells, resamples, |cell| &cell.table);
    let dropped = seen_mean(&cells, resamples, |cell| &cell.dropped_table);
    let model = key.base.map(|base| &experiment.base_models[base]);
    Line {
        base_model: key.base_name.clone(),
        family: model.map(|model| model.family.clone()),
        parameters: model.map(|model| model.parameters),
        method: key.method.clone(),
        recipe: key.recipe.clone(),
        kind: key.kind,
        seen_mean: gated,
        seen_dropped: dropped,
        cost: line_cost(records, &key.systems),
        cells,
    }
}

/// The mean over the seen languages of a table's totals; none unless every seen language has one.
fn seen_mean(cells: &[Cell], resamples: &Drawn, table: fn(&Cell) -> &Table) -> Option<Total> {
    let parts: Vec<(&Resamples, &Table, usize)> = cells
        .iter()
        .filter(|cell| cell.seen)
        .map(|cell| {
            let table = table(cell);
            let resamples = resamples.get(&(table.first()?.len(), table.len()))?;
            Some((resamples, table, cell.prompts))
        })
        .collect::<Option<_>>()?;
    Resamples::mean_of_totals(&parts)
}

fn cell(
    records: &Records,
    scores: &Scores<'_>,
    resamples: &Drawn,
    systems: &[usize],
    language: &crate::records::Language,
    expected: usize,
) -> Cell {
    let mut cell = Cell {
        language: language.code.clone(),
        seen: language.seen,
        state: CellState::Absent,
        prompts: expected,
        gated: None,
        raw: None,
        dropped: None,
        runs: Vec::new(),
        table: Vec::new(),
        dropped_table: Vec::new(),
    };
    let mut raw_table: Table = Vec::new();
    for &index in systems {
        let system = &records.systems[index];
        let responses = scores.of(&system.id, &language.code);
        // An endpoint or adapter that was never asked in this language has no cell there.
        if responses.is_none() && matches!(system.kind, SystemKind::Adapter | SystemKind::Endpoint) {
            continue;
        }
        let (run, gated, raw) = run(system, responses.map_or(&[][..], Vec::as_slice), expected);
        if run.gated.is_some() {
            cell.dropped_table.push(raw.iter().zip(&gated).map(|(raw, gated)| raw - gated).collect());
            cell.table.push(gated);
            raw_table.push(raw);
        }
        cell.runs.push(run);
    }
    if cell.runs.is_empty() {
        return cell;
    }
    cell.state = CellState::Empty;
    if let Some(row) = cell.table.first() {
        cell.gated = resamples
            .get(&(row.len(), cell.table.len()))
            .and_then(|resamples| resamples.total(&cell.table, expected));
        let raw = total(&raw_table, expected, None, None);
        cell.raw = Some(raw);
        cell.dropped = cell.gated.map(|gated| raw - gated.value);
        let whole = cell.runs.iter().all(|run| run.status == SystemStatus::Done && run.rated == expected);
        cell.state = if whole { CellState::Complete } else { CellState::Partial };
    }
    cell
}

/// One system in one language, with its gated and raw scores by prompt.
fn run(
    system: &crate::records::System,
    responses: &[Option<&Score>],
    expected: usize,
) -> (Run, Vec<f64>, Vec<f64>) {
    let mut run = Run {
        system: system.id.clone(),
        seed: system.seed,
        status: system.status,
        message: system.message.clone(),
        gated: None,
        raw: None,
        rated: 0,
        unrated: 0,
        failed: 0,
        missing: 0,
        passed: 0,
    };
    let mut gated = vec![f64::NAN; responses.len()];
    let mut raw = gated.clone();
    let mut lines = 0;
    for (place, score) in responses.iter().enumerate() {
        let Some(score) = score else { continue };
        lines += 1;
        match (score.status, score.rating, score.gate) {
            (ScoreStatus::Rated, Some(rating), Some(gate)) => {
                run.rated += 1;
                run.passed += usize::from(gate);
                gated[place] = rating * f64::from(gate);
                raw[place] = rating;
            }
            (ScoreStatus::Rated | ScoreStatus::Unrated, ..) => run.unrated += 1,
            (ScoreStatus::Failed, ..) => run.failed += 1,
            (ScoreStatus::Missing, ..) => run.missing += 1,
        }
    }
    run.missing += expected.saturating_sub(lines);
    if run.rated > 0 {
        run.gated = Some(total(&vec![gated.clone()], expected, None, None));
        run.raw = Some(total(&vec![raw.clone()], expected, None, None));
    }
    (run, gated, raw)
}

fn line_cost(records: &Records, systems: &[usize]) -> Option<LineCost> {
    let mut seeds: BTreeMap<Option<u64>, Option<LineCost>> = BTreeMap::new();
    for &index in systems {
        let system = &records.systems[index];
        let sum = seeds.entry(system.seed).or_insert_with(|| Some(LineCost::default()));
        // A seed of which one system's cost is unknown has no known cost: half a sum would look cheap.
        *sum = match (sum.take(), &system.cost) {
            (Some(sum), Some(cost)) => Some(LineCost {
                systems: sum.systems + 1,
                rows: sum.rows + cost.rows as f64,
                tokens: sum.tokens + cost.tokens as f64,
                updates: sum.updates + cost.updates as f64,
                flops: sum.flops + cost.flops,
                seconds: sum.seconds + cost.seconds,
                in_c: sum.in_c + cost.in_c,
            }),
            _ => None,
        };
    }
    let known: Vec<LineCost> = seeds.into_values().flatten().collect();
    let first = known.first()?;
    let mean = |value: fn(&LineCost) -> f64| known.iter().map(value).sum::<f64>() / known.len() as f64;
    Some(LineCost {
        systems: first.systems,
        rows: mean(|cost| cost.rows),
        tokens: mean(|cost| cost.tokens),
        updates: mean(|cost| cost.updates),
        flops: mean(|cost| cost.flops),
        seconds: mean(|cost| cost.seconds),
        in_c: mean(|cost| cost.in_c),
    })
}

fn cases(records: &Records, lines: &[Line], resamples: &Drawn) -> Vec<Case> {
    let mut keys = Vec::new();
    for base in &records.experiment.base_models {
        for method in &records.experiment.methods {
            for language in &records.experiment.languages {
                keys.push((base.name.as_str(), method.as_str(), language));
            }
        }
    }
    keys.par_iter()
        .filter_map(|&(base, method, language)| {
            let of_base = |line: &&Line| line.base_model.as_deref() == Some(base);
            let tuned: Vec<(&Line, &Cell)> = lines
                .iter()
                .filter(of_base)
                .filter(|line| line.method.as_deref() == Some(method))
                .filter_map(|line| line.cell(&language.code).map(|cell| (line, cell)))
                .filter(|(_, cell)| cell.gated.is_some())
                .collect();
            let untuned = lines
                .iter()
                .filter(of_base)
                .find(|line| line.kind == SystemKind::Base)
                .and_then(|line| line.cell(&language.code).map(|cell| (line, cell)))
                .filter(|(_, cell)| cell.gated.is_some());
            case(base, method, language, tuned, untuned, resamples)
        })
        .collect()
}

/// Corrects the comparisons of all cases for being many.
fn correct(cases: &mut [Case]) {
    let tested = cases.iter_mut().flat_map(|case| &mut case.pairs);
    let mut tested: Vec<(f64, &mut Pair)> = tested.filter_map(|pair| Some((pair.p?, pair))).collect();
    let corrected = holm(&tested.iter().map(|(p, _)| *p).collect::<Vec<f64>>());
    for ((_, pair), p) in tested.iter_mut().zip(corrected) {
        pair.p_corrected = Some(p);
    }
}

fn case(
    base: &str,
    method: &str,
    language: &crate::records::Language,
    tuned: Vec<(&Line, &Cell)>,
    untuned: Option<(&Line, &Cell)>,
    resamples: &Drawn,
) -> Option<Case> {
    let mut same = Vec::new();
    let mut distinct: Vec<(&Line, &Cell)> = Vec::new();
    for (line, cell) in tuned {
        match distinct.iter().find(|(_, other)| same_runs(cell, other)) {
            Some((twin, _)) => same.push((line.recipe.clone(), twin.recipe.clone())),
            None => distinct.push((line, cell)),
        }
    }
    let (leader, leader_cell) = distinct.iter().copied().max_by(|(_, left), (_, right)| {
        left.value().unwrap_or(f64::NAN).total_cmp(&right.value().unwrap_or(f64::NAN))
    })?;
    let mut pairs = Vec::new();
    let everyone: Vec<(&Line, &Cell)> = distinct.iter().copied().chain(untuned).collect();
    for (place, (left, left_cell)) in distinct.iter().enumerate() {
        for (right, right_cell) in &everyone[place + 1..] {
            if let Some(difference) = difference(left_cell, right_cell, resamples) {
                pairs.push(Pair {
                    left: left.recipe.clone(),
                    right: right.recipe.clone(),
                    told_apart: difference.estimate.excludes_zero(),
                    p: difference.p(),
                    // All comparisons must be there to be corrected.
                    p_corrected: None,
                    detectable: difference.detectable(),
                    difference: difference.estimate,
                });
            }
        }
    }
    let is_tied = |cell: &Cell| cell.value().zip(leader_cell.value()).is_some_and(|(a, b)| is_same(a, b));
    let tied = distinct
        .iter()
        .filter(|(line, cell)| line.recipe != leader.recipe && is_tied(cell))
        .map(|(line, _)| line.recipe.clone())
        .collect();
    let level = distinct
        .iter()
        .filter(|(line, cell)| {
            line.recipe != leader.recipe
                && !difference(leader_cell, cell, resamples)
                    .is_some_and(|difference| difference.estimate.excludes_zero())
        })
        .map(|(line, _)| line.recipe.clone())
        .collect();
    Some(Case {
        base_model: base.to_owned(),
        method: method.to_owned(),
        language: language.code.clone(),
        seen: language.seen,
        leader: leader.recipe.clone(),
        tied,
        level,
        same,
        pairs,
    })
}

fn same_runs(left: &Cell, right: &Cell) -> bool {
    left.runs.len() == right.runs.len()
        && left.runs.iter().zip(&right.runs).all(|(left, right)| left.system == right.system)
}

/// Every pair of recipes in every language, over the base models that have a total of both.
fn pooled(records: &Records, lines: &[Line], resamples: &Drawn) -> Vec<Pooled> {
    let recipes = &records.experiment.recipes;
    let mut keys = Vec::new();
    for method in &records.experiment.methods {
        for language in &records.experiment.languages {
            for (place, left) in recipes.iter().enumerate() {
                keys.extend(recipes[place + 1..].iter().map(|right| (method, language, left, right)));
            }
        }
    }
    keys.par_iter()
        .filter_map(|&(method, language, left, right)| {
            let cell = |base: &str, recipe: &str| {
                let line = lines.iter().find(|line| {
                    line.base_model.as_deref() == Some(base)
                        && line.method.as_deref() == Some(method)
                        && line.recipe == recipe
                });
                line.and_then(|line| line.cell(&language.code))
            };
            let bases = records.experiment.base_models.iter();
            let tables: Vec<(Table, usize)> = bases
                .filter_map(|base| {
                    let (left, right) = (cell(&base.name, &left.name)?, cell(&base.name, &right.name)?);
                    // What is one tuning has no difference.
                    let table = differences(left, right).filter(|_| !same_runs(left, right))?;
                    has_spread(&table).then_some((table, left.prompts))
                })
                .collect();
            let parts: Vec<(&Resamples, &Table, usize)> = tables
                .iter()
                .filter_map(|(table, prompts)| {
                    Some((resamples.get(&(table.first()?.len(), table.len()))?, table, *prompts))
                })
                .collect();
            Some(Pooled {
                method: method.clone(),
                language: language.code.clone(),
                seen: language.seen,
                left: left.name.clone(),
                right: right.name.clone(),
                base_models: parts.len(),
                difference: Resamples::mean_of_totals(&parts)?.estimate()?,
            })
        })
        .collect()
}

fn difference(left: &Cell, right: &Cell, resamples: &Drawn) -> Option<Difference> {
    let differences = differences(left, right)?;
    resamples.get(&(differences.first()?.len(), differences.len()))?.difference(&differences, left.prompts)
}

/// The scores of one cell minus those of another. Rows of both are paired where they are the same seeds; where they
/// are not (an untuned base model has none), the means over the seeds are.
fn differences(left: &Cell, right: &Cell) -> Option<Table> {
    let seeds = |cell: &Cell| -> Vec<Option<u64>> {
        cell.runs.iter().filter(|run| run.gated.is_some()).map(|run| run.seed).collect()
    };
    let (left_seeds, right_seeds) = (seeds(left), seeds(right));
    let paired = left_seeds == right_seeds && left_seeds.iter().all(Option::is_some);
    let (left, right) = (&left.table, &right.table);
    (!left.is_empty() && !right.is_empty()).then(|| subtract(left, right, paired))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_recipe_alone_does_not_lead() {
        let pair = |right: &str| Pair {
            left: "monolingual".to_owned(),
            right: right.to_owned(),
            difference: Estimate { value: 1.0, low: 0.5, high: 1.5 },
            told_apart: true,
            p: Some(0.01),
            p_corrected: Some(0.01),
            detectable: Some(0.4),
        };
        let standing = |level: &[&str], rivals: &[&str]| {
            let case = Case {
                base_model: "base".to_owned(),
                method: "lora".to_owned(),
                language: "fi".to_owned(),
                seen: true,
                leader: "monolingual".to_owned(),
                tied: Vec::new(),
                level: level.iter().map(|&recipe| recipe.to_owned()).collect(),
                same: Vec::new(),
                pairs: rivals.iter().map(|rival| pair(rival)).collect(),
            };
            case.standing()
        };
        assert_eq!(standing(&[], &[]), Standing::Only);
        assert_eq!(standing(&[], &[UNTUNED]), Standing::Only);
        assert_eq!(standing(&[], &["multilingual", UNTUNED]), Standing::Leads);
        assert_eq!(standing(&["multilingual"], &["multilingual", UNTUNED]), Standing::Level);
        // No difference could be computed.
        assert_eq!(standing(&["multilingual"], &[]), Standing::Level);
    }
}
