//! The Slurm runner with a cluster that is made up, so that everything can befall its jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use crate::common::{EXPERIMENT, plan, write};
use anyhow::Result;
use lab::experiment::{Memory, Slurm};
use lab::plan::{Cell, Plan, Work};
use lab::progress::{CellProgress, Silent};
use lab::run::{Needs, Outcome, Run, Worker};
use lab::slurm::journal::{Journal, Record};
use lab::slurm::scheduler::{JobId, JobState, Scheduler, Submission};
use lab::slurm::{Cluster, Estimate};
use lab::stop::Stop;
use lab::store::{Key, Store};

struct Writes;

impl Worker for Writes {
    fn work(&self, cell: &Cell, needs: &Needs, folder: &Path, _: &CellProgress) -> Result<()> {
        let mut text = cell.determinants.label.clone();
        for need in &cell.needs {
            text += &fs::read_to_string(needs.folder(*need)?.join("result"))?;
        }
        anyhow::ensure!(!folder.join("broken").exists(), "it is broken");
        fs::write(folder.join("result"), text)?;
        Ok(())
    }
}

/// A job of the made-up cluster.
struct Job {
    name: String,
    cells: BTreeSet<usize>,
    memory: u64,
    after: Vec<JobId>,
    state: JobState,
}

/// Does a job at each look, if what it waits for is done.
struct MadeUp<'a> {
    plan: &'a Plan,
    store: &'a Store,
    journal: &'a Journal,
    jobs: Mutex<BTreeMap<JobId, Job>>,
    /// What befalls the job that is begun as this one, instead of its work.
    fates: Mutex<BTreeMap<usize, JobState>>,
    begun: Mutex<usize>,
    /// A job needs so many mebibytes.
    needed: u64,
    /// Ends the submitting program at this job.
    leaves_at: Option<usize>,
    stop: &'a Stop,
}

impl<'a> MadeUp<'a> {
    fn new(plan: &'a Plan, store: &'a Store, journal: &'a Journal, stop: &'a Stop) -> Self {
        Self {
            plan,
            store,
            journal,
            jobs: Mutex::default(),
            fates: Mutex::default(),
            begun: Mutex::default(),
            needed: 0,
            leaves_at: None,
            stop,
        }
    }

    fn cell(&self, key: &str) -> usize {
        let key: Key = key.parse().expect("a key");
        self.plan.cells.iter().position(|cell| cell.key == key).expect("a cell of the plan")
    }

    fn work(&self, id: JobId, cells: &BTreeSet<usize>) -> JobState {
        let stop = Stop::default();
        let run = Run {
            plan: self.plan,
            store: self.store,
            experiment: "small",
            worker: &Writes,
            progress: &Silent,
            stop: &stop,
            only: Some(cells),
        };
        let outcome = run.all().expect("a store");
        let failed = outcome.failed.iter().filter(|(cell, _)| cells.contains(cell));
        let failed = failed.map(|(cell, reason)| (self.plan.cells[*cell].key, reason.clone())).collect();
        let record = Record { ended: true, stopped: false, failed };
        record.write(&self.journal.records().join(format!("{}_{}.json", id.0, id.1))).expect("a record");
        let whole = cells.iter().all(|cell| outcome.finished.contains_key(cell));
        if whole { JobState::Completed } else { JobState::Failed { signal: None } }
    }
}

impl Scheduler for MadeUp<'_> {
    fn submit(&self, job: &Submission) -> Result<u64> {
        let option = |name: &str| {
            job.options.iter().find_map(|option| option.strip_prefix(name)).unwrap_or_default().to_owned()
        };
        let script = fs::read_to_string(job.script)?;
        let mut jobs = self.jobs.lock().expect("no panic");
        let array = jobs.keys().map(|id| id.0).max().unwrap_or(0) + 1;
        let memory: Memory = option("--mem=").parse().map_err(anyhow::Error::msg)?;
        for place in option("--array=").split(',').map(|place| place.parse::<u32>().expect("a place")) {
            let line = script.lines().find_map(|line| line.strip_prefix(&format!("{place}) cells=\"")));
            let keys = line.and_then(|line| line.strip_suffix("\" ;;")).expect("the job's cells");
            let mut after = Vec::new();
            for dependency in option("--dependency=").split(',').filter(|dependency| !dependency.is_empty()) {
                let (kind, on) = dependency.split_once(':').expect("a kind");
                let on = match kind {
                    "aftercorr" => (on.parse()?, place),
                    _ => {
                        let (array, place) = on.split_once('_').expect("a job");
                        (array.parse()?, place.parse()?)
                    }
                };
                assert!(jobs.contains_key(&on), "{on:?} is no job");
                after.push(on);
            }
            let cells: BTreeSet<usize> = keys.split(' ').map(|key| self.cell(key)).collect();
            let state = JobState::Live("Dependency".to_owned());
            let name = option("--job-name=");
            jobs.insert((array, place), Job { name, cells, memory: memory.mebibytes, after, state });
        }
        Ok(array)
    }

    fn states(&self, arrays: &[u64]) -> Result<BTreeMap<JobId, JobState>> {
        let mut jobs = self.jobs.lock().expect("no panic");
        let live = |state: &JobState| matches!(state, JobState::Live(_));
        let lost: Vec<JobId> = jobs
            .iter()
            .filter(|(_, job)| live(&job.state))
            .filter(|(_, job)| {
                job.after.iter().any(|on| !live(&jobs[on].state) && jobs[on].state != JobState::Completed)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            jobs.get_mut(&id).expect("a job").state = JobState::Cancelled;
        }
        let ready = jobs.iter().find(|(_, job)| {
            live(&job.state) && job.after.iter().all(|on| jobs[on].state == JobState::Completed)
        });
        if let Some((id, job)) = ready.map(|(id, job)| (*id, job.cells.clone())) {
            let mut begun = self.begun.lock().expect("no panic");
            *begun += 1;
            if self.leaves_at == Some(*begun) {
                self.stop.ask();
            }
            let fate = self.fates.lock().expect("no panic").remove(&*begun);
            let found = jobs.get_mut(&id).expect("a job");
            found.state = if found.memory < self.needed {
                JobState::OutOfMemory
            } else {
                fate.unwrap_or_else(|| self.work(id, &job))
            };
        }
        let of_ours = jobs.iter().filter(|(id, _)| arrays.contains(&id.0));
        Ok(of_ours.map(|(id, job)| (*id, job.state.clone())).collect())
    }

    fn find(&self, name: &str) -> Result<Option<u64>> {
        let jobs = self.jobs.lock().expect("no panic");
        Ok(jobs.iter().find(|(_, job)| job.name == name).map(|(id, _)| id.0))
    }

    fn cancel(&self, id: JobId) -> Result<()> {
        if let Some(job) = self.jobs.lock().expect("no panic").get_mut(&id) {
            job.state = JobState::Cancelled;
        }
        Ok(())
    }

    fn array_size(&self) -> u32 {
        3
    }
}

fn run(cluster: &MadeUp, settings: &Slurm) -> Outcome {
    let cluster = Cluster {
        plan: cluster.plan,
        store: cluster.store,
        journal: cluster.journal,
        name: "small",
        settings,
        scheduler: cluster,
        command: "polypaca run small.toml",
        estimates: &vec![Estimate { memory: 100, seconds: 60.0, small: false }; cluster.plan.cells.len()],
        here: &|cell| matches!(cell.work, Work::Mix { .. }),
        run_here: &|cells| {
            let stop = Stop::default();
            let run = Run {
                plan: cluster.plan,
                store: cluster.store,
                experiment: "small",
                worker: &Writes,
                progress: &Silent,
                stop: &stop,
                only: Some(cells),
            };
            run.all()
        },
        progress: &Silent,
        stop: cluster.stop,
    };
    cluster.run().expect("a run")
}

fn settings() -> Slurm {
    Slurm { poll: 1e-6, pack: "3".parse().expect("three minutes"), ..Slurm::default() }
}

#[test]
fn whatever_befalls_the_jobs_every_cell_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let store = Store::share(&folder.path().join("store")).unwrap();
    let journal = Journal::open(&folder.path().join("slurm")).unwrap();
    // The program that submits ends twice; the cluster, and what befalls its jobs, stay.
    let stop = Stop::default();
    let mut cluster = MadeUp::new(&plan, &store, &journal, &stop);
    cluster.needed = 150;
    *cluster.fates.lock().unwrap() = BTreeMap::from([
        (9, JobState::Cancelled),
        (11, JobState::Lost),
        (13, JobState::Timeout),
        (16, JobState::Failed { signal: Some(9) }),
        (18, JobState::Failed { signal: None }),
    ]);
    cluster.leaves_at = Some(6);
    let outcome = run(&cluster, &settings());
    assert!(!outcome.stopped.is_empty() && outcome.failed.is_empty());
    let stop = Stop::default();
    let cluster = MadeUp { stop: &stop, leaves_at: Some(14), ..cluster };
    assert!(!run(&cluster, &settings()).stopped.is_empty());
    let stop = Stop::default();
    let cluster = MadeUp { stop: &stop, leaves_at: None, ..cluster };
    let outcome = run(&cluster, &settings());
    assert_eq!(outcome.finished.len(), plan.cells.len(), "{:?}", outcome.failed);
    assert!(cluster.fates.lock().unwrap().is_empty(), "not everything has befallen them");
}

#[test]
fn each_cell_is_in_one_job_that_waits_for_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let store = Store::share(&folder.path().join("store")).unwrap();
    let journal = Journal::open(&folder.path().join("slurm")).unwrap();
    let stop = Stop::default();
    let cluster = MadeUp::new(&plan, &store, &journal, &stop);
    assert_eq!(run(&cluster, &settings()).finished.len(), plan.cells.len());
    let jobs = cluster.jobs.lock().unwrap();
    let done: usize = jobs.values().map(|job| job.cells.len()).sum();
    let mixes = plan.cells.iter().filter(|cell| matches!(cell.work, Work::Mix { .. })).count();
    assert_eq!(done, plan.cells.len() - mixes, "each cell is in one job");
    assert!(jobs.len() < done, "small cells share jobs");
    for job in jobs.values() {
        for cell in &job.cells {
            for need in &plan.cells[*cell].needs {
                let waited = job.after.iter().any(|on| jobs[on].cells.contains(need));
                let here = matches!(plan.cells[*need].work, Work::Mix { .. });
                assert!(here || waited || job.cells.contains(need), "cell {cell} does not wait for {need}");
            }
        }
    }
}

#[test]
fn a_cell_that_fails_stops_those_that_need_it_and_is_not_submitted_again() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let store = Store::share(&folder.path().join("store")).unwrap();
    let journal = Journal::open(&folder.path().join("slurm")).unwrap();
    let label = "tuning/tiny/lora/multilingual/seed-1";
    let broken = plan.cells.iter().find(|cell| cell.determinants.label == label).unwrap();
    fs::write(store.work_folder(&broken.key).unwrap().join("broken"), "").unwrap();
    let stop = Stop::default();
    let cluster = MadeUp::new(&plan, &store, &journal, &stop);
    let outcome = run(&cluster, &settings());
    assert_eq!(outcome.failed.values().collect::<Vec<_>>(), ["it is broken"]);
    // Its answers and scores in four languages.
    assert_eq!(outcome.blocked.len(), 8);
    assert_eq!(outcome.finished.len(), plan.cells.len() - 9);
    let jobs = cluster.jobs.lock().unwrap();
    let tried = jobs.values().filter(|job| job.cells.iter().any(|cell| plan.cells[*cell].key == broken.key));
    assert_eq!(tried.count(), 1);
}
