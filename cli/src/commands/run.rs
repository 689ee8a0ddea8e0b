//! `polypaca run`: the whole experiment.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use engine::Cpu;
use engine::kernels::Kernels;
use lab::experiment::{Device, Slurm};
use lab::local::{Finished, Machinery, Places, Prepared, Ready, hold, ready, ready_for};
use lab::plan::{Answerer, Cell, Work};
use lab::progress::{self, Progress, Within};
use lab::rooms::{Answers, TuneRoom, open_model};
use lab::run::Outcome;
use lab::slurm::estimate::estimates;
use lab::slurm::journal::{Journal, Record};
use lab::slurm::scheduler::Programs;
use lab::slurm::{Cluster, check, job_name, quoted};
use lab::stop::{Stop, Stopped};
use lab::store::{Key, Store};
use lab::watch::Recorded;

use super::experiment::ExperimentArguments;
use crate::device::{SETTING, cuda};
use crate::failure::Failure;
use crate::output::Output;

/// Runs the whole experiment: all that is missing or changed. What is finished is kept, and a killed run goes on
/// where it was
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    experiment: ExperimentArguments,

    /// Who does the cells: this machine, or the jobs of a Slurm cluster
    #[arg(long, value_enum, default_value_t = Runner::Local)]
    runner: Runner,

    /// A TOML file with the settings of the Slurm runner, instead of the experiment file's table slurm
    #[arg(long, value_name = "FILE.toml")]
    slurm: Option<PathBuf>,

    /// Do these cells alone, by their keys in full, and write no report: what a job of the Slurm runner does
    #[arg(long, value_name = "KEY", num_args = 1..)]
    cells: Vec<Key>,

    /// Where these cells' job says what it came to
    #[arg(long, value_name = "FILE", hide = true, requires = "cells")]
    record: Option<PathBuf>,
}

/// Who does the cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Runner {
    /// This machine
    Local,
    /// The jobs of a Slurm cluster
    Slurm,
}

impl Run {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let (prepared, places) = self.experiment.prepare(output)?;
        if self.cells.is_empty() {
            let file = &self.experiment.experiment;
            prepared.experiment.open_named(file).map_err(Failure::wrong_input)?;
        }
        match prepared.experiment.experiment.device {
            Device::Cuda if self.computes(&prepared, &places) => {
                self.run_on(&cuda(SETTING, output)?, &prepared, &places, output)
            }
            _ => self.run_on(&Cpu, &prepared, &places, output),
        }
    }

    /// Whether a cell is missing or corrupted that is done here and takes a device: either is done anew. Who submits to a
    /// cluster does none of them.
    fn computes(&self, prepared: &Prepared, places: &Places) -> bool {
        if self.runner == Runner::Slurm && self.cells.is_empty() {
            return false;
        }
        let store = Store::read(&places.store);
        let here = |cell: &&Cell| self.cells.is_empty() || self.cells.contains(&cell.key);
        prepared.plan.cells.iter().filter(here).any(|cell| {
            let takes_one = match &cell.work {
                Work::BaseModel { .. } | Work::Tuning { .. } => true,
                Work::Answers { answerer, .. } => matches!(answerer, Answerer::Model { .. }),
                Work::Mix { .. } | Work::Scores { .. } => false,
            };
            takes_one && !matches!(store.finished(&cell.key), Ok(Some(_)))
        })
    }

    fn run_on<K: Kernels + Clone>(
        self,
        kernels: &K,
        prepared: &Prepared,
        places: &Places,
        output: &Output,
    ) -> Result<ExitCode, Failure> {
        let Self { experiment, runner, slurm, cells, record } = self;
        let settings = slurm_settings(slurm.as_deref(), prepared)?;
        let (tuner, answerer) = (TuneRoom(kernels.clone()), Answers::new(kernels.clone()));
        let machinery = Machinery { tuner: &tuner, answerer: &answerer, open_model: &open_model };
        if !cells.is_empty() {
            return some(&cells, record.as_deref(), prepared, places, &machinery);
        }
        let ready = ready(prepared, places, &machinery).map_err(Failure::wrong_input)?;
        let stop = Stop::on_signals()?;
        let _held = hold(places).map_err(Failure::failed)?;
        let store = Store::share(&places.store).map_err(Failure::failed)?;
        let progress = Recorded::new(progress::on_standard_error(), &places.out);
        let outcome = match runner {
            Runner::Local => ready.run(&store, None, &progress, &stop).map_err(Failure::failed)?,
            Runner::Slurm => {
                let file = &experiment.experiment;
                let run = OnSlurm { file, settings: &settings, prepared, places };
                run.all(&ready, &store, &progress, &stop)?
            }
        };
        if !outcome.stopped.is_empty() {
            return Err(ended_early(&outcome, runner));
        }
        let finished = ready.report(&outcome, places).map_err(Failure::failed)?;
        tell(&finished, output)
    }
}

/// The settings of the Slurm runner: a file's own, or the experiment's.
fn slurm_settings(file: Option<&Path>, prepared: &Prepared) -> Result<Slurm, Failure> {
    let settings = match file {
        Some(path) => Slurm::load(path).map_err(Failure::wrong_input)?,
        None => prepared.experiment.slurm.clone(),
    };
    check(&settings).map_err(Failure::wrong_input)?;
    Ok(settings)
}

/// A job: does some cells beside other programs, and says what it came to.
fn some(
    keys: &[Key],
    record: Option<&Path>,
    prepared: &Prepared,
    places: &Places,
    machinery: &Machinery,
) -> Result<ExitCode, Failure> {
    let stop = Stop::on_signals()?;
    let keep = |kept: &Record| match record {
        Some(path) => kept.write(path).map_err(Failure::failed),
        None => Ok(()),
    };
    keep(&Record::default())?;
    let mut cells = BTreeSet::new();
    for key in keys {
        let found = prepared.plan.cells.iter().position(|cell| cell.key == *key);
        let found = found.with_context(|| {
            format!(
                "--cells {key}: the experiment has no such cell; has it changed since the job was submitted?"
            )
        });
        cells.insert(found.map_err(Failure::wrong_input)?);
    }
    let ready = ready_for(prepared, places, machinery, &cells).map_err(Failure::wrong_input)?;
    let store = Store::share(&places.store).map_err(Failure::failed)?;
    let name = record.and_then(Path::file_stem).and_then(std::ffi::OsStr::to_str);
    let name = name.map_or_else(|| std::process::id().to_string(), str::to_owned);
    let progress = Recorded::job(progress::on_standard_error(), &places.out, &name);
    let outcome = ready.run(&store, Some(&cells), &progress, &stop).map_err(Failure::failed)?;
    let failed = outcome.failed.iter().filter(|(cell, _)| cells.contains(cell));
    keep(&Record {
        ended: true,
        stopped: !outcome.stopped.is_empty(),
        failed: failed.map(|(cell, reason)| (prepared.plan.cells[*cell].key, reason.clone())).collect(),
    })?;
    if !outcome.stopped.is_empty() {
        return Err(ended_early(&outcome, Runner::Local));
    }
    for blocked in outcome.blocked.keys() {
        let reason = outcome.reason(&prepared.plan, *blocked).unwrap_or_default();
        progress.warn(&format!("{}: {reason}", prepared.plan.cells[*blocked].determinants.label));
    }
    let whole = cells.iter().all(|cell| outcome.finished.contains_key(cell));
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A run on a cluster.
struct OnSlurm<'a> {
    file: &'a Path,
    settings: &'a Slurm,
    prepared: &'a Prepared,
    places: &'a Places,
}

impl OnSlurm<'_> {
    fn all(
        &self,
        ready: &Ready,
        store: &Store,
        progress: &dyn Progress,
        stop: &Stop,
    ) -> Result<Outcome, Failure> {
        let Prepared { experiment, plan, .. } = self.prepared;
        let scheduler = Programs::new().map_err(Failure::failed)?;
        let journal = Journal::open(&self.absolute("slurm")).map_err(Failure::failed)?;
        let estimated = estimates(self.prepared, store, self.settings.cores).map_err(Failure::failed)?;
        let within = Within(progress);
        let cluster = Cluster {
            plan,
            store,
            journal: &journal,
            name: &job_name(&experiment.experiment.name, &self.places.out),
            settings: self.settings,
            scheduler: &scheduler,
            command: &self.command().map_err(Failure::failed)?,
            estimates: &estimated,
            here: &|cell| lab::local::is_done_by_the_submitter(experiment, cell),
            run_here: &|cells| ready.run(store, Some(cells), &within, stop),
            progress,
            stop,
        };
        cluster.run().map_err(Failure::failed)
    }

    /// A place among the results, whatever the folder that a program is started in.
    fn absolute(&self, name: &str) -> PathBuf {
        let path = self.places.out.join(name);
        std::path::absolute(&path).unwrap_or(path)
    }

    /// The program with which a job does its cells.
    fn command(&self) -> anyhow::Result<String> {
        let program = match &self.settings.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("where this program lies cannot be told")?,
        };
        let paths = [program.as_path(), self.file, &self.places.out, &self.places.store];
        let [program, file, out, store] = paths.map(|path| {
            let text = path.to_str().ok_or_else(|| anyhow!("{}: expected a path in UTF-8", path.display()));
            text.map(quoted)
        });
        Ok(format!(
            "{} --threads \"$SLURM_CPUS_PER_TASK\" run {} --out {} --store {}",
            program?, file?, out?, store?
        ))
    }
}

/// A run that was asked to end has no report.
fn ended_early(outcome: &Outcome, runner: Runner) -> Failure {
    let jobs = match runner {
        Runner::Local => "",
        Runner::Slurm => "; jobs that were submitted go on, unless you cancel them with scancel",
    };
    let told = format!(
        "{} cells are finished, {} are left: the same command goes on from here{jobs}",
        outcome.finished.len(),
        outcome.stopped.len() + outcome.failed.len() + outcome.blocked.len()
    );
    Failure::failed(anyhow::Error::new(Stopped).context(told))
}

fn tell(finished: &Finished, output: &Output) -> Result<ExitCode, Failure> {
    for warning in &finished.warnings {
        output.warning(warning);
    }
    for (cell, reason) in &finished.failed {
        output.warning(format!("{cell} failed: {reason}"));
    }
    if output.json() {
        output.object(&serde_json::json!({
            "page": finished.page,
            "findings": finished.findings,
            "kept": finished.kept,
            "done": finished.done,
            "failed": finished.failed.iter().map(|(cell, _)| cell).collect::<Vec<_>>(),
            "blocked": finished.blocked,
            "incomplete": finished.incomplete,
        }))?;
    } else {
        for finding in &finished.findings {
            output.line(finding)?;
        }
        output.line(format!(
            "{} cells done, {} kept, {} failed, {} not tried, {} with unrated responses",
            finished.done,
            finished.kept,
            finished.failed.len(),
            finished.blocked,
            finished.incomplete
        ))?;
        output.line(finished.page.display().to_string())?;
    }
    let whole = finished.failed.is_empty() && finished.incomplete == 0;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
