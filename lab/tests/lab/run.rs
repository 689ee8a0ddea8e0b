//! The local runner, with a worker that writes its cell's label instead of tuning.

use std::fs;
use std::path::Path;
use std::sync::{Barrier, Mutex};

use crate::common::{EXPERIMENT, plan, write};
use lab::plan::{Cell, Plan, State};
use lab::progress::{CellProgress, Silent};
use lab::run::{Needs, Outcome, Run, Threads, Worker};
use lab::stop::Stop;
use lab::store::{Claimed, INCOMPLETE_FILE, Store};

#[derive(Default)]
struct Writes {
    /// The cell with this label fails.
    fails: Option<&'static str>,
    /// The cell with this label is incomplete when it is done for the first time.
    incomplete: Option<&'static str>,
    worked: Mutex<Vec<String>>,
}

impl Worker for Writes {
    fn work(&self, cell: &Cell, needs: &Needs, folder: &Path, _: &CellProgress) -> anyhow::Result<()> {
        let label = &cell.determinants.label;
        self.worked.lock().expect("no worker panics").push(label.clone());
        anyhow::ensure!(Some(label.as_str()) != self.fails, "the disk of {label} is full");
        let mut text = label.clone();
        for need in &cell.needs {
            text += &fs::read_to_string(needs.folder(*need)?.join("result"))?;
        }
        if Some(label.as_str()) == self.incomplete && !folder.join("result").exists() {
            fs::write(folder.join(INCOMPLETE_FILE), "one response is unrated")?;
        }
        fs::write(folder.join("result"), text)?;
        Ok(())
    }
}

fn run_all(plan: &Plan, folder: &Path, worker: &Writes) -> Outcome {
    let store = Store::share(folder).expect("the store");
    all(plan, &store, worker, &Stop::default())
}

fn all(plan: &Plan, store: &Store, worker: &dyn Worker, stop: &Stop) -> Outcome {
    let run = Run { plan, store, experiment: "small", worker, progress: &Silent, stop, only: None };
    run.all().expect("a run")
}

#[test]
fn what_is_done_is_not_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let store = folder.path().join("store");
    let worker = Writes::default();
    assert_eq!(run_all(&plan, &store, &worker).kept, 0);
    assert_eq!(worker.worked.lock().unwrap().len(), plan.cells.len());
    let again = run_all(&plan, &store, &worker);
    assert_eq!(again.kept, plan.cells.len());
    assert_eq!(worker.worked.lock().unwrap().len(), plan.cells.len());
}

#[test]
fn a_failed_cell_stops_those_that_need_it_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let store = folder.path().join("store");
    let label = "tuning/tiny/lora/multilingual/seed-1";
    let outcome = run_all(&plan, &store, &Writes { fails: Some(label), ..Writes::default() });
    assert_eq!(outcome.failed.len(), 1);
    // Its answers and scores in four languages.
    assert_eq!(outcome.blocked.len(), 8);
    assert_eq!(outcome.finished.len(), plan.cells.len() - 9);
    let blocked = outcome.blocked.keys().next().copied().unwrap();
    let reason = outcome.reason(&plan, blocked).unwrap();
    assert_eq!(reason, format!("{label} failed: the disk of {label} is full"));
    // The next run does what is missing.
    let worker = Writes::default();
    assert_eq!(run_all(&plan, &store, &worker).finished.len(), plan.cells.len());
    assert_eq!(worker.worked.lock().unwrap().len(), 9);
}

#[test]
fn an_incomplete_cell_is_gone_on_with_in_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let store = folder.path().join("store");
    let worker = Writes { incomplete: Some("scores/tiny/base/fi"), ..Writes::default() };
    assert_eq!(run_all(&plan, &store, &worker).finished.len(), plan.cells.len());
    let states = || -> Vec<State> {
        let store = Store::read(&store);
        let state = plan.cells.iter().map(|cell| plan.state(cell, &store, &[]));
        state.filter(|state| *state != State::Done).collect()
    };
    assert_eq!(states(), [State::Incomplete("one response is unrated".to_owned())]);
    worker.worked.lock().unwrap().clear();
    assert_eq!(run_all(&plan, &store, &worker).finished.len(), plan.cells.len());
    assert_eq!(*worker.worked.lock().unwrap(), ["scores/tiny/base/fi"]);
    assert_eq!(states(), []);
    worker.worked.lock().unwrap().clear();
    run_all(&plan, &store, &worker);
    assert!(worker.worked.lock().unwrap().is_empty());
}

#[test]
fn a_corrupted_cell_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let store = folder.path().join("store");
    let worker = Writes::default();
    run_all(&plan, &store, &worker);
    let result = Store::read(&store).cell_folder(&plan.cells[0].key).join("result");
    let whole = fs::read(&result).unwrap();
    fs::write(&result, "something else").unwrap();
    worker.worked.lock().unwrap().clear();
    run_all(&plan, &store, &worker);
    assert_eq!(*worker.worked.lock().unwrap(), [plan.cells[0].determinants.label.clone()]);
    assert_eq!(fs::read(&result).unwrap(), whole);
}

/// Tunings are worth one thread each; two of them meet at a barrier, where one alone would wait for ever.
struct Meets {
    writes: Writes,
    barrier: Barrier,
    panics: Option<&'static str>,
}

impl Worker for Meets {
    fn threads(&self, cell: &Cell, _: &Needs) -> Threads {
        if is_tuning(cell) { Threads::One } else { Threads::All }
    }

    fn work(&self, cell: &Cell, needs: &Needs, folder: &Path, progress: &CellProgress) -> anyhow::Result<()> {
        let label = cell.determinants.label.as_str();
        assert_ne!(Some(label), self.panics, "as it was told to");
        if is_tuning(cell) && self.panics.is_none() {
            assert_eq!(rayon::current_num_threads(), 1);
            self.barrier.wait();
        }
        self.writes.work(cell, needs, folder, progress)
    }
}

fn is_tuning(cell: &Cell) -> bool {
    cell.determinants.label.starts_with("tuning/")
}

fn on_two_threads(plan: &Plan, folder: &Path, worker: &Meets) -> Outcome {
    let store = Store::share(folder).expect("the store");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");
    pool.install(|| all(plan, &store, worker, &Stop::default()))
}

#[test]
fn cells_worth_one_thread_are_done_side_by_side_with_the_same_results() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let tunings = plan.cells.iter().filter(|cell| is_tuning(cell)).count();
    assert!(tunings > 0 && tunings % 2 == 0, "{tunings} tunings do not pair off at the barrier");
    let worker = Meets { writes: Writes::default(), barrier: Barrier::new(2), panics: None };
    let beside = on_two_threads(&plan, &folder.path().join("beside"), &worker);
    let alone = run_all(&plan, &folder.path().join("alone"), &Writes::default());
    assert_eq!(beside.finished.len(), plan.cells.len());
    for (cell, made) in &beside.finished {
        let [one, other] = [made, &alone.finished[cell]].map(|made| fs::read(made.join("result")).unwrap());
        assert_eq!(one, other);
    }
}

#[test]
fn a_panic_is_a_failed_cell_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let label = "tuning/tiny/lora/multilingual/seed-1";
    let worker = Meets { writes: Writes::default(), barrier: Barrier::new(2), panics: Some(label) };
    let outcome = on_two_threads(&plan, &folder.path().join("store"), &worker);
    assert_eq!(outcome.failed.len(), 1);
    assert_eq!(outcome.finished.len(), plan.cells.len() - 9);
}

#[test]
fn some_cells_alone_are_done_and_what_they_lack_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let store = Store::share(&folder.path().join("store")).unwrap();
    let tuning = plan.cells.iter().position(is_tuning).unwrap();
    let worker = Writes::default();
    let some = |cells: &[usize]| {
        let only = cells.iter().copied().collect();
        let stop = Stop::default();
        let run = Run {
            plan: &plan,
            store: &store,
            experiment: "small",
            worker: &worker,
            progress: &Silent,
            stop: &stop,
            only: Some(&only),
        };
        run.all().unwrap()
    };
    let mix = plan.cells[tuning].needs[0];
    let outcome = some(&[tuning]);
    assert_eq!(outcome.blocked.get(&tuning), Some(&mix));
    assert!(outcome.reason(&plan, tuning).unwrap().contains("is not finished"));
    some(&[mix]);
    assert!(some(&[tuning]).finished.contains_key(&tuning));
    assert_eq!(worker.worked.lock().unwrap().len(), 2);
}

/// Asks its run to end while it works on the cell with this label.
struct Asks {
    writes: Writes,
    label: &'static str,
    stop: Stop,
}

impl Worker for Asks {
    fn work(&self, cell: &Cell, needs: &Needs, folder: &Path, progress: &CellProgress) -> anyhow::Result<()> {
        if cell.determinants.label == self.label {
            self.stop.ask();
            assert!(progress.should_stop());
            lab::stop::leave();
        }
        self.writes.work(cell, needs, folder, progress)
    }
}

#[test]
fn asked_to_end_a_run_begins_no_further_cell_and_none_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let path = folder.path().join("store");
    let label = "tuning/tiny/lora/multilingual/seed-1";
    let worker = Asks { writes: Writes::default(), label, stop: Stop::default() };
    let outcome = all(&plan, &Store::share(&path).unwrap(), &worker, &worker.stop);
    assert!(outcome.failed.is_empty() && outcome.blocked.is_empty());
    assert!(!outcome.finished.is_empty());
    assert_eq!(outcome.finished.len() + outcome.stopped.len(), plan.cells.len());
    let rest = Writes::default();
    assert_eq!(run_all(&plan, &path, &rest).finished.len(), plan.cells.len());
    assert_eq!(rest.worked.lock().unwrap().len(), outcome.stopped.len());
}

#[test]
fn a_cell_that_another_program_works_on_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let path = folder.path().join("store");
    let other = Store::share(&path).unwrap();
    let cell = &plan.cells[0];
    let Claimed::Ours(claim) = other.claim(&cell.key).unwrap() else { panic!("nobody else is here") };
    let worker = Writes::default();
    let outcome = std::thread::scope(|scope| {
        let run = scope.spawn(|| run_all(&plan, &path, &worker));
        // Whatever else can be done is done before, and this cell is not.
        while worker.worked.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        let work = other.work_folder(&cell.key).unwrap();
        fs::write(work.join("result"), &cell.determinants.label).unwrap();
        other.finish(&cell.key, &cell.determinants, "other", std::time::Duration::ZERO).unwrap();
        drop(claim);
        run.join().unwrap()
    });
    assert_eq!(outcome.finished.len(), plan.cells.len());
    let worked = worker.worked.lock().unwrap();
    assert!(!worked.contains(&cell.determinants.label), "it was done twice");
    assert_eq!(worked.len(), plan.cells.len() - 1);
}
