//! `polypaca data fetch`: a dataset of the Hugging Face Hub as a set.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use instructions::hub::{NotInRepository, Repository, Selection, fetch_dataset};
use instructions::language::Language;
use instructions::record::write_set;
use serde_json::json;

use crate::failure::Failure;
use crate::output::Output;

/// Fetches the rows of a dataset on the Hugging Face Hub and writes them as one set. Files lie in the Hub's cache
/// (HF_HOME) and are not fetched twice; HF_TOKEN opens private ones, HF_ENDPOINT names another server
#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// The dataset's name; a branch, tag or commit behind an @
    #[arg(value_name = "OWNER/NAME[@REVISION]", value_parser = repository)]
    dataset: Repository,

    /// The language of rows that name none
    #[arg(long, value_name = "CODE")]
    language: Language,

    /// Of files that are named after a split, take those of this one
    #[arg(long, value_name = "NAME", default_value = "train")]
    split: String,

    /// Take only files of this folder, which is what a dataset's configuration most often is
    #[arg(long, value_name = "FOLDER")]
    folder: Option<String>,

    /// Take these files, whatever their names
    #[arg(long = "file", value_name = "FILE", num_args = 1.., conflicts_with_all = ["split", "folder"])]
    files: Vec<String>,

    /// The set; its form by its ending: .json, .jsonl or .parquet
    #[arg(long, value_name = "FILE", value_parser = set_path)]
    out: PathBuf,
}

/// A set's file, whose form is told by its ending.
fn set_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("json" | "jsonl" | "parquet") => Ok(path),
        _ => Err("expected a name that ends in .json, .jsonl or .parquet".to_owned()),
    }
}

fn repository(text: &str) -> Result<Repository, String> {
    Repository::parse(text).map_err(|error| error.to_string())
}

impl Fetch {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let selection = Selection { split: self.split, folder: self.folder, files: self.files };
        let begin = |file: &str| output.note(format!("{}: {file}", self.dataset.name));
        let fetched = fetch_dataset(&self.dataset, &selection, &self.language, &begin).map_err(|error| {
            let not_there = error.is::<NotInRepository>();
            if not_there { Failure::wrong_input(error) } else { Failure::failed(error) }
        })?;
        for problem in &fetched.reading.problems {
            output.warning(problem.to_string());
        }
        if !fetched.passed_over.is_empty() {
            output.warning(format!(
                "{}: not asked for, and left: {}",
                self.dataset.name,
                fetched.passed_over.join(", ")
            ));
        }
        let rows = &fetched.reading.items;
        write_set(&self.out, rows).map_err(Failure::failed)?;
        if output.json() {
            output.object(&json!({
                "dataset": self.dataset.name,
                "commit": fetched.commit,
                "files": fetched.files,
                "passed_over": fetched.passed_over,
                "rows": rows.len(),
                "left_out": fetched.reading.dropped(),
                "out": self.out.display().to_string(),
            }))?;
        } else {
            output.line(format!(
                "{} rows of {} at {} in {}",
                rows.len(),
                self.dataset.name,
                fetched.commit,
                self.out.display()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
