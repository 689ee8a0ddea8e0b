//! A run as others see it: a journal that a run keeps of itself, and what can be told from it.
//!
//! The journal is `progress.jsonl` in the results' folder: a JSON line whenever something happens, each written whole,
//! so that any number of programs may read it as it grows. The jobs of a cluster each have one of their own in the
//! folder `progress`, for lines that several machines append to one file of a shared file system get lost. Nothing of
//! it determines a result, and a run that cannot write it goes on without.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::progress::Progress;

/// In the results' folder.
pub const JOURNAL_FILE: &str = "progress.jsonl";
/// In the results' folder: the journals of jobs.
pub const JOBS_FOLDER: &str = "progress";

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Seconds since 1970 by the machine's clock.
    pub time: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happens in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A run begins.
    Begin {
        /// All of the experiment's.
        cells: usize,
        /// Those to be done.
        missing: usize,
        /// The same by kind.
        #[serde(default)]
        kinds: BTreeMap<String, usize>,
    },
    /// A cell is begun.
    Cell {
        /// Which.
        cell: String,
    },
    /// How far a cell is.
    Step {
        /// Which.
        cell: String,
        /// So far.
        done: u64,
        /// Of so many.
        total: u64,
        /// Loss and speed, in words.
        message: String,
    },
    /// A cell is finished.
    Done {
        /// Which.
        cell: String,
        /// How long it took.
        seconds: f64,
    },
    /// A cell failed.
    Failed {
        /// Which.
        cell: String,
        /// Why.
        reason: String,
    },
    /// A cell was cut short, because the run was asked to end. What it had done is kept.
    Stopped {
        /// Which.
        cell: String,
    },
    /// Something to know that stops nothing.
    Warning {
        /// What.
        message: String,
    },
    /// The run is over.
    End,
}

/// Passes on what it is told, and writes it down.
pub struct Recorded {
    inner: Box<dyn Progress>,
    file: Mutex<Option<File>>,
    /// Whether this is a whole run, whose beginning and end are the page's.
    whole: bool,
    /// When each cell's steps were last written.
    last: Mutex<BTreeMap<String, Instant>>,
}

/// Steps of a cell are written no oftener than this.
const BETWEEN_STEPS: Duration = Duration::from_secs(1);

impl Recorded {
    /// Writes into the journal of the results in `out`, behind what is there.
    pub fn new(inner: Box<dyn Progress>, out: &Path) -> Self {
        Self::at(inner, &out.join(JOURNAL_FILE), true)
    }

    /// Writes into a job's own journal, by the job's name. A job begins and ends within a run.
    pub fn job(inner: Box<dyn Progress>, out: &Path, name: &str) -> Self {
        Self::at(inner, &out.join(JOBS_FOLDER).join(format!("{name}.jsonl")), false)
    }

    fn at(inner: Box<dyn Progress>, path: &Path, whole: bool) -> Self {
        let open = || {
            path.parent().map(fs::create_dir_all).transpose()?;
            File::options().create(true).append(true).open(path)
        };
        let file = open()
            .inspect_err(|error| {
                let place = path.display();
                inner.warn(&format!(
                    "{place} cannot be written ({error}): `watch` will see nothing of this run"
                ));
            })
            .ok();
        Self { inner, file: Mutex::new(file), whole, last: Mutex::default() }
    }

    fn write(&self, event: Event) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let Ok(mut line) = serde_json::to_vec(&Entry { time, event }) else { return };
        line.push(b'\n');
        let Ok(mut file) = self.file.lock() else { return };
        // A full disk is told by the cells, whose work it stops; the journal alone stops nothing.
        if file.as_mut().is_some_and(|file| file.write_all(&line).is_err()) {
            *file = None;
        }
    }
}

impl Progress for Recorded {
    fn begin(&self, cells: usize, missing: &[&str]) {
        if self.whole {
            let mut kinds = BTreeMap::new();
            missing.iter().for_each(|label| *kinds.entry(kind(label).to_owned()).or_default() += 1);
            self.write(Event::Begin { cells, missing: missing.len(), kinds });
        }
        self.inner.begin(cells, missing);
    }

    fn cell(&self, label: &str) {
        self.write(Event::Cell { cell: label.to_owned() });
        self.inner.cell(label);
    }

    fn step(&self, label: &str, done: u64, total: u64, message: &str) {
        let due = self.last.lock().is_ok_and(|mut last| {
            let due = last.get(label).is_none_or(|last| last.elapsed() >= BETWEEN_STEPS);
            if due {
                last.insert(label.to_owned(), Instant::now());
            }
            due
        });
        if due {
            self.write(Event::Step { cell: label.to_owned(), done, total, message: message.to_owned() });
        }
        self.inner.step(label, done, total, message);
    }

    fn done(&self, label: &str, took: Duration) {
        self.write(Event::Done { cell: label.to_owned(), seconds: took.as_secs_f64() });
        self.inner.done(label, took);
    }

    fn failed(&self, label: &str, reason: &str) {
        self.write(Event::Failed { cell: label.to_owned(), reason: reason.to_owned() });
        self.inner.failed(label, reason);
    }

    fn stopped(&self, label: &str) {
        self.write(Event::Stopped { cell: label.to_owned() });
        self.inner.stopped(label);
    }

    fn note(&self, message: &str) {
        self.inner.note(message);
    }

    fn warn(&self, message: &str) {
        self.write(Event::Warning { message: message.to_owned() });
        self.inner.warn(message);
    }

    fn end(&self) {
        if self.whole {
            self.write(Event::End);
        }
        self.inner.end();
    }
}

/// What a journal comes to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Page {
    /// When the last run began, in seconds since 1970.
    pub begun: f64,
    /// When something was last heard of it.
    pub heard: f64,
    /// Whether it has ended.
    pub ended: bool,
    /// The experiment's cells.
    pub cells: usize,
    /// Those that were to be done when it began.
    pub missing: usize,
    /// Those done since.
    pub done: usize,
    /// The cells under way, in the order in which they were begun.
    pub under_way: Vec<UnderWay>,
    /// The cells that failed, with their reasons.
    pub failed: BTreeMap<String, String>,
    /// The cells that were cut short, because the run was asked to end.
    pub stopped: BTreeSet<String>,
    /// The last cells that were finished, with their seconds, newest first.
    pub last: VecDeque<(String, f64)>,
    /// The last warnings, newest first.
    pub warnings: VecDeque<String>,
    /// All of those done: a job tells of its cell, and so does the program that submitted it.
    #[serde(skip)]
    finished: BTreeSet<String>,
    /// What the run's beginning and its finished cells tell of each kind.
    #[serde(skip)]
    kinds: BTreeMap<String, Kind>,
}

/// Cells of one kind, which take about as long as each other.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Kind {
    /// Those to be done when the run began.
    missing: usize,
    /// Those done since.
    done: usize,
    /// What these took, in seconds.
    seconds: f64,
}

/// A cell's kind: what its label begins with.
fn kind(label: &str) -> &str {
    label.split_once('/').map_or(label, |(kind, _)| kind)
}

/// A cell that is being worked on.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct UnderWay {
    /// Which.
    pub cell: String,
    /// When it was begun, in seconds since 1970.
    pub begun: f64,
    /// So far.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// Loss and speed, in words.
    pub message: String,
}

/// Finished cells and warnings that a page keeps.
const KEPT: usize = 8;

impl Page {
    /// Takes another entry in.
    pub fn add(&mut self, entry: Entry) {
        self.heard = entry.time;
        match entry.event {
            Event::Begin { cells, missing, kinds } => {
                let of_kind = |(name, missing)| (name, Kind { missing, ..Kind::default() });
                let kinds = kinds.into_iter().map(of_kind).collect();
                *self =
                    Self { begun: entry.time, heard: entry.time, cells, missing, kinds, ..Self::default() };
            }
            Event::Cell { cell } => {
                self.failed.remove(&cell);
                self.stopped.remove(&cell);
                self.under_way.retain(|other| other.cell != cell);
                self.under_way.push(UnderWay { cell, begun: entry.time, ..UnderWay::default() });
            }
            Event::Step { cell, done, total, message } => {
                if let Some(under_way) = self.under_way.iter_mut().find(|other| other.cell == cell) {
                    (under_way.done, under_way.total, under_way.message) = (done, total, message);
                }
            }
            Event::Done { cell, seconds } => {
                self.under_way.retain(|other| other.cell != cell);
                if self.finished.insert(cell.clone()) {
                    self.done += 1;
                    let kind = self.kinds.entry(kind(&cell).to_owned()).or_default();
                    kind.done += 1;
                    kind.seconds += seconds;
                    self.last.push_front((cell, seconds));
                    self.last.truncate(KEPT);
                }
            }
            Event::Failed { cell, reason } => {
                self.under_way.retain(|other| other.cell != cell);
                self.failed.insert(cell, reason);
            }
            Event::Stopped { cell } => {
                self.under_way.retain(|other| other.cell != cell);
                self.stopped.insert(cell);
            }
            Event::Warning { message } => {
                self.warnings.push_front(message);
                self.warnings.truncate(KEPT);
            }
            Event::End => {
                self.ended = true;
                self.under_way.clear();
            }
        }
    }

    /// Seconds until the run is over, if the cells that are left take as long as those of their kind that are done,
    /// or as one under way will, and as many are worked on at once as so far. Nothing as long as there is a kind of
    /// which neither is known.
    pub fn seconds_left(&self) -> Option<f64> {
        if self.ended {
            return None;
        }
        let took = |cell: &UnderWay| (self.heard - cell.begun).max(0.0);
        let whole = |cell: &UnderWay| {
            (cell.done > 0).then(|| took(cell) * cell.total.max(cell.done) as f64 / cell.done as f64)
        };
        let mut spent: f64 = self.under_way.iter().map(took).sum();
        let mut left = 0.0;
        for (name, of_kind) in &self.kinds {
            let each = match of_kind.done {
                0 => self.under_way_of(name).find_map(whole),
                done => Some(of_kind.seconds / done as f64),
            };
            let failed = self.failed.keys().filter(|cell| kind(cell) == name).count();
            let gone = of_kind.done + failed + self.under_way_of(name).count();
            let waiting = of_kind.missing.saturating_sub(gone);
            if waiting > 0 {
                left += waiting as f64 * each?;
            }
            for cell in self.under_way_of(name) {
                left += (whole(cell).or(each)? - took(cell)).max(0.0);
            }
            spent += of_kind.seconds;
        }
        // How many cells were worked on at once, on the average.
        let at_once = spent / (self.heard - self.begun).max(f64::EPSILON);
        (at_once > 0.0).then(|| left / at_once)
    }

    /// The cells of a kind that are being worked on.
    fn under_way_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a UnderWay> {
        self.under_way.iter().filter(move |cell| kind(&cell.cell) == name)
    }
}

/// Reads the journals of a run as they grow.
#[derive(Debug)]
pub struct Reader {
    out: PathBuf,
    /// How far each file was read.
    read: BTreeMap<PathBuf, u64>,
}

impl Reader {
    /// Of the results in `out`.
    pub fn new(out: &Path) -> Self {
        Self { out: out.to_owned(), read: BTreeMap::new() }
    }

    /// The entries that have come since the last call, the run's own and its jobs', in the order of their times. A line
    /// that is not whole yet waits for the next call; one that is no entry is left out.
    ///
    /// # Errors
    /// A file cannot be read; the run's own is not there.
    pub fn news(&mut self) -> std::io::Result<Vec<Entry>> {
        let mut news = self.news_of(self.out.join(JOURNAL_FILE))?;
        let jobs = fs::read_dir(self.out.join(JOBS_FOLDER));
        for job in jobs.into_iter().flatten().flatten() {
            news.extend(self.news_of(job.path())?);
        }
        // Stable: entries of one file and one time keep their order.
        news.sort_by(|a, b| a.time.total_cmp(&b.time));
        Ok(news)
    }

    fn news_of(&mut self, path: PathBuf) -> std::io::Result<Vec<Entry>> {
        let mut file = File::open(&path)?;
        let read = self.read.entry(path).or_default();
        if file.metadata()?.len() < *read {
            *read = 0; // another file has taken its place
        }
        file.seek(SeekFrom::Start(*read))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        *read += whole as u64;
        let lines = text[..whole].split(|byte| *byte == b'\n');
        Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn a_journal_tells_how_a_run_stands() {
        let folder = tempfile::tempdir().unwrap();
        let recorded = Recorded::new(Box::new(Silent), folder.path());
        recorded.begin(10, &["mix/a", "tuning/b", "tuning/c", "tuning/d"]);
        recorded.cell("mix/a");
        recorded.done("mix/a", Duration::from_secs(2));
        recorded.cell("tuning/b");
        recorded.step("tuning/b", 3, 12, "loss 1.5, 900 tokens/s");
        recorded.step("tuning/b", 4, 12, "not so soon");
        recorded.cell("tuning/c");
        recorded.failed("tuning/c", "the disk is full");
        recorded.warn("a row was cut off");
        let mut reader = Reader::new(folder.path());
        let mut page = Page::default();
        reader.news().unwrap().into_iter().for_each(|entry| page.add(entry));
        assert_eq!((page.cells, page.missing, page.done), (10, 4, 1));
        assert_eq!(page.under_way.len(), 1);
        assert_eq!((page.under_way[0].done, page.under_way[0].total), (3, 12));
        assert_eq!(page.failed["tuning/c"], "the disk is full");
        assert!(page.seconds_left().is_some());
        assert!(reader.news().unwrap().is_empty());
        // A line that is being written, and then the rest of it.
        let path = folder.path().join(JOURNAL_FILE);
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"{\"time\":1.0,\"eve").unwrap();
        assert!(reader.news().unwrap().is_empty());
        file.write_all(b"nt\":\"end\"}\nno entry\n").unwrap();
        reader.news().unwrap().into_iter().for_each(|entry| page.add(entry));
        assert!(page.ended && page.under_way.is_empty());
        // A job tells of its own cells, and its beginning and end are not the run's.
        let job = Recorded::job(Box::new(Silent), folder.path(), "12_3");
        job.begin(10, &["tuning/c"]);
        job.cell("tuning/c");
        job.end();
        recorded.begin(10, &["tuning/b", "tuning/c", "tuning/d"]);
        job.cell("tuning/d");
        job.done("tuning/d", Duration::from_secs(1));
        recorded.done("tuning/d", Duration::from_secs(1));
        reader.news().unwrap().into_iter().for_each(|entry| page.add(entry));
        assert_eq!((page.missing, page.done, page.under_way.len(), page.ended), (3, 1, 0, false));
        // The next run begins anew.
        recorded.begin(10, &["tuning/b", "tuning/c", "tuning/d"]);
        reader.news().unwrap().into_iter().for_each(|entry| page.add(entry));
        assert_eq!((page.missing, page.done, page.failed.len(), page.ended), (3, 0, 0, false));
    }

    #[test]
    fn what_is_left_is_told_by_kind_and_by_how_many_are_worked_on_at_once() {
        let mut page = Page::default();
        let mut at = |time: f64, event: Event| {
            page.add(Entry { time, event });
            page.seconds_left()
        };
        let cell = |cell: &str| Event::Cell { cell: cell.to_owned() };
        let done = |cell: &str, seconds: f64| Event::Done { cell: cell.to_owned(), seconds };
        let kinds = [("mix", 1), ("tuning", 4), ("answers", 2)];
        let kinds = kinds.map(|(kind, count)| (kind.to_owned(), count)).into();
        assert_eq!(at(100.0, Event::Begin { cells: 7, missing: 7, kinds }), None);
        at(100.0, cell("mix/a"));
        at(101.0, done("mix/a", 1.0));
        for name in ["tuning/a", "tuning/b"] {
            at(101.0, cell(name));
        }
        at(111.0, done("tuning/a", 10.0));
        // Nobody knows yet how long answers take.
        assert_eq!(at(111.0, done("tuning/b", 10.0)), None);
        at(111.0, cell("answers/a"));
        // A quarter is done after one second: three more, and another four. Two tunings of ten seconds. So far 22 seconds
        // of work were done in 12.
        let step = |cell: &str, done: u64, total: u64| {
            let (cell, message) = (cell.to_owned(), String::new());
            Event::Step { cell, done, total, message }
        };
        let left = at(112.0, step("answers/a", 5, 20));
        assert!((left.unwrap() - (20.0 + 3.0 + 4.0) * 12.0 / 22.0).abs() < 1e-9, "{left:?}");
        // One that failed is not waited for, and neither is the time that it took.
        let left = at(112.0, Event::Failed { cell: "tuning/c".into(), reason: String::new() });
        assert!((left.unwrap() - (10.0 + 3.0 + 4.0) * 12.0 / 22.0).abs() < 1e-9, "{left:?}");
        // Done at last, it tells of its kind: five seconds.
        let left = at(116.0, done("answers/a", 5.0));
        assert!((left.unwrap() - (10.0 + 5.0) * 16.0 / 26.0).abs() < 1e-9, "{left:?}");
    }
}
