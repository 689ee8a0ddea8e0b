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
    #[arg(long, value_name = "N", default_value_t = report::Options::default().resamples, value_parser = resamples)]
    resamples: usize,

    /// The seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = report::Options::default().seed)]
    seed: u64,

    /// The score that a recipe should reach in every language tuned on [default: the experiment's]
    #[arg(long, value_name = "SCORE", value_parser = minimum_score)]
    minimum_score: Option<f64>,

    /// Write no PNG pictures
    #[arg(long)]
    no_png: bool,

    /// Write no bundle of the records
    #[arg(long)]
    no_bundle: bool,

    /// Leave prompts and responses out of the page, and write no bundle
    #[arg(long)]
    no_responses: bool,
}

/// More resamples change no digit that is shown, and each takes memory.
const MOST_RESAMPLES: usize = 1_000_000;

fn resamples(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=MOST_RESAMPLES).contains(&count) => Ok(count),
        _ => Err(format!("expected a whole number from 1 up to {MOST_RESAMPLES}")),
    }
}

fn minimum_score(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(score) if score.is_finite() && score >= 0.0 => Ok(score),
        _ => Err("expected a number, 0 or more".to_owned()),
    }
}

impl Report {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        // `run` writes its records into the folder `report` of its results.
        let inner = self.directory.join("report");
        let directory =
            if inner.join(report::records::EXPERIMENT_FILE).exists() { inner } else { self.directory };
        let records = report::read::read(&directory).map_err(Failure::wrong_input)?;
        let options = report::Options {
            resamples: self.resamples,
            seed: self.seed,
            minimum_score: self.minimum_score,
            png: !self.no_png,
            responses: !self.no_responses,
            bundle: !self.no_bundle && !self.no_responses,
        };
        let out = self.out.unwrap_or_else(|| directory.clone());
        let summary = report::build_from(records, &directory, &out, &options).map_err(Failure::failed)?;
        for warning in &summary.warnings {
            output.warning(warning);
        }
        if output.json() {
            output.object(&serde_json::json!({
                "page": summary.page,
                "json": summary.json,
                "files": summary.files,
                "findings": summary.findings,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        for finding in &summary.findings {
            output.line(finding)?;
        }
        output.line(summary.page.display().to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{Command, CommandFactory};

    use crate::arguments::Arguments;

    const PAGE: &str = include_str!("../../../docs/commands/report.md");

    #[test]
    fn no_more_is_resampled_than_memory_holds() {
        assert_eq!(super::resamples("1000000"), Ok(1_000_000));
        for wrong in ["0", "1000001", "1000000000000", "-1"] {
            assert!(super::resamples(wrong).unwrap_err().contains("from 1 up to 1000000"), "{wrong}");
        }
    }

    /// The page names each flag of its own, and no other.
    #[test]
    fn the_page_tells_every_flag() {
        let program = Arguments::command();
        let command = program.find_subcommand("report").unwrap();
        let flags = |command: &Command| -> BTreeSet<String> {
            command.get_arguments().filter_map(|one| one.get_long()).map(|flag| format!("--{flag}")).collect()
        };
        let told: BTreeSet<String> = PAGE
            .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-')
            .filter(|word| {
                word.strip_prefix("--")
                    .is_some_and(|name| name.starts_with(|c: char| c.is_ascii_alphabetic()))
            })
            .map(str::to_owned)
            .collect();
        let own: BTreeSet<String> = flags(command).difference(&flags(&program)).cloned().collect();
        assert!(own.is_subset(&told), "not told: {:?}", own.difference(&told));
        let mut known = flags(&program);
        known.extend(own);
        known.insert("--help".to_owned());
        assert!(told.is_subset(&known), "no such flag: {:?}", told.difference(&known));
    }
}
