//! `polypaca data`: instruction data, a step at a time.

mod translate;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use clap::{Args, Subcommand};
use instructions::budget::{Budget, Held};
use instructions::files::Reading;
use instructions::language::Language;
use instructions::mix::{MixOptions, Set, Sets};
use instructions::parallel::record_differences;
use instructions::recipe::{Origin, Recipe, RecipeFile};
use instructions::record::{Record, read_records};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::Output;

/// Checks, mixes and counts instruction data
#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Name every fault of instruction files
    Check(Check),
    /// Make the mixes of a recipe
    Mix(Mix),
    /// Count rows and lengths
    Stats(Stats),
    /// Translate a set
    Translate(Box<translate::Translate>),
}

/// Names every fault of instruction files, and where parallel sets differ. Exit code 1 if there is any fault
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Files of a language: LANGUAGE=FILE
    #[arg(value_name = "LANGUAGE=FILE", required = true)]
    files: Vec<LanguageFile>,
}

/// Makes the mixes of a recipe: a folder each, with rows.jsonl, validation.jsonl and manifest.json
#[derive(Debug, Args)]
pub(crate) struct Mix {
    /// Files of a language: LANGUAGE=FILE
    #[arg(value_name = "LANGUAGE=FILE", required = true)]
    files: Vec<LanguageFile>,

    /// monolingual, multilingual, english, downsampled, or one of --recipes
    #[arg(long, value_name = "NAME", required = true)]
    recipe: Vec<String>,

    /// Recipes of one's own: TOML with `[[recipe]]` tables
    #[arg(long, value_name = "FILE")]
    recipes: Option<PathBuf>,

    /// C: the rows of one monolingual run; the smallest set unless given
    #[arg(long, value_name = "ROWS")]
    budget: Option<u64>,

    /// Rows of each set that are held out for validation
    #[arg(long, value_name = "N", default_value_t = 0)]
    validation_rows: usize,

    /// For every draw
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// The folder of the mixes
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Counts the rows of instruction files, and the lengths of their texts
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Files of a language: LANGUAGE=FILE
    #[arg(value_name = "LANGUAGE=FILE", required = true)]
    files: Vec<LanguageFile>,
}

/// `fi=alpaca_fi.json`
#[derive(Debug, Clone)]
struct LanguageFile {
    language: Language,
    path: PathBuf,
}

impl FromStr for LanguageFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (code, path) = text.split_once('=').ok_or("expected LANGUAGE=FILE, as in fi=alpaca_fi.json")?;
        let language = code.parse::<Language>().map_err(|error| error.to_string())?;
        Ok(Self { language, path: PathBuf::from(path) })
    }
}

impl Data {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        match self {
            Self::Check(command) => command.run(output),
            Self::Mix(command) => command.run(output),
            Self::Stats(command) => command.run(output),
            Self::Translate(command) => command.run(output),
        }
    }
}

/// Reads files, and tells what is wrong with them.
fn read(files: &[LanguageFile], output: &Output) -> Result<Vec<Reading<Record>>, Failure> {
    let mut readings = Vec::new();
    for file in files {
        let reading = read_records(&file.path, &file.language).map_err(Failure::wrong_input)?;
        for problem in &reading.problems {
            output.warning(problem.to_string());
        }
        readings.push(reading);
    }
    Ok(readings)
}

impl Check {
    fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let readings = read(&self.files, output)?;
        let mut faults = 0;
        for (file, reading) in self.files.iter().zip(&readings) {
            let empty = reading.items.iter().filter(|record| record.output.trim().is_empty());
            for record in empty {
                output.warning(format!(
                    "{}: the row with id {:?} has an empty output",
                    file.path.display(),
                    record.id
                ));
                faults += 1;
            }
            faults += reading.problems.len();
        }
        let differences = record_differences(readings.iter().flat_map(|reading| &reading.items));
        for difference in &differences {
            output.warning(difference.to_string());
        }
        let rows: usize = readings.iter().map(|reading| reading.items.len()).sum();
        if output.json() {
            output.object(&serde_json::json!({
                "rows": rows,
                "faults": faults,
                "languages_that_differ": differences.len(),
            }))?;
        } else {
            output.line(format!("{rows} rows, {faults} faults"))?;
        }
        Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Mix {
    fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let mut sets = Sets::new();
        for (file, reading) in self.files.iter().zip(read(&self.files, output)?) {
            let language = file.language.clone();
            sets.add(Set { language, origin: Origin::Native, records: reading.items });
        }
        let own = match &self.recipes {
            Some(path) => RecipeFile::read(path).map_err(Failure::wrong_input)?.recipe,
            None => Vec::new(),
        };
        let mut languages: Vec<Language> = Vec::new();
        for file in &self.files {
            if !languages.contains(&file.language) {
                languages.push(file.language.clone());
            }
        }
        let budget = Budget { held: Held::Rows, c: self.budget, ..Budget::default() };
        let validation_rows = self.validation_rows;
        let options =
            MixOptions { languages, seed: self.seed, budget, validation_rows, ..MixOptions::default() };
        let mut told = Vec::new();
        for name in &self.recipe {
            let recipe = own.iter().find(|recipe| recipe.name == *name).cloned();
            let recipe = recipe.or_else(|| Recipe::paper(name)).with_context(|| {
                format!("unknown recipe `{name}`: expected one of {:?}, or one of --recipes", Recipe::PAPER)
            });
            let recipe = recipe.map_err(Failure::wrong_input)?;
            for mix in recipe.mixes(&sets, &options).map_err(Failure::wrong_input)? {
                let folder = self.out.join(&mix.name);
                std::fs::create_dir_all(&folder)
                    .with_context(|| format!("cannot make the folder {}", folder.display()))
                    .map_err(Failure::failed)?;
                mix.write(&folder).map_err(Failure::failed)?;
                told.push(Told {
                    mix: mix.name.clone(),
                    rows: mix.rows.len(),
                    validation_rows: mix.validation.len(),
                    in_c: mix.manifest.cost.in_c,
                    c: mix.manifest.cost.c,
                    hash: mix.manifest.hash.clone(),
                });
            }
        }
        if output.json() {
            output.object(&serde_json::json!({ "mixes": told }))?;
            return Ok(ExitCode::SUCCESS);
        }
        for mix in told {
            output.line(format!(
                "{}: {} rows ({} × C, C = {} rows), {} validation rows",
                mix.mix, mix.rows, mix.in_c, mix.c, mix.validation_rows
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Serialize)]
struct Told {
    mix: String,
    rows: usize,
    validation_rows: usize,
    in_c: f64,
    c: u64,
    hash: String,
}

impl Stats {
    fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let readings = read(&self.files, output)?;
        let mut counted = Vec::new();
        for (file, reading) in self.files.iter().zip(readings) {
            counted.push(Counted::new(file, &reading.items));
        }
        if output.json() {
            output.object(&serde_json::json!({ "files": counted }))?;
            return Ok(ExitCode::SUCCESS);
        }
        for count in counted {
            output.line(format!(
                "{} {}: {} rows, {} with an input; characters: instruction {:.1}, input {:.1}, output {:.1} on average, {} in the longest output",
                count.language,
                count.file,
                count.rows,
                count.with_input,
                count.instruction_characters,
                count.input_characters,
                count.output_characters,
                count.longest_output
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Serialize)]
struct Counted {
    language: String,
    file: String,
    rows: usize,
    with_input: usize,
    instruction_characters: f64,
    input_characters: f64,
    output_characters: f64,
    longest_output: usize,
}

impl Counted {
    fn new(file: &LanguageFile, records: &[Record]) -> Self {
        let mean = |length: fn(&Record) -> usize| {
            records.iter().map(length).sum::<usize>() as f64 / records.len().max(1) as f64
        };
        Self {
            language: file.language.to_string(),
            file: file.path.display().to_string(),
            rows: records.len(),
            with_input: records.iter().filter(|record| !record.input.is_empty()).count(),
            instruction_characters: mean(|record| record.instruction.chars().count()),
            input_characters: mean(|record| record.input.chars().count()),
            output_characters: mean(|record| record.output.chars().count()),
            longest_output: records
                .iter()
                .map(|record| record.output.chars().count())
                .max()
                .unwrap_or_default(),
        }
    }
}
