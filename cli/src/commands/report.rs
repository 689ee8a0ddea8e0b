//! `polypaca report`: tables and figures again, from the records.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::failure::Failure;
use crate::output::Output;

/// Writes an experiment's page, tables and figures again, from its records
#[derive(Debug, Args)]
pub(crate) struct Report {
    /// The folder of the records: experiment.json, systems.jsonl, scores.jsonl
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// The folder that the report is written into [default: DIR]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Resamples of the bootstrap
    #[arg(long, value_name = "N", default_value_t = report::Options::default().resamples)]
    resamples: usize,

    /// The seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = report::Options::default().seed)]
    seed: u64,

    /// Leave prompts and responses out of the page
    #[arg(long)]
    no_responses: bool,
}

impl Report {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        // `run` writes its records into the folder `report` of its results.
        let inner = self.directory.join("report");
        let directory =
            if inner.join(report::records::EXPERIMENT_FILE).exists() { inner } else { self.directory };
        report::read::read(&directory).map_err(Failure::wrong_input)?;
        let options = report::Options {
            resamples: self.resamples,
            seed: self.seed,
            responses: !self.no_responses,
            ..report::Options::default()
        };
        let out = self.out.unwrap_or_else(|| directory.clone());
        let summary = report::build(&directory, &out, &options).map_err(Failure::failed)?;
        for warning in &summary.warnings {
            output.warning(warning);
        }
        output.line(summary.page.display().to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}
