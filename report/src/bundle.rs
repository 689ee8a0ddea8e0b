//! The bundle: the records, and all that was settled when they were made, in one archive with which someone else gets
//! the same numbers.
//!
//! The same records and options make the same bytes: no times and no owners are kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use crate::Options;
use crate::page::Report;
use crate::read::Records;
use crate::records::{BaseModel, Budget, EXPERIMENT_FILE, Gate, Judge, SCORES_FILE, SYSTEMS_FILE};
use crate::tables::latex;

/// The archive's name.
pub const BUNDLE_FILE: &str = "bundle.tar.gz";

/// `bundle.json`: what the numbers came from.
#[derive(Debug, Serialize)]
struct Bundle<'a> {
    name: &'a str,
    /// The version of this program that built the report.
    report_version: &'static str,
    /// Resamples of the bootstrap.
    resamples: usize,
    /// The seed of the bootstrap.
    bootstrap_seed: u64,
    /// The score that a recipe should reach in every seen language, where one was given.
    minimum_score: Option<f64>,
    /// The seeds of the tunings.
    seeds: &'a [u64],
    /// The records' files.
    records: Vec<Content>,
    /// `report.json`, which the records lead to.
    report: Content,
    budget: &'a Budget,
    judge: &'a Judge,
    gate: &'a Gate,
    base_models: &'a [BaseModel],
    versions: &'a BTreeMap<String, String>,
    settings: &'a BTreeMap<String, serde_json::Value>,
    hashes: &'a BTreeMap<String, String>,
    hardware: &'a BTreeMap<String, String>,
    licences: &'a BTreeMap<String, String>,
}

/// A file, by its content.
#[derive(Debug, Serialize)]
struct Content {
    file: &'static str,
    bytes: usize,
    blake3: String,
}

impl Content {
    fn of(file: &'static str, bytes: &[u8]) -> Self {
        Self { file, bytes: bytes.len(), blake3: blake3::hash(bytes).to_hex().to_string() }
    }
}

/// The methods paragraphs as LaTeX.
pub fn methods_latex(report: &Report) -> String {
    let paragraphs: Vec<String> = report.methods.iter().map(|text| latex::escaped(text)).collect();
    paragraphs.join("\n\n") + "\n"
}

/// The archive of the records in `directory`, whose report as JSON is `json`.
///
/// # Errors
/// Records that can no longer be read.
pub fn archive(
    directory: &Path,
    records: &Records,
    report: &Report,
    json: &str,
    options: &Options,
) -> Result<Vec<u8>> {
    let mut files = Vec::new();
    for name in [EXPERIMENT_FILE, SYSTEMS_FILE, SCORES_FILE] {
        let path = directory.join(name);
        let bytes = fs::read(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
        files.push((name, bytes));
    }
    let bundle = bundle(records, &files, json, options);
    let text = serde_json::to_string_pretty(&bundle).context("the bundle cannot be written as JSON")?;
    files.push(("bundle.json", text.into_bytes()));
    files.push(("methods.txt", (report.methods.join("\n\n") + "\n").into_bytes()));
    files.push(("methods.tex", methods_latex(report).into_bytes()));
    files.push(("README.md", readme(&bundle).into_bytes()));
    packed(&files).context("the bundle cannot be packed")
}

fn bundle<'a>(
    records: &'a Records,
    files: &[(&'static str, Vec<u8>)],
    json: &str,
    options: &Options,
) -> Bundle<'a> {
    let experiment = &records.experiment;
    Bundle {
        name: &experiment.name,
        report_version: env!("CARGO_PKG_VERSION"),
        resamples: options.resamples,
        bootstrap_seed: options.seed,
        minimum_score: options.minimum_score,
        seeds: &experiment.seeds,
        records: files.iter().map(|(name, bytes)| Content::of(name, bytes)).collect(),
        report: Content::of("report.json", json.as_bytes()),
        budget: &experiment.budget,
        judge: &experiment.judge,
        gate: &experiment.gate,
        base_models: &experiment.base_models,
        versions: &experiment.versions,
        settings: &experiment.settings,
        hashes: &experiment.hashes,
        hardware: &experiment.hardware,
        licences: &experiment.licences,
    }
}

fn readme(bundle: &Bundle<'_>) -> String {
    format!(
        "# {}: records\n\n\
         With polypaca {}, in this folder:\n\n    polypaca report . --resamples {} --seed {}{}\n\n\
         builds the page, figures and tables, and a `report.json` of {} bytes whose BLAKE3 hash is\n`{}`.\n\n\
         | file | holds |\n| --- | --- |\n\
         | `experiment.json` | what was compared, with every setting |\n\
         | `systems.jsonl` | every system: its recipe, seed, cost and learning curve |\n\
         | `scores.jsonl` | every response to every prompt, its gate and its rating |\n\
         | `bundle.json` | versions, hashes, settings, seeds, hardware and licences |\n\
         | `methods.txt`, `methods.tex` | how it was done, in words |\n\n\
         The prompts and responses are under the licences that `bundle.json` names.\n",
        bundle.name,
        bundle.report_version,
        bundle.resamples,
        bundle.bootstrap_seed,
        bundle.minimum_score.map_or_else(String::new, |minimum| format!(" --minimum-score {minimum}")),
        bundle.report.bytes,
        bundle.report.blake3
    )
}

fn packed(files: &[(&str, Vec<u8>)]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::new(6)));
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append_data(&mut header, format!("bundle/{name}"), bytes.as_slice())?;
    }
    archive.into_inner()?.finish()
}
