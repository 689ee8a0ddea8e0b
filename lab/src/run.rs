//! The local runner: does what a plan's cells lack, one after another, and keeps each as soon as it is finished.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::plan::{Cell, Plan};
use crate::progress::Progress;
use crate::store::{Store, StoreError};

/// In a cell's folder: its result is whole, but more may come of it when it is tried again. Holds the reason.
pub const INCOMPLETE_FILE: &str = "incomplete.txt";

/// Does the work of one cell. The rooms do, and in tests something quicker.
pub trait Worker {
    /// Does the work of a cell: reads the finished cells that it needs, and writes its files into `folder`.
    ///
    /// The folder holds what an earlier attempt left, which was killed or failed: a worker goes on from there,
    /// or removes it. A worker that writes [`INCOMPLETE_FILE`] is asked again in the next run.
    ///
    /// # Errors
    /// Why the cell failed. The cells that do not need it are done all the same.
    fn work(&self, cell: &Cell, needs: &Needs, folder: &Path, progress: &dyn Progress) -> Result<()>;
}

/// The folders of finished cells, by their places in the plan.
pub struct Needs<'a>(&'a BTreeMap<usize, PathBuf>);

impl Needs<'_> {
    /// The folder of a finished cell that was asked for in [`Cell::needs`].
    ///
    /// # Errors
    /// Where the cell is not among them.
    pub fn folder(&self, cell: usize) -> Result<&Path> {
        self.0.get(&cell).map(PathBuf::as_path).with_context(|| format!("cell {cell} is not finished"))
    }
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The folders of all finished cells, verified.
    pub finished: BTreeMap<usize, PathBuf>,
    /// How many of them were finished before.
    pub kept: usize,
    /// Cells that failed, with their reasons.
    pub failed: BTreeMap<usize, String>,
    /// Cells that need one that failed.
    pub blocked: BTreeMap<usize, usize>,
}

impl Outcome {
    /// Why a cell is not there, if it is not.
    pub fn reason(&self, plan: &Plan, cell: usize) -> Option<String> {
        if let Some(reason) = self.failed.get(&cell) {
            return Some(reason.clone());
        }
        let cause = self.blocked.get(&cell)?;
        let label = &plan.cells[*cause].determinants.label;
        Some(format!("{label} failed: {}", self.failed.get(cause).map_or("", String::as_str)))
    }
}

/// Runs all cells that are not finished. A cell that fails stops only those that need it.
///
/// # Errors
/// Only what stops every cell: a store that cannot be written. A failed cell is in [`Outcome::failed`].
pub fn run(
    plan: &Plan,
    store: &Store,
    experiment: &str,
    worker: &dyn Worker,
    progress: &dyn Progress,
) -> Result<Outcome, StoreError> {
    let mut outcome = Outcome::default();
    let missing = plan.cells.iter().filter(|cell| !store.has(&cell.key)).count();
    progress.begin(plan.cells.len(), missing);
    for (place, cell) in plan.cells.iter().enumerate() {
        if let Some(folder) = finished(store, cell, progress)? {
            outcome.finished.insert(place, folder);
            outcome.kept += 1;
            continue;
        }
        let cause = cell.needs.iter().find_map(|need| {
            outcome.failed.contains_key(need).then_some(*need).or_else(|| outcome.blocked.get(need).copied())
        });
        if let Some(cause) = cause {
            outcome.blocked.insert(place, cause);
            continue;
        }
        let label = &cell.determinants.label;
        progress.cell(label);
        let folder = store.work_folder(&cell.key)?;
        let start = Instant::now();
        let incomplete = folder.join(INCOMPLETE_FILE);
        if incomplete.exists() {
            fs::remove_file(&incomplete).map_err(|error| StoreError::File {
                action: "remove",
                path: incomplete.clone(),
                error,
            })?;
        }
        match worker.work(cell, &Needs(&outcome.finished), &folder, progress) {
            Ok(()) => {
                store.finish(&cell.key, &cell.determinants, experiment, start.elapsed())?;
                if let Ok(reason) = fs::read_to_string(store.cell_folder(&cell.key).join(INCOMPLETE_FILE)) {
                    progress.warn(&format!("{label}: {}", reason.trim()));
                }
                progress.done(label, start.elapsed());
                outcome.finished.insert(place, store.cell_folder(&cell.key));
            }
            Err(error) => {
                let reason = format!("{error:#}");
                progress.failed(label, &reason);
                outcome.failed.insert(place, reason);
            }
        }
    }
    progress.end();
    Ok(outcome)
}

/// The folder of a finished cell. A corrupted one is named, removed and made again; an incomplete one is gone on
/// with.
fn finished(store: &Store, cell: &Cell, progress: &dyn Progress) -> Result<Option<PathBuf>, StoreError> {
    match store.finished(&cell.key) {
        Ok(Some(folder)) if folder.join(INCOMPLETE_FILE).exists() => {
            store.reopen(&cell.key)?;
            Ok(None)
        }
        Ok(found) => Ok(found),
        Err(error @ StoreError::Corrupted { .. }) => {
            progress.warn(&format!("{error}; {} is made again", cell.determinants.label));
            store.remove(&cell.key)?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
