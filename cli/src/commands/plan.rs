//! `polypaca plan`: an experiment's cells, before they are run.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use lab::plan::State;
use lab::store::{Determinants, Store};
use serde::Serialize;

use super::experiment::ExperimentArguments;
use crate::failure::Failure;
use crate::output::Output;

/// Shows an experiment's cells: which are done, which are missing, and which have changed and why. Checks the
/// experiment file and everything that it names, and starts nothing
#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    experiment: ExperimentArguments,
}

#[derive(Serialize)]
struct Line {
    cell: String,
    key: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changed: Vec<String>,
}

#[derive(Serialize)]
struct Whole {
    experiment: String,
    c: u64,
    systems: usize,
    done: usize,
    missing: usize,
    stale: usize,
    cells: Vec<Line>,
}

impl Plan {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let (prepared, places) = self.experiment.prepare(output)?;
        let store = Store::read(&places.store);
        let listed = store.list().map_err(Failure::failed)?;
        let known: Vec<Determinants> =
            listed.into_iter().filter_map(Result::ok).map(|manifest| manifest.determinants).collect();
        let mut lines = Vec::new();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for cell in &prepared.plan.cells {
            let (state, changed) = match prepared.plan.state(cell, &store, &known) {
                State::Done => ("done", Vec::new()),
                State::Missing => ("missing", Vec::new()),
                State::Stale(changed) => ("stale", changed),
            };
            *counts.entry(state).or_default() += 1;
            let cell_label = cell.determinants.label.clone();
            lines.push(Line { cell: cell_label, key: cell.key.short(), state, changed });
        }
        let count = |state| counts.get(state).copied().unwrap_or_default();
        let whole = Whole {
            experiment: prepared.experiment.experiment.name.clone(),
            c: prepared.plan.c,
            systems: prepared.plan.systems.len(),
            done: count("done"),
            missing: count("missing"),
            stale: count("stale"),
            cells: lines,
        };
        if output.json() {
            output.object(&whole)?;
            return Ok(ExitCode::SUCCESS);
        }
        for line in &whole.cells {
            output.line(format!("{:<8} {} {}", line.state, line.key, line.cell))?;
            for change in &line.changed {
                output.line(format!("         {change}"))?;
            }
        }
        output.line(format!(
            "{} systems, C = {} rows; {} cells: {} done, {} missing, {} stale",
            whole.systems,
            whole.c,
            whole.cells.len(),
            whole.done,
            whole.missing,
            whole.stale
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
