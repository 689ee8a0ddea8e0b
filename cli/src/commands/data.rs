//! `polypaca data`: instruction data, a step at a time.

mod check;
mod fetch;
mod mix;
mod stats;
mod translate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use instructions::files::Problem;
use instructions::language::Language;
use instructions::mix::{Set, Sets};
use instructions::recipe::Origin;
use instructions::record::{Record, Repeats};
use instructions::set_files::SetFiles;
use model::{BaseModel, Tokenizer};

use super::tune::open;
use crate::failure::Failure;
use crate::output::Output;

/// Fetches, checks, translates, mixes and counts instruction data
#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Fetch a dataset of the Hugging Face Hub as a set
    Fetch(fetch::Fetch),
    /// Name every fault of sets, and write a copy without them
    Check(check::Check),
    /// Make the mixes of recipes under a budget
    Mix(mix::Mix),
    /// Count rows, characters and tokens
    Stats(stats::Stats),
    /// Translate a set
    Translate(Box<translate::Translate>),
}

impl Data {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        match self {
            Self::Fetch(command) => command.run(output),
            Self::Check(command) => command.run(output),
            Self::Mix(command) => command.run(output),
            Self::Stats(command) => command.run(output),
            Self::Translate(command) => command.run(output),
        }
    }
}

/// `fi=alpaca_fi.json`, or `fi:translated=alpaca_fi.json`.
#[derive(Debug, Clone)]
struct SetFile {
    language: Language,
    /// As the rows tell unless given, else native.
    origin: Option<Origin>,
    path: PathBuf,
}

impl FromStr for SetFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (set, path) = text.split_once('=').ok_or("expected LANGUAGE=FILE, as in fi=alpaca_fi.json")?;
        let (code, origin) = set.split_once(':').map_or((set, None), |(code, origin)| (code, Some(origin)));
        let language = code.parse::<Language>().map_err(|error| error.to_string())?;
        let origin = origin.map(str::parse).transpose()?;
        Ok(Self { language, origin, path: PathBuf::from(path) })
    }
}

/// The sets of files, how many of their rows could not be read, and what was wrong with each file.
struct Read {
    sets: Sets,
    left_out: usize,
    problems: Vec<(Language, Vec<Problem>)>,
}

/// Reads sets, and tells what is wrong with their files.
fn read(files: &[SetFile], output: &Output) -> Result<Read, Failure> {
    let mut sets = Sets::new();
    let mut left_out = 0;
    let mut problems = Vec::new();
    let mut set_files = SetFiles::new(Repeats::LeftOut);
    for file in files {
        let origin = |record: &Record| file.origin.or(record.origin).unwrap_or_default();
        let reading = set_files.read(&file.path, &file.language, origin).map_err(Failure::wrong_input)?;
        for problem in &reading.problems {
            output.warning(problem.to_string());
        }
        left_out += reading.dropped();
        problems.push((file.language.clone(), reading.problems));
        for (_, record) in reading.items {
            let origin = origin(&record);
            // A file may say of its rows that they are in another language than it is given for.
            sets.add(Set { language: record.language.clone(), origin, records: vec![record] });
        }
    }
    Ok(Read { sets, left_out, problems })
}

/// A bar of the rows that were worked on; where standard error is no terminal, nothing. It is gone when it is dropped.
struct RowBar(ProgressBar);

impl RowBar {
    /// `doing` says what is done, and to what: `counting tokens of rows`. Of so many, where it is known.
    fn new(doing: &'static str, rows: Option<u64>) -> Self {
        let bar = rows.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let template = match rows {
            Some(_) => "{msg} {bar:20} {pos}/{len} {eta} left",
            None => "{msg} {pos} {elapsed} so far",
        };
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(doing);
        Self(bar)
    }

    fn row(&self) {
        self.0.inc(1);
    }
}

impl Drop for RowBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Something that has a tokenizer: a model, or a tokenizer's file alone.
enum Tokenized {
    Model(Box<BaseModel>),
    File(Box<Tokenizer>),
}

impl Tokenized {
    /// A folder or file with a tokenizer, a GGUF file, or a model's name on the Hub.
    fn open(path: &Path, output: &Output) -> Result<Self, Failure> {
        let tokenizer = if path.extension().is_some_and(|ending| ending == "json") {
            Tokenizer::from_file(path)
        } else if path.is_dir() {
            Tokenizer::from_folder(path)
        } else {
            return Ok(Self::Model(Box::new(open(path, output)?)));
        };
        let tokenizer = tokenizer.map_err(Failure::wrong_input)?;
        if tokenizer.special().eos.is_none() {
            output.warning(format!(
                "{}: says of no token that it ends a text: it is not counted",
                path.display()
            ));
        }
        Ok(Self::File(Box::new(tokenizer)))
    }

    fn tokenizer(&self) -> &Tokenizer {
        match self {
            Self::Model(model) => model.tokenizer(),
            Self::File(tokenizer) => tokenizer,
        }
    }
}
