//! `polypaca agree`: judge against people.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use judge::agree::{Bootstrap, Correlation, agree, read_table};

use crate::failure::Failure;
use crate::output::Output;

/// How far a judge and people agree, per language, over systems
#[derive(Debug, Args)]
pub(crate) struct Agree {
    /// A table with the columns system, language, judge and human
    #[arg(value_name = "FILE.csv")]
    table: PathBuf,

    /// Draws of the bootstrap for the intervals
    #[arg(long, value_name = "N", default_value_t = Bootstrap::default().draws)]
    draws: usize,

    /// The seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = Bootstrap::default().seed)]
    seed: u64,
}

impl Agree {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let rows = read_table(&self.table).map_err(Failure::wrong_input)?;
        let languages = agree(&rows, Bootstrap { draws: self.draws, seed: self.seed });
        if output.json() {
            output.object(&serde_json::json!({ "languages": languages }))?;
            return Ok(ExitCode::SUCCESS);
        }
        for language in &languages {
            let systems = &language.systems;
            output.line(format!(
                "{}: {} systems, Pearson {}, Spearman {}, Kendall {}",
                language.language,
                systems.pairs,
                shown(&systems.pearson),
                shown(&systems.spearman),
                shown(&systems.kendall)
            ))?;
            if language.unrated_rows > 0 {
                output.warning(format!(
                    "{}: {} rows lack the judge's or the human mark",
                    language.language, language.unrated_rows
                ));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `0.912 [0.801, 0.964]`; a dash where there is no correlation.
fn shown(correlation: &Correlation) -> String {
    let value = correlation.value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    match &correlation.interval {
        Some(interval) => format!("{value} [{:.3}, {:.3}]", interval.low, interval.high),
        None => value,
    }
}
