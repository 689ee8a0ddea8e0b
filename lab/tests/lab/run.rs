//! The local runner, with a worker that writes its cell's label instead of tuning.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use crate::common::{EXPERIMENT, plan, write};
use lab::plan::{Cell, Plan};
use lab::progress::{Progress, Silent};
use lab::run::{INCOMPLETE_FILE, Needs, Outcome, Worker, run};
use lab::store::Store;

#[derive(Default)]
struct Writes {
    /// The cell with this label fails.
    fails: Option<&'static str>,
    /// The cell with this label is incomplete when it is done for the first time.
    incomplete: Option<&'static str>,
    worked: RefCell<Vec<String>>,
}

impl Worker for Writes {
    fn work(&self, cell: &Cell, needs: &Needs, folder: &Path, _: &dyn Progress) -> anyhow::Result<()> {
        let label = &cell.determinants.label;
        self.worked.borrow_mut().push(label.clone());
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
    let store = Store::open(folder).expect("the store");
    run(plan, &store, "small", worker, &Silent).expect("a run")
}

#[test]
fn what_is_done_is_not_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let store = folder.path().join("store");
    let worker = Writes::default();
    assert_eq!(run_all(&plan, &store, &worker).kept, 0);
    assert_eq!(worker.worked.borrow().len(), plan.cells.len());
    let again = run_all(&plan, &store, &worker);
    assert_eq!(again.kept, plan.cells.len());
    assert_eq!(worker.worked.borrow().len(), plan.cells.len());
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
    assert_eq!(worker.worked.borrow().len(), 9);
}

#[test]
fn an_incomplete_cell_is_gone_on_with_in_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let store = folder.path().join("store");
    let worker = Writes { incomplete: Some("scores/tiny/base/fi"), ..Writes::default() };
    assert_eq!(run_all(&plan, &store, &worker).finished.len(), plan.cells.len());
    worker.worked.borrow_mut().clear();
    assert_eq!(run_all(&plan, &store, &worker).finished.len(), plan.cells.len());
    assert_eq!(*worker.worked.borrow(), ["scores/tiny/base/fi"]);
    worker.worked.borrow_mut().clear();
    run_all(&plan, &store, &worker);
    assert!(worker.worked.borrow().is_empty());
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
    worker.worked.borrow_mut().clear();
    run_all(&plan, &store, &worker);
    assert_eq!(*worker.worked.borrow(), [plan.cells[0].determinants.label.clone()]);
    assert_eq!(fs::read(&result).unwrap(), whole);
}
