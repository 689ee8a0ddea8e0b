//! `polypaca plan`: an experiment's cells, before they are run, and what they take.

use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use engine::Cpu;
use lab::cost::{self, Budget, Calibration, CellCost, Drops, Estimator};
use lab::experiment::Device;
use lab::local::{Places, Prepared};
use lab::plan::{Cell, State};
use lab::store::{Determinants, Store};
use serde::Serialize;

use super::experiment::ExperimentArguments;
use crate::device::{SETTING, cuda};
use crate::failure::Failure;
use crate::output::Output;

/// Shows an experiment's cells: which are done, which are missing, and which have changed and why; and what they take:
/// tokens, operations, memory, hours, the judge's price, disk. Checks the experiment file and everything that it names,
/// and starts nothing
#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    experiment: Option<ExperimentArguments>,

    /// Show the cells alone: no model is opened and no text is cut into tokens
    #[arg(long, conflicts_with_all = ["calibrate", "within"])]
    cells_only: bool,

    /// First measure how fast this machine is with the experiment's models: seconds to minutes, kept in the store
    #[arg(long)]
    calibrate: bool,

    /// Name the systems to leave out so that the rest fits: hours (12h) or dollars for the judge ($30)
    #[arg(long, value_name = "HOURS|DOLLARS")]
    within: Option<Within>,

    /// Print the JSON schema of experiment files, for editors
    #[arg(long, exclusive = true)]
    schema: bool,
}

/// `12h`, `90m`, `$30` or `30usd`.
#[derive(Debug, Clone, Copy)]
struct Within(Budget);

impl FromStr for Within {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_lowercase();
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|value| *value >= 0.0);
        let parsed = if let Some(dollars) = lower.strip_prefix('$').or(lower.strip_suffix("usd")) {
            number(dollars).map(Budget::Dollars)
        } else if let Some(minutes) = lower.strip_suffix('m') {
            number(minutes).map(|minutes| Budget::Hours(minutes / 60.0))
        } else {
            lower.strip_suffix('h').and_then(number).map(Budget::Hours)
        };
        parsed
            .map(Self)
            .ok_or_else(|| "expected hours (12h), minutes (90m) or dollars ($30, 30usd)".to_owned())
    }
}

#[derive(Serialize)]
struct Line {
    cell: String,
    key: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changed: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<CellCost>,
}

#[derive(Serialize)]
struct Whole {
    experiment: String,
    c: u64,
    held: &'static str,
    systems: usize,
    done: usize,
    incomplete: usize,
    missing: usize,
    stale: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<Left>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drops: Option<Drops>,
    cells: Vec<Line>,
}

/// What the cells that are not done take together.
#[derive(Serialize)]
struct Left {
    device: String,
    tokens: u64,
    flops: f64,
    /// Of the largest cell.
    memory_bytes: u64,
    hours: Option<f64>,
    requests: u64,
    dollars: Option<f64>,
    disk_bytes: u64,
}

impl Plan {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        if self.schema {
            output.line(lab::experiment::schema().map_err(Failure::failed)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let missing = || Failure::wrong_input(anyhow::anyhow!("expected an experiment file"));
        let arguments = self.experiment.as_ref().ok_or_else(missing)?;
        let (prepared, places) = arguments.prepare(output)?;
        if !self.cells_only {
            prepared.experiment.open_named(&arguments.experiment).map_err(Failure::wrong_input)?;
        }
        let store = Store::read(&places.store);
        let mut whole = Whole::of(&prepared, cells(&prepared.plan, &store)?);
        if !self.cells_only {
            self.reckon(&mut whole, &prepared, &store, &places, output)?;
        }
        if output.json() {
            output.object(&whole)?;
        } else {
            whole.tell(output, self.within.map(|Within(budget)| budget))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Adds what the cells take, all that is left together, and what to leave out.
    fn reckon(
        &self,
        whole: &mut Whole,
        prepared: &Prepared,
        store: &Store,
        places: &Places,
        output: &Output,
    ) -> Result<(), Failure> {
        let threads = rayon::current_num_threads();
        let device = cost::calibration::device(threads, prepared.experiment.experiment.device);
        let mut calibration = Calibration::read(&places.store, &device).map_err(Failure::wrong_input)?;
        if self.calibrate {
            calibration = measure(prepared, store, &calibration, threads, output)?;
            calibration.write(&places.store, &device).map_err(Failure::failed)?;
        }
        let mut estimator =
            Estimator::new(prepared, store, &calibration, threads).map_err(Failure::failed)?;
        let costs = estimator.all().map_err(Failure::failed)?;
        let done: Vec<bool> = whole.cells.iter().map(|line| line.state == "done").collect();
        whole.left = Some(Left::of(&costs, &done, device));
        if let Some(Within(budget)) = self.within {
            let found = cost::drops(&prepared.plan, &costs, &done, budget);
            let unknown = match budget {
                Budget::Hours(_) => "--within: it is not known how long the cells take; add --calibrate",
                Budget::Dollars(_) => {
                    "--within: it is not known what the judge takes: [judge] has no `price = { prompt = ..., \
                     completion = ... }`, in dollars a million tokens"
                }
            };
            whole.drops = Some(found.ok_or_else(|| Failure::wrong_input(anyhow::anyhow!(unknown)))?);
        }
        for (line, cost) in whole.cells.iter_mut().zip(costs) {
            line.cost = Some(cost);
        }
        Ok(())
    }
}

/// How the cells stand in the store.
fn cells(plan: &lab::plan::Plan, store: &Store) -> Result<Vec<Line>, Failure> {
    let listed = store.list().map_err(Failure::failed)?;
    let known: Vec<Determinants> =
        listed.into_iter().filter_map(Result::ok).map(|manifest| manifest.determinants).collect();
    let line = |cell: &Cell| {
        let (state, changed) = match plan.state(cell, store, &known) {
            State::Done => ("done", Vec::new()),
            State::Incomplete(reason) => ("incomplete", vec![reason]),
            State::Missing => ("missing", Vec::new()),
            State::Stale(changed) => ("stale", changed),
        };
        let label = cell.determinants.label.clone();
        Line { cell: label, key: cell.key.short(), state, changed, cost: None }
    };
    Ok(plan.cells.iter().map(line).collect())
}

/// How fast this machine is with the experiment's models.
fn measure(
    prepared: &Prepared,
    store: &Store,
    known: &Calibration,
    threads: usize,
    output: &Output,
) -> Result<Calibration, Failure> {
    let mut estimator = Estimator::new(prepared, store, known, threads).map_err(Failure::failed)?;
    let mut told = |what: &str| output.note(format!("measuring {what}"));
    let measured = match prepared.experiment.experiment.device {
        Device::Cpu => estimator.calibrate(&Cpu, &mut told),
        Device::Cuda => estimator.calibrate(&cuda(SETTING, output)?, &mut told),
    };
    measured.map_err(Failure::failed)
}

impl Left {
    fn of(costs: &[CellCost], done: &[bool], device: String) -> Self {
        let left = || costs.iter().zip(done).filter(|(_, done)| !**done).map(|(cost, _)| cost);
        // A judge's time is its own; that of a mix is nothing.
        let computed = || left().filter(|cost| cost.flops > 0.0);
        let dollars = left()
            .filter_map(|cost| cost.dollars)
            .fold(None::<f64>, |sum, more| Some(sum.unwrap_or(0.0) + more));
        Self {
            device,
            tokens: computed().map(|cost| cost.tokens).sum(),
            // The sum of nothing is a negative zero.
            flops: left().map(|cost| cost.flops).sum::<f64>() + 0.0,
            memory_bytes: left().map(|cost| cost.memory_bytes).max().unwrap_or(0),
            hours: cost::wall_seconds(computed()).map(|seconds| seconds / 3600.0 + 0.0),
            requests: left().map(|cost| cost.requests).sum(),
            dollars,
            disk_bytes: left().map(|cost| cost.disk_bytes).sum(),
        }
    }
}

impl Whole {
    /// The cells, before anything is known of what they take.
    fn of(prepared: &Prepared, cells: Vec<Line>) -> Self {
        let count = |state| cells.iter().filter(|line| line.state == state).count();
        Self {
            experiment: prepared.experiment.experiment.name.clone(),
            c: prepared.plan.c,
            held: prepared.experiment.budget.held.name(),
            systems: prepared.plan.systems.len(),
            done: count("done"),
            incomplete: count("incomplete"),
            missing: count("missing"),
            stale: count("stale"),
            left: None,
            drops: None,
            cells,
        }
    }

    fn tell(&self, output: &Output, within: Option<Budget>) -> Result<(), Failure> {
        for line in &self.cells {
            let cost = line.cost.as_ref().map(words).unwrap_or_default();
            output.line(format!("{:<10} {} {}{cost}", line.state, line.key, line.cell))?;
            for change in &line.changed {
                output.line(format!("           {change}"))?;
            }
        }
        output.line(format!(
            "{} systems, C = {} {}; {} cells: {} done, {} incomplete, {} missing, {} stale",
            self.systems,
            self.c,
            self.held,
            self.cells.len(),
            self.done,
            self.incomplete,
            self.missing,
            self.stale
        ))?;
        if let Some(left) = &self.left {
            let hours = left.hours.map_or("unknown (--calibrate measures this machine)".to_owned(), time);
            output.line(format!(
                "left to do, at most: {} tokens, {:.3e} operations, {} of memory, {} on the disk",
                left.tokens,
                left.flops,
                size(left.memory_bytes),
                size(left.disk_bytes)
            ))?;
            output.line(format!("time on {}: {hours}", left.device))?;
            if left.requests > 0 {
                let price = left
                    .dollars
                    .map_or("no price given".to_owned(), |dollars| format!("at most ${dollars:.2}"));
                output.line(format!("requests to endpoints: {}, {price}", left.requests))?;
            }
        }
        if let Some(drops) = &self.drops {
            let rest = match within {
                Some(Budget::Dollars(_)) => format!("${:.2}", drops.rest),
                _ => time(drops.rest),
            };
            if drops.systems.is_empty() {
                output.line(format!("it fits: {rest}"))?;
            } else {
                output.line(format!("leave out, and {} of {} scores are lost:", drops.lost, drops.of))?;
                for system in &drops.systems {
                    output.line(format!("  {system}"))?;
                }
                output.line(format!("the rest takes {rest}"))?;
            }
        }
        Ok(())
    }
}

/// A cell's cost behind its name.
fn words(cost: &CellCost) -> String {
    let mut words = Vec::new();
    let most = if cost.at_most { "≤ " } else { "" };
    if cost.tokens > 0 {
        words.push(format!("{most}{} tokens", cost.tokens));
    }
    if cost.flops > 0.0 {
        words.push(format!("{most}{:.2e} operations", cost.flops));
        words.push(size(cost.memory_bytes));
    }
    if let Some(seconds) = cost.seconds.filter(|seconds| *seconds > 0.0) {
        words.push(time(seconds / 3600.0));
    }
    if cost.requests > 0 {
        words.push(format!("≤ {} requests", cost.requests));
    }
    if let Some(dollars) = cost.dollars {
        words.push(format!("≤ ${dollars:.4}"));
    }
    if words.is_empty() { String::new() } else { format!("  ({})", words.join(", ")) }
}

fn time(hours: f64) -> String {
    let seconds = hours * 3600.0;
    match seconds {
        ..100.0 => format!("{seconds:.1} s"),
        ..6000.0 => format!("{:.1} min", seconds / 60.0),
        _ => format!("{hours:.1} h"),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        ..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
