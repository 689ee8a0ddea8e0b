//! The local runner: does what a plan's cells lack, and keeps each as soon as it is finished.
//!
//! Most cells use all threads by themselves and are done one after another, in the plan's order. Small tunings do not
//! fill two threads, let alone more: as many of them are done at once as there are threads, a thread each.
//!
//! Other programs may work on the same store. A cell that one of them has claimed is left to it, and looked for again
//! when nothing else can be done.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::plan::{Cell, Plan};
use crate::progress::{CellProgress, Progress};
use crate::stop::{Stop, Stopped};
use crate::store::{Claim, Claimed, INCOMPLETE_FILE, Store, StoreError};

/// Does the work of one cell. The rooms do, and in tests something quicker.
pub trait Worker: Sync {
    /// How many threads the cell's work is worth.
    fn threads(&self, _cell: &Cell, _needs: &Needs) -> Threads {
        Threads::All
    }

    /// Gives up what was kept from earlier cells and is of no use to this one: asked before its work begins.
    fn make_room(&self, _cell: &Cell) {}

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
    /// Cells that were cut short or not begun, because the run was asked to end.
    pub stopped: BTreeSet<usize>,
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

/// A run's cells, and who does them.
pub struct Run<'a> {
    /// All cells.
    pub plan: &'a Plan,
    /// Where they are kept.
    pub store: &'a Store,
    /// The experiment's name, kept with each cell.
    pub experiment: &'a str,
    /// Does the work.
    pub worker: &'a dyn Worker,
    /// Told how it goes on.
    pub progress: &'a dyn Progress,
    /// Asks it to end early.
    pub stop: &'a Stop,
    /// The cells to do, by their places in the plan, where they are not all; of the others, finished ones are used.
    pub only: Option<&'a BTreeSet<usize>>,
}

/// How often a cell is looked for that another program works on.
const LOOK: Duration = Duration::from_millis(500);

/// A cell's work is over.
struct Ended {
    cell: usize,
    worked: Result<()>,
    took: Duration,
}

/// What has come of a run so far.
#[derive(Default)]
struct Doing {
    outcome: Outcome,
    /// Held until the cell's work is over.
    claims: BTreeMap<usize, Claim>,
    /// Cells that another program works on.
    elsewhere: BTreeSet<usize>,
    /// How many cells' work is under way.
    running: usize,
    /// How many cells of one thread may be.
    slots: usize,
}

/// More than a cell takes that is worth one thread: its base model has 16 million parameters at most, each with its
/// gradient and moments in full tuning, and the activations of a micro-batch.
const ONE_THREAD_BYTES: u64 = 1 << 30;

/// How many cells that are worth one thread are done side by side: as many as threads, or as memory has room for.
pub(crate) fn side_by_side(threads: usize) -> usize {
    let room = tune::memory::available().map_or(threads, |bytes| (bytes / ONE_THREAD_BYTES) as usize);
    threads.min(room).max(1)
}

impl<'a> Run<'a> {
    /// Runs all cells that are not finished, on the threads of the current pool. A cell that fails stops only those
    /// that need it.
    ///
    /// # Errors
    /// Only what stops every cell: a store that cannot be written. A failed cell is in [`Outcome::failed`].
    pub fn all(&self) -> Result<Outcome, StoreError> {
        let cells = self.cells();
        let all = cells.iter().map(|cell| &self.plan.cells[*cell]);
        let missing =
            all.filter(|cell| !self.store.has(&cell.key) || self.store.incomplete(&cell.key).is_some());
        let missing: Vec<&str> = missing.map(|cell| cell.determinants.label.as_str()).collect();
        self.progress.begin(cells.len(), &missing);
        let (sender, ended) = mpsc::channel();
        let outcome = std::thread::scope(|scope| self.every(cells, scope, &sender, &ended))?;
        self.progress.end();
        Ok(outcome)
    }

    /// The places of the cells to do.
    fn cells(&self) -> BTreeSet<usize> {
        self.only.cloned().unwrap_or_else(|| (0..self.plan.cells.len()).collect())
    }

    fn every<'scope>(
        &'scope self,
        mut waiting: BTreeSet<usize>,
        scope: &'scope Scope<'scope, '_>,
        sender: &mpsc::Sender<Ended>,
        ended: &mpsc::Receiver<Ended>,
    ) -> Result<Outcome, StoreError>
    where
        'a: 'scope,
    {
        let slots = side_by_side(rayon::current_num_threads());
        let mut doing = Doing { slots, ..Doing::default() };
        self.look_at_the_others(&waiting, &mut doing)?;
        while !waiting.is_empty() || doing.running > 0 {
            if self.stop.asked() {
                doing.outcome.stopped.append(&mut waiting);
            }
            let mut settled = None;
            for &cell in &waiting {
                if self.settle(cell, &mut doing, scope, sender)? {
                    settled = Some(cell);
                    break;
                }
            }
            match settled {
                Some(cell) => {
                    waiting.remove(&cell);
                    doing.elsewhere.remove(&cell);
                }
                None => self.wait(&mut doing, ended)?,
            }
        }
        Ok(doing.outcome)
    }

    /// The finished cells among those that are not to be done here.
    fn look_at_the_others(&self, waiting: &BTreeSet<usize>, doing: &mut Doing) -> Result<(), StoreError> {
        let needed = waiting.iter().flat_map(|cell| &self.plan.cells[*cell].needs);
        let others: BTreeSet<usize> = needed.copied().filter(|need| !waiting.contains(need)).collect();
        for place in others {
            let cell = &self.plan.cells[place];
            match self.store.finished(&cell.key) {
                Ok(Some(folder)) => {
                    doing.outcome.finished.insert(place, folder);
                }
                Ok(None) => {
                    let reason = "it is not finished, and is not among the cells to do here".to_owned();
                    doing.outcome.failed.insert(place, reason);
                }
                Err(error @ StoreError::Corrupted { .. }) => {
                    doing.outcome.failed.insert(place, error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Begins a cell, finds it finished, or finds that it cannot be done; false where it has to wait.
    fn settle<'scope>(
        &'scope self,
        cell: usize,
        doing: &mut Doing,
        scope: &'scope Scope<'scope, '_>,
        sender: &mpsc::Sender<Ended>,
    ) -> Result<bool, StoreError>
    where
        'a: 'scope,
    {
        match self.state(cell, &doing.outcome) {
            State::Waits => return Ok(false),
            State::Blocked(cause) => {
                doing.outcome.blocked.insert(cell, cause);
                return Ok(true);
            }
            State::Ready => {}
        }
        let planned = &self.plan.cells[cell];
        if let Some(folder) = whole(self.store, planned) {
            doing.outcome.finished.insert(cell, folder);
            doing.outcome.kept += 1;
            return Ok(true);
        }
        let Some(threads) = self.room(cell, doing) else { return Ok(false) };
        let claim = match self.store.claim(&planned.key)? {
            Claimed::Ours(claim) => claim,
            Claimed::Theirs(owner) => {
                if doing.elsewhere.insert(cell) {
                    let label = &planned.determinants.label;
                    self.progress.note(&format!("{label} is done by another program ({owner})"));
                }
                return Ok(false);
            }
        };
        // Again, now that nobody else can finish it.
        if let Some(folder) = finished(self.store, planned, self.progress)? {
            doing.outcome.finished.insert(cell, folder);
            doing.outcome.kept += 1;
            return Ok(true);
        }
        doing.claims.insert(cell, claim);
        self.worker.make_room(planned);
        // A cell that is worked on alone has a peak of memory of its own; those that are worked on side by side share
        // the process's, from where the first of them began.
        if doing.running == 0 {
            tune::memory::restart_peak();
        }
        doing.running += 1;
        self.begin(cell, threads, &doing.outcome, scope, sender)?;
        Ok(true)
    }

    /// Waits until some work is over, or until it is time to look again for what is done elsewhere.
    fn wait(&self, doing: &mut Doing, ended: &mpsc::Receiver<Ended>) -> Result<(), StoreError> {
        if doing.running == 0 {
            self.stop.sleep(LOOK);
            return Ok(());
        }
        let over = match ended.recv_timeout(LOOK) {
            Ok(over) => over,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(()),
        };
        doing.running -= 1;
        let cell = over.cell;
        let kept = self.end(over, &mut doing.outcome);
        doing.claims.remove(&cell);
        kept
    }

    /// How many threads a cell's work is to have, if there is room for it beside what is under way.
    fn room(&self, place: usize, doing: &Doing) -> Option<Threads> {
        let cell = &self.plan.cells[place];
        let needs = needs(cell, &doing.outcome);
        let threads = if doing.slots == 1 { Threads::All } else { self.worker.threads(cell, &needs) };
        let room = match threads {
            Threads::All => doing.running == 0,
            Threads::One => doing.running < doing.slots,
        };
        room.then_some(threads)
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

    /// Begins a cell's work.
    fn begin<'scope>(
        &'scope self,
        place: usize,
        threads: Threads,
        outcome: &Outcome,
        scope: &'scope Scope<'scope, '_>,
        sender: &mpsc::Sender<Ended>,
    ) -> Result<(), StoreError>
    where
        'a: 'scope,
    {
        let cell = &self.plan.cells[place];
        let needs = needs(cell, outcome);
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
            let progress = CellProgress::new(label, self.progress, self.stop);
            // A panic is a bug, and yet the other cells go on, and this one's end is told.
            let worked =
                catch_unwind(AssertUnwindSafe(|| self.worker.work(cell, &needs, &folder, &progress)))
                    .unwrap_or_else(|thrown| match thrown.downcast::<Stopped>() {
                        Ok(stopped) => Err(anyhow!(*stopped)),
                        Err(_) => Err(anyhow!("the work panicked, which is a bug in this program")),
                    });
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
        Ok(())
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
            Err(error) if error.is::<Stopped>() => {
                self.progress.stopped(label);
                outcome.stopped.insert(ended.cell);
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

/// The finished cells that a cell reads.
fn needs(cell: &Cell, outcome: &Outcome) -> Needs {
    let found = cell.needs.iter().filter_map(|need| Some((*need, outcome.finished.get(need)?.clone())));
    Needs(found.collect())
}

/// The folder of a finished cell that has nothing wrong with it and nothing left to do.
fn whole(store: &Store, cell: &Cell) -> Option<PathBuf> {
    let folder = store.finished(&cell.key).ok().flatten()?;
    (!folder.join(INCOMPLETE_FILE).exists()).then_some(folder)
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
