//! The local runner: does what a plan's cells lack, and keeps each as soon as it is finished.
//!
//! Most cells use all threads by themselves and are done one after another, in the plan's order. Small tunings do not
//! fill two threads, let alone more: as many of them are done at once as there are threads, a thread each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::Scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::plan::{Cell, Plan};
use crate::progress::{CellProgress, Progress};
use crate::store::{Store, StoreError};

/// In a cell's folder: its result is whole, but more may come of it when it is tried again. Holds the reason.
pub const INCOMPLETE_FILE: &str = "incomplete.txt";

/// Does the work of one cell. The rooms do, and in tests something quicker.
pub trait Worker: Sync {
    /// How many threads the cell's work is worth.
    fn threads(&self, _cell: &Cell, _needs: &Needs) -> Threads {
        Threads::All
    }

    /// Does the work of a cell: reads the finished cells that it needs, and writes its files into `folder`.
    ///
    /// The folder holds what an earlier attempt left, which was killed or failed: a worker goes on from there,
    /// or removes it. A worker that writes [`INCOMPLETE_FILE`] is asked again in the next run.
    ///
    /// # Errors
    /// Why the cell failed. The cells that do not need it are done all the same.
    fn work(&self, cell: &Cell, needs: &Needs, folder: &Path, progress: &CellProgress) -> Result<()>;
}

/// How many threads a cell's work is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// All there are: nothing else is done beside it.
    All,
    /// One: other cells of the kind are done beside it.
    One,
}

/// The folders of finished cells, by their places in the plan.
#[derive(Debug, Clone)]
pub struct Needs(BTreeMap<usize, PathBuf>);

impl Needs {
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

/// Runs all cells that are not finished, on the threads of the current pool. A cell that fails stops only those that
/// need it.
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
    let missing = plan.cells.iter().filter(|cell| !store.has(&cell.key)).count();
    progress.begin(plan.cells.len(), missing);
    let (sender, ended) = mpsc::channel();
    let run = Run { plan, store, experiment, worker, progress };
    let outcome = std::thread::scope(|scope| run.all(scope, &sender, &ended))?;
    progress.end();
    Ok(outcome)
}

/// What the work of a run shares.
struct Run<'a> {
    plan: &'a Plan,
    store: &'a Store,
    experiment: &'a str,
    worker: &'a dyn Worker,
    progress: &'a dyn Progress,
}

/// A cell's work is over.
struct Ended {
    cell: usize,
    worked: Result<()>,
    took: Duration,
}

impl<'a> Run<'a> {
    fn all<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        sender: &mpsc::Sender<Ended>,
        ended: &mpsc::Receiver<Ended>,
    ) -> Result<Outcome, StoreError>
    where
        'a: 'scope,
    {
        let mut outcome = Outcome::default();
        let mut waiting: BTreeSet<usize> = (0..self.plan.cells.len()).collect();
        let mut running = 0;
        while !waiting.is_empty() || running > 0 {
            let mut begun = None;
            for &cell in &waiting {
                match self.state(cell, &outcome) {
                    State::Waits => {}
                    State::Blocked(cause) => {
                        outcome.blocked.insert(cell, cause);
                        begun = Some(cell);
                    }
                    State::Ready => {
                        if let Some(folder) = finished(self.store, &self.plan.cells[cell], self.progress)? {
                            outcome.finished.insert(cell, folder);
                            outcome.kept += 1;
                            begun = Some(cell);
                        } else if self.begin(cell, &outcome, running, scope, sender)? {
                            running += 1;
                            begun = Some(cell);
                        }
                    }
                }
                if begun.is_some() {
                    break;
                }
            }
            match begun {
                Some(cell) => {
                    waiting.remove(&cell);
                }
                // Nothing more can be begun before something ends.
                None => {
                    let Ok(over) = ended.recv() else { break };
                    running -= 1;
                    self.end(over, &mut outcome)?;
                }
            }
        }
        Ok(outcome)
    }

    /// Whether a cell can be begun.
    fn state(&self, cell: usize, outcome: &Outcome) -> State {
        let needs = &self.plan.cells[cell].needs;
        let cause = needs.iter().find_map(|need| {
            outcome.failed.contains_key(need).then_some(*need).or_else(|| outcome.blocked.get(need).copied())
        });
        match cause {
            Some(cause) => State::Blocked(cause),
            None if needs.iter().all(|need| outcome.finished.contains_key(need)) => State::Ready,
            None => State::Waits,
        }
    }

    /// Begins a cell's work if there is room for it beside what is `running`.
    fn begin<'scope>(
        &'scope self,
        place: usize,
        outcome: &Outcome,
        running: usize,
        scope: &'scope Scope<'scope, '_>,
        sender: &mpsc::Sender<Ended>,
    ) -> Result<bool, StoreError> {
        let cell = &self.plan.cells[place];
        let finished =
            cell.needs.iter().filter_map(|need| Some((*need, outcome.finished.get(need)?.clone())));
        let needs = Needs(finished.collect());
        let slots = rayon::current_num_threads();
        let threads = if slots == 1 { Threads::All } else { self.worker.threads(cell, &needs) };
        let room = match threads {
            Threads::All => running == 0,
            Threads::One => running < slots,
        };
        if !room {
            return Ok(false);
        }
        let label = &cell.determinants.label;
        self.progress.cell(label);
        let folder = self.store.work_folder(&cell.key)?;
        let incomplete = folder.join(INCOMPLETE_FILE);
        if incomplete.exists() {
            fs::remove_file(&incomplete).map_err(|error| StoreError::File {
                action: "remove",
                path: incomplete.clone(),
                error,
            })?;
        }
        let sender = sender.clone();
        let work = move || {
            let start = Instant::now();
            let progress = CellProgress::new(label, self.progress);
            // A panic is a bug, and yet the other cells go on, and this one's end is told.
            let worked =
                catch_unwind(AssertUnwindSafe(|| self.worker.work(cell, &needs, &folder, &progress)))
                    .unwrap_or_else(|_| Err(anyhow!("the work panicked, which is a bug in this program")));
            // Nobody listens only where the run itself has ended by an error of the store.
            let _ = sender.send(Ended { cell: place, worked, took: start.elapsed() });
        };
        match threads {
            // On this thread, which is one of the pool's own.
            Threads::All => work(),
            Threads::One => {
                scope.spawn(move || match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
                    Ok(pool) => pool.install(work),
                    // No thread is to be had: this one has the pool of the whole program.
                    Err(_) => work(),
                });
            }
        }
        Ok(true)
    }

    /// Keeps what a cell's work came to.
    fn end(&self, ended: Ended, outcome: &mut Outcome) -> Result<(), StoreError> {
        let cell = &self.plan.cells[ended.cell];
        let label = &cell.determinants.label;
        match ended.worked {
            Ok(()) => {
                self.store.finish(&cell.key, &cell.determinants, self.experiment, ended.took)?;
                let folder = self.store.cell_folder(&cell.key);
                if let Ok(reason) = fs::read_to_string(folder.join(INCOMPLETE_FILE)) {
                    self.progress.warn(&format!("{label}: {}", reason.trim()));
                }
                self.progress.done(label, ended.took);
                outcome.finished.insert(ended.cell, folder);
            }
            Err(error) => {
                let reason = format!("{error:#}");
                self.progress.failed(label, &reason);
                outcome.failed.insert(ended.cell, reason);
            }
        }
        Ok(())
    }
}

/// Whether a cell can be begun.
enum State {
    /// What it needs is finished.
    Ready,
    /// What it needs is not finished yet.
    Waits,
    /// A cell that it needs has failed.
    Blocked(usize),
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
