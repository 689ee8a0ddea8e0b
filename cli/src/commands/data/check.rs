//! `polypaca data check`: every fault of sets, and a copy without them.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use clap::{Args, ValueEnum};
use instructions::check::{CheckOptions, CheckReport, Cleaned, Fault, FaultKind, check, clean};
use instructions::files::{Place, Problem, write_json_lines};
use instructions::language::Language;
use instructions::mix::{Set, Sets};
use instructions::parallel::{ParallelDifference, record_differences};
use instructions::prompt::{Prompt, read_prompts};
use instructions::recipe::Origin;
use instructions::record::write_set;
use instructions::text::has_visible_text;
use judge::identify::identifier;
use serde::Serialize;
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};

use super::{Read, RowBar, SetFile, Tokenized, read};
use crate::commands::identify::probability;
use crate::commands::places::check_outputs;
use crate::commands::values::at_least_1;
use crate::failure::Failure;
use crate::output::Output;

/// Faults of one kind and language that are shown unless a file takes them all.
const SHOWN: usize = 3;

/// The file of a cleaned copy that says what was dropped or mended.
const CLEANED: &str = "cleaned.jsonl";

/// Names every fault of sets: empty, duplicate and repeated rows, rows in another language, template leftovers, broken
/// encoding, outputs far longer or shorter than their parallel rows', test prompts among the rows, the same output in
/// two languages, placeholder inputs. Exit code 1 if there is any
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// A set's file: LANGUAGE=FILE, or LANGUAGE:ORIGIN=FILE (native, translated, round_trip)
    #[arg(value_name = "LANGUAGE=FILE", required = true)]
    files: Vec<SetFile>,

    /// Tell languages by this fastText model, .bin or .ftz; by the embedded lingua unless given
    #[arg(long, value_name = "MODEL")]
    lid: Option<PathBuf>,

    /// Tell no languages: it is most of a check's time
    #[arg(long, conflicts_with = "lid")]
    skip_languages: bool,

    /// Texts of fewer characters are not identified
    #[arg(long, value_name = "CHARACTERS", default_value_t = CheckOptions::default().identified_characters)]
    shortest: usize,

    /// A text is in another language from this probability on
    #[arg(long, value_parser = probability::<f64>, value_name = "P", default_value_t = CheckOptions::default().identified_probability)]
    threshold: f64,

    /// An output is too long or too short from this many times its expected length on
    #[arg(long, value_parser = at_least_1, value_name = "X", default_value_t = CheckOptions::default().length_factor)]
    length_factor: f64,

    /// Test prompts that no row may hold: LANGUAGE=FILE.jsonl
    #[arg(long, value_name = "LANGUAGE=FILE", num_args = 1..)]
    prompts: Vec<SetFile>,

    /// Count tokens a word with this tokenizer: a model's folder or GGUF file, or a tokenizer.json
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,

    /// Write every fault here, a JSON line each
    #[arg(long, value_name = "FILE.jsonl")]
    faults: Option<PathBuf>,

    /// Write a cleaned copy here, a file a set, with cleaned.jsonl: every row dropped or mended, and why
    #[arg(long, value_name = "DIR")]
    clean: Option<PathBuf>,

    /// With --clean: the kinds of fault whose rows are dropped. Unless given, all but repeated_instruction,
    /// same_output and placeholder_input (which is emptied)
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', requires = "clean")]
    drop: Option<Vec<FaultKind>>,

    /// With --clean: the copy's form
    #[arg(long, value_enum, default_value_t = Form::Json, requires = "clean")]
    form: Form,
}

/// A set's form on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Alpaca's array
    Json,
    /// A record a line
    Jsonl,
    /// Parquet
    Parquet,
}

impl Form {
    fn ending(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Jsonl => "jsonl",
            Self::Parquet => "parquet",
        }
    }
}

impl Check {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let Read { sets, left_out, problems } = read(&self.files, output)?;
        let unread = unread(&problems);
        self.check_places(&sets)?;
        let prompts = self.read_prompts(output)?;
        let report = self.check(&sets, &prompts, output)?;
        let differences = record_differences(sets.iter().flat_map(|set| &set.records));
        match &self.faults {
            Some(path) => write_lines(path, &report.faults, unread.iter().map(Unread::fault))?,
            None => show(&report.faults, output),
        }
        for difference in &differences {
            output.warning(difference.to_string());
        }
        let clean = |folder| self.write_clean(folder, &sets, &report, &unread);
        let cleaned = self.clean.as_deref().map(clean).transpose()?;
        tell(&report, left_out, &differences, cleaned.as_deref(), output)?;
        let faultless = report.faults.is_empty() && left_out == 0;
        Ok(if faultless { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn read_prompts(&self, output: &Output) -> Result<Vec<Prompt>, Failure> {
        let mut prompts = Vec::new();
        for file in &self.prompts {
            let reading = read_prompts(&file.path, Some(&file.language)).map_err(Failure::wrong_input)?;
            for problem in &reading.problems {
                output.warning(problem.to_string());
            }
            prompts.extend(reading.items);
        }
        Ok(prompts)
    }

    fn check(&self, sets: &Sets, prompts: &[Prompt], output: &Output) -> Result<CheckReport, Failure> {
        let identifier = match self.skip_languages {
            true => None,
            false => Some(identifier(self.lid.as_deref(), None).map_err(Failure::wrong_input)?),
        };
        let identified = |text: &&String| has_visible_text(text) && text.chars().count() >= self.shortest;
        let texts = sets
            .iter()
            .flat_map(|set| &set.records)
            .flat_map(|record| [&record.instruction, &record.output])
            .filter(identified)
            .count();
        let bar = RowBar::new("telling languages of texts", Some(texts as u64));
        let identify = |text: &str| {
            bar.row();
            let identified = identifier.as_ref()?.identify(text);
            Some((identified.language, f64::from(identified.probability)))
        };
        let tokenized = self.tokenizer.as_deref().map(|path| Tokenized::open(path, output)).transpose()?;
        let refused = Mutex::new(None);
        let count =
            |text: &str| match tokenized.as_ref().map(|tokenized| tokenized.tokenizer().encode_plain(text)) {
                Some(Ok(ids)) => ids.len(),
                Some(Err(error)) => {
                    if let Ok(mut refused) = refused.lock() {
                        refused.get_or_insert(error);
                    }
                    0
                }
                None => 0,
            };
        let report = check(
            sets,
            &CheckOptions {
                identify: identifier.is_some().then_some(&identify),
                identified_characters: self.shortest,
                identified_probability: self.threshold,
                prompts,
                tokens: tokenized.is_some().then_some(&count),
                length_factor: self.length_factor,
            },
        );
        match refused.into_inner() {
            Ok(Some(error)) => Err(Failure::failed(error)),
            _ => Ok(report),
        }
    }

    /// Writes the cleaned copy, and gives what was dropped and mended.
    fn write_clean(
        &self,
        folder: &Path,
        sets: &Sets,
        report: &CheckReport,
        unread: &[Unread],
    ) -> Result<Vec<Cleaned>, Failure> {
        let kinds = self.drop.as_deref().unwrap_or(&FaultKind::DROPPED);
        let (copy, cleaned) = clean(sets, report, kinds);
        for set in copy.iter() {
            let mut records = set.records.clone();
            if set.origin != Origin::Native {
                // Given for the whole file, perhaps: the copy tells it of each row.
                records.iter_mut().for_each(|record| record.origin = Some(set.origin));
            }
            write_set(&self.copy_path(folder, sets, set), &records).map_err(Failure::failed)?;
        }
        write_lines(&folder.join(CLEANED), &cleaned, unread.iter().map(Unread::cleaned))?;
        Ok(cleaned)
    }

    /// The file of a set's cleaned copy: `fi.json`, or `fi-translated.json` where the origin was given, or where others of
    /// the language have another.
    fn copy_path(&self, folder: &Path, sets: &Sets, set: &Set) -> PathBuf {
        let given = |file: &SetFile| file.language == set.language && file.origin == Some(set.origin);
        let alone = sets.iter().filter(|other| other.language == set.language).count() == 1;
        let name = match set.origin {
            Origin::Native => set.language.to_string(),
            _ if alone && !self.files.iter().any(given) => set.language.to_string(),
            origin => format!("{}-{}", set.language, origin.name()),
        };
        folder.join(format!("{name}.{}", self.form.ending()))
    }

    /// Nothing that is read may be written over. Which files are written is known when the sets are read: a file may
    /// hold rows of other languages too.
    fn check_places(&self, sets: &Sets) -> Result<(), Failure> {
        let mut outputs: Vec<(&str, PathBuf)> = Vec::new();
        outputs.extend(self.faults.iter().map(|path| ("--faults", path.clone())));
        if let Some(folder) = &self.clean {
            outputs.extend(sets.iter().map(|set| ("--clean", self.copy_path(folder, sets, set))));
            outputs.push(("--clean", folder.join(CLEANED)));
        }
        let files = self.files.iter().chain(&self.prompts).map(|file| file.path.as_path());
        check_outputs(&outputs, files.chain(self.lid.as_deref()).chain(self.tokenizer.as_deref()))
    }
}

/// A row that could not be read, and so is in no set: it is told by its place, as it has no id.
#[derive(Serialize)]
struct Unread<'a> {
    language: &'a Language,
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    row: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip)]
    what: &'a str,
}

/// The rows of files that could not be read.
fn unread(problems: &[(Language, Vec<Problem>)]) -> Vec<Unread<'_>> {
    let dropped = problems.iter().flat_map(|(language, problems)| {
        problems.iter().filter(|problem| problem.dropped).map(move |problem| (language, problem))
    });
    dropped.map(|(language, problem)| Unread::new(language, problem)).collect()
}

impl<'a> Unread<'a> {
    fn new(language: &'a Language, problem: &'a Problem) -> Self {
        let (row, line) = match problem.place {
            Place::File => (None, None),
            Place::Line(line) => (None, Some(line)),
            Place::Row { row, line } => (Some(row), line),
        };
        Self { language, file: problem.file.display().to_string(), row, line, what: &problem.what }
    }

    /// Its line among the faults.
    fn fault(&self) -> impl Serialize {
        #[derive(Serialize)]
        struct Line<'a> {
            #[serde(flatten)]
            row: &'a Unread<'a>,
            kind: &'static str,
            what: &'a str,
        }
        Line { row: self, kind: "unreadable", what: self.what }
    }

    /// Its line among what was cleaned away.
    fn cleaned(&self) -> impl Serialize {
        #[derive(Serialize)]
        struct Line<'a> {
            #[serde(flatten)]
            row: &'a Unread<'a>,
            dropped: bool,
            reasons: [String; 1],
        }
        Line { row: self, dropped: true, reasons: [format!("unreadable: {}", self.what)] }
    }
}

/// Writes some lines of JSON, and behind them others.
fn write_lines(
    path: &Path,
    first: &[impl Serialize],
    others: impl Iterator<Item = impl Serialize>,
) -> Result<(), Failure> {
    let lines = first.iter().map(to_raw_value).chain(others.map(|line| to_raw_value(&line)));
    let lines: Result<Vec<_>, _> = lines.collect();
    write_json_lines(path, &lines.map_err(Failure::failed)?).map_err(Failure::failed)
}

/// The first faults of each kind and language.
fn show(faults: &[Fault], output: &Output) {
    let mut counts: BTreeMap<(&Language, FaultKind), usize> = BTreeMap::new();
    for fault in faults {
        let count = counts.entry((&fault.language, fault.kind)).or_default();
        *count += 1;
        if *count <= SHOWN {
            output.warning(format!("{} {}: {}: {}", fault.language, fault.id, fault.kind, fault.what));
        }
    }
    for ((language, kind), count) in counts {
        if count > SHOWN {
            output.warning(format!(
                "{language}: {} rows more with {kind}; --faults FILE lists them all",
                count - SHOWN
            ));
        }
    }
}

/// The report for people's eyes: a column a language, a line for each kind of fault that was met.
fn table(report: &CheckReport) -> Vec<String> {
    let languages: Vec<&Language> = report.rows.keys().collect();
    let mut lines: Vec<Vec<String>> = vec![vec![String::new()], vec!["rows".to_owned()]];
    lines[0].extend(languages.iter().map(ToString::to_string));
    lines[1].extend(report.rows.values().map(ToString::to_string));
    for kind in FaultKind::ALL {
        let count = |language: &&Language| report.counts.get(*language).and_then(|counts| counts.get(&kind));
        if languages.iter().any(|language| count(language).is_some()) {
            let counts = languages.iter().map(|language| count(language).copied().unwrap_or(0).to_string());
            lines.push(std::iter::once(kind.to_string()).chain(counts).collect());
        }
    }
    if !report.fertility.is_empty() {
        let tokens = |language: &&Language| {
            report.fertility.get(*language).map_or("-".to_owned(), |fertility| format!("{fertility:.2}"))
        };
        lines.push(
            std::iter::once("tokens_per_word".to_owned()).chain(languages.iter().map(tokens)).collect(),
        );
    }
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..=languages.len()).map(width).collect();
    let aligned = |line: &Vec<String>| {
        let numbers: String =
            line.iter().zip(&widths).skip(1).map(|(cell, width)| format!("  {cell:>width$}")).collect();
        format!("{:<first$}{numbers}", line[0], first = widths[0])
    };
    lines.iter().map(aligned).collect()
}

fn tell(
    report: &CheckReport,
    left_out: usize,
    differences: &[ParallelDifference],
    cleaned: Option<&[Cleaned]>,
    output: &Output,
) -> Result<(), Failure> {
    let rows: usize = report.rows.values().sum();
    let of = |dropped: bool| cleaned.map(|rows| rows.iter().filter(|row| row.dropped == dropped).count());
    let (dropped, mended) = (of(true), of(false));
    if output.json() {
        let languages: Map<String, Value> = report
            .rows
            .iter()
            .map(|(language, rows)| {
                let value = json!({
                    "rows": rows,
                    "faults": report.counts.get(language),
                    "tokens_per_word": report.fertility.get(language),
                });
                (language.to_string(), value)
            })
            .collect();
        output.object(&json!({
            "rows": rows,
            "faults": report.faults.len(),
            "unreadable_rows": left_out,
            "languages": languages,
            "languages_that_differ": differences.len(),
            "dropped_rows": dropped,
            "mended_rows": mended,
        }))?;
        return Ok(());
    }
    if io::stdout().is_terminal() {
        table(report).iter().try_for_each(|line| output.line(line))?;
    } else {
        output.line(report.to_string().trim_end())?;
    }
    output.line(format!(
        "{rows} rows, {} faults, {left_out} rows that could not be read",
        report.faults.len()
    ))?;
    if let (Some(dropped), Some(mended)) = (dropped, mended) {
        output.line(format!("{dropped} rows dropped, {mended} mended"))?;
    }
    Ok(())
}
