//! How a run tells how far it is: bars on a terminal, plain lines elsewhere, always on standard error.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::stop::Stop;
use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

/// Told how a run goes on.
pub trait Progress: Sync {
    /// So many cells in all, and the labels of those to be done.
    fn begin(&self, _cells: usize, _missing: &[&str]) {}
    /// A cell is begun.
    fn cell(&self, _label: &str) {}
    /// Within a cell: `done` of `total`, and what there is to say.
    fn step(&self, _label: &str, _done: u64, _total: u64, _message: &str) {}
    /// A cell is finished.
    fn done(&self, _label: &str, _took: Duration) {}
    /// A cell failed.
    fn failed(&self, _label: &str, _reason: &str) {}
    /// A cell was cut short, because the run was asked to end. What it had done is kept.
    fn stopped(&self, _label: &str) {}
    /// Something to know that stops nothing.
    fn warn(&self, _message: &str) {}
    /// What happens beside the cells' own work.
    fn note(&self, _message: &str) {}
    /// The run is over.
    fn end(&self) {}
}

/// How one of a run's cells tells how far it is.
pub struct CellProgress<'a> {
    label: &'a str,
    run: &'a dyn Progress,
    stop: &'a Stop,
}

impl<'a> CellProgress<'a> {
    /// For the cell with this label.
    pub fn new(label: &'a str, run: &'a dyn Progress, stop: &'a Stop) -> Self {
        Self { label, run, stop }
    }

    /// Whether the work is to keep what it has and end with [`Stopped`](crate::stop::Stopped).
    pub fn should_stop(&self) -> bool {
        self.stop.asked()
    }

    /// `done` of `total`, and what there is to say.
    pub fn step(&self, done: u64, total: u64, message: &str) {
        self.run.step(self.label, done, total, message);
    }

    /// Something to know that stops nothing.
    pub fn warn(&self, message: &str) {
        self.run.warn(message);
    }
}

/// Tells nobody.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {}

/// Tells what some of a run's cells tell, and leaves the run's own beginning and end to the run.
pub struct Within<'a>(pub &'a dyn Progress);

impl Progress for Within<'_> {
    fn cell(&self, label: &str) {
        self.0.cell(label);
    }

    fn step(&self, label: &str, done: u64, total: u64, message: &str) {
        self.0.step(label, done, total, message);
    }

    fn done(&self, label: &str, took: Duration) {
        self.0.done(label, took);
    }

    fn failed(&self, label: &str, reason: &str) {
        self.0.failed(label, reason);
    }

    fn stopped(&self, label: &str) {
        self.0.stopped(label);
    }

    fn warn(&self, message: &str) {
        self.0.warn(message);
    }

    fn note(&self, message: &str) {
        self.0.note(message);
    }
}

/// Bars where standard error is a terminal, and plain lines elsewhere.
pub fn on_standard_error() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() { Box::new(Bars::new()) } else { Box::new(Lines::default()) }
}

/// A line for each cell, and one every ten seconds within it.
#[derive(Debug, Default)]
pub struct Lines {
    /// When each cell that is under way was last told of.
    last: Mutex<HashMap<String, Instant>>,
}

const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// A line on standard error. One that takes none is told nothing; the work goes on.
fn tell(line: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", line.as_ref());
}

impl Progress for Lines {
    fn begin(&self, cells: usize, missing: &[&str]) {
        tell(format!("{cells} cells, {} to do", missing.len()));
    }

    fn cell(&self, label: &str) {
        if let Ok(mut last) = self.last.lock() {
            last.insert(label.to_owned(), Instant::now());
        }
        tell(format!("{label} ..."));
    }

    fn step(&self, label: &str, done: u64, total: u64, message: &str) {
        let Ok(mut last) = self.last.lock() else { return };
        if last.get(label).is_none_or(|last| last.elapsed() >= BETWEEN_LINES) {
            last.insert(label.to_owned(), Instant::now());
            tell(format!("  {label} {done}/{total} {message}"));
        }
    }

    fn done(&self, label: &str, took: Duration) {
        tell(format!("{label} done in {:.1} s", took.as_secs_f64()));
    }

    fn failed(&self, label: &str, reason: &str) {
        tell(format!("{label} failed: {reason}"));
    }

    fn stopped(&self, label: &str) {
        tell(format!("{label} stopped"));
    }

    fn note(&self, message: &str) {
        tell(message);
    }

    fn warn(&self, message: &str) {
        tell(format!("warning: {message}"));
    }
}

/// One bar for the cells, and one for each cell that is under way.
#[derive(Debug)]
pub struct Bars {
    all: MultiProgress,
    cells: ProgressBar,
    under_way: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    /// No bar is shown before the run begins.
    pub fn new() -> Self {
        let all = MultiProgress::new();
        let cells = all.add(ProgressBar::no_length());
        cells.set_style(style("cells {bar:20} {pos}/{len} {elapsed} so far"));
        Self { all, cells, under_way: Mutex::default() }
    }

    fn print(&self, line: &str) {
        // A terminal that is gone takes no more lines; the work goes on.
        let _ = self.all.println(line);
    }

    fn clear(&self, label: &str) {
        let bar = self.under_way.lock().ok().and_then(|mut bars| bars.remove(label));
        if let Some(bar) = bar {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Default for Bars {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for Bars {
    fn begin(&self, cells: usize, missing: &[&str]) {
        self.cells.set_length(cells as u64);
        self.cells.set_position(cells.saturating_sub(missing.len()) as u64);
        self.cells.enable_steady_tick(Duration::from_secs(1));
    }

    fn cell(&self, label: &str) {
        let bar = self.all.add(ProgressBar::no_length());
        bar.set_style(style("{prefix} {bar:12} {pos}/{len} {eta} left  {wide_msg}"));
        bar.set_prefix(label.to_owned());
        if let Ok(mut bars) = self.under_way.lock() {
            bars.insert(label.to_owned(), bar);
        }
    }

    fn step(&self, label: &str, done: u64, total: u64, message: &str) {
        let bar = self.under_way.lock().ok().and_then(|bars| bars.get(label).cloned());
        if let Some(bar) = bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(message.to_owned());
        }
    }

    fn done(&self, label: &str, took: Duration) {
        self.clear(label);
        self.cells.inc(1);
        self.print(&format!("{label} done in {}", HumanDuration(took)));
    }

    fn failed(&self, label: &str, reason: &str) {
        self.clear(label);
        self.print(&format!("{label} failed: {reason}"));
    }

    fn stopped(&self, label: &str) {
        self.clear(label);
        self.print(&format!("{label} stopped"));
    }

    fn note(&self, message: &str) {
        self.print(message);
    }

    fn warn(&self, message: &str) {
        self.print(&format!("warning: {message}"));
    }

    fn end(&self) {
        self.cells.finish_and_clear();
    }
}
