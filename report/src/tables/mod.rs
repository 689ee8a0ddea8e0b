//! Tables as they are shown, on the page and in LaTeX; as CSV they have their numbers in full.

use serde::Serialize;

use crate::findings::{duration, one_digit};
use crate::read::Records;
use crate::records::{SystemKind, SystemStatus};
use crate::results::{Cell, CellState, Line, Results};

pub mod csv;
pub mod latex;

/// The grid of gated totals: a block a method and base model, a row a recipe, a column a language.
#[derive(Debug, Clone, Serialize)]
pub struct Grid {
    /// The columns.
    pub languages: Vec<GridLanguage>,
    /// The blocks.
    pub blocks: Vec<Block>,
}

/// A column of the grid.
#[derive(Debug, Clone, Serialize)]
pub struct GridLanguage {
    /// The language's code.
    pub code: String,
    /// Its name.
    pub name: String,
    /// Its own name.
    pub native_name: Option<String>,
    /// Whether it was tuned on.
    pub seen: bool,
    /// The greatest score.
    pub greatest: f64,
}

/// The rows of one base model and method.
#[derive(Debug, Clone, Serialize)]
pub struct Block {
    /// `BASE MODEL, METHOD`.
    pub title: String,
    /// The base model, or empty for adapters and endpoints.
    pub base_model: String,
    /// The method, or empty.
    pub method: String,
    /// The rows.
    pub rows: Vec<GridRow>,
}

/// A row of the grid.
#[derive(Debug, Clone, Serialize)]
pub struct GridRow {
    /// The recipe.
    pub recipe: String,
    /// The mean over the seen languages, or –.
    pub mean: String,
    /// A cell a language.
    pub cells: Vec<GridCell>,
}

/// A cell of the grid, as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct GridCell {
    /// The language's code.
    pub language: String,
    /// `absent`, `empty`, `partial` or `complete`.
    pub state: CellState,
    /// The gated total, or a word for why there is none.
    pub gated: String,
    /// Half the width of its interval, or the interval itself where that is not even.
    pub interval: String,
    /// The total without the gate.
    pub raw: String,
    /// What the gate took.
    pub dropped: String,
    /// What is left out of it.
    pub note: String,
    /// Whether it is the highest of its block.
    pub best: bool,
}

/// A plain table.
#[derive(Debug, Clone, Serialize)]
pub struct PlainTable {
    /// Its file name without an ending.
    pub id: String,
    /// Its title.
    pub title: String,
    /// Its head.
    pub columns: Vec<String>,
    /// How many columns, from the left, are names and not numbers.
    pub names: usize,
    /// Its rows.
    pub rows: Vec<Vec<String>>,
}

/// What stands where there is no number.
const NONE: &str = "–";

/// The grid of every line.
pub fn grid(records: &Records, results: &Results) -> Grid {
    let experiment = &records.experiment;
    let languages = experiment
        .languages
        .iter()
        .map(|language| GridLanguage {
            code: language.code.clone(),
            name: language.name.clone(),
            native_name: language.native_name.clone(),
            seen: language.seen,
            greatest: experiment.prompts.get(&language.code).copied().unwrap_or(0) as f64
                * experiment.rating_range[1],
        })
        .collect();
    let mut blocks: Vec<Block> = Vec::new();
    for base in &experiment.base_models {
        for method in &experiment.methods {
            let lines: Vec<&Line> = results
                .lines
                .iter()
                .filter(|line| line.base_model.as_deref() == Some(base.name.as_str()))
                .filter(|line| {
                    line.kind == SystemKind::Base || line.method.as_deref() == Some(method.as_str())
                })
                .collect();
            if lines.iter().any(|line| line.kind == SystemKind::Tuned) {
                blocks.push(block(&format!("{}, {method}", base.name), &base.name, method, &lines));
            }
        }
        let tuned = blocks.iter().any(|block| block.base_model == base.name);
        let untuned: Vec<&Line> = results
            .lines
            .iter()
            .filter(|line| {
                line.kind == SystemKind::Base && line.base_model.as_deref() == Some(base.name.as_str())
            })
            .collect();
        if !tuned && !untuned.is_empty() {
            blocks.push(block(&base.name, &base.name, "", &untuned));
        }
    }
    let others: Vec<&Line> = results
        .lines
        .iter()
        .filter(|line| matches!(line.kind, SystemKind::Adapter | SystemKind::Endpoint))
        .collect();
    if !others.is_empty() {
        blocks.push(block("Systems to compare with", "", "", &others));
    }
    Grid { languages, blocks }
}

fn block(title: &str, base_model: &str, method: &str, lines: &[&Line]) -> Block {
    let best: Vec<Option<f64>> = (0..lines.first().map_or(0, |line| line.cells.len()))
        .map(|column| lines.iter().filter_map(|line| line.cells[column].value()).reduce(f64::max))
        .collect();
    let rows = lines
        .iter()
        .map(|line| GridRow {
            recipe: line.recipe.clone(),
            mean: line.seen_mean.map_or_else(|| NONE.to_owned(), |mean| one_digit(mean.value)),
            cells: line
                .cells
                .iter()
                .zip(&best)
                .map(|(cell, best)| {
                    grid_cell(cell, best.is_some() && cell.value() == *best && lines.len() > 1)
                })
                .collect(),
        })
        .collect();
    Block { title: title.to_owned(), base_model: base_model.to_owned(), method: method.to_owned(), rows }
}

fn grid_cell(cell: &Cell, best: bool) -> GridCell {
    let number = |value: Option<f64>| value.map(one_digit).unwrap_or_default();
    GridCell {
        language: cell.language.clone(),
        state: cell.state,
        gated: match cell.state {
            CellState::Absent => NONE.to_owned(),
            CellState::Empty => empty_word(cell).to_owned(),
            CellState::Partial | CellState::Complete => number(cell.value()),
        },
        interval: cell
            .gated
            .and_then(|gated| gated.interval())
            .map(|(low, high)| format!("{}–{}", one_digit(low), one_digit(high)))
            .unwrap_or_default(),
        raw: number(cell.raw),
        dropped: number(cell.dropped),
        note: note(cell),
        best,
    }
}

/// Why a planned cell has no number.
fn empty_word(cell: &Cell) -> &'static str {
    if cell.runs.iter().any(|run| run.status == SystemStatus::Failed) {
        "failed"
    } else if cell.unrated() > 0 {
        "unrated"
    } else {
        "missing"
    }
}

/// What is left out of a cell's number.
fn note(cell: &Cell) -> String {
    let mut parts = Vec::new();
    let with = |status: SystemStatus| cell.runs.iter().filter(|run| run.status == status).count();
    let runs = cell.runs.len();
    for (status, word) in [(SystemStatus::Failed, "failed"), (SystemStatus::Missing, "missing")] {
        let count = with(status);
        if count > 0 && runs > 1 {
            parts.push(format!("{count} of {runs} runs {word}"));
        }
    }
    if cell.state != CellState::Absent {
        if cell.unrated() > 0 {
            parts.push(format!("{} unrated", cell.unrated()));
        }
        if cell.lost_responses() > 0 {
            parts.push(format!("{} without a response", cell.lost_responses()));
        }
    }
    parts.join(", ")
}

/// What the tunings of each line took.
pub fn costs(results: &Results) -> PlainTable {
    let rows = results
        .lines
        .iter()
        .filter(|line| line.kind == SystemKind::Tuned)
        .map(|line| {
            let mut row = vec![
                line.base_model.clone().unwrap_or_default(),
                line.method.clone().unwrap_or_default(),
                line.recipe.clone(),
            ];
            let known = |value: f64, text: String| if value > 0.0 { text } else { NONE.to_owned() };
            match &line.cost {
                Some(cost) => row.extend([
                    cost.systems.to_string(),
                    known(cost.in_c, one_digit(cost.in_c)),
                    format!("{:.0}", cost.rows),
                    known(cost.tokens, format!("{:.0}", cost.tokens)),
                    known(cost.updates, format!("{:.0}", cost.updates)),
                    known(cost.flops, format!("{:.2e}", cost.flops)),
                    known(cost.seconds, duration(cost.seconds)),
                    line.seen_mean.map_or_else(|| NONE.to_owned(), |mean| one_digit(mean.value)),
                ]),
                None => row.extend(std::iter::repeat_n(NONE.to_owned(), 8)),
            }
            row
        })
        .collect();
    PlainTable {
        id: "costs".to_owned(),
        title: "What each recipe took".to_owned(),
        columns: [
            "base model",
            "method",
            "recipe",
            "systems",
            "C",
            "rows",
            "tokens",
            "updates",
            "FLOPs",
            "time",
            "mean score",
        ]
        .map(str::to_owned)
        .to_vec(),
        names: 3,
        rows,
    }
}

/// Every paired comparison.
pub fn comparisons(results: &Results) -> PlainTable {
    let rows = results
        .cases
        .iter()
        .flat_map(|case| case.pairs.iter().map(move |pair| (case, pair)))
        .map(|(case, pair)| {
            vec![
                case.base_model.clone(),
                case.method.clone(),
                case.language.clone(),
                pair.left.clone(),
                pair.right.clone(),
                one_digit(pair.difference.value),
                one_digit(pair.difference.low),
                one_digit(pair.difference.high),
                if pair.told_apart { "yes" } else { "no" }.to_owned(),
                probability(pair.p),
                probability(pair.p_corrected),
                pair.detectable.map_or_else(|| NONE.to_owned(), one_digit),
            ]
        })
        .collect();
    PlainTable {
        id: "comparisons".to_owned(),
        title: "Paired comparisons".to_owned(),
        columns: [
            "base model",
            "method",
            "language",
            "left",
            "right",
            "left − right",
            "low",
            "high",
            "told apart",
            "p",
            "p (Holm)",
            "can be found from",
        ]
        .map(str::to_owned)
        .to_vec(),
        names: 5,
        rows,
    }
}

/// A probability as a reader expects it: never 0.0000.
fn probability(p: Option<f64>) -> String {
    match p {
        None => NONE.to_owned(),
        Some(p) if p < 0.0001 => "< 0.0001".to_owned(),
        Some(p) => format!("{p:.4}"),
    }
}

/// Runs that are not there, with their messages.
pub fn lost_runs(records: &Records) -> PlainTable {
    let rows = records
        .systems
        .iter()
        .filter(|system| system.status != SystemStatus::Done)
        .map(|system| {
            vec![
                system.id.clone(),
                if system.status == SystemStatus::Failed { "failed" } else { "missing" }.to_owned(),
                system.message.clone().unwrap_or_default(),
            ]
        })
        .collect();
    PlainTable {
        id: "lost-runs".to_owned(),
        title: "Runs that failed or are missing".to_owned(),
        columns: ["system", "status", "message"].map(str::to_owned).to_vec(),
        names: 3,
        rows,
    }
}
