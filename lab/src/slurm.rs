//! The Slurm runner: what a plan's cells lack, as job arrays of a cluster.
//!
//! No daemon: the program submits, looks at the jobs from time to time, submits again what the cluster has killed, and
//! writes the report at the end. It may be killed at any moment. Its jobs go on, what it had submitted stands in files
//! ([`journal`]), and the same command finds them again. A job is this program as well, told which cells to do
//! (`run EXPERIMENT.toml --cells KEY...`), on the same store over a shared file system: it claims its cells, keeps each
//! as soon as it is finished, and says in a file of its own what it came to.
//!
//! What is over in milliseconds (mixes), and what only waits for an endpoint, whose rate and cap hold for one program,
//! is done by the program that submits. See `pack` for how the other cells become jobs.

pub mod estimate;
pub mod journal;
mod pack;
pub mod scheduler;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::experiment::{Memory, Slurm, TimeLimit};
use crate::plan::{Cell, Plan, Work};
use crate::progress::Progress;
use crate::run::Outcome;
use crate::stop::Stop;
use crate::store::{Claimed, INCOMPLETE_FILE, Key, Store, StoreError};
use journal::{Array, Job, Journal, Record, Wish};
use pack::{Parent, Todo, groups, packs};
use scheduler::{JobId, JobState, Scheduler, Submission};

/// What a cell is thought to take at its first try.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// In mebibytes.
    pub memory: u64,
    /// On the cores of a job.
    pub seconds: f64,
    /// Whether it is worth one thread, and others are done beside it.
    pub small: bool,
}

/// A run on a cluster.
pub struct Cluster<'a> {
    /// All cells.
    pub plan: &'a Plan,
    /// Where they are kept, on a file system that the nodes share.
    pub store: &'a Store,
    /// What was submitted.
    pub journal: &'a Journal,
    /// The jobs' names begin with this, and no other results' jobs have it.
    pub name: &'a str,
    /// How the cluster is asked.
    pub settings: &'a Slurm,
    /// The cluster.
    pub scheduler: &'a dyn Scheduler,
    /// The job's program with its arguments, each quoted for the shell, as far as `--record FILE --cells KEY...`.
    pub command: &'a str,
    /// What each cell is thought to take, in the plan's order.
    pub estimates: &'a [Estimate],
    /// Whether a cell is done by this program.
    pub here: &'a dyn Fn(&Cell) -> bool,
    /// Does cells in this program.
    pub run_here: &'a dyn Fn(&BTreeSet<usize>) -> Result<Outcome, StoreError>,
    /// Told how it goes on.
    pub progress: &'a dyn Progress,
    /// Asks it to end. The jobs go on.
    pub stop: &'a Stop,
}

/// The stages, in the order in which their cells need each other.
const STAGES: [&str; 5] = ["base-model", "mix", "tuning", "answers", "scores"];
/// A job is never given less time than this.
const LEAST_MINUTES: u64 = 5;
/// How often a job is looked for that the cluster does not know, and a result that is not there yet: file systems that
/// machines share show a file late.
const LOOKS: u32 = 3;
/// How often the cluster is asked again that does not answer.
const ASKS: u32 = 5;

/// How a run stands.
#[derive(Default)]
struct State {
    outcome: Outcome,
    arrays: Vec<Array>,
    /// What cells ask for, where they have been tried before.
    wishes: BTreeMap<usize, Wish>,
    /// Finished cells of which more may come, until they have been tried again.
    again: BTreeSet<usize>,
    /// Cells that were tried in this program.
    tried_here: BTreeSet<usize>,
    /// Jobs that have ended without what was expected: so many looks ago.
    looks: BTreeMap<JobId, u32>,
    /// Jobs that were warned of.
    warned: BTreeSet<JobId>,
}

/// What becomes of a job's unfinished cells.
#[derive(Debug, PartialEq)]
enum Next {
    /// They are submitted again, and ask for this.
    Again(Wish),
    /// They fail, for this reason.
    GiveUp(String),
}

impl Cluster<'_> {
    /// Runs all cells that are not finished.
    ///
    /// # Errors
    /// What stops the whole run: a store that cannot be written, a cluster that refuses a job. Failed cells are in
    /// [`Outcome::failed`].
    pub fn run(&self) -> Result<Outcome> {
        let mut state = State { arrays: self.journal.arrays()?, ..State::default() };
        self.look_at_the_store(&mut state, true)?;
        state.outcome.kept = state.outcome.finished.len();
        let finished = &state.outcome.finished;
        let cells = self.plan.cells.iter().enumerate();
        let missing = cells.filter(|(place, _)| !finished.contains_key(place));
        let missing: Vec<&str> = missing.map(|(_, cell)| cell.determinants.label.as_str()).collect();
        self.progress.begin(self.plan.cells.len(), &missing);
        self.find_again(&mut state)?;
        while !self.stop.asked() {
            self.look_at_the_jobs(&mut state)?;
            self.look_at_the_store(&mut state, false)?;
            self.block(&mut state);
            let here = self.cells_to_do_here(&state);
            if !here.is_empty() {
                self.do_here(here, &mut state)?;
                continue;
            }
            let submitted = self.submit_all(&mut state)?;
            if submitted == 0 && live(&state.arrays).next().is_none() {
                break;
            }
            self.stop
                .sleep(Duration::try_from_secs_f64(self.settings.poll).unwrap_or(Duration::from_secs(15)));
        }
        let settled = |cell: &usize| {
            let outcome = &state.outcome;
            outcome.finished.contains_key(cell)
                || outcome.failed.contains_key(cell)
                || outcome.blocked.contains_key(cell)
        };
        let left: BTreeSet<usize> = (0..self.plan.cells.len()).filter(|cell| !settled(cell)).collect();
        state.outcome.stopped = left;
        self.progress.end();
        Ok(state.outcome)
    }

    /// Takes note of cells that are finished. One that is corrupted is removed, to be made again.
    fn look_at_the_store(&self, state: &mut State, first: bool) -> Result<(), StoreError> {
        for (place, cell) in self.plan.cells.iter().enumerate() {
            if state.outcome.finished.contains_key(&place) || state.again.contains(&place) {
                continue;
            }
            match self.store.finished(&cell.key) {
                Ok(Some(folder)) if first && folder.join(INCOMPLETE_FILE).exists() => {
                    state.again.insert(place);
                }
                Ok(Some(folder)) => {
                    if !first {
                        self.tell_finished(cell, &folder);
                    }
                    state.outcome.finished.insert(place, folder);
                }
                Ok(None) => {}
                Err(error @ StoreError::Corrupted { .. }) => {
                    if let Claimed::Ours(_claim) = self.store.claim(&cell.key)? {
                        self.progress.warn(&format!("{error}; {} is made again", cell.determinants.label));
                        self.store.remove(&cell.key)?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn tell_finished(&self, cell: &Cell, folder: &Path) {
        let label = &cell.determinants.label;
        let seconds = self.store.manifest(&cell.key).map_or(0.0, |manifest| manifest.seconds);
        if let Ok(reason) = fs::read_to_string(folder.join(INCOMPLETE_FILE)) {
            self.progress.warn(&format!("{label}: {}", reason.trim()));
        }
        self.progress.done(label, Duration::try_from_secs_f64(seconds).unwrap_or_default());
    }

    /// Finds the jobs of an earlier program. An array without a number was being submitted when that program ended:
    /// whether it was, its name tells.
    fn find_again(&self, state: &mut State) -> Result<()> {
        for array in &mut state.arrays {
            if array.id.is_none() && array.jobs.iter().any(|job| !job.ended) {
                array.id = self.ask(|| self.scheduler.find(&array.name))?;
                if array.id.is_none() {
                    array.jobs.iter_mut().for_each(|job| job.ended = true);
                }
                self.journal.keep(array)?;
            }
        }
        let places: BTreeMap<Key, usize> = self.places();
        for job in state.arrays.iter().flat_map(|array| &array.jobs).filter(|job| job.ended) {
            for cell in job.cells.iter().filter_map(|key| places.get(key)) {
                // What earlier tries have taught is kept; how often they failed is not: this run was asked for anew.
                let wish = state.wishes.entry(*cell).or_default();
                wish.memory = wish.memory.max(job.wish.memory);
                wish.minutes = wish.minutes.max(job.wish.minutes);
            }
        }
        let found = live(&state.arrays).count();
        if found > 0 {
            self.progress.note(&format!("{found} jobs of an earlier run are gone on with"));
        }
        Ok(())
    }

    fn places(&self) -> BTreeMap<Key, usize> {
        self.plan.cells.iter().enumerate().map(|(place, cell)| (cell.key, place)).collect()
    }

    /// Asks the cluster, and again where it does not answer: a controller that is started anew is away for a while.
    fn ask<T>(&self, question: impl Fn() -> Result<T>) -> Result<T> {
        let mut asked = 1;
        loop {
            match question() {
                Ok(answer) => return Ok(answer),
                Err(error) if asked < ASKS && !self.stop.asked() => {
                    self.progress.warn(&format!("{error:#}; asked again in a while"));
                    asked += 1;
                    self.stop.sleep(Duration::from_secs(5));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes note of jobs that have ended.
    fn look_at_the_jobs(&self, state: &mut State) -> Result<()> {
        let numbers: BTreeSet<u64> = live(&state.arrays).map(|(id, _)| id.0).collect();
        if numbers.is_empty() {
            return Ok(());
        }
        let numbers: Vec<u64> = numbers.into_iter().collect();
        let states = match self.scheduler.states(&numbers) {
            Ok(states) => states,
            Err(error) => {
                // The jobs go on without the controller's answer.
                self.progress.warn(&format!("{error:#}; asked again in a while"));
                return Ok(());
            }
        };
        let places = self.places();
        let ids: Vec<JobId> = live(&state.arrays).map(|(id, _)| id).collect();
        for id in ids {
            let found = states.get(&id);
            if let Some(JobState::Live(reason)) = found {
                self.look_at_a_waiting_job(id, reason, state)?;
                continue;
            }
            let Some(job) = find(&state.arrays, id).cloned() else { continue };
            let cells: Vec<usize> = job.cells.iter().filter_map(|key| places.get(key).copied()).collect();
            if cells.len() < job.cells.len() {
                self.progress.warn(&format!(
                    "job {}_{} was submitted for {} cells that the experiment no longer has",
                    id.0,
                    id.1,
                    job.cells.len() - cells.len()
                ));
            }
            let left: Vec<usize> =
                cells.iter().copied().filter(|cell| !self.store.has(&self.plan.cells[*cell].key)).collect();
            let looks = state.looks.entry(id).or_default();
            *looks += 1;
            let clear = !matches!(found, None | Some(JobState::Completed));
            if !left.is_empty() && !clear && *looks < LOOKS {
                continue;
            }
            for cell in &cells {
                state.again.remove(cell);
            }
            let wish = self.settle(&job, id, found, &left, state);
            self.end(id, wish, state)?;
        }
        Ok(())
    }

    /// A job that waits for what will never come is taken back, so that its cells can be submitted again.
    fn look_at_a_waiting_job(&self, id: JobId, reason: &str, state: &mut State) -> Result<()> {
        if reason == "DependencyNeverSatisfied" {
            return self.ask(|| self.scheduler.cancel(id));
        }
        let held = reason.contains("Held") || reason.contains("held");
        if held && state.warned.insert(id) {
            self.progress.warn(&format!(
                "job {}_{} is held by the cluster ({reason}): `scontrol release {0}_{1}` lets it go on",
                id.0, id.1
            ));
        }
        Ok(())
    }

    /// Decides what becomes of a job's unfinished cells, and gives what they ask for at the next try.
    fn settle(
        &self,
        job: &Job,
        id: JobId,
        found: Option<&JobState>,
        left: &[usize],
        state: &mut State,
    ) -> Wish {
        let record = self.journal.record(id);
        let failed = record.as_ref().map(|record| record.failed.clone()).unwrap_or_default();
        let mut rest = Vec::new();
        for cell in left {
            match failed.get(&self.plan.cells[*cell].key) {
                Some(reason) => self.fail(*cell, reason, state),
                None => rest.push(*cell),
            }
        }
        if rest.is_empty() {
            return job.wish;
        }
        // A job that never began because another one failed has not been tried.
        let waited = record.is_none()
            && found == Some(&JobState::Cancelled)
            && rest.iter().any(|cell| {
                self.plan.cells[*cell].needs.iter().any(|need| !state.outcome.finished.contains_key(need))
            });
        // Nor has one whose cells wait for a cell of its own that has failed.
        let progressed = waited || !failed.is_empty() || self.mark(&job.cells) > job.mark;
        let words = || self.journal.last_words(id);
        match next(found, record.as_ref(), job.wish, progressed, self.settings, &words) {
            Next::Again(wish) => {
                if !waited {
                    let what = found.map_or("is no longer known to the cluster", said);
                    self.progress.note(&format!(
                        "job {}_{} {what}: {} of its cells are submitted again",
                        id.0,
                        id.1,
                        rest.len()
                    ));
                }
                for cell in rest {
                    state.wishes.insert(cell, wish);
                }
                wish
            }
            Next::GiveUp(reason) => {
                for cell in rest {
                    self.fail(cell, &reason, state);
                }
                job.wish
            }
        }
    }

    fn fail(&self, cell: usize, reason: &str, state: &mut State) {
        self.progress.failed(&self.plan.cells[cell].determinants.label, reason);
        state.outcome.failed.insert(cell, reason.to_owned());
    }

    fn end(&self, id: JobId, wish: Wish, state: &mut State) -> Result<()> {
        state.looks.remove(&id);
        for array in state.arrays.iter_mut().filter(|array| array.id == Some(id.0)) {
            for job in array.jobs.iter_mut().filter(|job| job.place == id.1) {
                job.ended = true;
                job.wish = wish;
            }
            self.journal.keep(array)?;
        }
        Ok(())
    }

    /// How far cells are, in bytes of what they keep as it comes: metrics, responses, ratings.
    fn mark(&self, cells: &[Key]) -> u64 {
        let kept = |key: &Key| -> u64 {
            let entries = fs::read_dir(self.store.folder().join("work").join(key.to_string()));
            let files = entries.into_iter().flatten().flatten();
            let lines = files.filter(|file| {
                let name = file.file_name();
                let name = name.to_string_lossy();
                name.ends_with(".jsonl") || name.ends_with(".partial")
            });
            lines.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
        };
        // A finished cell is further than any unfinished one.
        cells.iter().map(|key| if self.store.has(key) { 1 << 40 } else { kept(key) }).sum()
    }

    /// Takes note of cells that cannot be done, because one that they need has failed.
    fn block(&self, state: &mut State) {
        for (place, cell) in self.plan.cells.iter().enumerate() {
            let outcome = &state.outcome;
            if outcome.finished.contains_key(&place) || outcome.failed.contains_key(&place) {
                continue;
            }
            let cause = cell.needs.iter().find_map(|need| {
                let failed = outcome.failed.contains_key(need).then_some(*need);
                failed.or_else(|| outcome.blocked.get(need).copied())
            });
            if let Some(cause) = cause {
                state.outcome.blocked.insert(place, cause);
            }
        }
    }

    /// Whether nothing has come of a cell yet, good or bad.
    fn open(&self, cell: usize, state: &State) -> bool {
        let outcome = &state.outcome;
        !outcome.finished.contains_key(&cell)
            && !outcome.failed.contains_key(&cell)
            && !outcome.blocked.contains_key(&cell)
    }

    fn cells_to_do_here(&self, state: &State) -> BTreeSet<usize> {
        let ready = |(place, cell): &(usize, &Cell)| {
            (self.here)(cell)
                && self.open(*place, state)
                && !state.tried_here.contains(place)
                && cell.needs.iter().all(|need| state.outcome.finished.contains_key(need))
        };
        self.plan.cells.iter().enumerate().filter(ready).map(|(place, _)| place).collect()
    }

    fn do_here(&self, cells: BTreeSet<usize>, state: &mut State) -> Result<(), StoreError> {
        let done = (self.run_here)(&cells)?;
        for cell in cells {
            state.again.remove(&cell);
            state.tried_here.insert(cell);
            if let Some(folder) = done.finished.get(&cell) {
                state.outcome.finished.insert(cell, folder.clone());
            }
            if let Some(reason) = done.failed.get(&cell) {
                state.outcome.failed.insert(cell, reason.clone());
            }
        }
        Ok(())
    }

    /// Submits every cell that is not finished, and not in a job, and whose needs are finished or in jobs. Gives the
    /// number of jobs.
    fn submit_all(&self, state: &mut State) -> Result<usize> {
        let new = state.arrays.len();
        let places = self.places();
        let mut made_by: BTreeMap<usize, Parent> = BTreeMap::new();
        for (number, array) in state.arrays.iter().enumerate() {
            for job in array.jobs.iter().filter(|job| !job.ended) {
                for cell in job.cells.iter().filter_map(|key| places.get(key)) {
                    made_by.insert(*cell, (number, job.place));
                }
            }
        }
        let mut submitted = 0;
        for stage in STAGES {
            let mut todo = Vec::new();
            for (place, cell) in self.plan.cells.iter().enumerate() {
                let wanted = stage_of(cell) == stage
                    && self.open(place, state)
                    && !made_by.contains_key(&place)
                    && !(self.here)(cell);
                if wanted {
                    todo.extend(self.todo(place, cell, &made_by, state));
                }
            }
            let packed = packs(&todo, self.settings.pack.minutes as f64 * 60.0, self.settings.cores);
            for group in groups(packed, new, self.scheduler.array_size()) {
                let number = state.arrays.len();
                let packs = group.packs.iter();
                let jobs: Vec<Job> = packs
                    .map(|(place, pack)| {
                        let cells: Vec<Key> =
                            pack.cells.iter().map(|cell| self.plan.cells[*cell].key).collect();
                        let mark = self.mark(&cells);
                        Job { place: *place, cells, wish: group.wish, mark, ended: false }
                    })
                    .collect();
                for (place, pack) in &group.packs {
                    made_by.extend(pack.cells.iter().map(|cell| (*cell, (number, *place))));
                }
                submitted += jobs.len();
                self.submit(stage, jobs, &group, state)?;
            }
        }
        Ok(submitted)
    }

    /// A cell to submit; none where what it needs is not on its way.
    fn todo(
        &self,
        place: usize,
        cell: &Cell,
        made_by: &BTreeMap<usize, Parent>,
        state: &State,
    ) -> Option<Todo> {
        let mut parents = BTreeSet::new();
        for need in cell.needs.iter().filter(|need| !state.outcome.finished.contains_key(*need)) {
            parents.insert(*made_by.get(need)?);
        }
        let estimate = self.estimates.get(place)?;
        let minutes = (estimate.seconds * 2.0 / 60.0).ceil() as u64;
        let first = Wish {
            memory: self.settings.memory.map_or(estimate.memory, |memory| memory.mebibytes),
            minutes: self.settings.time.map_or(minutes.max(LEAST_MINUTES), |time| time.minutes),
            tries: 0,
        };
        let wish = state.wishes.get(&place).map_or(first, |wish| Wish {
            memory: wish.memory.max(first.memory),
            minutes: wish.minutes.max(first.minutes),
            tries: wish.tries,
        });
        // Memory that is given is a job's, however many of its cells are done side by side.
        let small = estimate.small && self.settings.memory.is_none() && !state.wishes.contains_key(&place);
        Some(Todo { cell: place, parents, wish, seconds: estimate.seconds, small })
    }

    fn submit(&self, stage: &str, jobs: Vec<Job>, group: &pack::Group, state: &mut State) -> Result<()> {
        let number = state.arrays.iter().map(|array| array.number).max().unwrap_or(0) + 1;
        // Where what was submitted is forgotten, numbers begin again, and the cluster may still know their first jobs.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let when = blake3::hash(&now.to_le_bytes()).to_hex();
        let name = format!("{}-{number:04}-{}-{stage}", self.name, &when[..6]);
        let mut array = Array { name, number, id: None, stage: stage.to_owned(), jobs };
        let script = self.journal.script(&array, &self.script(&array))?;
        let options = self.options(&array, group, &state.arrays)?;
        // Before it is submitted: a program that is killed between the two is followed by one that looks for the name.
        self.journal.keep(&array)?;
        let submission = Submission { script: &script, options };
        let sent = self.ask(|| match self.scheduler.find(&array.name)? {
            Some(id) => Ok(id),
            None => self.scheduler.submit(&submission),
        });
        match sent {
            Ok(id) => array.id = Some(id),
            Err(error) => {
                array.jobs.iter_mut().for_each(|job| job.ended = true);
                self.journal.keep(&array)?;
                return Err(error.context(format!("the {stage} cells could not be submitted")));
            }
        }
        self.journal.keep(&array)?;
        let cells: usize = array.jobs.iter().map(|job| job.cells.len()).sum();
        self.progress.note(&format!(
            "{cells} {stage} cells submitted as {} jobs of array {}",
            array.jobs.len(),
            array.id.unwrap_or_default()
        ));
        state.arrays.push(array);
        Ok(())
    }

    fn options(&self, array: &Array, group: &pack::Group, arrays: &[Array]) -> Result<Vec<String>> {
        let settings = self.settings;
        let places: Vec<String> = array.jobs.iter().map(|job| job.place.to_string()).collect();
        let at_once = settings.at_once.map_or(String::new(), |most| format!("%{most}"));
        let memory = group.wish.memory.min(settings.max_memory.mebibytes);
        let minutes = group.wish.minutes.min(settings.max_time.minutes);
        let here = std::env::current_dir().context("the current folder cannot be told")?;
        let mut options = vec![
            format!("--job-name={}", array.name),
            format!("--array={}{at_once}", places.join(",")),
            format!("--cpus-per-task={}", settings.cores),
            format!("--mem={}", Memory { mebibytes: memory }),
            format!("--time={}", TimeLimit { minutes }),
            format!("--output={}", self.journal.log_pattern()),
            "--open-mode=append".to_owned(),
            "--requeue".to_owned(),
            "--kill-on-invalid-dep=yes".to_owned(),
            format!("--signal=B:USR1@{}", settings.notice),
            format!("--chdir={}", here.display()),
        ];
        for (name, value) in
            [("partition", &settings.partition), ("account", &settings.account), ("qos", &settings.qos)]
        {
            options.extend(value.as_ref().map(|value| format!("--{name}={value}")));
        }
        let id = |number: usize| arrays.get(number).and_then(|array| array.id);
        let mut after = Vec::new();
        if let Some(id) = group.corresponding.and_then(id) {
            after.push(format!("aftercorr:{id}"));
        }
        for (number, place) in &group.after {
            after.extend(id(*number).map(|id| format!("afterok:{id}_{place}")));
        }
        if !after.is_empty() {
            options.push(format!("--dependency={}", after.join(",")));
        }
        options.extend(settings.options.iter().cloned());
        Ok(options)
    }

    fn script(&self, array: &Array) -> String {
        let mut text = String::from("#!/bin/bash\n");
        if !self.settings.preamble.is_empty() {
            text += self.settings.preamble.trim_end();
            text += "\n";
        }
        text += "case \"$SLURM_ARRAY_TASK_ID\" in\n";
        for job in &array.jobs {
            let keys: Vec<String> = job.cells.iter().map(ToString::to_string).collect();
            // Writing into a text cannot fail.
            let _ = writeln!(text, "{}) cells=\"{}\" ;;", job.place, keys.join(" "));
        }
        text += "esac\n";
        let records = quoted(&self.journal.records().display().to_string());
        // The program takes the shell's place: so the cluster's signals reach it.
        let _ = writeln!(
            text,
            "exec {} --record {records}/\"${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}.json\" --cells $cells",
            self.command
        );
        text
    }
}

/// Jobs that have not ended, as far as it is known.
fn live(arrays: &[Array]) -> impl Iterator<Item = (JobId, &Job)> {
    arrays.iter().flat_map(|array| {
        let jobs = array.jobs.iter().filter(|job| !job.ended);
        jobs.filter_map(move |job| Some(((array.id?, job.place), job)))
    })
}

fn find(arrays: &[Array], id: JobId) -> Option<&Job> {
    live(arrays).find(|(other, _)| *other == id).map(|(_, job)| job)
}

/// Which stage a cell belongs to.
fn stage_of(cell: &Cell) -> &'static str {
    match cell.work {
        Work::BaseModel { .. } => STAGES[0],
        Work::Mix { .. } => STAGES[1],
        Work::Tuning { .. } => STAGES[2],
        Work::Answers { .. } => STAGES[3],
        Work::Scores { .. } => STAGES[4],
    }
}

/// A state, to follow a job's number.
fn said(state: &JobState) -> &'static str {
    match state {
        JobState::Live(_) => "goes on",
        JobState::Completed => "ended without all of its results",
        JobState::Failed { signal: Some(_) } => "was killed",
        JobState::Failed { signal: None } => "ended early",
        JobState::OutOfMemory => "was killed for want of memory",
        JobState::Timeout => "was killed for want of time",
        JobState::Lost => "lost its node",
        JobState::Cancelled => "was cancelled",
    }
}

/// What becomes of the cells that a job has left unfinished. A try counts unless it brought them further: what is
/// preempted again and again, and goes on from its checkpoints, comes to its end.
fn next(
    found: Option<&JobState>,
    record: Option<&Record>,
    asked: Wish,
    progressed: bool,
    settings: &Slurm,
    last_words: &dyn Fn() -> String,
) -> Next {
    /// The kernel's own killer of processes that want too much memory sends this.
    const KILLED: u32 = 9;
    let stopped = record.is_some_and(|record| record.ended && record.stopped);
    let tries = asked.tries + u32::from(!progressed);
    let (most_memory, most_minutes) = (settings.max_memory.mebibytes, settings.max_time.minutes);
    let memory = (asked.memory * 2).min(most_memory);
    let minutes = (asked.minutes * 2).min(most_minutes);
    let what = found.map_or("is no longer known to the cluster", said);
    let wish = match found {
        Some(JobState::OutOfMemory | JobState::Failed { signal: Some(KILLED) }) if !stopped => {
            if asked.memory >= most_memory {
                let most = settings.max_memory;
                return Next::GiveUp(format!("killed for want of memory at {most}, which is max_memory"));
            }
            Wish { memory, minutes: asked.minutes, tries: asked.tries + 1 }
        }
        Some(JobState::Timeout) if !progressed => {
            if asked.minutes >= most_minutes {
                let most = settings.max_time;
                return Next::GiveUp(format!("killed for want of time at {most}, which is max_time"));
            }
            Wish { memory: asked.memory, minutes, tries }
        }
        // It was told that its time was nearly up and came no further: with more time it will.
        _ if stopped && !progressed => Wish { memory: asked.memory, minutes, tries },
        // Killed, and nobody knows why.
        None if record.is_some_and(|record| !record.ended) => Wish { memory, minutes, tries },
        _ => Wish { tries, ..asked },
    };
    if wish.tries >= settings.tries {
        return Next::GiveUp(format!("its job {what}, {} times; {}", wish.tries, last_words()));
    }
    Next::Again(wish)
}

/// A text as the shell takes it.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Checks what the options say that the cluster would only refuse later.
///
/// # Errors
/// What is wrong, by its key.
pub fn check(settings: &Slurm) -> Result<()> {
    for option in &settings.options {
        if !option.starts_with('-') {
            bail!("[slurm] options: found {option:?}, expected options of sbatch, such as \"--gres=gpu:1\"");
        }
    }
    if settings.cores == 0 || settings.tries == 0 || settings.at_once == Some(0) {
        bail!("[slurm] cores, tries and at_once: found 0, expected at least 1");
    }
    if !(settings.poll > 0.0 && settings.poll < 86_400.0) {
        bail!("[slurm] poll: found {}, expected seconds above 0", settings.poll);
    }
    Ok(())
}

/// A name for the jobs of these results: the experiment's, and a hash of where the results lie.
pub fn job_name(experiment: &str, results: &Path) -> String {
    let whole: PathBuf = fs::canonicalize(results).unwrap_or_else(|_| results.to_owned());
    let hash = blake3::hash(whole.as_os_str().as_encoded_bytes()).to_hex();
    format!("polypaca-{experiment}-{}", &hash[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(found: Option<JobState>, record: Option<Record>, tries: u32, progressed: bool) -> Next {
        let asked = Wish { memory: 1000, minutes: 10, tries };
        let settings = Slurm::default();
        next(found.as_ref(), record.as_ref(), asked, progressed, &settings, &|| "log".to_owned())
    }

    fn again(memory: u64, minutes: u64, tries: u32) -> Next {
        Next::Again(Wish { memory, minutes, tries })
    }

    #[test]
    fn what_was_killed_for_want_of_something_gets_more_of_it() {
        let began = || Some(Record::default());
        assert_eq!(ask(Some(JobState::OutOfMemory), began(), 0, false), again(2000, 10, 1));
        assert_eq!(ask(Some(JobState::Failed { signal: Some(9) }), began(), 0, true), again(2000, 10, 1));
        assert_eq!(ask(Some(JobState::Timeout), began(), 0, false), again(1000, 20, 1));
        // Without accounting, a job that the controller has forgotten says only that it never came to its end.
        assert_eq!(ask(None, began(), 0, false), again(2000, 20, 1));
    }

    #[test]
    fn what_was_taken_away_is_submitted_as_it_was_and_counts_only_where_nothing_came_of_it() {
        for state in [JobState::Lost, JobState::Cancelled] {
            assert_eq!(ask(Some(state.clone()), None, 2, true), again(1000, 10, 2));
            assert_eq!(ask(Some(state), None, 2, false), again(1000, 10, 3));
        }
        let stopped = || Some(Record { ended: true, stopped: true, ..Record::default() });
        assert_eq!(ask(Some(JobState::Failed { signal: None }), stopped(), 0, true), again(1000, 10, 0));
        assert_eq!(ask(Some(JobState::Failed { signal: None }), stopped(), 0, false), again(1000, 20, 1));
        assert_eq!(ask(Some(JobState::Timeout), Some(Record::default()), 1, true), again(1000, 10, 1));
    }

    #[test]
    fn it_is_given_up_at_the_last_try_and_at_the_most_memory() {
        let Next::GiveUp(reason) = ask(Some(JobState::Failed { signal: None }), None, 3, false) else {
            panic!("a fifth try")
        };
        assert_eq!(reason, "its job ended early, 4 times; log");
        let asked = Wish { memory: 256 << 10, minutes: 10, tries: 0 };
        let settings = Slurm::default();
        let found = next(Some(&JobState::OutOfMemory), None, asked, false, &settings, &String::new);
        assert!(matches!(found, Next::GiveUp(reason) if reason.contains("max_memory")));
    }

    #[test]
    fn the_shell_takes_a_quoted_text_as_it_is() {
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }
}
