//! `polypaca run`: the whole experiment.

use std::process::ExitCode;

use clap::Args;
use lab::local::{Machinery, ready};
use lab::progress;
use lab::rooms::{Answers, TuneRoom, open_model};
use lab::store::Store;
use lab::watch::Recorded;

use super::experiment::ExperimentArguments;
use crate::failure::Failure;
use crate::output::Output;

/// Runs the whole experiment: all that is missing or changed. What is finished is kept, and a killed run goes on
/// where it was
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    experiment: ExperimentArguments,
}

impl Run {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let (prepared, places) = self.experiment.prepare(output)?;
        let machinery =
            Machinery { tuner: &TuneRoom, answerer: &Answers::default(), open_model: &open_model };
        let ready = ready(&prepared, &places, &machinery).map_err(Failure::wrong_input)?;
        let store = Store::open(&places.store).map_err(Failure::failed)?;
        let progress = Recorded::new(progress::on_standard_error(), &places.out);
        let finished = ready.run(&store, &places, &progress).map_err(Failure::failed)?;
        for warning in &finished.warnings {
            output.warning(warning);
        }
        for (cell, reason) in &finished.failed {
            output.warning(format!("{cell} failed: {reason}"));
        }
        if output.json() {
            output.object(&serde_json::json!({
                "page": finished.page,
                "findings": finished.findings,
                "kept": finished.kept,
                "done": finished.done,
                "failed": finished.failed.iter().map(|(cell, _)| cell).collect::<Vec<_>>(),
                "blocked": finished.blocked,
                "incomplete": finished.incomplete,
            }))?;
        } else {
            for finding in &finished.findings {
                output.line(finding)?;
            }
            output.line(format!(
                "{} cells done, {} kept, {} failed, {} not tried, {} with unrated responses",
                finished.done,
                finished.kept,
                finished.failed.len(),
                finished.blocked,
                finished.incomplete
            ))?;
            output.line(finished.page.display().to_string())?;
        }
        let whole = finished.failed.is_empty() && finished.incomplete == 0;
        Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
