//! Tables and figures as CSV, with their numbers in full; what has no number is empty.

use anyhow::{Context, Result};
use csv::Writer;
use serde::Serialize;

use super::PlainTable;
use crate::figures::plot::{Bars, Figure, Heat, Lines, Panel, Plot, Point};
use crate::results::{CellState, Results};

const TOTALS: [&str; 18] = [
    "base_model",
    "family",
    "parameters",
    "method",
    "recipe",
    "language",
    "seen",
    "state",
    "prompts",
    "gated",
    "low",
    "high",
    "raw",
    "dropped",
    "runs",
    "lost_runs",
    "unrated",
    "without_response",
];
const RUNS: [&str; 14] = [
    "base_model",
    "method",
    "recipe",
    "language",
    "system",
    "seed",
    "status",
    "gated",
    "raw",
    "rated",
    "unrated",
    "failed",
    "missing",
    "passed",
];
const COSTS: [&str; 13] = [
    "base_model",
    "method",
    "recipe",
    "systems",
    "in_c",
    "rows",
    "tokens",
    "updates",
    "flops",
    "seconds",
    "seen_mean",
    "low",
    "high",
];
const COMPARISONS: [&str; 12] = [
    "base_model",
    "method",
    "language",
    "left",
    "right",
    "difference",
    "low",
    "high",
    "told_apart",
    "p",
    "p_holm",
    "detectable",
];
const FIGURE: [&str; 8] = ["panel", "group", "series", "x", "y", "low", "high", "state"];

/// Every cell of every line as a row.
///
/// # Errors
/// A row that cannot be written.
pub fn totals(results: &Results) -> Result<String> {
    let cells = results.lines.iter().flat_map(|line| line.cells.iter().map(move |cell| (line, cell)));
    written(&TOTALS, cells, |(line, cell)| {
        (
            (&line.base_model, &line.family, line.parameters, &line.method, &line.recipe),
            (&cell.language, cell.seen, cell.state, cell.prompts),
            (cell.value(), cell.gated.and_then(|gated| gated.low), cell.gated.and_then(|gated| gated.high)),
            (
                cell.raw,
                cell.dropped,
                cell.runs.len(),
                cell.lost_runs(),
                cell.unrated(),
                cell.lost_responses(),
            ),
        )
    })
}

/// Every run of every cell as a row: one seed's result in one language.
///
/// # Errors
/// A row that cannot be written.
pub fn runs(results: &Results) -> Result<String> {
    let runs = results.lines.iter().flat_map(|line| {
        line.cells.iter().flat_map(move |cell| cell.runs.iter().map(move |run| (line, cell, run)))
    });
    written(&RUNS, runs, |(line, cell, run)| {
        (
            (&line.base_model, &line.method, &line.recipe, &cell.language),
            (&run.system, run.seed, run.status, run.gated, run.raw),
            (run.rated, run.unrated, run.failed, run.missing, run.passed),
        )
    })
}

/// What the tunings of each line took, and its mean over the seen languages.
///
/// # Errors
/// A row that cannot be written.
pub fn costs(results: &Results) -> Result<String> {
    let lines = results.lines.iter().filter(|line| line.method.is_some());
    written(&COSTS, lines, |line| {
        let cost = line.cost.as_ref();
        let mean = line.seen_mean;
        (
            (&line.base_model, &line.method, &line.recipe, cost.map(|cost| cost.systems)),
            (cost.map(|cost| cost.in_c), cost.map(|cost| cost.rows), cost.map(|cost| cost.tokens)),
            (cost.map(|cost| cost.updates), cost.map(|cost| cost.flops), cost.map(|cost| cost.seconds)),
            (mean.map(|mean| mean.value), mean.and_then(|mean| mean.low), mean.and_then(|mean| mean.high)),
        )
    })
}

/// Every paired comparison.
///
/// # Errors
/// A row that cannot be written.
pub fn comparisons(results: &Results) -> Result<String> {
    let pairs = results.cases.iter().flat_map(|case| case.pairs.iter().map(move |pair| (case, pair)));
    written(&COMPARISONS, pairs, |(case, pair)| {
        (
            (&case.base_model, &case.method, &case.language, &pair.left, &pair.right),
            (pair.difference.value, pair.difference.low, pair.difference.high, pair.told_apart),
            (pair.p, pair.p_corrected, pair.detectable),
        )
    })
}

/// A table of words.
///
/// # Errors
/// A row that cannot be written.
pub fn plain(table: &PlainTable) -> Result<String> {
    let head: Vec<&str> = table.columns.iter().map(String::as_str).collect();
    written(&head, &table.rows, |row| row)
}

/// Every mark of a figure as a row. `group` and `series` are a table of shares' row and column, `x` is as the axis has
/// it.
///
/// # Errors
/// A row that cannot be written.
pub fn figure(figure: &Figure) -> Result<String> {
    written(&FIGURE, figure.panels.iter().flat_map(marks), |mark| mark)
}

/// A row of a figure's CSV.
#[derive(Serialize)]
struct Mark<'a> {
    panel: &'a str,
    group: &'a str,
    series: &'a str,
    x: Option<f64>,
    y: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
    state: CellState,
}

fn marks(panel: &Panel) -> Vec<Mark<'_>> {
    match &panel.plot {
        Plot::Lines(lines) => marks_of_lines(&panel.title, lines),
        Plot::Bars(bars) => marks_of_bars(&panel.title, bars),
        Plot::Heat(heat) => marks_of_shares(&panel.title, heat),
    }
}

fn marks_of_lines<'a>(panel: &'a str, lines: &'a Lines) -> Vec<Mark<'a>> {
    let state = |point: &Point| match (point.y, point.partial) {
        (None, _) => CellState::Empty,
        (_, true) => CellState::Partial,
        _ => CellState::Complete,
    };
    let points =
        lines.series.iter().flat_map(|series| series.points.iter().map(move |point| (series, point)));
    points
        .map(|(series, point)| Mark {
            panel,
            group: "",
            series: &series.name,
            x: Some(point.x),
            y: point.y,
            low: point.interval.map(|interval| interval.0),
            high: point.interval.map(|interval| interval.1),
            state: state(point),
        })
        .collect()
}

fn marks_of_bars<'a>(panel: &'a str, bars: &'a Bars) -> Vec<Mark<'a>> {
    let all = bars.groups.iter().flat_map(|group| group.bars.iter().map(move |bar| (group, bar)));
    all.map(|(group, bar)| Mark {
        panel,
        group: &group.label,
        series: &bar.name,
        x: None,
        y: bar.value,
        low: bar.interval.map(|interval| interval.0),
        high: bar.interval.map(|interval| interval.1),
        state: bar.state,
    })
    .collect()
}

fn marks_of_shares<'a>(panel: &'a str, heat: &'a Heat) -> Vec<Mark<'a>> {
    let rows = heat.rows.iter().zip(&heat.values);
    rows.flat_map(|(row, values)| {
        heat.columns.iter().zip(values).map(move |(column, &share)| Mark {
            panel,
            group: row,
            series: column,
            x: None,
            y: share,
            low: None,
            high: None,
            state: if share.is_some() { CellState::Complete } else { CellState::Absent },
        })
    })
    .collect()
}

/// A head, and a row an item.
fn written<T, R: Serialize>(
    head: &[&str],
    items: impl IntoIterator<Item = T>,
    row: impl Fn(T) -> R,
) -> Result<String> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    writer.write_record(head)?;
    for item in items {
        writer.serialize(row(item))?;
    }
    finished(writer)
}

fn finished(writer: Writer<Vec<u8>>) -> Result<String> {
    let bytes = writer.into_inner().context("a table cannot be written")?;
    String::from_utf8(bytes).context("a table is not UTF-8")
}
