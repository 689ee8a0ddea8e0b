//! Statistics, tables, figures and the page of an experiment.
//!
//! In reading order: [`records`] is what an experiment folder holds, [`read`] reads it, [`statistics`] is the bootstrap,
//! [`results`] counts every total, [`findings`] says them in words, [`tables`] and [`figures`] show them, [`page`] puts
//! all of it into one HTML file, and [`bundle`] packs what someone else needs. [`build`] does all of that.

pub mod bundle;
pub mod figures;
pub mod findings;
pub mod page;
pub mod read;
pub mod records;
pub mod results;
mod settings;
pub mod statistics;
pub mod tables;
mod write;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::read::Records;

/// How a report is built.
#[derive(Debug, Clone)]
pub struct Options {
    /// Resamples of the bootstrap.
    pub resamples: usize,
    /// The seed of the bootstrap.
    pub seed: u64,
    /// Whether figures are written as PNG too.
    pub png: bool,
    /// Whether the page carries prompts and responses: without them it is small, and its numbers cannot be opened.
    pub responses: bool,
    /// Whether the records are packed into a bundle to be passed on.
    pub bundle: bool,
    /// The score that a recipe should reach in every seen language; without one the experiment's own, or half of the
    /// greatest.
    pub minimum_score: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { resamples: 1000, seed: 1, png: true, responses: true, bundle: true, minimum_score: None }
    }
}

/// What was built.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The page.
    pub page: PathBuf,
    /// Everything on it, as JSON.
    pub json: PathBuf,
    /// Figures and tables.
    pub files: Vec<PathBuf>,
    /// The findings, in the page's order.
    pub findings: Vec<String>,
    /// What is worth a warning: pictures without fonts.
    pub warnings: Vec<String>,
}

/// Builds the report of the experiment folder `directory` into the folder `out`: `index.html`, `report.json`,
/// `figures/*.svg`, `*.png` and `*.csv`, `tables/*.csv` and `*.tex`, `methods.tex` and the bundle. `out` may be
/// `directory` itself.
///
/// # Errors
/// Records that cannot be read (the error names file and line), or files that cannot be written.
pub fn build(directory: &Path, out: &Path, options: &Options) -> Result<Summary> {
    build_from(read::read(directory)?, directory, out, options)
}

/// Builds the report of records that were read from the folder `directory`, as [`build`] does.
///
/// # Errors
/// A minimum score that is no score, or files that cannot be written.
pub fn build_from(mut records: Records, directory: &Path, out: &Path, options: &Options) -> Result<Summary> {
    if let Some(minimum) = options.minimum_score {
        ensure!(minimum.is_finite() && minimum >= 0.0, "minimum score: found {minimum}, expected 0 or more");
        records.experiment.minimum_score = Some(minimum);
    }
    let results = results::results(&records, options);
    let figures = figures::figures(&records, &results);
    let report = page::Report::new(&records, &results, &figures, options);
    write::write(directory, out, &records, &results, &report, &figures, options)
}
