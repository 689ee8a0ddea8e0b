//! `polypaca watch`: a run that goes on elsewhere.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use console::{Term, truncate_str};
use indicatif::HumanDuration;
use lab::experiment::Experiment;
use lab::local::Places;
use lab::watch::{Entry, Event, JOURNAL_FILE, Page, Reader};

use crate::failure::Failure;
use crate::output::Output;

/// Shows a running experiment: its cells, losses, tokens a second, time left, and failures with their reasons. On a
/// terminal a page that follows the run, elsewhere a line whenever something happens. Ends with the run
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// The experiment file, or the folder of its results
    #[arg(value_name = "EXPERIMENT.toml|DIR")]
    of: PathBuf,

    /// The folder of the results, where `run` was given one [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Show how it stands now, and end
    #[arg(long)]
    once: bool,
}

/// Between two looks at the journal.
const LOOK: Duration = Duration::from_millis(500);
/// Cells of a bar.
const BAR: usize = 24;

impl Watch {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let out = self.folder()?;
        let mut reader = Reader::new(&out);
        let mut page = Page::default();
        let term = Term::stdout();
        let on_a_terminal = io::stdout().is_terminal() && !output.json();
        let mut shown = 0;
        loop {
            let news = match reader.news() {
                Ok(news) => news,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let path = out.join(JOURNAL_FILE);
                    let error = anyhow::anyhow!("{}: no run has begun here", path.display());
                    return Err(Failure::wrong_input(error));
                }
                Err(error) => return Err(Failure::failed(error)),
            };
            let follow = !on_a_terminal && !self.once && !output.json();
            for entry in news {
                if follow {
                    tell(&entry, output)?;
                }
                page.add(entry);
            }
            if output.json() {
                output.object(&page)?;
                return Ok(code(&page));
            }
            if on_a_terminal || self.once {
                if shown > 0 {
                    term.clear_last_lines(shown)?;
                }
                let (height, width) = term.size();
                let (height, width) = if on_a_terminal {
                    (usize::from(height), usize::from(width))
                } else {
                    (usize::MAX, usize::MAX)
                };
                // A line more than there is room for could not be taken back.
                let lines: Vec<String> =
                    lines(&page).into_iter().take(height.saturating_sub(1).max(1)).collect();
                for line in &lines {
                    output.line(truncate_str(line, width, "…"))?;
                }
                shown = lines.len();
            }
            if page.ended || self.once {
                return Ok(code(&page));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The folder of the results.
    fn folder(&self) -> Result<PathBuf, Failure> {
        if self.of.is_dir() {
            return Ok(self.of.clone());
        }
        let experiment = Experiment::load(&self.of).map_err(Failure::wrong_input)?;
        Ok(Places::new(&experiment, self.out.clone(), None).out)
    }
}

fn code(page: &Page) -> ExitCode {
    if page.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What happened, as a line of a log.
fn tell(entry: &Entry, output: &Output) -> io::Result<()> {
    let line = match &entry.event {
        Event::Begin { cells, missing, .. } => format!("{cells} cells, {missing} to do"),
        Event::Cell { cell } => format!("{cell} ..."),
        Event::Step { cell, done, total, message } => format!("  {cell} {done}/{total} {message}"),
        Event::Done { cell, seconds } => format!("{cell} done in {seconds:.1} s"),
        Event::Failed { cell, reason } => format!("{cell} failed: {reason}"),
        Event::Stopped { cell } => format!("{cell} stopped"),
        Event::Warning { message } => format!("warning: {message}"),
        Event::End => "the run has ended".to_owned(),
    };
    output.line(line)
}

/// The page.
fn lines(page: &Page) -> Vec<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let before = page.cells.saturating_sub(page.missing);
    let mut lines = vec![format!(
        "cells  {} {}/{}{}",
        bar((before + page.done) as u64, page.cells as u64),
        before + page.done,
        page.cells,
        if page.failed.is_empty() { String::new() } else { format!(", {} failed", page.failed.len()) },
    )];
    let since = human((if page.ended { page.heard } else { now }) - page.begun);
    lines.push(match page.seconds_left() {
        _ if page.ended => format!("       ended after {since}"),
        Some(seconds) => format!("       {since} so far, about {} left", human(seconds)),
        None => format!("       {since} so far"),
    });
    if !page.ended && now - page.heard > 60.0 {
        lines.push(format!("       nothing heard for {}: is it still running?", human(now - page.heard)));
    }
    for cell in &page.under_way {
        lines.push(String::new());
        lines.push(format!("{} for {}", cell.cell, human(now - cell.begun)));
        if cell.total > 0 {
            let bar = bar(cell.done, cell.total);
            lines.push(format!("       {bar} {}/{}  {}", cell.done, cell.total, cell.message));
        }
    }
    section(
        &mut lines,
        "failed",
        page.failed.iter().flat_map(|(cell, reason)| {
            std::iter::once(cell.clone()).chain(reason.lines().map(|line| format!("  {line}")))
        }),
    );
    section(
        &mut lines,
        "stopped, because the run was asked to end (run again, it goes on)",
        page.stopped.iter().cloned(),
    );
    section(&mut lines, "warnings", page.warnings.iter().cloned());
    section(&mut lines, "done", page.last.iter().map(|(cell, seconds)| format!("{cell} in {seconds:.1} s")));
    lines
}

fn section(lines: &mut Vec<String>, name: &str, entries: impl Iterator<Item = String>) {
    let mut entries = entries.peekable();
    if entries.peek().is_some() {
        lines.push(String::new());
        lines.push(name.to_owned());
        lines.extend(entries.map(|entry| format!("  {entry}")));
    }
}

fn bar(done: u64, total: u64) -> String {
    let full = (BAR as u64 * done.min(total)).checked_div(total).unwrap_or(0) as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(BAR - full))
}

fn human(seconds: f64) -> HumanDuration {
    HumanDuration(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)))
}
