//! `polypaca identify`: the languages of responses, and the gate.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write, stdout};
use std::num::ParseFloatError;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use instructions::language::Language;
use judge::confusion::{ConfusionCheck, PassCounts, WordLists, read_word_lists};
use judge::gate::{GateRow, GateRules, SetAside, Short, read_gate_rows, sweep, write_gate_lines};
use judge::identify::{Identifier, disagreements, identifier};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::Output;

/// What `--compare` calls the embedded identifier.
const LINGUA: &str = "lingua";

/// Identifies the language of each response: on standard output a JSON line with id, label (the model's own),
/// language, probability and gate
#[derive(Debug, Args)]
#[command(override_usage = "polypaca identify <FILE.jsonl> [OPTIONS]")]
pub(crate) struct Identify {
    /// Responses: JSONL with `id` and `response`
    #[arg(value_name = "FILE.jsonl")]
    responses: PathBuf,

    /// A fastText model, .bin or .ftz; the embedded lingua unless given
    #[arg(long, value_name = "MODEL")]
    lid: Option<PathBuf>,

    /// The language asked for, where a line names none
    #[arg(long, value_name = "CODE")]
    language: Option<Language>,

    /// Give only labels of these languages
    #[arg(long, value_name = "CODE", num_args = 1..)]
    labels: Option<Vec<Language>>,

    /// The least probability with which the gate opens
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability::<f32>)]
    threshold: f32,

    /// Responses of fewer letters are short
    #[arg(long, value_name = "LETTERS", default_value_t = 0)]
    shortest: usize,

    /// How short responses go
    #[arg(long, value_enum, default_value_t = ShortRule::Identify, requires = "shortest")]
    short: ShortRule,

    /// Set code and URLs aside before identifying
    #[arg(long)]
    set_aside_code: bool,

    /// Set quotations aside before identifying
    #[arg(long)]
    set_aside_quotations: bool,

    /// Instead, how many responses pass in each language at each of these thresholds
    #[arg(long, value_name = "P", num_args = 1.., group = "instead", value_parser = probability::<f32>)]
    sweep: Vec<f32>,

    /// Instead, the responses on which this identifier disagrees: further fastText models, or `lingua`
    #[arg(long, value_name = "MODEL", num_args = 1.., group = "instead")]
    compare: Vec<PathBuf>,

    /// Instead, the line, word and language confusion pass rates of each system in each language
    #[arg(long, group = "instead")]
    pass_rates: bool,

    /// With --pass-rates: a folder with a CODE.txt of words for each language, to tell words of one script apart
    #[arg(long, value_name = "DIR", requires = "pass_rates", conflicts_with_all = ["sweep", "compare"])]
    word_lists: Option<PathBuf>,
}

/// A flag's probability.
pub(super) fn probability<T>(text: &str) -> Result<T, String>
where
    T: FromStr<Err = ParseFloatError> + PartialOrd + From<f32>,
{
    let value: T = text.parse().map_err(|error: ParseFloatError| error.to_string())?;
    let fits = (T::from(0.0)..=T::from(1.0)).contains(&value);
    if fits { Ok(value) } else { Err("expected from 0 to 1".to_owned()) }
}

/// How short responses go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ShortRule {
    /// As they are identified, like any other
    Identify,
    /// They pass
    Pass,
    /// They fail
    Fail,
}

impl Identify {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let identifier =
            identifier(self.lid.as_deref(), self.labels.as_deref()).map_err(Failure::wrong_input)?;
        let (rows, bad) =
            read_gate_rows(&self.responses, self.language.as_ref()).map_err(Failure::wrong_input)?;
        self.warn_of_unknown(&*identifier, &rows, output);
        let mut lines = BufWriter::new(stdout().lock());
        if !self.sweep.is_empty() {
            self.write_sweep(&*identifier, &rows, &mut lines)?;
        } else if !self.compare.is_empty() {
            self.write_disagreements(&*identifier, &rows, &mut lines)?;
        } else if self.pass_rates {
            self.write_pass_rates(&*identifier, &rows, &mut lines)?;
        } else {
            write_gate_lines(rows, &self.rules(), &*identifier, &mut lines)?;
        }
        lines.flush()?;
        for line in &bad {
            output.warning(format!("{}:{}: {}", self.responses.display(), line.line, line.found));
        }
        Ok(if bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn rules(&self) -> GateRules {
        let short = match self.short {
            ShortRule::Identify => Short::Identify,
            ShortRule::Pass => Short::Pass,
            ShortRule::Fail => Short::Fail,
        };
        let set_aside = SetAside {
            code: self.set_aside_code,
            urls: self.set_aside_code,
            quotations: self.set_aside_quotations,
        };
        GateRules { threshold: self.threshold, set_aside, shortest: self.shortest, short }
    }

    /// Tells languages asked for of which the identifier has no label: none of their responses can pass.
    fn warn_of_unknown(&self, identifier: &dyn Identifier, rows: &[GateRow], output: &Output) {
        let mut unknown: BTreeMap<&Language, usize> = BTreeMap::new();
        for expected in rows.iter().filter_map(|row| row.expected.as_ref()) {
            if !identifier.knows(expected) {
                *unknown.entry(expected).or_default() += 1;
            }
        }
        let name = self.lid.as_ref().map_or(LINGUA.to_owned(), |path| path.display().to_string());
        for (language, responses) in unknown {
            let advice = if self.lid.is_some() { "" } else { "; --lid names a fastText model" };
            output.warning(format!(
                "{name} has no label for {language}: none of its {responses} responses can pass{advice}"
            ));
        }
    }

    fn write_sweep(
        &self,
        identifier: &dyn Identifier,
        rows: &[GateRow],
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let mut languages: BTreeMap<&Language, Vec<(&str, &Language)>> = BTreeMap::new();
        for row in rows {
            if let Some(expected) = &row.expected {
                languages.entry(expected).or_default().push((&row.response, expected));
            }
        }
        for (language, responses) in languages {
            for point in sweep(&self.rules(), identifier, &responses, &self.sweep) {
                let line = json!({
                    // As it was given, and not as a longer number holds it.
                    "language": language.code(), "threshold": (f64::from(point.threshold) * 1e6).round() / 1e6,
                    "passed": point.passed, "responses": point.responses,
                });
                writeln!(out, "{line}")?;
            }
        }
        Ok(())
    }

    fn write_disagreements(
        &self,
        first: &dyn Identifier,
        rows: &[GateRow],
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let others = self.compare.iter().map(|model| {
            let model = (model.as_os_str() != LINGUA).then_some(model.as_path());
            identifier(model, self.labels.as_deref()).map_err(Failure::wrong_input)
        });
        let others = others.collect::<Result<Vec<_>, _>>()?;
        let identifiers: Vec<&dyn Identifier> =
            std::iter::once(first).chain(others.iter().map(|other| &**other)).collect();
        let set_aside = self.rules().set_aside;
        let texts: Vec<String> = rows.iter().map(|row| set_aside.rest(&row.response).into_owned()).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for found in disagreements(&identifiers, &texts) {
            let labels: Vec<Value> = found
                .identified
                .iter()
                .map(|identified| json!({ "label": identified.label, "probability": identified.probability }))
                .collect();
            let row = &rows[found.text];
            let expected = row.expected.as_ref().map(Language::code);
            let line = json!({
                "id": row.id, "system": row.system, "expected": expected, "identified": labels,
                "response": row.response,
            });
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    fn write_pass_rates(
        &self,
        identifier: &dyn Identifier,
        rows: &[GateRow],
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let lists = match &self.word_lists {
            Some(folder) => read_word_lists(folder).map_err(Failure::wrong_input)?,
            None => WordLists::new(),
        };
        let mut cells: BTreeMap<(&Language, Option<&str>), Vec<&str>> = BTreeMap::new();
        for row in rows {
            if let Some(expected) = &row.expected {
                cells.entry((expected, row.system.as_deref())).or_default().push(&row.response);
            }
        }
        for ((language, system), responses) in cells {
            let check =
                ConfusionCheck::new(language, identifier, self.rules(), &lists).map_err(Failure::failed)?;
            let counts: PassCounts = check.count(responses);
            let line = json!({
                "language": language.code(), "system": system, "counts": counts,
                "line_pass_rate": counts.line_pass_rate(), "word_pass_rate": counts.word_pass_rate(),
                "language_confusion_pass_rate": counts.language_confusion_pass_rate(),
            });
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}
