//! The page: one HTML file that needs nothing else.
//!
//! Everything it says is in [`Report`], which is also `report.json`; the template lays it out and counts nothing.
//! Prompts and responses travel in it as packets (gzip in Base64), one a base model, method and language, unpacked by
//! the browser when a number is opened.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;

use anyhow::{Context, Result};
use base64::Engine;
use flate2::Compression;
use flate2::write::GzEncoder;
use minijinja::{Environment, context};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Options;
use crate::figures::draw;
use crate::figures::plot::Figure;
use crate::findings::{Finding, findings, listed, minimum_score, one_digit};
use crate::read::Records;
use crate::records::{Problem, Score};
use crate::results::{Line, Results};
use crate::settings;
use crate::tables::{Grid, PlainTable, comparisons, costs, grid, lost_runs};

const TEMPLATE: &str = include_str!("../page/page.html");
const STYLE: &str = include_str!("../page/page.css");
const SCRIPT: &str = include_str!("../page/page.js");

/// All that the page says: `report.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The experiment's name.
    pub title: String,
    /// Its description.
    pub description: Option<String>,
    /// When its records were written.
    pub date: Option<String>,
    /// What must stand wherever ratings are shown.
    pub judge_caption: Option<String>,
    /// What a total is without any merit but the right language.
    pub floor: String,
    /// The experiment in a few facts.
    pub facts: Vec<Fact>,
    /// The findings.
    pub findings: Vec<Finding>,
    /// The grid of totals.
    pub grid: Grid,
    /// What tunings took.
    pub costs: PlainTable,
    /// Paired comparisons.
    pub comparisons: PlainTable,
    /// Runs that are not there.
    pub lost_runs: PlainTable,
    /// Problems of the input.
    pub problems: Vec<Problem>,
    /// The methods paragraph.
    pub methods: Vec<String>,
    /// Versions, hashes, settings, hardware and licences.
    pub bundle: Vec<BundlePart>,
    /// The figures' data.
    pub figures: Vec<Figure>,
    /// Every line, cell, run and comparison, in full.
    pub results: Results,
}

/// A fact of the experiment.
#[derive(Debug, Clone, Serialize)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// What it is here.
    pub value: String,
}

/// A part of the bundle.
#[derive(Debug, Clone, Serialize)]
pub struct BundlePart {
    /// Its title.
    pub title: String,
    /// Its entries.
    pub entries: Vec<Fact>,
}

impl Report {
    /// Puts the report together.
    pub fn new(records: &Records, results: &Results, figures: &[Figure], options: &Options) -> Self {
        let experiment = &records.experiment;
        Self {
            title: experiment.name.clone(),
            description: experiment.description.clone(),
            date: experiment.date.clone(),
            judge_caption: experiment.judge.caption(),
            floor: floor(experiment.rating_range),
            facts: facts(records),
            findings: findings(records, results),
            grid: grid(records, results),
            costs: costs(results),
            comparisons: comparisons(results),
            lost_runs: lost_runs(records),
            problems: experiment.problems.clone(),
            methods: methods(records, options),
            bundle: bundle(records),
            figures: figures.to_vec(),
            results: results.clone(),
        }
    }
}

fn fact(name: &str, value: impl Into<String>) -> Fact {
    Fact { name: name.to_owned(), value: value.into() }
}

fn facts(records: &Records) -> Vec<Fact> {
    let experiment = &records.experiment;
    let names = |seen: bool| {
        let of: Vec<&str> = experiment
            .languages
            .iter()
            .filter(|language| language.seen == seen)
            .map(|language| language.name.as_str())
            .collect();
        if of.is_empty() { "none".to_owned() } else { of.join(", ") }
    };
    let mut counts: Vec<usize> = experiment.prompts.values().copied().collect();
    counts.sort_unstable();
    counts.dedup();
    let prompts = match counts.as_slice() {
        [one] => format!("{one} a language"),
        [least, .., most] => format!("{least} to {most} a language"),
        [] => "none".to_owned(),
    };
    let models: Vec<String> = experiment.base_models.iter().map(|base| base.name.clone()).collect();
    let seeds: Vec<String> = experiment.seeds.iter().map(u64::to_string).collect();
    let [least, greatest] = experiment.rating_range;
    let judge = match experiment.judge.caption() {
        Some(caption) => format!("{}: {caption}", experiment.judge.name),
        None => experiment.judge.name.clone(),
    };
    let gate = &experiment.gate;
    vec![
        fact("Languages tuned on", names(true)),
        fact("Languages not tuned on", names(false)),
        fact("Base models", models.join(", ")),
        fact("Methods", experiment.methods.join(", ")),
        fact(
            "Budget",
            format!(
                "C = {}, recipes held equal in {}. {}",
                experiment.budget.cost(),
                experiment.budget.held,
                experiment.budget.description
            ),
        ),
        fact("Prompts", prompts),
        fact("Seeds", seeds.join(", ")),
        fact("Judge", format!("{judge}; ratings {least} to {greatest}")),
        fact("Language gate", format!("{}. {}", gate.identifier, gate.description)),
    ]
}

/// A rating's least is above zero: what a reader should know before a total is called good.
fn floor([least, greatest]: [f64; 2]) -> String {
    format!(
        "Responses that are all in the right language and all rated {least} come to {:.0} % of the greatest total: only \
         what is above that tells of their quality.",
        100.0 * least / greatest
    )
}

fn methods(records: &Records, options: &Options) -> Vec<String> {
    let experiment = &records.experiment;
    let recipes: Vec<String> = experiment
        .recipes
        .iter()
        .map(|recipe| {
            if recipe.description.is_empty() {
                recipe.name.clone()
            } else {
                format!("{} ({})", recipe.name, recipe.description)
            }
        })
        .collect();
    let bases: Vec<String> = experiment.base_models.iter().map(|base| base.name.clone()).collect();
    let seeds: Vec<String> = experiment.seeds.iter().map(u64::to_string).collect();
    let [least, greatest] = experiment.rating_range;
    let mut paragraphs = vec![
        format!(
            "We tuned {} by {} under the recipes {}. Recipes were held equal in {}, with C = {}, the cost of one \
             monolingual run. {} Seeds: {}.",
            listed(&bases),
            listed(&experiment.methods),
            listed(&recipes),
            experiment.budget.held,
            experiment.budget.cost(),
            experiment.budget.description,
            if seeds.is_empty() { "none".to_owned() } else { listed(&seeds) }
        ),
        format!(
            "Each response was rated {least} to {greatest} by {}{}, and gated by {}: 1 in the prompt's language, else 0. \
             A score is rating × gate, a total its sum over the prompts of a language. A response without a rating is \
             left out, and the mean over the rated ones is scaled to all prompts, so that it does not count as zero. \
             Where a seed failed or is missing, a total is the mean over the others.",
            experiment.judge.name,
            experiment.judge.caption().map(|caption| format!(" ({caption})")).unwrap_or_default(),
            experiment.gate.identifier
        ),
        format!(
            "Intervals are percentiles 2.5 and 97.5 of {} bootstrap resamples (seed {}) of prompts and of seeds; where \
             two systems have no seeds in common, as with an untuned base model, a difference is of the means over the \
             seeds, and only prompts are drawn. One rated prompt has no interval. Two recipes are told apart where the interval of their paired difference leaves zero out; p (Holm) beside it is \
             corrected for all comparisons together, and there is none where a difference is the same on every prompt. A recipe reaches a minimum score ({}) if its gated total is that high in every seen \
             language. english and monolingual in English are one tuning; monolingual has no system for a language that \
             was not tuned on.",
            options.resamples,
            options.seed,
            one_digit(minimum_score(records))
        ),
    ];
    let settings = settings::in_words(&experiment.methods, &experiment.settings);
    if !settings.is_empty() {
        paragraphs.insert(1, settings);
    }
    paragraphs
}

fn bundle(records: &Records) -> Vec<BundlePart> {
    let experiment = &records.experiment;
    let part = |title: &str, entries: &BTreeMap<String, String>| BundlePart {
        title: title.to_owned(),
        entries: entries.iter().map(|(name, value)| fact(name, value.clone())).collect(),
    };
    let settings = experiment
        .settings
        .iter()
        .map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (name.clone(), value)
        })
        .collect();
    [
        part("Versions", &experiment.versions),
        part("Settings", &settings),
        part("Hashes", &experiment.hashes),
        part("Hardware", &experiment.hardware),
        part("Licences", &experiment.licences),
    ]
    .into_iter()
    .filter(|part| !part.entries.is_empty())
    .collect()
}

/// The page as HTML.
///
/// # Errors
/// A figure that cannot be drawn.
pub fn html(
    records: &Records,
    results: &Results,
    report: &Report,
    figures: &[Figure],
    options: &Options,
) -> Result<String> {
    let drawn: Vec<Value> = figures.par_iter().map(drawn).collect::<Result<_>>()?;
    let packets = if options.responses { packets(records, results)? } else { Vec::new() };
    let mut environment = Environment::new();
    environment.add_template("page.html", TEMPLATE).context("the page's template cannot be read")?;
    let template = environment.get_template("page.html").context("the page's template is missing")?;
    template
        .render(context! {
            report => minijinja::Value::from(minijinja::value::Serde(report)),
            drawn => minijinja::Value::from(minijinja::value::Serde(&drawn)),
            packets => minijinja::Value::from(minijinja::value::Serde(&packets)),
            style => STYLE, script => SCRIPT,
        })
        .context("the page cannot be rendered")
}

/// A figure's panels and legend, drawn.
fn drawn(figure: &Figure) -> Result<Value> {
    let panels: Vec<String> =
        figure.panels.iter().map(|panel| draw::panel(panel, figure.panel_size)).collect::<Result<_>>()?;
    let legend: Vec<Value> = figure
        .legend
        .iter()
        .map(|key| Ok(json!({ "name": key.name, "svg": draw::key(figure, key.style)? })))
        .collect::<Result<_>>()?;
    let titles: Vec<&str> = figure.panels.iter().map(|panel| panel.title.as_str()).collect();
    Ok(json!({
        "id": figure.id, "title": figure.title, "caption": figure.caption, "legend": legend, "panels": panels,
        "titles": titles, "width": figure.panel_size.0, "columns": figure.columns.min(figure.panels.len()).max(1),
    }))
}

/// A packet of responses.
#[derive(Serialize)]
struct Packet {
    /// Base model, method and language, joined by `|`.
    key: String,
    /// JSON, gzip, Base64.
    data: String,
}

fn packets(records: &Records, results: &Results) -> Result<Vec<Packet>> {
    let mut scores: HashMap<(&str, &str), Vec<&Score>> = HashMap::new();
    for score in &records.scores {
        scores.entry((&score.system, &score.language)).or_default().push(score);
    }
    let mut groups: BTreeMap<String, Vec<&Line>> = BTreeMap::new();
    for line in &results.lines {
        let base = line.base_model.as_deref().unwrap_or_default();
        let method = line.method.as_deref().unwrap_or_default();
        for cell in line.cells.iter().filter(|cell| !cell.runs.is_empty()) {
            let other = line.kind != crate::records::SystemKind::Base && line.method.is_none();
            let base = if other { "" } else { base };
            groups.entry(format!("{base}|{method}|{}", cell.language)).or_default().push(line);
        }
    }
    groups
        .into_par_iter()
        .map(|(key, lines)| {
            let language = key.rsplit('|').next().unwrap_or_default().to_owned();
            let value = packet(results, &scores, &lines, &language);
            let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
            encoder.write_all(value.to_string().as_bytes()).context("responses cannot be packed")?;
            let packed = encoder.finish().context("responses cannot be packed")?;
            Ok(Packet { key, data: base64::engine::general_purpose::STANDARD.encode(packed) })
        })
        .collect()
}

fn packet(
    results: &Results,
    scores: &HashMap<(&str, &str), Vec<&Score>>,
    lines: &[&Line],
    language: &str,
) -> Value {
    let mut prompts: BTreeMap<&str, Value> = BTreeMap::new();
    let mut systems: Vec<Value> = Vec::new();
    for line in lines {
        for run in line.cell(language).map(|cell| cell.runs.as_slice()).unwrap_or_default() {
            let twin = systems.iter_mut().find(|system| system["id"] == json!(run.system));
            if let Some(recipes) = twin.and_then(|system| system["recipes"].as_array_mut()) {
                recipes.push(json!(line.recipe));
                continue;
            }
            let mut responses = serde_json::Map::new();
            for score in scores.get(&(run.system.as_str(), language)).into_iter().flatten() {
                prompts
                    .entry(&score.prompt_id)
                    .or_insert_with(|| json!({ "prompt": score.prompt, "reference": score.reference }));
                responses.insert(
                    score.prompt_id.clone(),
                    json!([
                        score.response,
                        score.gate,
                        score.label,
                        score.probability,
                        score.rating,
                        score.reason,
                        score.explanation,
                        score.status,
                    ]),
                );
            }
            systems.push(json!({
                "id": run.system, "seed": run.seed, "status": run.status, "message": run.message,
                "recipes": [line.recipe], "responses": responses,
            }));
        }
    }
    let order = results.prompts.get(language).cloned().unwrap_or_default();
    let order: Vec<&String> = order.iter().filter(|id| prompts.contains_key(id.as_str())).collect();
    json!({ "order": order, "prompts": prompts, "systems": systems })
}
